"""The notebooks' figures of acceptance, budgets and costs: functions of the tables of
results_frame.py and experiments/measurements.py, in the style of plots/style.py. Figures that
compare verification rules are in plots/rule_figures.py.

`keep` returns a figure, so a notebook cell that ends with it shows it, and writes it to the folder
of `make figures`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from dynasurge.drafting.cost_model import Costs
from dynasurge.experiments import results_frame
from dynasurge.plots.figures import save_figure
from dynasurge.plots.style import INK, PLAIN, line_style, new_figure, quiet, say, styled

ENOUGH = 10  # how many steps a mean needs
FILLED, PAYING, STATIC = "dynamic, budget filled", "dynamic, as far as nodes pay", "static"
MARKS = {FILLED: "-", PAYING: "", STATIC: ""}  # only filled budgets are joined by a line


def keep(figure: Figure, output: str | None, name: str) -> Figure:
    """Write NAME.png and NAME.svg to the folder `output`, unless it is None or empty. Returns the
    figure."""
    if output:
        Path(output).mkdir(parents=True, exist_ok=True)
        save_figure(figure, Path(output), name)
    return figure


@styled
def acceptance_figure(frame: pd.DataFrame, caption: str) -> Figure:
    """Acceptance by position, depth, sibling rank and draft confidence, with a line for each label.
    Points of fewer than ENOUGH steps are left out, if there are others."""
    panels = {
        ("position", "position in the output (tokens)"): (
            results_frame.acceptance_by_position(frame, by=["label"]),
            "accepted_per_step",
        ),
        ("confidence", "draft confidence (mean q of first children)"): (
            results_frame.acceptance_by_confidence(frame, by=["label"]),
            "accepted_per_step",
        ),
        ("depth", "depth in the tree (level)"): (
            results_frame.acceptance_by_depth(frame, by=["label"]),
            "accepted",
        ),
        ("rank", "sibling rank (drawing order, from 0)"): (
            results_frame.acceptance_by_rank(frame, by=["label"]),
            "accepted",
        ),
    }
    figure = new_figure(7.2, 4.8)
    grid = figure.subplots(2, 2)
    for axes, ((x, title), (table, y)) in zip(grid.flat, panels.items(), strict=True):
        for number, (label, lines) in enumerate(table.groupby("label")):
            count = lines["steps" if "steps" in lines else "reached"]
            lines = lines[count >= min(ENOUGH, count.max())]
            axes.plot(lines[x], lines[y], label=label, **line_style(number))
        axes.set_xlabel(title)
        axes.set_ylabel(
            "accepted (tokens / step)" if y == "accepted_per_step" else "share accepted"
        )
        quiet(axes)
        if x in ("depth", "rank"):
            axes.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    say(figure, caption)
    return figure


@styled
def overlap_figure(positions: pd.DataFrame, caption: str) -> Figure:
    """How much draft and target agree. Left: the share of tokens with at most a given overlap, for
    the hardest and the easiest kind of text. Right: the mean overlap by the draft's confidence.
    positions: see experiments/measurements.py."""
    figure = new_figure(7.2, 3.0)
    left, right = figure.subplots(1, 2)
    kinds = positions.groupby("kind")["overlap"].mean().sort_values()
    chosen = kinds.index[[0, -1]] if len(kinds) > 1 else kinds.index
    for number, kind in enumerate(chosen):
        values = positions.loc[positions["kind"] == kind, "overlap"].sort_values()
        style = line_style(number) | {"marker": ""}
        left.plot(
            values,
            np.arange(1, len(values) + 1) / len(values),
            label=f"{kind or 'all'} ({values.mean():.2f})",
            **style,
        )
    left.set_xlabel("overlap of draft and target, sum of min(p, q)")
    left.set_ylabel("share of tokens at or below")
    left.legend(title="hardest, easiest (mean)" if len(chosen) > 1 else None)
    bins = (positions["confidence"] * 10).astype(int).clip(0, 9)
    means = positions.groupby((bins + 0.5) / 10)["overlap"].mean()
    right.plot(means.index, means, label="mean overlap", **line_style(0))
    right.plot(
        [0, 1], [0, 1], color=INK, linewidth=0.7, linestyle=":", label="overlap = confidence"
    )
    right.set_xlabel("draft confidence, max of q")
    right.set_ylabel("overlap")
    right.legend()
    for axes in (left, right):
        axes.set_xlim(0, 1)
        quiet(axes)
        axes.set_ylim(0, 1.02)
    say(figure, caption)
    return figure


@styled
def budget_figure(table: pd.DataFrame, caption: str) -> Figure:
    """Tokens per step and per second by the number of nodes that a step drafted: dynamic trees
    filled to a budget, those that stop where nodes no longer pay, and static trees, each with its
    name. table: rows of one temperature of `results_frame.trees`."""
    figure = new_figure(7.2, 3.4)
    plain = table[table["rule"] == "top-down"]
    kinds = {
        FILLED: plain[(plain["mode"] == "dTree") & plain["fill"]],
        PAYING: plain[(plain["mode"] == "dTree") & ~plain["fill"]],
        STATIC: plain[plain["mode"] == "sTree"],
    }
    groups = {name: group for name, group in kinds.items() if len(group)}
    panels = figure.subplots(1, 2)
    for axes, column, title in zip(
        panels,
        ("tokens_per_step", "tokens_per_second"),
        ("tokens / step", "tokens / s"),
        strict=True,
    ):
        for number, (name, group) in enumerate(groups.items()):
            lines, style = group.sort_values("nodes"), line_style(number)
            axes.plot(
                lines["nodes"], lines[column], label=name, **(style | {"linestyle": MARKS[name]})
            )
            if name == FILLED:
                continue  # the number of nodes is their budget, so they need no name
            for place, (x, y, tree) in enumerate(
                zip(lines["nodes"], lines[column], lines["tree"], strict=True)
            ):
                text, left = tree.removeprefix("sTree ").removeprefix("dTree "), place % 2 == 0
                style = {"fontsize": 6, "ha": "right" if left else "left", "va": "center"}
                axes.annotate(
                    text, (x, y), (-6 if left else 6, 0), textcoords="offset points", **style
                )
        for auto in plain.loc[plain["mode"] == "auto", column]:
            axes.axhline(auto, color=INK, linestyle="--", linewidth=0.9, label="auto (no tree)")
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.set_xlabel("drafted nodes (a step, mean)")
        axes.set_ylabel(title)
        axes.margins(x=0.1, y=0.15)
        quiet(axes)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    say(figure, caption)
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
