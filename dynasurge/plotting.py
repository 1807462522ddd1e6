"""Figures: functions of records, in one style that survives colour-blind eyes and grey print."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dynasurge.errors import UsageError
from dynasurge.files import write_whole
from dynasurge.records import Summary
from dynasurge.tree import children_of, depths_of

PAGE = 30.0  # inches: the largest figure that is still looked at
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


def tree_figure(parents: Sequence[int], *, labels: Sequence[str] | None = None, caption: str = "") -> Figure:
    """A tree with its root on top and siblings from left to right in drawing order.

    parents: -1 for the root, parents[u] < u, as in a Growmap or a TokenTree. labels: one a node, its number if None (a tree
    too wide to be read on one page is drawn as dots).
    """
    depths, xs = depths_of(parents), tree_positions(parents)
    names = [str(u) for u in range(len(parents))] if labels is None else labels
    left, width, levels = min(xs), max(xs) - min(xs) + 1, max(depths) + 1
    wanted = 0.12 + 0.075 * max(len(name) for name in names)  # inches: a label of 7 points and its box
    across, down = min(wanted, PAGE / width), min(0.45, PAGE / levels)
    inches = max(across * width + 0.6, 0.065 * len(caption) + 0.3)
    figure = Figure(figsize=(inches, down * levels + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    # A stem, a bar and a drop a child: straight edges to the last of many siblings would run through the boxes of others.
    edges = [[(x, depth - 0.5), (x, depth)] for x, depth in zip(xs, depths, strict=True) if depth]
    for u, family in enumerate(children_of(parents)):
        if family:
            edges += [[(xs[u], depths[u]), (xs[u], depths[u] + 0.5)]]
            edges += [[(xs[family[0]], depths[u] + 0.5), (xs[family[-1]], depths[u] + 0.5)]]
    axes.add_collection(
        LineCollection(edges, colors=INK, linewidths=0.7, capstyle="projecting", zorder=1), autolim=False
    )
    if across < wanted or down < 0.3:
        axes.scatter(xs, depths, s=(50 * min(across, down)) ** 2, color=SPEED, edgecolors=INK, linewidths=0.3, zorder=2)
    else:
        box = {"boxstyle": "round,pad=0.25", "edgecolor": INK, "linewidth": 0.6}
        for u, name in enumerate(names):
            style = {**box, "facecolor": SPEED if u else LENGTH}
            axes.text(xs[u], depths[u], name, fontsize=7, ha="center", va="center", bbox=style, parse_math=False)
    axes.set_xlim(left - 0.6, left + width - 0.4)
    axes.set_ylim(levels - 0.5, -0.5)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=min(levels, 40), integer=True))
    axes.set_ylabel("level", fontsize=8, color=INK)
    axes.set_xticks([])
    axes.grid(axis="y", color=FAINT)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=8, labelcolor=INK)
    figure.supxlabel(caption, fontsize=8, color=INK, parse_math=False)
    return figure


def tree_positions(parents: Sequence[int]) -> list[float]:
    """x of every node, the root at 0, such that nodes of one level are at least 1 apart and no edges cross.

    From the leaves up, each subtree moves as close to its earlier siblings as the outlines of both allow, and a parent
    stands over the middle of its children (Reingold and Tilford, 1981).
    """
    children = children_of(parents)
    shift = [0.0] * len(parents)  # from the parent
    # lefts[u], rights[u]: the outline of u's subtree, on its own level and each below, relative to u
    lefts: list[list[float]] = [[0.0] for _ in parents]
    rights: list[list[float]] = [[0.0] for _ in parents]
    for u in reversed(range(len(parents))):
        left: list[float] = []
        right: list[float] = []
        for child in children[u]:
            move = max((r - c + 1 for r, c in zip(right, lefts[child], strict=False)), default=0.0)
            shift[child] = move
            left += [move + x for x in lefts[child][len(left) :]]
            right[: len(rights[child])] = [move + x for x in rights[child]]
            lefts[child] = rights[child] = []  # read once; a long chain would keep them all
        if children[u]:
            middle = shift[children[u][-1]] / 2
            for child in children[u]:
                shift[child] -= middle
            lefts[u] += [x - middle for x in left]
            rights[u] += [x - middle for x in right]
    for u, parent in enumerate(parents[1:], start=1):
        shift[u] += shift[parent]
    return shift


def save_figure(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write NAME.png and NAME.svg. Returns their paths."""
    paths = [folder / f"{name}.{suffix}" for suffix in ("png", "svg")]
    for path in paths:
        write_figure(figure, path)
    return paths


def write_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write one .png or .svg file, whole or not at all. Raises UsageError if it cannot be written, or is neither."""
    suffix = Path(path).suffix.lower()
    if suffix not in (".png", ".svg"):
        raise UsageError("--output", path, "not a .png or .svg file", "use --output tree.png")
    try:
        with write_whole(path) as partial:
            figure.savefig(partial, format=suffix[1:], dpi=200)
    except OSError as error:
        raise UsageError("--output", path, f"cannot be written ({error})", "name a writable path") from error
