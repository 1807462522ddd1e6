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
    """What one setting did with one prompt; one line of `records.jsonl`.

    run, hash: names of the setting (row_maker.py). every: 0; or a tree was grown every so many
    tokens of a given text (output_ids is then that text). settings, about: see `Settings.to_dict`
    and provenance.py.

    One entry a step: accepted, tree_size, tree_depth, tree_width, passes. ranks: the sibling rank
    of every node of the accepted path. children: how many children each node had at which a choice
    was made, the root and then the path (without the path's last node if the text ended there).
    expected: how many tokens of that tree the rule accepts on average. confidence: see `Draft`;
    None if the draft proposed nothing.

    One entry a level, sums over steps: predicted, the slot values, () without estimates; reached,
    the probabilities that the path went through the nodes. Seconds are wall time.
    """

    format: int = FORMAT
    label: str
    run: str
    hash: str
    lossless: bool
    settings: dict[str, Any]
    dataset: str
    revision: str | None
    index: int
    id: str
    kind: str
    every: int = 0
    prompt_ids: list[int]
    output_ids: list[int]
    text: str
    accepted: list[int]
    ranks: list[list[int]]
    children: list[list[int]]
    expected: list[float]
    predicted: list[float]
    reached: list[float]
    tree_size: list[int]
    tree_depth: list[int]
    tree_width: list[int]
    passes: list[int]
    confidence: list[float | None]
    seconds: float
    prefill_seconds: float
    draft_seconds: float
    target_seconds: float
    verify_seconds: float
    other_seconds: float
    about: dict[str, str | None]

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
    """The results of one setting over a run. Seconds are wall time.

    accepted_per_step: mean drafted tokens accepted per target pass. tokens_per_step: that + 1, the
    bonus token. tokens_per_second and latency_per_token_s: decoding only, medians over prompts, so
    one stalled prompt does not change them. latency_per_request_s: reading the prompt, and all
    `new_tokens` at its speed, also if its text ended early; the median. speedup: tokens per second
    over those of the first setting on the same prompt, the median. over_floor: the speed over that
    of reading the target's weights once a token (models/memory_floor.py); None if rows do not know
    it. acceptance_histogram: {accepted: steps}. *_seconds: totals over the run; the four phases make
    up decoding.
    """

    label: str
    lossless: bool
    prompts: int
    tokens: int
    steps: int
    tokens_per_second: float
    speedup: float
    latency_per_token_s: float
    latency_per_request_s: float
    accepted_per_step: float
    tokens_per_step: float
    tree_size_per_step: float
    over_floor: float | None
    acceptance_histogram: dict[int, int]
    prefill_seconds: float
    draft_seconds: float
    target_seconds: float
    verify_seconds: float
    other_seconds: float


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
