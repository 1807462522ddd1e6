"""Figures of a run, a study and a tree, in the style of plots/style.py, and how a figure becomes a
file.

The notebooks' figures (acceptance, budgets, rules) are in plots/study_figures.py and
plots/rule_figures.py.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from dynasurge.errors import UsageError
from dynasurge.experiments.schema import Summary
from dynasurge.files import write_whole
from dynasurge.plots.style import (
    ETV,
    FAINT,
    INK,
    LENGTH,
    LOSSY,
    PLAIN,
    RC,
    SPEED,
    line_style,
    new_figure,
    quiet,
    say,
    styled,
)
from dynasurge.plots.tree_layout import tree_positions
from dynasurge.trees.token_tree import children_of, depths_of

if TYPE_CHECKING:
    import pandas as pd

PAGE = 30.0  # inches: the largest side of a tree figure
PIXELS = 96.0  # pixels an inch, as on a page


@styled
def compare_figure(summaries: Sequence[Summary], caption: str) -> Figure:
    """Decoding speed (median over prompts), with its ratio to the first (median of the ratios by
    prompt), next to tokens per target pass. One bar a setting; lossy ones are hatched."""
    figure = new_figure(4.0 + 1.2 * len(summaries), 3.8)
    left, right = figure.subplots(1, 2)
    speeds = [s.tokens_per_second for s in summaries]
    said = [f"{s.tokens_per_second:.1f}\n{s.speedup:.2f}x" for s in summaries]
    _bars(left, summaries, speeds, said, SPEED)
    left.set_ylabel("decoding speed (tokens / s)")
    lengths = [s.tokens_per_step for s in summaries]
    _bars(right, summaries, lengths, [f"{v:.2f}" for v in lengths], LENGTH)
    right.set_ylabel("tokens per target pass")
    say(figure, caption)
    return figure


def _bars(
    axes: Axes, summaries: Sequence[Summary], values: list[float], labels: list[str], colour: str
) -> None:
    bars = axes.bar(range(len(values)), values, color=colour, edgecolor=INK, width=0.6)
    axes.bar_label(bars, labels, padding=2, color=INK, fontsize=9)
    for bar, summary in zip(bars, summaries, strict=True):
        bar.set_hatch("" if summary.lossless else LOSSY)
    names = [s.label.replace(" ", "\n", 1) for s in summaries]
    axes.set_xticks(range(len(values)), names, fontsize=9)
    axes.margins(y=0.2)
    axes.grid(visible=True, axis="y")


@styled
def study_figure(table: pd.DataFrame, caption: str) -> Figure:
    """Latency of a token as bars, accepted tokens a step as a line, by tree, with a panel for each
    temperature. Lighter bars are without ETV, lossy ones hatched; `auto` is a dashed line.

    table: rows of one dataset of `results_frame.results`.
    """
    panels = list(table.groupby("T", sort=True))
    widest = max(len(panel) for _, panel in panels)
    figure = new_figure(1.6 + 0.55 * widest, 2.9 * len(panels) + 0.3)
    for axes, (T, panel) in zip(
        figure.subplots(len(panels), squeeze=False)[:, 0], panels, strict=True
    ):
        trees = panel[panel["label"] != "auto"].reset_index(drop=True)
        with_etv = trees["label"].str.contains(" +", regex=False)
        colours = [PLAIN if plain else ETV for plain in ~with_etv]
        bars = axes.bar(
            trees.index, 1e3 * trees["latency_per_token_s"], color=colours, edgecolor=INK, width=0.7
        )
        keys = [
            Patch(facecolor=PLAIN, edgecolor=INK, label="top-down"),
            Patch(facecolor=ETV, edgecolor=INK, label="ETV"),
        ]
        for bar, lossless in zip(bars, trees["lossless"], strict=True):
            bar.set_hatch("" if lossless else LOSSY)
        for latency in panel.loc[panel["label"] == "auto", "latency_per_token_s"]:
            keys.append(
                axes.axhline(
                    1e3 * latency, color=INK, linestyle="--", linewidth=0.8, label="auto (no tree)"
                )
            )
        names = (
            trees["label"]
            if trees["policy"].nunique() < 2
            else trees["label"] + " " + trees["policy"]
        )
        axes.set_xticks(trees.index, [name.replace(" ", "\n") for name in names], fontsize=7)
        axes.set_ylabel("ms a token", fontsize=8)
        axes.set_title(f"T = {T:g}", fontsize=9, loc="left")
        right = axes.twinx()
        style = {
            "color": INK,
            "marker": "o",
            "markersize": 3,
            "linewidth": 0.8,
            "label": "accepted (right)",
        }
        keys += right.plot(trees.index, trees["accepted_per_step"], **style)
        right.set_ylabel("accepted (tokens / step)", fontsize=8)
        quiet(right)
        right.grid(visible=False)
        right.spines["right"].set_visible(True)
    figure.legend(handles=keys, loc="outside upper center", ncols=len(keys), fontsize=7)
    say(figure, caption)
    return figure


@styled
def complexity_figure(tables: Mapping[str, pd.DataFrame], caption: str) -> Figure:
    """How hard texts are along their way: draft confidence, tree size, depth and acceptance, with a
    panel for each and a line for each text.

    tables: rows of one label of `results_frame.complexity_along`, by name of the text.
    """
    titles = {
        "confidence": "draft confidence (probability)",
        "size": "tree size (nodes)",
        "depth": "tree depth (levels)",
        "accepted_per_step": "accepted (tokens / step)",
    }
    figure = new_figure(7.2, 4.6)
    panels = figure.subplots(2, 2, sharex=True)
    for axes, (name, title) in zip(panels.flat, titles.items(), strict=True):
        for number, (text, table) in enumerate(tables.items()):
            axes.plot(table["position"], table[name], label=text, **line_style(number))
        axes.set_ylabel(title)
        quiet(axes)
    for axes in panels[1]:
        axes.set_xlabel("position in the output (tokens)")
    figure.legend(*panels.flat[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    say(figure, caption)
    return figure


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
            color=SPEED,
            edgecolors=INK,
            linewidths=0.3,
            zorder=2,
        )
    else:
        box = {"boxstyle": "round,pad=0.25", "edgecolor": INK, "linewidth": 0.6}
        for u, name in enumerate(names):
            style = {**box, "facecolor": SPEED if u else LENGTH}
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
