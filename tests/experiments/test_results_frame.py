"""The study's functions on rows whose answers can be worked out by hand, and on random ones."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from readers import markdown, numbers
from samples import AUTO, ETV, LAW, TREE, row

from dynasurge import Settings, UsageError
from dynasurge.experiments.results_frame import (
    acceptance_by_depth,
    acceptance_by_position,
    acceptance_by_rank,
    complexity,
    complexity_along,
    load_frame,
    paired,
    results,
    speedup_by_prompt,
    time_breakdown,
    to_frame,
)
from dynasurge.experiments.schema import summarise
from dynasurge.experiments.tables import against_table, results_table, trees_table
from dynasurge.settings import PHASES


@pytest.fixture
def frame() -> pd.DataFrame:
    return to_frame(
        [
            row(AUTO, 0, [[]] * 6, seconds=6.0),
            row(TREE, 0, [[0, 1], [0], []], [[2, 2, 1], [2, 0], [2]], seconds=3.0),
            row(AUTO, 1, [[]] * 4, seconds=2.0),
            row(TREE, 1, [[1], [0, 0]], [[2, 1], [2, 1]], seconds=2.0),
        ]
    )


def test_sums_of_a_row(frame: pd.DataFrame) -> None:
    assert list(frame["tokens"]) == [6, 6, 4, 5]
    assert list(frame["accepted_tokens"]) == [0, 3, 0, 3]
    assert list(frame["B"]) == ["auto", "4", "auto", "4"]
    assert list(frame["decode_seconds"]) == [6.0, 3.0, 2.0, 2.0]
    assert set(frame["device"]) == {"1 CPU threads"}
    assert set(frame["requested_device"]) == {"auto"}


def test_results_agree_with_the_summary(frame: pd.DataFrame) -> None:
    rows = [row(TREE, 0, [[0, 1], [0], []], seconds=3.0), row(TREE, 1, [[1], [0, 0]], seconds=2.0)]
    line, summary = results(frame).query("label == 'dTree B=4'").iloc[0], summarise(rows, rows)
    assert summary.speedup == 1.0
    for name in (
        *("tokens_per_step", "accepted_per_step", "prompts"),
        *("tokens_per_second", "latency_per_token_s", "latency_per_request_s"),
    ):
        assert line[name] == pytest.approx(getattr(summary, name)), name
    assert line["tokens_per_second"] == pytest.approx((6 / 3 + 5 / 2) / 2), (
        "times are medians over prompts"
    )
    assert line["latency_per_token_s"] == pytest.approx((3 / 6 + 2 / 5) / 2)
    assert line["latency_per_request_s"] == pytest.approx(0.5 + 128 * (3 / 6 + 2 / 5) / 2), (
        "of all 128 tokens"
    )
    assert math.isnan(line["speedup_low"]), "two prompts make no interval"
    assert line["speedup"] == pytest.approx((2.0 + 1.25) / 2), "the median over prompts"
    assert results(frame[frame["label"] != "auto"])["speedup"].isna().all()


def test_speedup_by_prompt(frame: pd.DataFrame) -> None:
    by_prompt = speedup_by_prompt(frame)
    assert list(by_prompt["index"]) == [0, 1]
    assert list(by_prompt["speedup"]) == pytest.approx([2.0, (5 / 2) / (4 / 2)])
    assert list(speedup_by_prompt(frame, "tokens_per_step")["speedup"]) == pytest.approx(
        [2.0, 5 / 2]
    )
    assert speedup_by_prompt(frame[frame["index"] == 1])["index"].tolist() == [1]


def test_acceptance_by_depth_rank_and_position(frame: pd.DataFrame) -> None:
    trees = frame[frame["label"] != "auto"]
    depth = acceptance_by_depth(trees).set_index("depth")
    # five steps stand at a root with children, four go on; four stand at depth 1, one of them at a
    # leaf
    assert depth["reached"].tolist() == [5, 3, 1]
    assert depth["accepted"].tolist() == pytest.approx([4 / 5, 2 / 3, 0])
    rank = acceptance_by_rank(trees).set_index("rank")
    assert rank["reached"].tolist() == [9, 6], "of nine families six have a second child"
    assert rank["accepted"].tolist() == pytest.approx([4 / 9, 2 / 6])
    position = acceptance_by_position(trees, width=2).set_index("position")
    # steps begin at tokens 0, 3, 5 of prompt 0 and at 0, 2 of prompt 1
    assert position["steps"].tolist() == [2, 2, 1]
    assert position["accepted_per_step"].tolist() == pytest.approx([1.5, 1.5, 0])


def test_what_differs_is_not_pooled_unless_asked(frame: pd.DataFrame) -> None:
    both = pd.concat([frame, frame.assign(T=0.9)])
    apart, pooled = acceptance_by_rank(both), acceptance_by_rank(both, by=["label"])
    assert sorted(set(apart["T"])) == [0.6, 0.9]
    for T in (0.6, 0.9):
        assert apart.loc[(apart["T"] == T) & (apart["label"] != "auto"), "reached"].tolist() == [
            9,
            6,
        ]
    assert pooled.loc[pooled["label"] != "auto", "reached"].tolist() == [18, 12]
    with pytest.raises(UsageError, match="auto: has several rows a prompt; narrow the frame"):
        results(pd.concat([frame, frame]))


def test_complexity_along_the_output_and_by_kind() -> None:
    rows = [row(TREE, 0, [[0, 1], [0], []], kind="code"), row(TREE, 1, [[], []], kind="news")]
    along = complexity_along(to_frame(rows[:1]), width=4)
    # steps begin at tokens 0, 3, 5
    assert along["position"].tolist() == [0, 4]
    assert along["steps"].tolist() == [2, 1]
    assert along["size"].tolist() == pytest.approx([6, 12])
    assert along["accepted_per_step"].tolist() == pytest.approx([1.5, 0])
    assert along["confidence"].tolist() == pytest.approx([0.55, math.nan], nan_ok=True)
    kinds = complexity(to_frame([*rows, row(TREE, 2, [[0]], kind="code")])).set_index("kind")
    assert kinds["prompts"].to_dict() == {"code": 2, "news": 1}
    assert kinds["steps"].to_dict() == {"code": 4, "news": 2}
    assert kinds["accepted_per_step"].to_dict() == pytest.approx({"code": 1.0, "news": 0.0})
    assert kinds["size"].to_dict() == pytest.approx({"code": 28 / 4, "news": 6})


def test_the_end_of_a_text_is_no_refusal() -> None:
    """A path that the end cut off has no children entry for its last node."""
    depth = acceptance_by_depth(to_frame([row(TREE, 0, [[0, 0]], [[2, 2]])]))
    assert depth["accepted"].tolist() == [1.0, 1.0]


def test_time_breakdown(frame: pd.DataFrame) -> None:
    times = time_breakdown(frame).set_index("label")
    assert times.loc["dTree B=4", list(PHASES)].tolist() == pytest.approx([1e3 * 5 / 4 / 5] * 4)


def test_pairs_are_compared_on_what_both_have(frame: pd.DataFrame) -> None:
    extra = to_frame([row(TREE, 9, [[0]], seconds=99.0)])
    result = paired(
        pd.concat([frame, extra]),
        "auto",
        "dTree B=4",
        "tokens_per_second",
        rng=np.random.default_rng(0),
    )
    assert (result.a, result.b, result.prompts) == (10 / 8, 11 / 5, 2)
    assert result.ratio == pytest.approx(result.b / result.a)
    assert math.isnan(result.low), "two prompts make no interval"
    copies = pd.concat([frame.assign(index=frame["index"] + 2 * k) for k in range(3)])
    result = paired(copies, "auto", "dTree B=4", "tokens_per_second", rng=np.random.default_rng(0))
    assert 1.25 <= result.low < result.ratio < result.high <= 2.0


@pytest.mark.slow
def test_intervals_cover_the_truth() -> None:
    """Prompts differ, b is 1.2 times a but for noise: 95% intervals hold 1.2 in most of 60
    worlds."""
    rng, held, width = np.random.default_rng(1), 0, []
    for _ in range(60):
        rows = []
        for index in range(40):
            speed = math.exp(rng.normal(0, 0.5))
            rows.append(row(TREE, index, [[]] * 8, seconds=8 / speed))
            rows.append(
                row(ETV, index, [[]] * 8, seconds=8 / (1.2 * speed * math.exp(rng.normal(0, 0.1))))
            )
        result = paired(to_frame(rows), "dTree B=4", "dTree B=4 +ETV", "tokens_per_second", rng=rng)
        held += result.low <= 1.2 <= result.high
        width.append(result.high - result.low)
    assert 51 <= held <= 60
    assert np.mean(width) < 0.12, "pairing takes out what prompts differ by"


def test_pairs_that_cannot_be(frame: pd.DataFrame) -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(UsageError, match="share no prompt; choose from auto, dTree B=4"):
        paired(frame, "auto", "dTree B=9", "tokens_per_step", rng=rng)
    twice = pd.concat([frame, to_frame([row(Settings(**LAW, B=4, policy="hybrid"), 0, [[0]])])])
    with pytest.raises(UsageError, match="dTree B=4: names several settings; narrow the frame"):
        paired(twice, "auto", "dTree B=4", "tokens_per_step", rng=rng)


def test_the_table_for_a_readme_has_the_numbers_of_the_results(frame: pd.DataFrame) -> None:
    other = to_frame([row(TREE, 0, [[0]], dataset="runs/other.jsonl")])
    both = pd.concat([frame, other])
    tables = markdown(results_table(both))
    assert {title.split()[0]: numbers(title) for title in tables} == {"d": [2], "other": [1]}
    cells = [cells for table in tables.values() for cells in table]
    for found, result in zip(cells, results(both).to_dict(orient="records"), strict=True):
        assert (found["tree"], float(found["T"])) == (result["label"], result["T"])
        told = numbers(" ".join(list(found.values())[3:]))
        expected = [
            *(result[name] for name in ("tokens_per_step", "accepted_per_step")),
            *(result[name] for name in ("tokens_per_second", "speedup")),
            1e3 * result["latency_per_request_s"],
            *(result[phase] for phase in PHASES),
        ]
        assert told == pytest.approx([number for number in expected if number == number], rel=0.03)


def test_speed_over_the_memory_floor_is_a_column_where_it_is_known(frame: pd.DataFrame) -> None:
    assert "over the floor" not in results_table(frame)
    known = results(frame.assign(floor_ms="2.0"))
    assert known["over_floor"].tolist() == pytest.approx(
        (2e-3 / known["latency_per_token_s"]).tolist()
    )
    for cells in markdown(results_table(frame.assign(floor_ms="2.0")))["d (n = 2)"]:
        label = known[known["label"] == cells["tree"]].iloc[0]
        assert float(cells["over the floor"].removesuffix("x")) == pytest.approx(
            label["over_floor"], abs=0.01
        )


def test_frames_are_read_from_folders_and_files(frame: pd.DataFrame, tmp_path: Path) -> None:
    frame.to_parquet(tmp_path / "records.parquet", index=False)
    for path in (tmp_path, tmp_path / "records.parquet"):
        read = load_frame(path)
        assert read["tokens"].tolist() == frame["tokens"].tolist()
        assert acceptance_by_rank(read).equals(acceptance_by_rank(frame)), "lists of lists survive"
    with pytest.raises(UsageError, match=r"records .*none.jsonl: cannot be read"):
        load_frame(tmp_path / "none.jsonl")


def test_an_unfinished_folder_is_read_as_it_stands(tmp_path: Path) -> None:
    rows = [replace(row(TREE, index, [[0], []]), run="r") for index in range(4)]
    lines = [entry.to_json() + "\n" for entry in rows]
    to_frame(rows[:1]).to_parquet(tmp_path / "records.parquet")
    os.utime(tmp_path / "records.parquet", (1, 1))  # of an earlier, smaller sweep
    (tmp_path / "records.jsonl").write_text("".join(lines[:2]))
    (tmp_path / "records.1.jsonl").write_text("".join(lines[1:3]) + lines[3][:50])
    assert load_frame(tmp_path)["index"].tolist() == [0, 1, 2], (
        "another process's too, once each, none that is torn"
    )


def test_trees_side_by_side_and_against_each_other() -> None:
    """Two rivals of four nodes and our tree: twice the tokens in the same time."""
    rival, static = (
        Settings(**LAW, B=4, method="DySpec B=4"),
        Settings(**LAW, mode="sTree", growmap="x/4x1.pt"),
    )
    rows = []
    for index in range(6):
        rows += [replace(row(rival, index, [[0], []]), tree_size=[4, 4])]
        rows += [replace(row(static, index, [[0], [0], []]), tree_size=[4, 4, 4])]
        rows += [replace(row(TREE, index, [[0, 0, 0]] * 2), tree_size=[4, 4])]
    (title, (cells,)) = markdown(trees_table(to_frame(rows))).popitem()
    assert numbers(title) == [4]
    assert [float(cells[kind]) for kind in ("DySpec", "sTree 4x1", "dTree")] == [0.5, 0.67, 3.0]
    assert numbers(cells["ours over the best other"])[0] == 4.5
    lines = next(iter(markdown(against_table(to_frame(rows), ["DySpec B=4"])).values()))
    ratio = {line["tree"]: numbers(line["over `DySpec B=4`"]) for line in lines}
    assert ratio["dTree B=4"][0] == pytest.approx(8 / 3, abs=0.01)
    assert ratio["DySpec B=4"] == []
    with pytest.raises(UsageError, match="--against EAGLE: is no setting there; choose among: "):
        against_table(to_frame(rows), ["EAGLE"])


def test_a_text_that_ended_at_once_has_no_speed() -> None:
    """Its ratio and its seconds do not enter medians, with or without intervals."""
    rows = [row(AUTO, n, [[]] * 4, seconds=2.0 + n) for n in range(3)]
    rows += [row(TREE, n, [[0], []], seconds=2.0) for n in range(2)]
    frame = to_frame([*rows, row(TREE, 2, [[0], []], seconds=2.0)])
    ended = (frame["label"] != "auto") & (frame["index"] == 2)
    frame.loc[ended, "decode_seconds"] = 0.0
    line = results(frame).query("label != 'auto'").iloc[0]
    kept = results(frame[~ended]).query("label != 'auto'").iloc[0]
    for name in ("tokens_per_second", "latency_per_token_s", "latency_per_request_s", "speedup"):
        assert line[name] == pytest.approx(kept[name])
