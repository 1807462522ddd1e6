"""The notebooks' figures of acceptance, budgets and costs: functions of the tables of
results_frame.py and experiments/measurements.py, in the style of plots/style.py. Figures that
compare verification rules are in plots/rule_figures.py.

`keep` returns a figure, so a notebook cell that ends with it shows it, and writes it to the folder
of `make figures`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from dynasurge.drafting.cost_model import Costs
from dynasurge.experiments import results_frame
from dynasurge.experiments.intervals import ENOUGH, PROMPT, means
from dynasurge.experiments.per_step import middles
from dynasurge.plots.figures import save_figure
from dynasurge.plots.style import (
    INK,
    PLAIN,
    across,
    band,
    line_style,
    new_figure,
    quiet,
    say,
    styled,
    whiskers,
)

FILLED, PAYING, STATIC = "dynamic, budget filled", "dynamic, as far as nodes pay", "static"
ACCEPTED = "accepted (tokens / step)"
HALO = [withStroke(linewidth=2, foreground="white")]  # around words that cross a line
BUDGETED = {"accepted_per_step": ACCEPTED, "tokens_per_second": "tokens / s"}
BANDS = f"bands: 95% intervals over prompts; open marks: fewer than {ENOUGH} prompts"


def keep(figure: Figure, output: str | None, name: str) -> Figure:
    """Write NAME.png and NAME.svg to the folder `output`, unless it is None or empty. Returns the
    figure."""
    if output:
        Path(output).mkdir(parents=True, exist_ok=True)
        save_figure(figure, Path(output), name)
    return figure


@styled
def acceptance_figure(frame: pd.DataFrame, caption: str) -> Figure:
    """Acceptance by position, depth, sibling rank and draft confidence, with a line for each
    label."""
    panels: dict[str, tuple[str, Callable[..., pd.DataFrame]]] = {
        "position": ("position in the output (tokens)", results_frame.acceptance_by_position),
        "confidence": (
            "draft confidence (mean q of first children)",
            results_frame.acceptance_by_confidence,
        ),
        "depth": ("depth in the tree (level)", results_frame.acceptance_by_depth),
        "rank": ("sibling rank (drawing order, from 0)", results_frame.acceptance_by_rank),
    }
    figure = new_figure(7.2, 4.8)
    grid = figure.subplots(2, 2)
    for axes, (x, (title, measure)) in zip(grid.flat, panels.items(), strict=True):
        table = measure(frame, by=["label"])
        y = "accepted" if "accepted" in table else "accepted_per_step"
        for number, (label, lines) in enumerate(table.groupby("label")):
            prompts = len(frame.loc[frame["label"] == label, PROMPT].drop_duplicates())
            band(axes, lines, x, y, number, f"{label} (n = {prompts})")
        axes.set_xlabel(title)
        axes.set_ylabel("share accepted" if y == "accepted" else ACCEPTED)
        quiet(axes)
        if x in ("depth", "rank"):
            axes.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    rule = "" if frame["use_bfs"].any() else "; top-down"
    say(figure, f"{caption}{rule}; {BANDS}")
    return figure


@styled
def complexity_figure(table: pd.DataFrame, caption: str) -> Figure:
    """How hard texts are along their way: draft confidence, tree size, depth and acceptance, with a
    panel for each and a line for each value of the column `third`.

    table: `results_frame.complexity_along` by `third`.
    """
    titles = {
        "confidence": "draft confidence (probability)",
        "size": "tree size (nodes)",
        "depth": "tree depth (levels)",
        "accepted_per_step": ACCEPTED,
    }
    figure = new_figure(7.2, 4.6)
    panels = figure.subplots(2, 2, sharex=True)
    for axes, (name, title) in zip(panels.flat, titles.items(), strict=True):
        for number, (text, lines) in enumerate(table.groupby("third", sort=False)):
            band(axes, lines, "position", name, number, f"{text} (n = {lines['prompts'].max()})")
        axes.set_ylabel(title)
        quiet(axes)
    for axes in panels[1]:
        axes.set_xlabel("position in the output (tokens)")
    figure.legend(*panels.flat[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    say(figure, f"{caption}; {BANDS}")
    return figure


@styled
def overlap_figure(positions: pd.DataFrame, caption: str) -> Figure:
    """How much draft and target agree. Left: the share of tokens with at most a given overlap, with
    a line for each value of the column `third`. Right: the mean overlap by the draft's confidence.
    positions: see experiments/measurements.py, by `results_frame.in_thirds`."""
    figure = new_figure(7.2, 3.2)
    left, right = figure.subplots(1, 2)
    for number, (third, tokens) in enumerate(positions.groupby("third", observed=True)):
        rows = tokens.sort_values("overlap")
        share = np.arange(1, len(rows) + 1) / len(rows)
        label = (
            f"{third} (n = {len(rows.drop_duplicates(PROMPT))}), mean {rows['overlap'].mean():.2f}"
        )
        left.plot(rows["overlap"], share, label=label, **line_style(number) | {"marker": ""})
    left.set_xlabel("overlap of draft and target, sum of min(p, q)")
    left.set_ylabel("share of tokens at or below")
    left.legend(loc="upper left")
    binned = positions.assign(bin=middles(positions["confidence"], 10))
    band(right, means(binned, ["bin"], ["overlap"], "tokens"), "bin", "overlap", 0, "mean overlap")
    diagonal = {"color": INK, "linewidth": 0.7, "linestyle": ":"}
    right.plot([0, 1], [0, 1], label="overlap = confidence", **diagonal)
    right.set_xlabel("draft confidence, max of q")
    right.set_ylabel("overlap")
    right.legend()
    for axes in (left, right):
        axes.set_xlim(0, 1)
        quiet(axes)
        axes.set_ylim(0, 1.02)
    say(figure, f"{caption}; {BANDS}")
    return figure


@styled
def budget_figure(table: pd.DataFrame, caption: str) -> Figure:
    """Accepted tokens per step and tokens per second by the number of nodes that a step drafted,
    top-down: dynamic trees filled to a budget, those that stop where nodes no longer pay, and static
    trees, each with its name. table: rows of one temperature of `results_frame.trees`."""
    figure = new_figure(7.2, 3.6)
    plain = table[table["rule"] == "top-down"]
    dynamic = plain["mode"] == "dTree"
    kinds = {
        FILLED: plain[dynamic & plain["fill"]],
        PAYING: plain[dynamic & ~plain["fill"]],
        STATIC: plain[plain["mode"] == "sTree"],
    }
    panels = figure.subplots(1, 2)
    for axes, (column, title) in zip(panels, BUDGETED.items(), strict=True):
        for number, (name, group) in enumerate(kinds.items()):
            if group.empty:
                continue
            lines, style = group.sort_values("nodes"), line_style(number)
            style["linestyle"] = "-" if name == FILLED else ""  # what has an order is joined
            if name == PAYING:  # too close to each other for names at the marks
                trees = lines["tree"].str.removeprefix("dTree B=").str.cat(sep=", ")
                name += f" (from the left: B = {trees})"
            axes.plot(lines["nodes"], lines[column], label=name, **style)
            for _, row in lines[lines["mode"] == "sTree"].iterrows():
                tree, at = row["tree"].removeprefix("sTree "), (row["nodes"], row[column])
                own: dict[str, Any] = {"va": "top", "fontsize": 6, "path_effects": HALO}
                side = -1 if row["nodes"] == plain["nodes"].max() else 1  # stay inside the axes
                own |= {"ha": "right", "va": "bottom"} if side < 0 else {"ha": "left"}
                axes.annotate(tree, at, (4 * side, -3 * side), textcoords="offset points", **own)
            whiskers(axes, lines["nodes"], lines[[column, f"{column}_low", f"{column}_high"]].T)
        for _, auto in plain[plain["mode"] == "auto"].iterrows():
            across(axes, [auto[column], auto[f"{column}_low"], auto[f"{column}_high"]])
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlabel("drafted nodes (a step, mean)")
        axes.set_ylabel(title)
        axes.margins(x=0.2, y=0.15)
        ends = np.log2(plain.loc[plain["nodes"] > 0, "nodes"].agg(["min", "max"]))
        axes.set_xlim(2 ** (np.floor(ends["min"]) - 0.2), 2 ** (np.ceil(ends["max"]) + 0.2))
        quiet(axes)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    say(figure, f"{caption}; top-down; lines: 95% intervals over prompts")
    return figure


@styled
def costs_figure(costs: Costs, chosen: Sequence[int], caption: str) -> Figure:
    """The seconds of a pass by its width, as trees use them (never less than a narrower pass), and
    how many nodes the trees had.

    chosen: drafted nodes, one number a step of `--B auto`; may be empty.
    """
    figure = new_figure(7.2, 3.0)
    left, right = figure.subplots(1, 2)
    curves = {
        "target": [costs.target(w - 1) for w in costs.widths],
        "draft": [costs.draft(w) for w in costs.widths],
    }
    for number, (name, seconds) in enumerate(curves.items()):
        left.plot(
            costs.widths, [1e3 * s for s in seconds], label=f"{name} pass", **line_style(number)
        )
    left.set_xscale("log", base=2)
    left.set_xticks(costs.widths, [str(w) if w not in (24, 48, 96) else "" for w in costs.widths])
    left.set_xlabel("tokens in a pass")
    left.set_ylabel("latency (ms)")
    left.legend()
    right.hist(
        chosen,
        bins=np.arange(max(chosen, default=1) + 2) - 0.5,
        color=PLAIN,
        edgecolor=INK,
        linewidth=0.5,
    )
    right.set_xlabel("nodes drafted with --B auto (a step)")
    right.set_ylabel("steps")
    for axes in (left, right):
        quiet(axes)
    say(figure, caption)
    return figure
