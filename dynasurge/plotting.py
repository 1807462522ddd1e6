"""Figures: functions of records, in one style that survives colour-blind eyes and grey print."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dynasurge.records import Summary

SPEED, LENGTH, INK, FAINT = "#9ecae1", "#fdae6b", "#222222", "#dddddd"


def compare_figure(summaries: Sequence[Summary], caption: str) -> Figure:
    """Decoding speed, with its ratio to the first, beside tokens per target pass; one bar a mode, lossy ones hatched."""
    figure = Figure(figsize=(4.0 + 1.2 * len(summaries), 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    base = summaries[0].tokens_per_second
    left, right = figure.subplots(1, 2)
    speeds = [s.tokens_per_second for s in summaries]
    _bars(left, summaries, speeds, [f"{v:.1f}\n{v / base:.2f}x" for v in speeds], SPEED)
    left.set_ylabel("decoding speed (tokens / s)")
    lengths = [s.tokens_per_step for s in summaries]
    _bars(right, summaries, lengths, [f"{v:.2f}" for v in lengths], LENGTH)
    right.set_ylabel("tokens per target pass")
    figure.supxlabel(caption, fontsize=8, color=INK)
    return figure


def _bars(axes: Axes, summaries: Sequence[Summary], values: list[float], labels: list[str], colour: str) -> None:
    bars = axes.bar(range(len(values)), values, color=colour, edgecolor=INK, width=0.6)
    axes.bar_label(bars, labels, padding=2, color=INK, fontsize=9)
    for bar, summary in zip(bars, summaries, strict=True):
        bar.set_hatch("" if summary.lossless else "//")
    names = [s.label.replace(" ", "\n", 1) for s in summaries]
    axes.set_xticks(range(len(values)), names, fontsize=9)
    axes.margins(y=0.2)
    axes.grid(axis="y", color=FAINT)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def save_figure(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write NAME.png and NAME.svg. Returns their paths."""
    paths = [folder / f"{name}.{suffix}" for suffix in ("png", "svg")]
    for path in paths:
        figure.savefig(path, dpi=200)
    return paths
