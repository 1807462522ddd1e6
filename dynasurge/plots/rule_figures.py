"""Figures that compare verification rules: by tree structure and budget; the bias of the original
prototype's rule; and the distance to the bound of all lossless rules.

A rule has one colour everywhere: light without ETV, dark with ETV. Lossy results are hatched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dynasurge.plots.style import (
    ETV,
    FAINT,
    INK,
    LINES,
    LOSSY,
    MARKERS,
    PLAIN,
    new_figure,
    quiet,
    say,
    styled,
)

RULES = {
    "top-down": PLAIN,
    "ETV": ETV,
    "reserved": "#5b8c5a",
    "bfs (lossy)": "#f5f5f5",
}  # light, dark, middle, white


@styled
def comparison_figure(table: pd.DataFrame, caption: str) -> Figure:
    """Latency per token and per request as bars (medians over prompts), accepted tokens per step as
    a line: by static tree and by budget, with a colour for each rule and a row of panels for each
    temperature. `auto` is the dashed line. table: rows of one dataset of `results_frame.trees`."""
    table = table[~(table["fill"] & (table["mode"] == "dTree"))]
    temperatures = sorted(table["T"].unique())
    names = list(
        dict.fromkeys(
            table.loc[table["mode"] != "auto"].sort_values("mode", ascending=False, kind="stable")[
                "tree"
            ]
        )
    )
    rules = [rule for rule in RULES if rule in set(table.loc[table["mode"] != "auto", "rule"])]
    figure = new_figure(3.2 + 0.95 * len(names), 2.3 * len(temperatures) + 0.7)
    rows = figure.subplots(len(temperatures), 3, squeeze=False, sharex=True)
    for T, panels in zip(temperatures, rows, strict=True):
        at = table[table["T"] == T]
        for axes, (column, factor) in zip(
            panels,
            (
                ("latency_per_token_s", 1e3),
                ("latency_per_request_s", 1.0),
                ("accepted_per_step", 1.0),
            ),
            strict=True,
        ):
            values = {rule: _column(at, rule, names, column) * factor for rule in rules}
            if column == "accepted_per_step":
                _segments(axes, values, names)
            else:
                _grouped(axes, values)
                for auto in at.loc[at["mode"] == "auto", column]:
                    axes.axhline(
                        auto * factor,
                        color=INK,
                        linestyle="--",
                        linewidth=0.9,
                        label="auto (no tree)",
                    )
            _divide(axes, names)
            quiet(axes)
        panels[0].set_ylabel(f"T = {T:g}\nlatency (ms / token)")
        panels[1].set_ylabel("latency (s / full request)")
        panels[2].set_ylabel("accepted (tokens / step)")
    handles = rows[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=len(handles[0]))
    say(figure, caption)
    return figure


def _column(table: pd.DataFrame, rule: str, names: Sequence[str], column: str) -> np.ndarray:
    """One number a tree, NaN if it did not run under this rule."""
    lines = table[table["rule"] == rule].drop_duplicates("tree").set_index("tree")[column]
    heights: np.ndarray = lines.reindex(list(names)).to_numpy(dtype=float)
    return heights


def _grouped(axes: Axes, values: Mapping[str, np.ndarray]) -> None:
    width = 0.8 / len(values)
    for number, (rule, heights) in enumerate(values.items()):
        x = np.arange(len(heights)) + (number - (len(values) - 1) / 2) * width
        hatch = LOSSY if "lossy" in rule else ""
        axes.bar(
            x,
            heights,
            width,
            color=RULES[rule],
            edgecolor=INK,
            linewidth=0.5,
            hatch=hatch,
            label=rule,
        )


def _segments(axes: Axes, values: Mapping[str, np.ndarray], names: Sequence[str]) -> None:
    """Draw a line for each rule, broken between static trees and budgets."""
    static = sum(name.startswith("sTree") for name in names)
    for number, (rule, heights) in enumerate(values.items()):
        lossy = "lossy" in rule
        colour = (
            INK if lossy else "#5b9bc0" if rule == "top-down" else RULES[rule]
        )  # a thin line in PLAIN would be too faint
        style: dict[str, Any] = {"color": colour, "linestyle": "--" if lossy else "-"}
        style |= {"marker": MARKERS[number], "markerfacecolor": RULES[rule], "markeredgecolor": INK}
        for part in (slice(0, static), slice(static, None)):
            axes.plot(np.arange(len(names))[part], heights[part], **style)


def _divide(axes: Axes, names: Sequence[str]) -> None:
    """Write the trees' names below the axis, and draw a line between static trees and budgets."""
    static = sum(name.startswith("sTree") for name in names)
    short = [name.removeprefix("sTree ").removeprefix("dTree ") for name in names]
    axes.set_xticks(range(len(names)), short, rotation=35, ha="right", rotation_mode="anchor")
    axes.set_xlim(-0.6, len(names) - 0.4)
    if 0 < static < len(names):
        axes.axvline(static - 0.5, color=INK, linewidth=0.6)
        for x, ha, title in ((static - 0.6, "right", "static"), (static - 0.4, "left", "dynamic")):
            place = axes.get_xaxis_transform()
            axes.text(
                x,
                1.01,
                title,
                transform=place,
                ha=ha,
                va="bottom",
                fontsize=7,
                style="italic",
                color=INK,
            )


