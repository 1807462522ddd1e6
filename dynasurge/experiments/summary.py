"""The texts that commands print: tables, and where numbers come from. Nothing here prints
(cli/main.py does)."""

from __future__ import annotations

import dataclasses
import datetime
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dynasurge.experiments.datasets import Prompt
from dynasurge.experiments.provenance import provenance
from dynasurge.experiments.records import write_output
from dynasurge.experiments.schema import Row, Summary
from dynasurge.models.pair import Pair
from dynasurge.settings import pair_text

if TYPE_CHECKING:
    import pandas as pd

    from dynasurge.decoding.engines import Engines


def tokens_per_step(row: Row) -> float:
    """The mean tokens per target pass of one prompt."""
    accepted: list[int] = row.accepted
    return sum(accepted) / len(accepted) + 1


def verbose(row: Row) -> str:
    """One finished prompt: its numbers and its text."""
    head = f"[{row.id} {row.kind}] {row.label}: {tokens_per_step(row):.2f} tokens/step, {row.seconds:.1f} s"
    return f"{head}\n  accepted: {' '.join(map(str, row.accepted))}\n  text: {row.text!r}"


def about(pair: Pair, dataset: str, skipped: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """What a reader needs to repeat the numbers or to doubt them. skipped: see `Evaluation`."""
    return {
        "command": shlex.join(["dynasurge", *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "draft": pair.draft_name,
        "target": pair.target_name,
        "dataset": dataset,
        "skipped": {name: list(indices) for name, indices in skipped.items()},
        **provenance(pair),
    }


def made_with(about: dict[str, Any]) -> str:
    """The start of a figure's caption: pair, machine and date."""
    pair = pair_text(about["draft"], about["target"])
    return f"{pair}, {about['device']}, {about['dtype']}, {about['date']}"


def memory(engines: Engines, capture_seconds: float = 0.0) -> str:
    """A line with the memory that the run holds from now on: weights and caches, and on a GPU the
    total.

    capture_seconds: the time that capturing its steps took, with compilation.
    """
    parts = []
    for name, engine in (("target", engines.target), ("draft", engines.draft)):
        if engine is not None:
            weights, cache = engine.memory
            parts.append(f"{name} {_size(weights)} + {_size(cache)} for {engine.max_length} tokens")
    line = f"memory: {', '.join(parts)}"
    if engines.target.device.type == "cuda":
        used = torch.cuda.memory_allocated(engines.target.device)
        line += f"; {_size(used)} on the GPU in all; steps captured in {capture_seconds:.1f} s"
    return line


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def origins(frame: pd.DataFrame) -> str:
    """A line for rows that were not all made alike, because a sweep went on elsewhere or later;
    empty if they were."""
    made = frame.groupby(
        ["device", "dtype", "torch", "transformers", "commit"], dropna=False
    ).size()
    if len(made) == 1:
        return ""
    parts = [
        f"{n} on {device}, {dtype}, torch {torch}, transformers {transformers}, commit {commit}"
        for (device, dtype, torch, transformers, commit), n in made.items()
    ]
    return f"Rows of different origin, whose times should not be compared: {'; '.join(parts)}.\n\n"


def skipped(
    indices: Mapping[str, Sequence[int]], data: Mapping[str, Sequence[Prompt]], least: int
) -> list[str]:
    """A line for each dataset with prompts that were too short."""
    return [
        f"skipped {len(indices[name])} of {len(prompts)} prompts of {name}: fewer than {least} tokens"
        for name, prompts in data.items()
        if indices[name]
    ]


def cut(counts: Mapping[str, int], data: Mapping[str, Sequence[Prompt]], length: int) -> list[str]:
    """A line for each dataset with prompts that were cut to `length` tokens."""
    return [
        f"cut {counts[name]} of {len(prompts)} prompts of {name} to {length} tokens (--prompt-len)"
        for name, prompts in data.items()
        if counts[name]
    ]


def write_summary(folder: Path, summaries: Sequence[Summary], about: dict[str, Any]) -> list[Path]:
    """Write `summary.json`, whole or not at all. about: see `about`. Returns its path, in a
    list."""
    path = folder / "summary.json"
    body = {"about": about, "runs": [dataclasses.asdict(summary) for summary in summaries]}
    with write_output(path) as partial:
        partial.write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")
    return [path]


def table(summaries: Sequence[Summary]) -> str:
    """One column a setting, one row a quantity, with the names of summary.json."""
    rows: list[list[str]] = [["", *(s.label for s in summaries)]]
    for field in dataclasses.fields(summaries[0]):
        if field.name not in ("label", "speedup", "acceptance_histogram"):
            rows.append([field.name, *(_number(getattr(s, field.name)) for s in summaries)])
    if len(summaries) > 1:
        rows.append(
            [
                f"speed-up over {summaries[0].label}",
                *(f"{s.speedup:.2f}x" for s in summaries),
            ]
        )
    lines = [columns(rows)]
    for s in summaries:
        steps = "  ".join(f"{count}:{number}" for count, number in s.acceptance_histogram.items())
        lines.append(f"acceptance histogram, {s.label} (accepted:steps)  {steps}")
    return "\n".join(lines)


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Cells as text, aligned: the first column to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]))
    return "\n".join(lines)


def _number(value: float | None) -> str:
    if value is None or isinstance(value, int):
        return "" if value is None else str(value)
    return f"{value:.4f}" if value < 0.1 else f"{value:.2f}"
