"""The record of one prompt under one setting (a row), and the sums over the rows of a setting.

Nothing here needs torch, so tables of records can be read without a model.
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dynasurge.settings import PHASES

FORMAT = 3  # a row's version; 2 had neither every, expected, predicted nor reached


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one setting did with one prompt; one line of `records.jsonl`. A level's entry is a sum
    over steps. Seconds are wall time."""

    format: int = FORMAT  #: the version of these fields; others are refused
    label: str  #: the setting as tables name it
    run: str  #: the name of setting, dataset and files; rows of one run have the same
    hash: str  #: the name of the setting alone
    lossless: bool  #: whether the text has the target's own distribution
    settings: dict[str, Any]  #: every field of `Settings`
    dataset: str  #: its name, or the path of its file
    revision: str | None  #: the dataset's commit on the hub
    index: int  #: the prompt's place in the dataset, from 0
    id: str  #: the prompt's name in the dataset
    kind: str  #: the prompt's kind, as news or code; empty if the dataset names none
    every: int = 0  #: 0; or a tree was grown every so many tokens of a given text
    prompt_ids: list[int]  #: the prompt's token ids
    output_ids: list[int]  #: the token ids that were emitted, or the given text's
    text: str  #: the emitted text, without special tokens
    accepted: list[int]  #: by step: how many drafted tokens were accepted
    ranks: list[list[int]]  #: by step: the sibling rank of every node of the accepted path
    #: by step: how many children each node had at which a choice was made, the root and then the
    #: path (without the path's last node if the text ended there)
    children: list[list[int]]
    expected: list[float]  #: by step: how many tokens of that tree the rule accepts on average
    predicted: list[float]  #: by level: the slot values; empty without estimates
    reached: list[float]  #: by level: the probabilities that the path went through the nodes
    tree_size: list[int]  #: by step: drafted nodes
    tree_depth: list[int]  #: by step: levels
    tree_width: list[int]  #: by step: nodes of the widest level
    passes: list[int]  #: by step: draft passes
    confidence: list[float | None]  #: by step: the draft's; none if it proposed nothing
    seconds: float  #: the whole time, with the passes over the prompt
    prefill_seconds: float  #: both models' passes over the prompt
    draft_seconds: float  #: drafting
    target_seconds: float  #: the target's passes
    verify_seconds: float  #: verification
    other_seconds: float  #: the loop, caches, bookkeeping
    about: dict[str, str | None]  #: device, dtype, memory floor, date, versions, commit

    @classmethod
    def from_json(cls, line: str | bytes) -> Row:
        """Read a line. Raises FormatError for a row of another version, ValueError or TypeError for
        a line that is no row."""
        data = json.loads(line)
        if not isinstance(data, dict) or "run" not in data:
            raise TypeError("names no run")
        if data.get("format", 1) != FORMAT:
            raise FormatError(data.get("format", 1))
        row = cls(**data)
        hash((row.run, row.index))
        for name in ("prompt_ids", "output_ids", "predicted", "reached", *PER_STEP):
            if not isinstance(getattr(row, name), list):
                raise TypeError(f"{name} is no list")
        if len({len(getattr(row, name)) for name in PER_STEP}) > 1:
            raise ValueError("lists by step differ in length")
        if len(row.predicted) not in (0, len(row.reached)):
            raise ValueError("lists by level differ in length")
        if not isinstance(row.settings, dict) or not isinstance(row.about, dict):
            raise TypeError("settings and about are no dictionaries")
        for name in ("seconds", "prefill_seconds", *(f"{phase}_seconds" for phase in PHASES)):
            if not 0 <= getattr(row, name) < math.inf:
                raise ValueError(f"{name} is {getattr(row, name)}")
        for name, needed in (("settings", "T"), ("about", "device"), ("about", "dtype")):
            if needed not in getattr(row, name):
                raise ValueError(f"{name} has no {needed}")
        return row

    def to_json(self) -> str:
        """One line, without its line end."""
        return json.dumps({field.name: getattr(self, field.name) for field in FIELDS})

    @property
    def tokens(self) -> float:
        """How many tokens the steps are worth: those of the text. If trees were grown along a given
        text, the mean number that the same steps emit."""
        return len(self.output_ids) if not self.every else sum(self.expected) + len(self.expected)

    @property
    def accepted_tokens(self) -> float:
        """How many of `tokens` were drafted."""
        return sum(self.expected) if self.every else sum(self.accepted)

    @property
    def decode_seconds(self) -> float:
        """Seconds without the passes over the prompt."""
        return self.draft_seconds + self.target_seconds + self.verify_seconds + self.other_seconds


