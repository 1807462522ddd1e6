"""The comparison of trees: every method runs, static trees come from what was chosen, the tables
have a row a budget."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import promises
import pytest
import shards
import statics
import torch
import trees
import treetables
import worth

from dynasurge.drafting.cost_model import Costs
from dynasurge.trees.token_tree import TokenTree


@pytest.mark.slow
def test_trees_are_chosen_run_and_compared(
    pair: list[str],
    prompts: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in (trees, treetables):
        monkeypatch.setattr(module, "BUDGETS", (3, 5))
    monkeypatch.setattr(statics, "NAMED", ("3x1", "2x2"))
    monkeypatch.setattr(statics, "SIZES", {3: (2,), 5: (2, 3)})
    monkeypatch.setattr(statics, "TEMPERATURES", (0.0, 0.6))
    chosen, out = tmp_path / "chosen", tmp_path / "out"
    trees.main(["choose", *pair, "--prompts", "1", "--new-tokens", "8", "--output", str(chosen)])
    found = json.loads((chosen / "chosen.json").read_text())["T0.6"]
    assert len(found["accepted"]) == 5
    for T, shard in (("0", "0/1"), ("0.6", "0/2"), ("0.6", "1/2")):
        flags = [
            "--data",
            prompts,
            "--prompts",
            "2",
            "--new-tokens",
            "12",
            "--T",
            T,
            "--shard",
            shard,
        ]
        flags += ["--chosen", str(chosen / "chosen.json"), "--output", str(out / f"T{T}")]
        trees.main(["run", *pair, *flags])
    rows = [
        json.loads(line)
        for file in out.rglob("rows-*.jsonl")
        for line in file.read_text().splitlines()
    ]
    assert len(rows) == 2 * 2 * (2 * (len(trees.METHODS) + 2) + 2)
    for row in rows:
        assert max(row["size"]) <= (row["B"] or 256)
        assert len(row["expected"]) == len(row["size"])
    capsys.readouterr()
    trees.main(["table", str(out), "--speeds", "--kinds"])
    printed = capsys.readouterr().out
    assert "| prompts | test | 0.6 | 2 |" in printed, "two prompts of one kind"
    assert printed.count("| prompts | 0.6 |") == 5  # a row a budget, twice, and `auto`
    assert "| all |" not in printed, "there is one text only"
    assert printed.count(" prototype |") == 2, "a column of either table"
    assert printed.count("(static)") + printed.count("(prototype)") + printed.count("(DySpec)") > 0
    flags = [
        "--data",
        prompts,
        "--prompts",
        "1",
        "--new-tokens",
        "12",
        "--T",
        "0.6",
        "--every",
        "4",
    ]
    flags += ["--methods", "fast static", "copies", "--chosen", str(chosen / "chosen.json")]
    trees.main(["run", *pair, *flags, "--output", str(tmp_path / "places")])
    capsys.readouterr()
    trees.main(["table", str(tmp_path / "places")])
    printed = capsys.readouterr().out
    assert printed.count("| prompts | 0.6 |") == 2  # a row a budget
    rows = (tmp_path / "places" / "rows-0-of-1.jsonl").read_text().splitlines()
    assert [len(json.loads(row)["expected"]) for row in rows] == [3] * 4


def test_the_best_static_tree_is_the_one_that_accepts_most_or_is_fastest() -> None:
    accepted = {"8x1": 1.0, "2x4": 1.6, "optimal 12 nodes 4 levels": 2.0, "8x8": 9.0}
    chosen: statics.Chosen = {"vector": [0.6, 0.2, 0.1], "accepted": accepted}
    assert statics.best_static(chosen, 12).size - 1 == 12
    assert statics.best_static(chosen, 11).depth == 4
    cheap = Costs(widths=(1, 64), target_seconds=(1.0, 1.1), draft_seconds=(0.01, 0.01))
    assert statics.best_static(chosen, 12, cheap).size - 1 == 12
    dear = Costs(widths=(1, 64), target_seconds=(1.0, 1.1), draft_seconds=(0.5, 0.5))
    assert statics.best_static(chosen, 12, dear).depth == 1, "a level costs half a target pass"
    assert statics.best_static(chosen, 64, dear).size - 1 == 64


def test_hindsight_takes_the_likeliest_nodes_and_not_their_elder_siblings() -> None:
    """Two siblings of which the younger is what the target wants: one or the other is always
    accepted, and hindsight has room for both."""
    tree = TokenTree(
        tokens=(0, 0, 1), parents=(-1, 0, 0), proposal=(1.0, 0.9, 1.0), point=(True, False, False)
    )
    p = torch.tensor([[0.05, 0.95]]).expand(3, -1)
    hindsight = trees.Hindsight()
    hindsight(tree, p, [torch.tensor([0.9, 0.1])] * 3, torch.Generator().manual_seed(0))
    assert hindsight.sums[16] == pytest.approx(1.0)


@pytest.mark.parametrize(
    "content", ["5", "{", "{}", '{"T0.6": {}}', '{"T0.6": {"vector": [0.5], "accepted": {}}}']
)
def test_what_was_not_chosen_is_one_line(
    content: str, pair: list[str], prompts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "chosen.json"
    file.write_text(content)
    flags = ["--data", prompts, "--T", "0.6", "--methods", "static", "--chosen", str(file)]
    with pytest.raises(SystemExit) as caught:
        trees.main(["run", *pair, *flags, "--output", str(tmp_path / "out")])
    assert caught.value.code == 2
    assert "make it with: trees.py choose" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_rows_of_two_files_of_one_name_or_of_two_choices_are_not_mixed(
    pair: list[str], prompts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen, common = (
        tmp_path / "chosen.json",
        ["run", *pair, "--prompts", "0", "--T", "0.6", "--B", "16"],
    )
    with pytest.raises(SystemExit) as caught:
        trees.main(
            [
                *common,
                "--data",
                prompts,
                prompts,
                "--methods",
                "copies",
                "--output",
                str(tmp_path / "a"),
            ]
        )
    assert caught.value.code == 2
    assert "rows go by the file's name" in capsys.readouterr().err
    common += ["--data", prompts, "--chosen", str(chosen), "--output", str(tmp_path / "b")]
    trees.main([*common, "--methods", "copies"])
    chosen.write_text(json.dumps({"T0.6": {"vector": [0.6], "accepted": {"2x2": 1.0}}}))
    with pytest.raises(SystemExit) as caught:
        trees.main([*common, "--methods", "static"])
    assert caught.value.code == 2
    assert "made with chosen none" in capsys.readouterr().err


def test_ours_are_compared_with_the_better_static_tree_and_the_best_peer(
    capsys: pytest.CaptureFixture[str],
) -> None:
    rates = {"static": 1.0, "fast static": 2.0, "DySpec": 4.0, "copies": 8.0, "default": 5.0}
    values = {("x", 0, 0.6, name, 16): (rate, 1.0) for name, rate in rates.items()}
    treetables._compare(values, "default", treetables.NAMES, ".0f")
    row = capsys.readouterr().out.splitlines()[-1].split(" | ")
    assert row[-2].startswith("+150.0%")
    assert row[-2].endswith("(fast static)")
    assert row[-1].startswith("+25.0%")
    assert "(DySpec)" in row[-1]


def test_a_prompt_weighs_as_much_as_there_is_of_it() -> None:
    """Two prompts of 1 and 9 steps; tokens a step and their gain, and all prompts alike where there
    is nothing to count by."""
    a, b = np.array([[2.0, 1.0], [9.0, 9.0]]), np.array([[2.0, 1.0], [20.0, 10.0]])
    assert shards.rate(a, 2) == pytest.approx(1.1)
    assert shards.gain(a, b)[0] == pytest.approx(2.0 / 1.1 - 1)
    low, high = shards.gain(a, b)[1:]
    assert (low, high) == (pytest.approx(0.0), pytest.approx(1.0)), (
        "resamples of either prompt alone"
    )
    assert shards.gain(a[:, 0], b[:, 0])[0] == pytest.approx(22 / 11 - 1)
    values = {("x", 0, 0.6, "copies", 8): (2.0, 1.0), ("y", 0, 0.6, "copies", 8): (9.0, 9.0)}
    assert treetables._rows(values) == [("x", 0.6), ("y", 0.6), ("all", 0.6)]
    found = treetables._paired(values, "all", 0.6, {"ours": ("copies", 8)})
    assert found is not None
    assert found["ours"].tolist() == [[2.0, 1.0], [9.0, 9.0]]
    assert (
        treetables._paired(values, "all", 0.6, {"ours": ("copies", 8), "theirs": ("static", 8)})
        is None
    )


def test_what_explains_acceptance_is_found() -> None:
    """A feature that decides it, one that says nothing, and children that are never tried."""
    random = np.random.default_rng(0)
    chance, noise = random.random(4000), random.random(4000)
    rows = {
        "prompt": np.arange(4000) // 100,
        "chance": chance,
        "entropy": noise,
        "tried": (noise < 0.9) * 1.0,
    }
    rows["accepted"] = np.where(rows["tried"] > 0, chance > 0.5, noise) * 1.0
    assert worth.explained(rows, ["chance"]) > 0.9
    assert abs(worth.explained(rows, ["entropy"])) < 0.02
    assert worth.explained(rows, ["chance", "entropy"]) > 0.85


def test_what_children_are_worth_is_measured(
    pair: list[str], prompts: str, capsys: pytest.CaptureFixture[str]
) -> None:
    worth.main(["--data", prompts, "--end", "2", "--new-tokens", "8", "--T", "0.9", *pair])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [line.count("|") for line in lines] == [5] * (2 + len(worth.FEATURES))


def test_promises_are_held_against_what_was_accepted(
    pair: list[str], prompts: str, capsys: pytest.CaptureFixture[str]
) -> None:
    promises.main(
        ["--data", prompts, "--end", "2", "--new-tokens", "8", "--T", "0.9", "--B", "6", *pair]
    )
    table = [
        line.split("|")[1:-1]
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("| ")
    ][1:]
    rows = {name.strip(): [float(x) for x in cells] for name, *cells in table}
    for what in ("depth", "promised"):
        parts = np.array([cells[:3] for name, cells in rows.items() if name.startswith(what)])
        assert parts.sum(0) == pytest.approx(rows["all"][:3], abs=0.5)
    assert rows["all"][0] > rows["all"][1] > 0, "nodes are worth less than one token"
