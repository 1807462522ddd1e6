"""The figure of a tree's shape, and how a figure becomes a file.

Figures of measurements (acceptance, budgets, rules) are in plots/study_figures.py and
plots/rule_figures.py.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dynasurge.errors import UsageError
from dynasurge.files import write_whole
from dynasurge.plots.style import FAINT, INK, PLAIN, RC, new_figure, styled
from dynasurge.plots.tree_layout import tree_positions
from dynasurge.plots.tree_svg import LIGHT
from dynasurge.trees.token_tree import children_of, depths_of

PAGE = 30.0  # inches: the largest side of a tree figure
PIXELS = 96.0  # pixels an inch, as on a page


@styled
def tree_figure(
    parents: Sequence[int], *, labels: Sequence[str] | None = None, caption: str = ""
) -> Figure:
    """A tree with its root on top and siblings from left to right in drawing order.

    parents: -1 for the root, parents[u] < u, as in a Growmap or a TokenTree. labels: one a node,
    None for its number. (A tree too wide for one page is drawn as dots.)
    """
    depths, xs = depths_of(parents), tree_positions(parents)
    names = [str(u) for u in range(len(parents))] if labels is None else labels
    left, width, levels = min(xs), max(xs) - min(xs) + 1, max(depths) + 1
    wanted = 0.12 + 0.075 * max(
        len(name) for name in names
    )  # inches: a label of 7 points and its box
    across, down = min(wanted, PAGE / width), min(0.45, PAGE / levels)
    inches = max(across * width + 0.6, 0.065 * len(caption) + 0.3)
    figure = new_figure(inches, down * levels + 0.6)
    axes = figure.subplots()
    # A stem, a bar and a drop for each child: straight edges to the last of many siblings would run
    # through other boxes.
    edges = [[(x, depth - 0.5), (x, depth)] for x, depth in zip(xs, depths, strict=True) if depth]
    for u, family in enumerate(children_of(parents)):
        if family:
            edges += [[(xs[u], depths[u]), (xs[u], depths[u] + 0.5)]]
            edges += [[(xs[family[0]], depths[u] + 0.5), (xs[family[-1]], depths[u] + 0.5)]]
    axes.add_collection(
        LineCollection(edges, colors=INK, linewidths=0.7, capstyle="projecting", zorder=1),
        autolim=False,
    )
    if across < wanted or down < 0.3:
        axes.scatter(
            xs,
            depths,
            s=(50 * min(across, down)) ** 2,
            color=PLAIN,
            edgecolors=INK,
            linewidths=0.3,
            zorder=2,
        )
    else:
        box = {"boxstyle": "round,pad=0.25", "edgecolor": INK, "linewidth": 0.6}
        for u, name in enumerate(names):
            style = {**box, "facecolor": PLAIN if u else LIGHT["root"]}
            axes.text(
                xs[u],
                depths[u],
                name,
                fontsize=7,
                ha="center",
                va="center",
                bbox=style,
                parse_math=False,
            )
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


def save_figure(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write NAME.png and NAME.svg. Returns their paths. Raises UsageError if one cannot be
    written."""
    paths = [folder / f"{name}.{suffix}" for suffix in ("png", "svg")]
    for path in paths:
        write_figure(figure, path)
    return paths


def write_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write one .png or .svg file, whole or not at all. The same figure gives the same file. Raises
    UsageError if it cannot be written, or has another suffix."""
    suffix = Path(path).suffix.lower()
    if suffix not in (".png", ".svg"):
        raise UsageError("--output", path, "not a .png or .svg file", "use --output tree.png")
    try:
        with write_whole(path) as partial, matplotlib.rc_context(RC):
            dateless = {"Date": None} if suffix == ".svg" else {"Software": None}
            figure.savefig(partial, format=suffix[1:], dpi=200, metadata=dateless)
    except OSError as error:
        raise UsageError(
            "--output", path, f"cannot be written ({error})", "name a writable path"
        ) from error
