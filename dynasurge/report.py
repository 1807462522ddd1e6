"""What the commands say: tables as text, and where numbers come from. Nothing here prints (cli.py does)."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import platform
import shlex
import sys
from collections.abc import Sequence
from typing import Any

import torch

from dynasurge.models import Pair
from dynasurge.records import Row, Summary


def tokens_per_step(row: Row) -> float:
    """The mean over the target passes of one prompt."""
    accepted: list[int] = row["accepted"]
    return sum(accepted) / len(accepted) + 1


def verbose(row: Row) -> str:
    """One finished prompt: how it went, and its text."""
    head = f"[{row['id']} {row['kind']}] {row['label']}: {tokens_per_step(row):.2f} tokens/step, {row['seconds']:.1f} s"
    return f"{head}\n  accepted: {' '.join(map(str, row['accepted']))}\n  text: {row['text']!r}"


def about(pair: Pair, dataset: str) -> dict[str, Any]:
    """What a reader needs to repeat or to distrust the numbers."""
    device = pair.target.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    return {
        "command": shlex.join(["dynasurge", *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "draft": pair.draft_name,
        "target": pair.target_name,
        "dataset": dataset,
        "device": f"{name}, {str(pair.target.dtype).removeprefix('torch.')}",
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("dynasurge", "torch", "transformers")},
    }


def table(summaries: Sequence[Summary]) -> str:
    """One column a setting, one row a quantity, under the names of summary.json."""
    rows: list[list[str]] = [["", *(s.label for s in summaries)]]
    for field in dataclasses.fields(summaries[0]):
        if field.name not in ("label", "acceptance_histogram"):
            rows.append([field.name, *(_number(getattr(s, field.name)) for s in summaries)])
    base = summaries[0].tokens_per_second
    if len(summaries) > 1:
        rows.append([f"speed-up over {summaries[0].label}", *(f"{s.tokens_per_second / base:.2f}x" for s in summaries)])
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


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.4f}" if value < 0.1 else f"{value:.2f}"
