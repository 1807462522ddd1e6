"""Figures that compare verification rules: by tree structure and budget; the bias of the original
prototype's rule; and the distance to the bound of all lossless rules.

A rule has one colour everywhere: light without ETV, dark with ETV. Lossy results are hatched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dynasurge.experiments.intervals import of_ratio
from dynasurge.plots.style import (
    ETV,
    FAINT,
    INK,
    LINES,
    LOSSY,
    MARKERS,
    PLAIN,
    across,
    new_figure,
    quiet,
    say,
    styled,
    whiskers,
)

RULES = {
    "top-down": PLAIN,
    "ETV": ETV,
    "reserved": "#5b8c5a",
    "bfs (lossy)": "#f5f5f5",
}  # light, dark, middle, white


# What the prototype's authors published: accepted tokens a step without and with their rule, which
# is lossy, of LLaMA-68M -> LLaMA-7B on CNN/DailyMail at T = 0.9.
PROTOTYPE = {
    "sTree 4x8": (2.49, 2.69),
    "sTree 8x8": (2.67, 2.91),
    "dTree B=16": (2.06, 2.16),
    "dTree B=32": (2.15, 2.31),
    "dTree B=64": (2.32, 2.50),
}
THIN = "#5b9bc0"  # top-down, where PLAIN would be too faint: thin lines and open marks
PROTOTYPE_SAID = "the prototype's own (LLaMA-68M -> LLaMA-7B, a lossy rule)"
PANELS = (
    ("latency_per_token_s", 1e3, "latency (ms / token)"),
    ("latency_per_request_s", 1.0, "latency (s / full request)"),
    ("accepted_per_step", 1.0, "accepted (tokens / step)"),
)


@styled
def comparison_figure(
    table: pd.DataFrame, caption: str, gains: pd.DataFrame | None = None
) -> Figure:
    """Latency per token and per request as bars (medians over prompts), accepted tokens per step as
    points, all with 95% intervals: by static tree and by budget, with a colour for each rule and a
    row of panels for each dataset and temperature. `auto` is the dashed line.

    table: `results_frame.trees`, with at least one tree. Trees that were filled to their budget are
    left out beside trees that were not. gains: `results_frame.rule_gains` of the same rows; they
    are written on the bars, in brackets if the interval contains 1. Open marks are PROTOTYPE's,
    where the rows are of its text and temperature.
    """
    filled = table["fill"] & (table["mode"] == "dTree")
    if (~filled & (table["mode"] == "dTree")).any():
        table = table[~filled]
    trees = table.loc[table["mode"] != "auto"].sort_values("mode", ascending=False, kind="stable")
    if (trees.groupby(["dataset", "T", "tree", "rule"])["policy"].nunique() > 1).any():
        table, trees = (
            rows.assign(tree=rows["tree"] + " " + rows["policy"]) for rows in (table, trees)
        )
        gains = None if gains is None else gains.assign(tree=gains["tree"] + " " + gains["policy"])
    names = list(dict.fromkeys(trees["tree"]))
    static = trees.loc[trees["mode"] == "sTree", "tree"].nunique()
    rules = [rule for rule in RULES if rule in set(trees["rule"])]
    groups = list(table.groupby(["dataset", "T"], sort=False))
    figure = new_figure(3.2 + 0.95 * len(names), 2.3 * len(groups) + 0.7)
    rows = figure.subplots(len(groups), 3, squeeze=False, sharex=True)
    for ((dataset, T), at), panels in zip(groups, rows, strict=True):
        if Path(str(dataset)).stem.startswith("cnn") and T == 0.9:
            _open_marks(panels[2], names)
        for axes, (column, factor, title) in zip(panels, PANELS, strict=True):
            draw = _points if column == "accepted_per_step" else _bars
            draw(axes, names, {rule: _heights(at, rule, names, column) * factor for rule in rules})
            ends = [column, f"{column}_low", f"{column}_high"]
            for _, auto in at[at["mode"] == "auto"].iterrows() if draw is _bars else ():
                across(axes, auto[ends].astype(float) * factor)
            axes.set_ylabel(title)
            _divide(axes, names, static)
            quiet(axes)
        what = f"{Path(str(dataset)).stem} (n = {_count(at['prompts'])}), T = {T:g}"
        panels[0].set_ylabel(f"{what}\n{PANELS[0][2]}")
        if gains is not None and "ETV" in rules:
            here = gains[(gains["dataset"] == dataset) & (gains["T"] == T)]
            x = _side_by_side(len(names), rules.index("ETV"), len(rules), 0.8 / len(rules))
            _write_gains(panels[0], names, x, here)
    handles = {
        label: handle
        for axes in (*rows[:, 0], *rows[:, 2])
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles, loc="outside upper center", ncols=len(handles))
    if table["tokens_per_second_low"].notna().any():
        caption += ". Lines: 95% intervals"
    if gains is not None and len(gains):
        caption += ". On bars: what ETV gains in accepted tokens, paired by prompt"
        caption += " (in brackets: perhaps nothing)"
    say(figure, caption)
    return figure


def _count(prompts: pd.Series) -> str:
    """How many prompts the settings of a panel have: one number, or the least and the most."""
    least, most = prompts.min(), prompts.max()
    return f"{most}" if least == most else f"{least} to {most}"


def _heights(table: pd.DataFrame, rule: str, names: Sequence[str], column: str) -> np.ndarray:
    """[3, trees]: a measure and the ends of its interval, NaN for trees that did not run under this
    rule."""
    lines = table[table["rule"] == rule].drop_duplicates("tree").set_index("tree")
    columns = [column, f"{column}_low", f"{column}_high"]
    heights: np.ndarray = lines.reindex(list(names))[columns].to_numpy(dtype=float).T
    return heights


def _side_by_side(count: int, number: int, rules: int, width: float) -> np.ndarray:
    """Where the marks of rule `number` are: side by side at each of `count` trees."""
    return np.arange(count) + (number - (rules - 1) / 2) * width


def _bars(axes: Axes, names: Sequence[str], values: Mapping[str, np.ndarray]) -> None:
    width = 0.8 / len(values)
    for number, (rule, heights) in enumerate(values.items()):
        style: dict[str, Any] = {"color": RULES[rule], "edgecolor": INK, "linewidth": 0.5}
        style |= {"hatch": LOSSY if "lossy" in rule else "", "label": rule}
        x = _side_by_side(len(names), number, len(values), width)
        axes.bar(x, heights[0], width, **style)
        whiskers(axes, x, heights)


def _points(axes: Axes, names: Sequence[str], values: Mapping[str, np.ndarray]) -> None:
    """Draw a mark for each tree and rule. Lines join what has an order: the budgets."""
    budgets = [number for number, name in enumerate(names) if _is_budget(name)]
    for number, (rule, heights) in enumerate(values.items()):
        lossy = "lossy" in rule
        colour = INK if lossy else THIN if rule == "top-down" else RULES[rule]
        x = _side_by_side(len(names), number, len(values), 0.16)
        whiskers(axes, x, heights)
        line: dict[str, Any] = {"color": colour, "linestyle": "--" if lossy else "-"}
        axes.plot(x[budgets], heights[0][budgets], **line)
        marks: dict[str, Any] = {"marker": MARKERS[number], "markeredgecolor": INK}
        axes.plot(x, heights[0], linestyle="", markerfacecolor=RULES[rule], **marks)


def _is_budget(name: str) -> bool:
    return name.startswith("dTree B=") and name.removeprefix("dTree B=").isdecimal()


def _write_gains(axes: Axes, names: Sequence[str], x: np.ndarray, gains: pd.DataFrame) -> None:
    """Write into the bars of ETV, which are at x, what it gains."""
    for row in gains.itertuples():
        if row.tree in names and row.ratio == row.ratio:
            text = f"{100 * (row.ratio - 1):+.0f}%".replace("-0%", "+0%")
            text = text if row.low > 1 or row.high < 1 else f"({text})"
            style: dict[str, Any] = {"rotation": 90, "ha": "center", "va": "bottom"}
            style |= {"fontsize": 6.5, "color": "white", "textcoords": "offset points"}
            axes.annotate(text, (x[names.index(row.tree)], 0), (0.5, 4), **style)


def _open_marks(axes: Axes, names: Sequence[str]) -> None:
    """Draw PROTOTYPE's numbers, an open mark without and one with its rule."""
    known = [name for name in names if name in PROTOTYPE]
    label: str | None = PROTOTYPE_SAID
    for number, (marker, colour) in enumerate((("o", THIN), ("s", ETV))):
        x = _side_by_side(len(names), number, 2, 0.16)[[names.index(name) for name in known]]
        published = [PROTOTYPE[name][number] for name in known]
        marks: dict[str, Any] = {"marker": marker, "markeredgecolor": colour, "label": label}
        axes.plot(x, published, linestyle="", markerfacecolor="none", **marks)
        label = None


