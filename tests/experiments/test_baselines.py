"""Other systems' trees and transformers' own methods beside ours: all run, in one folder of records,
and greedily all say the same. Trees at the same places of one text."""

from __future__ import annotations

from pathlib import Path

import bench_peers
import pytest

from dynasurge.cli.main import main
from dynasurge.experiments import baselines
from dynasurge.experiments.records import RecordFile
from dynasurge.experiments.results_frame import load_frame, predictions_by_depth, results
from dynasurge.files import cache_folder
from dynasurge.settings import BASELINES
from dynasurge.trees.growmap import load_growmap

SIZES = [
    "--M",
    "64",
    "--prompt-len",
    "12",
    "--new-tokens",
    "10",
    "--device",
    "cpu",
    "--dtype",
    "float32",
    "--end",
    "2",
]


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Acceptance by rank from a few tokens; growmaps in a folder of the test."""
    monkeypatch.setenv("DYNASURGE_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(baselines, "PROMPTS", 1)
    monkeypatch.setattr(baselines, "TOKENS", 8)


@pytest.mark.slow
def test_every_method_runs_under_its_name(pair: list[str], prompts: str, tmp_path: Path) -> None:
    flags = ["sweep", *pair, *SIZES, "--dataset", prompts, "--mode", "auto", "dTree"]
    flags += ["--T", "0", "0.6", "--B", "4", "auto", "--use_bfs", "--methods", *BASELINES]
    assert main([*flags, "--output", str(tmp_path)]) == 0
    frame = load_frame(tmp_path)
    for method in BASELINES:
        name = method if method.startswith("chain") else f"{method} B=4"
        assert {name, f"{name} +ETV"} <= set(frame["label"])
    greedy = frame[frame["T"] == 0]
    assert greedy.groupby("index")["text"].nunique().tolist() == [1, 1]
    sized = frame[frame["label"].str.endswith("B=4")]
    assert sized["tree_size"].map(max).max() == 4
    growmaps = sorted((cache_folder() / "growmaps").glob("sequoia-B4-*.pt"))
    assert len(growmaps) == 2, "one for each temperature"
    sizes = [load_growmap(path).size - 1 for path in growmaps]
    assert max(sizes) == 4, "nodes that would never be accepted are left out"
    before = (tmp_path / "records.jsonl").read_bytes()
    assert main([*flags, "--output", str(tmp_path)]) == 0, "goes on, with nothing left to do"
    assert (tmp_path / "records.jsonl").read_bytes() == before


@pytest.mark.slow
def test_trees_at_the_same_places_of_one_text(
    pair: list[str], prompts: str, tmp_path: Path
) -> None:
    flags = ["sweep", *pair, *SIZES, "--dataset", prompts, "--every", "4", "--T", "0.6", "0.9"]
    flags += ["--mode", "auto", "sTree", "dTree", "--B", "4", "--fill", "--use_bfs"]
    flags += ["--growmap", "growmaps/2x2.pt", "--output", str(tmp_path)]
    assert main(flags) == 0
    frame = load_frame(tmp_path)
    texts = frame.groupby(["index", "T"])["text"]
    assert set(texts.nunique()) == {1}, "one text for all trees"
    places = frame["output_ids"].map(len).map(lambda tokens: -(-tokens // 4))
    assert frame["steps"].tolist() == places.tolist()
    auto, trees = frame[frame["label"] == "auto"], frame[frame["mode"] != "auto"]
    assert auto["accepted_tokens"].tolist() == [0] * len(auto)
    assert (trees["accepted_tokens"] > 0).all()
    static = frame[frame["mode"] == "sTree"].set_index(["T", "index", "label"])
    down, up = (static.xs(name, level="label") for name in ("sTree 2x2", "sTree 2x2 +ETV"))
    assert down["tree_size"].map(list).tolist() == up["tree_size"].map(list).tolist()
    assert down["accepted_tokens"].tolist() != up["accepted_tokens"].tolist(), "by either rule"
    table = results(frame).set_index(["T", "label"])
    assert table.loc[(0.6, "sTree 2x2 +ETV"), "tokens_per_step"] > 1
    honest = predictions_by_depth(frame)
    assert set(honest["label"]) >= {"dTree B=4", "dTree B=4 +ETV"}
    assert (honest["predicted"] > 0).all()
    first = honest[honest["depth"] == 1].set_index(["T", "label"])["reached"]
    deeper = honest[honest["depth"] == 2].set_index(["T", "label"])["reached"]
    assert (first >= deeper).all()
    with pytest.raises(Exception, match="another --every, growmap or priors"):
        RecordFile(tmp_path, [run.replace("-", "-0", 1) for run in frame["run"]])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--every", "0"], None),
        (["--every", "-1"], "--every -1"),
        (["--every", "11"], "--every 11: a text has no more than --new-tokens 10"),
        (["--every", "4", "--use_bfs", "--etv", "bfs"], "--etv bfs: this rule's mean acceptance"),
        (["--methods", "Medusa"], "invalid choice: 'Medusa'"),
    ],
)
def test_mistakes(
    flags: list[str], message: str | None, pair: list[str], prompts: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    command = ["sweep", *pair, *SIZES, "--dataset", prompts, "--mode", "auto"]
    code = main([*command, *flags, "--output", str(tmp_path / "out")])
    assert code == (0 if message is None else 2)
    assert message is None or message in capsys.readouterr().err


def test_a_method_needs_a_number(
    pair: list[str], prompts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["sweep", *pair, *SIZES, "--dataset", prompts, "--mode", "dTree"]
    assert main([*command, "--methods", "DySpec", "--output", str(tmp_path / "out")]) == 2
    assert "--methods DySpec: needs a budget, and --B has no number" in capsys.readouterr().err


@pytest.mark.slow
def test_a_tree_of_another_pair_is_not_taken(pair: list[str], prompts: str, tmp_path: Path) -> None:
    """And methods go by --B and --use_bfs, in every mode."""
    flags = [
        "sweep",
        *SIZES,
        "--dataset",
        prompts,
        "--mode",
        "auto",
        "--T",
        "0.6",
        "--B",
        "4",
        "--use_bfs",
    ]
    flags += ["--methods", "Sequoia"]
    other = [*pair[:1], pair[3], *pair[2:]]  # the target drafts for itself
    for number, models in enumerate((pair, other)):
        out = tmp_path / str(number)
        assert main([*flags, *models, "--output", str(out)]) == 0
        assert set(load_frame(out)["label"]) == {"auto", "Sequoia B=4", "Sequoia B=4 +ETV"}
    growmaps = (cache_folder() / "growmaps").glob("sequoia-B4-*.pt")
    assert len({load_growmap(path) for path in growmaps}) == 2


@pytest.mark.slow
def test_transformers_own_methods(
    pair: list[str], prompts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*pair, *SIZES, "--dataset", prompts, "--mode", "auto", "dTree", "--T", "0", "0.6"]
    flags += ["--B", "4", "--use_bfs", "--methods", "chain3", "--output", str(tmp_path)]
    assert bench_peers.main(flags) == 0
    frame = load_frame(tmp_path)
    peers = {"generate", "assisted 5", "assisted default", "lookup 3"}
    assert peers | {"auto", "dTree B=4", "chain3"} <= set(frame["label"])
    greedy = frame[frame["T"] == 0]
    assert greedy.groupby("index")["text"].nunique().tolist() == [1, 1]
    assert (frame["prefill_seconds"] > 0).all()
    theirs = frame[frame["label"] == "generate"]
    assert (theirs["accepted_tokens"] == 0).all()
    assert (theirs["steps"] == theirs["tokens"] - 1).all(), "the first came with the prompt"
    assert "2 of 2" in capsys.readouterr().out
