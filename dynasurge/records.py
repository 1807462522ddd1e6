"""Records: one JSON object a prompt, and the summary that is a function of them.

`records.jsonl` only ever grows by whole lines, so a killed run loses at most the prompt it was in: opening the folder
again drops a torn last line, and the finished prompts are skipped.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dynasurge.acceptance import load_priors
from dynasurge.config import Settings
from dynasurge.data import Prompt
from dynasurge.errors import UsageError
from dynasurge.files import write_whole
from dynasurge.generation import Generation
from dynasurge.growmap import load_growmap

PHASES = ("draft", "target", "verify", "other")
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a run of one setting came to. Seconds are wall time.

    accepted_per_step: mean drafted tokens accepted per target pass; tokens_per_step: that + 1, the bonus token.
    tokens_per_second and latency_per_token_s: decoding only; latency_per_request_s: a whole prompt, prefill included.
    acceptance_histogram: {accepted: steps}. *_seconds: totals over the run; the four phases make up decoding.
    """

    label: str
    lossless: bool
    prompts: int
    tokens: int
    steps: int
    tokens_per_second: float
    latency_per_token_s: float
    latency_per_request_s: float
    accepted_per_step: float
    tokens_per_step: float
    tree_size_per_step: float
    acceptance_histogram: dict[int, int]
    prefill_seconds: float
    draft_seconds: float
    target_seconds: float
    verify_seconds: float
    other_seconds: float


def make_row(label: str, run: str, settings: Settings, dataset: str, prompt: Prompt, result: Generation) -> Row:
    """The record of one prompt under one setting."""
    steps = result.steps
    row: Row = {
        "label": label,
        "run": run,
        "lossless": settings.lossless,
        "settings": settings.to_dict(),
        "dataset": dataset,
        "index": prompt.index,
        "id": prompt.id,
        "kind": prompt.kind,
        "prompt_ids": result.prompt_ids,
        "output_ids": result.output_ids,
        "text": result.text,
        "accepted": [step.accepted for step in steps],
        "tree_size": [step.tree.size for step in steps],
        "tree_depth": [step.tree.depth for step in steps],
        "tree_width": [step.tree.width for step in steps],
        "seconds": result.seconds,
        "prefill_seconds": result.prefill_seconds,
    }
    for phase in PHASES:
        row[f"{phase}_seconds"] = sum(getattr(step, f"{phase}_seconds") for step in steps)
    return row


def summarise(rows: Sequence[Row]) -> Summary:
    """Sum up the rows of one setting (at least one row)."""
    totals = {phase: sum(row[f"{phase}_seconds"] for row in rows) for phase in PHASES}
    accepted = [count for row in rows for count in row["accepted"]]
    tokens, decoding = sum(len(row["output_ids"]) for row in rows), sum(totals.values())
    return Summary(
        label=rows[0]["label"],
        lossless=rows[0]["lossless"],
        prompts=len(rows),
        tokens=tokens,
        steps=len(accepted),
        tokens_per_second=tokens / decoding,
        latency_per_token_s=decoding / tokens,
        latency_per_request_s=sum(row["seconds"] for row in rows) / len(rows),
        accepted_per_step=sum(accepted) / len(accepted),
        tokens_per_step=sum(accepted) / len(accepted) + 1,
        tree_size_per_step=sum(size for row in rows for size in row["tree_size"]) / len(accepted),
        acceptance_histogram=dict(sorted(Counter(accepted).items())),
        prefill_seconds=sum(row["prefill_seconds"] for row in rows),
        **{f"{phase}_seconds": totals[phase] for phase in PHASES},
    )


def run_name(settings: Settings, dataset: str) -> str:
    """Names a setting on a dataset, its files by content; rows with the same name belong together."""
    files = str(load_growmap(settings.growmap).parents) if settings.growmap is not None else ""
    if settings.priors is not None:
        files += str(load_priors(settings.priors))
    return f"{settings.hash()}-{hashlib.sha256(files.encode()).hexdigest()[:4]}-{dataset}"


class RecordFile:
    """An output folder: appends rows to `records.jsonl`, writes `summary.json`. None keeps everything in memory."""

    def __init__(self, folder: Path | None, runs: Sequence[str]) -> None:
        """runs: the run names this folder may hold. Raises UsageError if it holds others or cannot be written."""
        self._folder = folder
        self.rows: list[Row] = []
        if folder is None:
            return
        self._path = folder / "records.jsonl"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.rows = _read_whole_lines(self._path)
            self._path.touch()  # find out now, not after the first prompt
        except OSError as error:
            raise _unwritable(folder, error) from error
        strangers = {row["run"] for row in self.rows} - set(runs)
        if strangers:
            reason = f"holds records of other settings ({min(strangers)})"
            raise UsageError("--output", folder, reason, "name another folder, or remove it")

    def find(self, run: str, prompt: Prompt, prompt_ids: Sequence[int]) -> Row | None:
        """This prompt's row, if it is already there. Raises UsageError if that row is of another text."""
        for row in self.rows:
            if row["run"] == run and row["index"] == prompt.index:
                if row["prompt_ids"] != list(prompt_ids):
                    reason = f"holds row {prompt.index} of another text"
                    raise UsageError("--output", self._folder, reason, "the dataset has changed: name another folder")
                return row
        return None

    def append(self, row: Row) -> None:
        """Add a row, whole, and see it to the disk."""
        if self._folder is not None:
            try:
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                raise _unwritable(self._folder, error) from error
        self.rows.append(row)

    def write_summary(self, summaries: Sequence[Summary], about: dict[str, Any]) -> None:
        """Write `summary.json`, whole or not at all. about: versions, device, command, date."""
        if self._folder is None:
            return
        body = {"about": about, "runs": [asdict(summary) for summary in summaries]}
        try:
            with write_whole(self._folder / "summary.json") as partial:
                partial.write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise _unwritable(self._folder, error) from error


def _unwritable(folder: Path, error: OSError) -> UsageError:
    return UsageError(
        "--output", folder, f"cannot be written ({error.strerror})", "make room there, or name another folder"
    )


def _read_whole_lines(path: Path) -> list[Row]:
    """The rows of a records file; a last line that a kill tore is cut off the file."""
    if not path.exists():
        return []
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    rows: list[Row] = []
    for number, line in enumerate(whole.split(b"\n")[:-1], start=1):
        try:
            rows.append(json.loads(line))
            rows[-1]["run"], rows[-1]["index"], rows[-1]["prompt_ids"]
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(
                "--output", path, f"line {number} is no record", "mend it, or name another folder"
            ) from error
    if whole != data:
        with path.open("r+b") as file:
            file.truncate(len(whole))
    return rows