@styled
def bias_figure(bias: pd.DataFrame, caption: str) -> Figure:
    """Total variation between the first emitted token's distribution and the target's, by rule: a
    bar is the mean over contexts, a dot one context. A lossless rule shows only counting noise.
    bias: see `rule_bias.first_token_bias`."""
    figure = new_figure(3.6, 3.2)
    axes = figure.subplots()
    rules = list(dict.fromkeys(bias["rule"]))
    for x, rule in enumerate(rules):
        values = bias.loc[bias["rule"] == rule, "total_variation"]
        lossy = "lossy" in rule
        colour = RULES["bfs (lossy)"] if lossy else ETV if rule == "traversal" else PLAIN
        axes.bar(x, values.mean(), 0.6, color=colour, edgecolor=INK, hatch=LOSSY if lossy else "")
        axes.plot(x + np.linspace(-0.15, 0.15, len(values)), values, ".", color=INK, markersize=3)
    noise = bias.loc[bias["rule"] == rules[0], "total_variation"].mean()
    axes.axhline(
        noise, color=INK, linestyle=":", linewidth=0.9, label="counting noise, of a lossless rule"
    )
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center")
    axes.set_xticks(range(len(rules)), rules)
    axes.set_ylabel("total variation from the target")
    quiet(axes)
    say(figure, caption)
    return figure


@styled
def bound_figure(bounds: pd.DataFrame, caption: str) -> Figure:
    """How often one of k children of a node is accepted: rules as markers, the bound of all
    lossless rules as a line, a panel for each policy. bounds: rows of one temperature of
    `measurements.bounds`."""
    policies = list(dict.fromkeys(bounds["policy"]))
    figure = new_figure(2.5 * len(policies), 2.9)
    panels = figure.subplots(1, len(policies), sharey=True, squeeze=False)[0]
    for axes, policy in zip(panels, policies, strict=True):
        lines = bounds[bounds["policy"] == policy]
        best = lines.drop_duplicates("k")
        axes.plot(best["k"], best["bound"], color=INK, label="upper bound")
        axes.fill_between(
            best["k"], best["bound"], 1.0, color=FAINT, linewidth=0, label="no lossless rule"
        )
        for number, (rule, group) in enumerate(lines.groupby("rule", sort=False)):
            shift = 2.0 ** (0.14 * (number - 1))  # side by side where they agree
            marks = {"marker": MARKERS[number], "linestyle": "", "color": LINES[number]}
            axes.plot(group["k"] * shift, group["accepted"], label=rule, **marks)
        axes.set_xscale("log", base=2)
        axes.set_xticks(best["k"], best["k"].astype(str))
        axes.set_xlabel("children of a node, k")
        axes.set_title(policy)
        quiet(axes)
        axes.set_ylim(0, 1)
    panels[0].set_ylabel("probability that one is accepted")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=5)
    say(figure, caption)
    return figure