FIELDS = dataclasses.fields(Row)
PER_STEP = (
    *("accepted", "ranks", "children", "expected", "confidence"),
    *("tree_size", "tree_depth", "tree_width", "passes"),
)


class FormatError(ValueError):
    """A row has another version's format."""

    def __init__(self, version: object) -> None:
        super().__init__(f"format {version}, this one's is {FORMAT}")


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The results of one setting over a run; one entry of `summary.json`. Seconds are wall time.
    Medians are over prompts, so one stalled prompt does not change them."""

    label: str  #: the setting
    lossless: bool  #: whether the text has the target's own distribution
    prompts: int  #: how many prompts
    tokens: int  #: how many tokens were emitted
    steps: int  #: how many target passes
    tokens_per_second: float  #: decoding only, without the prompt; the median
    speedup: float  #: tokens per second over the first setting's on the same prompt; the median
    latency_per_token_s: float  #: decoding only; the median
    #: reading the prompt, and all `new_tokens` at its speed, also if the text ended early; the median
    latency_per_request_s: float
    accepted_per_step: float  #: mean *drafted* tokens accepted per target pass
    #: that + 1: a pass also emits a bonus token (but for a last pass that the text's end cuts)
    tokens_per_step: float
    tree_size_per_step: float  #: mean drafted nodes
    #: the speed over that of reading the target's weights once a token, at the bandwidth measured
    #: here (models/memory_floor.py): to compare machines; none if rows do not know it
    over_floor: float | None
    acceptance_histogram: dict[int, int]  #: how many passes accepted 0, 1, 2, ... drafted tokens
    prefill_seconds: float  #: the passes over the prompts, in all
    draft_seconds: float  #: drafting, in all
    target_seconds: float  #: the target's passes, in all
    verify_seconds: float  #: verification, in all
    other_seconds: float  #: the loop, caches, bookkeeping, in all


def summarise(rows: Sequence[Row], first: Sequence[Row]) -> Summary:
    """Sum up the rows of one setting (at least one row). first: those of the run's first setting on
    the same prompts."""
    totals = {phase: sum(getattr(row, f"{phase}_seconds") for row in rows) for phase in PHASES}
    accepted = [count for row in rows for count in row.accepted]
    mean = sum(row.accepted_tokens for row in rows) / len(accepted)
    token = {row.index: row.decode_seconds / row.tokens for row in rows}
    base = {row.index: row.decode_seconds / row.tokens for row in first}
    latency, floor = statistics.median(token.values()), rows[0].about.get("floor_ms")
    return Summary(
        label=rows[0].label,
        lossless=rows[0].lossless,
        prompts=len(rows),
        tokens=round(sum(row.tokens for row in rows)),
        steps=len(accepted),
        tokens_per_second=statistics.median(1 / seconds for seconds in token.values()),
        speedup=statistics.median(base[index] / seconds for index, seconds in token.items()),
        latency_per_token_s=latency,
        latency_per_request_s=statistics.median(
            row.prefill_seconds + token[row.index] * row.settings["new_tokens"] for row in rows
        ),
        accepted_per_step=mean,
        tokens_per_step=mean + 1,
        tree_size_per_step=sum(size for row in rows for size in row.tree_size) / len(accepted),
        over_floor=None if floor is None else float(floor) / 1e3 / latency,
        acceptance_histogram=dict(sorted(Counter(accepted).items())),
        prefill_seconds=sum(row.prefill_seconds for row in rows),
        **{f"{phase}_seconds": totals[phase] for phase in PHASES},
    )
