"""Figures of tables: they draw what the tables say, in one style, the same file each time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from readers import numbers
from samples import AUTO, ETV, LAW, TREE, row

from dynasurge import Settings, UsageError
from dynasurge.drafting.cost_model import Costs
from dynasurge.experiments import results_frame
from dynasurge.experiments.published_records import Evidence
from dynasurge.plots.figures import save_figure
from dynasurge.plots.rule_figures import (
    PROTOTYPE,
    RULES,
    bias_figure,
    bound_figure,
    comparison_figure,
)
from dynasurge.plots.study_figures import (
    acceptance_figure,
    budget_figure,
    costs_figure,
    keep,
    overlap_figure,
)
from dynasurge.plots.style import ETV as DARK
from dynasurge.plots.style import LINES, PLAIN

STATIC = Settings(**LAW, mode="sTree", growmap="4x8")
STATIC_ETV = Settings(**LAW, mode="sTree", growmap="4x8", use_bfs=True)
LOSSY = Settings(**LAW, B=4, use_bfs=True, etv="bfs")
CAPTION = "demo pair, a machine, float32; prompts: d, n = 2; T = 0.6"


@pytest.fixture
def frame() -> pd.DataFrame:
    steps = {
        AUTO: [[]] * 6,
        STATIC: [[0, 0, 0], [0]],
        TREE: [[0, 1], [0], []],
        ETV: [[0, 1, 0], [0, 0]],
        LOSSY: [[0] * 5],
    }
    rows = [
        row(settings, index, ranks, kind="news")
        for settings, ranks in steps.items()
        for index in (0, 1)
    ]
    return results_frame.to_frame([replace(r, lossless="lossy" not in r.label) for r in rows])


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(matplotlib.text.Text)]


def whiskers_of(axes: Axes) -> list[LineCollection]:
    return [made for made in axes.collections if isinstance(made, LineCollection)]


def grey(colour: str) -> float:
    return float(np.dot(matplotlib.colors.to_rgb(colour), (0.299, 0.587, 0.114)))


def test_the_comparison_draws_every_tree_once_a_rule(frame: pd.DataFrame) -> None:
    table = results_frame.trees(frame)
    figure = comparison_figure(table, CAPTION)
    per_token, per_request, accepted = figure.axes
    expected = table[table["mode"] != "auto"]
    heights = sorted(bar.get_height() for bar in per_token.patches if bar.get_height() > 0)
    assert heights == pytest.approx(sorted(1e3 * expected["latency_per_token_s"]))
    hatched = [bar for bar in per_token.patches if bar.get_hatch()]
    assert {bar.get_facecolor() for bar in hatched} == {
        matplotlib.colors.to_rgba(RULES["bfs (lossy)"])
    }
    points = [
        y
        for line in accepted.lines
        if line.get_marker() not in ("", "None")
        for y in line.get_ydata()
    ]
    drawn = sorted(y for y in points if y == y)
    assert drawn == pytest.approx(sorted(expected["accepted_per_step"]))
    requests = sorted(bar.get_height() for bar in per_request.patches if bar.get_height() > 0)
    assert requests == pytest.approx(sorted(expected["latency_per_request_s"]))
    for panel, unit in ((per_token, "ms"), (per_request, "(s "), (accepted, "tokens")):
        assert unit in panel.get_ylabel()
    assert {*expected["tree"].str.split().str[-1], *expected["rule"], CAPTION} <= set(texts(figure))


def test_a_comparison_of_studies_has_gains_intervals_and_the_prototypes_marks() -> None:
    """A row of panels a dataset and temperature; open marks only beside CNN/DailyMail at T = 0.9."""
    plain, etv = (replace(settings, T=0.9, growmap="4x8") for settings in (STATIC, STATIC_ETV))
    rows = [
        replace(row(settings, index, ranks), dataset=dataset)
        for dataset in ("cnn_dailymail.jsonl", "c4_en.jsonl")
        for index in range(6)
        for settings, ranks in (
            (replace(AUTO, T=0.9), [[]] * 6),
            (plain, [[0] * (index % 3)]),
            (etv, [[0] * (index % 3 + 1)]),
        )
    ]
    frame = results_frame.to_frame(rows)
    gains, table = results_frame.rule_gains(frame), results_frame.trees(frame)
    assert list(gains["dataset"]) == ["cnn_dailymail.jsonl", "c4_en.jsonl"]
    assert gains["tree"].tolist() == ["sTree 4x8"] * 2
    assert gains["ratio"].tolist() == pytest.approx([2.0] * 2)  # 2 of a step instead of 1
    assert (gains["low"] > 1).all()
    etv_rows = table[table["rule"] == "ETV"]
    assert (etv_rows["accepted_per_step_low"] < etv_rows["accepted_per_step"]).all()
    assert (etv_rows["accepted_per_step_high"] > etv_rows["accepted_per_step"]).all()
    figure = comparison_figure(table, CAPTION, gains)
    assert len(figure.axes) == 6
    assert texts(figure).count("+100%") == 2
    open_marks = [
        [y for line in axes.lines if line.get_markerfacecolor() == "none" for y in line.get_ydata()]
        for axes in figure.axes
    ]
    assert open_marks == [[], [], list(PROTOTYPE["sTree 4x8"]), [], [], []]
    none = gains.assign(low=0.5)
    assert texts(comparison_figure(table, CAPTION, none)).count("(+100%)") == 2


def ticks(figure: Figure) -> list[str]:
    return [label.get_text() for label in figure.axes[-1].get_xticklabels()]


def test_trees_bear_their_policy_only_where_it_tells_them_apart() -> None:
    """At T = 0 trees have `topk` children; that is no second tree."""
    greedy = {"T": 0.0, "policy": "topk"}
    own = [(TREE, [[0]]), (ETV, [[0, 0]]), (replace(TREE, **greedy), [[0, 0]])]
    others = [(replace(settings, policy="topk"), [[0]]) for settings, _ in own[:2]]
    for plan, names, said in ((own, ["B=4"], 1), (own + others, ["B=4 sampled", "B=4 topk"], 2)):
        rows = [row(settings, index, ranks) for settings, ranks in plan for index in range(6)]
        frame = results_frame.to_frame(rows)
        gains = results_frame.rule_gains(frame)
        figure = comparison_figure(results_frame.trees(frame), CAPTION, gains)
        assert ticks(figure) == names
        assert sum(text.strip("()").endswith("%") for text in texts(figure)) == said


def test_lightness_alone_tells_rules_and_lines_apart() -> None:
    assert abs(grey(PLAIN) - grey(DARK)) > 0.3
    assert len(set(LINES)) == len(LINES)


def test_acceptance_has_four_panels_with_units(frame: pd.DataFrame) -> None:
    figure = acceptance_figure(results_frame.contrast(frame), CAPTION)
    assert len(figure.axes) == 4
    assert all(axes.get_xlabel() and axes.get_ylabel() for axes in figure.axes)
    rank = results_frame.acceptance_by_rank(results_frame.contrast(frame))
    lines = {line.get_label(): list(line.get_ydata()) for line in figure.axes[3].lines}
    for label, group in rank.groupby("label"):
        (own,) = [line for name, line in lines.items() if name.startswith(f"{label} (n = ")]
        assert own == list(group["accepted"])
    assert any(text.startswith(CAPTION) for text in texts(figure))


def test_contrast_is_one_static_and_one_dynamic_tree_without_etv(frame: pd.DataFrame) -> None:
    assert set(results_frame.contrast(frame)["label"]) == {"sTree 4x8", "dTree B=4"}


def test_acceptance_by_confidence_is_a_mean_of_steps(frame: pd.DataFrame) -> None:
    table = results_frame.acceptance_by_confidence(frame[frame["label"] == "dTree B=4"], bins=5)
    # Steps of a row: confidence 0.5 accepted 2, 0.6 accepted 1, none accepted 0 (left out).
    assert table[["confidence", "steps", "accepted_per_step"]].to_numpy().tolist() == [
        [0.5, 2, 2.0],
        [0.7, 2, 1.0],
    ]


def test_overlap_costs_and_budget_say_what_they_show(frame: pd.DataFrame) -> None:
    positions = pd.DataFrame(
        {
            "dataset": "d",
            "index": [0, 0, 1, 1],
            "overlap": [0.1, 0.3, 0.7, 0.9],
            "confidence": [0.1, 0.2, 0.8, 1],
        }
    )
    split = results_frame.in_thirds(positions, positions)
    left, right = overlap_figure(split, CAPTION).axes
    means = {str(line.get_label()): numbers(str(line.get_label())) for line in left.lines}
    assert means == {
        "hardest third (n = 1), mean 0.20": [1, 0.2],
        "middle third (n = 1), mean 0.80": [1, 0.8],
    }
    assert list(left.lines[0].get_ydata()) == [0.5, 1.0]
    assert list(right.lines[0].get_xdata()) == pytest.approx([0.15, 0.25, 0.85, 0.95])
    costs = Costs(widths=(1, 4), target_seconds=(0.01, 0.02), draft_seconds=(0.001, 0.002))
    curve, sizes = costs_figure(costs, [0, 2, 2, 3], CAPTION).axes
    assert list(curve.lines[0].get_ydata()) == [10.0, 20.0]
    assert [bar.get_height() for bar in sizes.patches] == [1, 0, 2, 1]
    assert "ms" in curve.get_ylabel()
    speed = budget_figure(results_frame.trees(frame), CAPTION).axes[1]
    assert "/ s" in speed.get_ylabel()
    assert {"4x8"} == {text.get_text() for text in speed.texts}
    assert any("from the left: B = 4)" in text for text in texts(speed.figure))


def test_means_have_bands_and_few_prompts_open_marks() -> None:
    rows = [row(TREE, index, [[0] * (index % 3)] * 6) for index in range(6)]
    many, few = results_frame.to_frame(rows), results_frame.to_frame(rows[:2])
    table = results_frame.acceptance_by_position(many, by=["label"])
    first = table.iloc[0]
    assert first["accepted_per_step"] == pytest.approx(1.0)
    assert first["accepted_per_step_low"] < 1 < first["accepted_per_step_high"]
    assert first["prompts"] == 6
    for frame, mark in ((many, False), (few, True)):
        axes = acceptance_figure(frame, CAPTION).axes[0]
        assert (
            any(
                line.get_markerfacecolor() == "white"
                for line in axes.lines
                if len(line.get_xdata())
            )
            is mark
        )


def test_thirds_go_by_overlap_and_skip_what_was_not_measured() -> None:
    """Not by what a tree accepted, whose luck would then decide which prompts look easy."""
    frame = results_frame.to_frame([row(TREE, index, [[0]]) for index in range(4)])
    positions = pd.DataFrame({"dataset": "d", "index": [2, 1, 0], "overlap": [0.1, 0.5, 0.9]})
    positions["dataset"] = frame["dataset"].iloc[0]
    split = results_frame.in_thirds(frame, positions).set_index("index")["third"]
    assert split.to_dict() == {2: "hardest third", 1: "middle third", 0: "easiest third"}
    assert results_frame.complexity(results_frame.in_thirds(frame, positions), by=["third"])[
        "third"
    ].tolist() == ["hardest third", "middle third", "easiest third"]


def test_bias_and_bound_mark_what_is_lossy_and_what_cannot_be() -> None:
    bias = pd.DataFrame(
        {"rule": ["topdown", "bfs (lossy)"] * 2, "total_variation": [0.02, 0.05, 0.04, 0.07]}
    )
    bars = bias_figure(bias, CAPTION).axes[0].patches
    assert [bar.get_height() for bar in bars] == pytest.approx([0.03, 0.06])
    assert [bool(bar.get_hatch()) for bar in bars] == [False, True]
    bounds = pd.DataFrame(
        {
            "policy": "sampled",
            "k": [1, 2, 1, 2],
            "rule": ["topdown"] * 2 + ["traversal"] * 2,
            "accepted": 0.5,
            "error": 0.1,
            "bound": 0.6,
        }
    )
    (axes,) = bound_figure(bounds, CAPTION).axes
    named = [line.get_label() for line in axes.lines if not str(line.get_label()).startswith("_")]
    assert named == ["upper bound", "topdown", "traversal"]
    ends = [bar.get_segments()[0][:, 1].tolist() for bar in whiskers_of(axes)]
    assert ends == [pytest.approx([0.304, 0.696])] * 2


@pytest.mark.slow
def test_the_same_figure_is_the_same_file_and_leaves_matplotlib_alone(
    frame: pd.DataFrame, tmp_path: Path
) -> None:
    before = dict(matplotlib.rcParams)
    for name in ("a", "b"):
        figure = comparison_figure(results_frame.trees(frame), CAPTION)
        assert keep(figure, str(tmp_path), name) is figure
    assert dict(matplotlib.rcParams) == before
    for suffix in ("png", "svg"):
        assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()
    assert keep(figure, None, "c") is figure
    assert len(list(tmp_path.iterdir())) == 4
    assert len(save_figure(figure, tmp_path, "d")) == 2


def test_filled_trees_have_a_name_of_their_own(frame: pd.DataFrame, tmp_path: Path) -> None:
    filled = Settings(**LAW, B=4, fill=True, use_bfs=True)
    rows = results_frame.to_frame([row(filled, 0, [[0]])])
    rows.to_parquet(tmp_path / "records.parquet")
    evidence = Evidence.read(tmp_path)
    assert list(evidence.frame["label"]) == ["dTree B=4 filled +ETV"]
    assert list(results_frame.trees(evidence.frame)["tree"]) == ["dTree B=4 filled"]
    for fact in ("1 CPU threads", "float32", "n = 1", "T = 0.6"):
        assert fact in evidence.caption()
    for missing in (lambda: evidence.probe("bias"), evidence.curve):
        with pytest.raises(UsageError, match="was not measured there"):
            missing()