def _divide(axes: Axes, names: Sequence[str], static: int) -> None:
    """Write the trees' names below the axis, and draw a line after the first `static` of them, which
    are those of static trees."""
    short = [name.removeprefix("sTree ").removeprefix("dTree ") for name in names]
    axes.set_xticks(range(len(names)), short, rotation=35, ha="right", rotation_mode="anchor")
    axes.set_xlim(-0.6, len(names) - 0.4)
    if 0 < static < len(names):
        axes.axvline(static - 0.5, color=INK, linewidth=0.6)
        for x, ha, title in ((static - 0.6, "right", "static"), (static - 0.4, "left", "dynamic")):
            place = axes.get_xaxis_transform()
            how: dict[str, Any] = {"va": "bottom", "fontsize": 7, "style": "italic", "color": INK}
            axes.text(x, 1.01, title, transform=place, ha=ha, **how)


@styled
def bias_figure(bias: pd.DataFrame, caption: str) -> Figure:
    """Total variation between the first emitted token's distribution and the target's, by rule: a
    bar is the mean over contexts, with its 95% interval, a dot one context. A lossless rule shows
    only counting noise.
    bias: see `rule_bias.first_token_bias`."""
    figure = new_figure(3.6, 3.2)
    axes = figure.subplots()
    rules = list(dict.fromkeys(bias["rule"]))
    for x, rule in enumerate(rules):
        values = bias.loc[bias["rule"] == rule, "total_variation"]
        lossy = "lossy" in rule
        colour = RULES["bfs (lossy)"] if lossy else ETV if rule == "traversal" else PLAIN
        axes.bar(x, values.mean(), 0.6, color=colour, edgecolor=INK, hatch=LOSSY if lossy else "")
        ends = of_ratio(np.column_stack([values, np.ones(len(values))]))
        whiskers(axes, [x + 0.22], [[values.mean()], [ends[0]], [ends[1]]])
        axes.plot(x + np.linspace(-0.2, 0.1, len(values)), values, ".", color=INK, markersize=3)
        more = values.to_numpy() - bias.loc[bias["rule"] == rules[0], "total_variation"].to_numpy()
        if x:  # the same contexts, so pairs tell more than two bars
            low, high = of_ratio(np.column_stack([more, np.ones(len(more))]))
            text = f"{more.mean():+.3f}\n[{low:+.3f}, {high:+.3f}]"
            place = axes.get_xaxis_transform()
            axes.text(x, 1.0, text, transform=place, ha="center", va="bottom", fontsize=6.5)
    noise = bias.loc[bias["rule"] == rules[0], "total_variation"].mean()
    axes.axhline(
        noise, color=INK, linestyle=":", linewidth=0.9, label="counting noise, of a lossless rule"
    )
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center")
    axes.set_xticks(range(len(rules)), rules)
    axes.set_ylabel("total variation from the target")
    quiet(axes)
    say(
        figure,
        f"{caption}; bars: means with 95% intervals, dots: contexts; above: more than {rules[0]}, paired",
    )
    return figure


@styled
def bound_figure(bounds: pd.DataFrame, caption: str) -> Figure:
    """How often one of k children of a node is accepted: rules as markers, with the 95% interval
    that the drawn children leave, the bound of all lossless rules as a line, a panel for each
    policy. bounds: rows of one temperature of `measurements.bounds`."""
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
            marks: dict[str, Any] = {"marker": MARKERS[number], "linestyle": ""}
            marks |= {"color": LINES[number], "markerfacecolor": "none"}
            mean, k = group["accepted"], group["k"]
            axes.plot(k, mean, label=rule, markersize=8 - 2.5 * number, **marks)  # they often agree
            half = 1.96 * group.get("error", 0.0)  # files before 2026-12 have none
            whiskers(axes, k, [mean, mean - half, mean + half])
        axes.set_xscale("log", base=2)
        axes.set_xticks(best["k"], best["k"].astype(str))
        axes.set_xlabel("children of a node, k")
        axes.set_title(policy)
        quiet(axes)
        axes.set_ylim(0, 1)
    panels[0].set_ylabel("probability that one is accepted")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=5)
    say(figure, f"{caption}; lines: 95% intervals that the drawn children leave")
    return figure
