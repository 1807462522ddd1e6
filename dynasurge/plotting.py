"""Figures: functions of records, in one style that survives colour-blind eyes and grey print."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dynasurge.records import Summary

BAR, LINE, INK, FAINT = "#9ecae1", "#a63603", "#222222", "#dddddd"


def compare_figure(summaries: Sequence[Summary], caption: str) -> Figure:
    """Decoding speed as bars, each with its ratio to the first, and tokens per target pass as dots."""
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    speed = figure.subplots()
    places = range(len(summaries))
    bars = speed.bar(places, [s.tokens_per_second for s in summaries], color=BAR, edgecolor=INK, width=0.55)
    base = summaries[0].tokens_per_second
    labels = [f"{s.tokens_per_second:.1f}\n{s.tokens_per_second / base:.2f}x" for s in summaries]
    speed.bar_label(bars, labels, label_type="center", color=INK)
    speed.set_xticks(places, [s.label for s in summaries])
    speed.set_ylabel("decoding speed (tokens / s, bars)")
    for bar, summary in zip(bars, summaries, strict=True):
        bar.set_hatch("" if summary.lossless else "//")
    speed.margins(y=0.15)
    speed.grid(axis="y", color=FAINT)
    speed.set_axisbelow(True)
    length = speed.twinx()
    length.plot(places, [s.tokens_per_step for s in summaries], color=LINE, marker="D", linestyle="none")
    length.set_ylabel("tokens per target pass (diamonds)", color=LINE)
    length.set_ylim(0, 1.3 * max(s.tokens_per_step for s in summaries))
    for axes in (speed, length):
        axes.spines["top"].set_visible(False)
    figure.supxlabel(caption, fontsize=8, color=INK)
    return figure


def save_figure(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write NAME.png and NAME.svg. Returns their paths."""
    paths = [folder / f"{name}.{suffix}" for suffix in ("png", "svg")]
    for path in paths:
        figure.savefig(path, dpi=200)
    return paths
