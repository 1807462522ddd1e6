"""Evidence: probes agree with the models, what is published holds numbers only, and figures come
from it alone."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import argv

from dynasurge import UsageError, probabilities
from dynasurge.cli.figures import figures_command
from dynasurge.cli.main import main
from dynasurge.cli.publish import publish_command as publish
from dynasurge.experiments.published_records import PROBES, TEXT, TOP_DOWN, UNSHOWN, Evidence
from dynasurge.experiments.rule_bias import first_token_bias
from dynasurge.models.pair import Pair

SIZES = ["--nodes", "2", "--contexts", "2", "--samples", "20"]


@pytest.fixture
def swept(pair: list[str], prompts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("sys.argv", ["dynasurge", "sweep", "--dataset", "prompts.jsonl"])
    flags = argv(f"--dataset {prompts} --end 2 --new-tokens 6 --dtype float32")
    flags += argv(f"--B 2 --growmap 2x2 --T 1.0 --use_bfs --output {tmp_path / 'run'}")
    assert main(["sweep", *pair, *flags]) == 0
    return tmp_path / "run"


@pytest.mark.slow
def test_what_is_published_is_numbers_with_their_origin(swept: Path, tmp_path: Path) -> None:
    output = tmp_path / "data"
    assert publish([str(swept), "--output", str(output), "--machine", "two cores", *SIZES]) == 0
    assert sorted(path.name for path in output.iterdir()) == sorted(
        ["README.md", "costs.json", "records.parquet", *(f"{name}.parquet" for name in PROBES)]
    )
    evidence = Evidence.read(output)
    assert not set(TEXT) & set(evidence.frame)
    assert evidence.about["machine"] == "two cores"
    sweep, published = evidence.about["commands"].split("; ")
    assert sweep == "dynasurge sweep --dataset prompts.jsonl"
    assert published.startswith(f"dynasurge publish {swept}")
    assert all(
        pd.read_parquet(output / f"{name}.parquet").attrs == evidence.about for name in PROBES
    )
    assert "two cores" in evidence.caption()
    readme = (output / "README.md").read_text()
    assert all(value in readme for value in evidence.about.values())
    original = Evidence.read(swept)
    assert evidence.curve() == original.curve()
    expected = original.frame.drop(columns=[*TEXT, *UNSHOWN])
    names = ["confidence", "predicted", "reached", "dataset", "run"]
    numbers = evidence.frame.drop(columns=names)
    etv = numbers["use_bfs"]
    assert all(len(row) == 0 for name in TOP_DOWN for row in numbers.loc[etv, name])
    for name in TOP_DOWN:
        numbers.loc[etv, name] = expected.loc[etv, name]
    pd.testing.assert_frame_equal(numbers, expected.drop(columns=names), check_like=True, rtol=1e-3)
    assert set(evidence.frame["dataset"]) == {"prompts.jsonl"}, "no path of that machine"
    assert set(expected["dataset"]) != {"prompts.jsonl"}
    assert evidence.frame["run"].str.endswith("-prompts.jsonl").all()
    for name, error in {"confidence": 0.0051, "predicted": 0.051, "reached": 0.051}.items():
        for rounded, exact in zip(evidence.frame[name], expected[name], strict=True):
            assert list(rounded) == pytest.approx(list(exact), abs=error, nan_ok=True)


@pytest.mark.slow
def test_a_study_can_be_published_in_parts(
    swept: Path, pair: list[str], prompts: str, tmp_path: Path
) -> None:
    """Published numbers and a further sweep: all rows, positions of both, other probes of the
    first."""
    first, more, both = (tmp_path / name for name in ("first", "more", "both"))
    assert publish([str(swept), "--output", str(first), "--machine", "m", *SIZES]) == 0
    flags = argv(f"--dataset {prompts} --end 2 --new-tokens 6 --dtype float32 --T 0.5 --B 2")
    assert main(["sweep", *pair, *flags, "--mode", "auto", "dTree", "--output", str(more)]) == 0
    assert publish([str(first), str(more), "--output", str(both)]) == 0
    old, new = Evidence.read(first), Evidence.read(both)
    assert set(new.frame["T"]) == {0.5, 1.0}
    assert len(new.frame) == len(old.frame) + 4
    assert new.about["machine"] == "m"
    for name in ("bounds", "bias"):
        pd.testing.assert_frame_equal(new.probe(name), old.probe(name))
    places = new.probe("positions")
    pd.testing.assert_frame_equal(places[places["T"] == 1.0], old.probe("positions"))
    assert set(new.at(0.5).probe("positions")["T"]) == {0.5}
    assert new.about["commands"].startswith(old.about["commands"])
    places = tmp_path / "places"
    every = argv(f"--every 2 --mode dTree --output {places}")
    assert main(["sweep", *pair, *flags, *every]) == 0
    with pytest.raises(UsageError, match="has rows of --every, which decode nothing"):
        publish([str(places), "--output", str(tmp_path / "none")])


def test_a_widened_target_is_probed_with_the_small_one(
    swept: Path, models: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its function is the same, and what a pass costs is no matter."""
    asked: list[dict[str, object]] = []

    def load(**options: object) -> Pair:
        asked.append(options)
        return models

    monkeypatch.setattr("dynasurge.cli.publish.load_pair", load)
    rows = [json.loads(line) for line in (swept / "records.jsonl").read_text().splitlines()]
    wide = tmp_path / "wide"
    wide.mkdir()
    lines = [
        json.dumps(row | {"settings": row["settings"] | {"target": "demo-7b"}}) + "\n"
        for row in rows
    ]
    (wide / "records.jsonl").write_text("".join(lines))
    assert publish([str(wide), "--output", str(tmp_path / "data"), *SIZES]) == 0
    (options,) = asked
    assert (options["target"], options["dtype"]) == ("demo", "auto")
    assert "at the cost of LLaMA-7B" not in Evidence.read(swept).caption()


@pytest.mark.slow
def test_positions_are_the_models_own_distributions(swept: Path, models: Pair) -> None:
    frame = Evidence.read(swept).frame
    table = PROBES["positions"](models, frame)
    auto = frame[frame["mode"] == "auto"].set_index("index")
    assert table.groupby("index").size().to_dict() == auto["tokens"].to_dict()
    row = auto.loc[0]
    text = torch.tensor([[*row["prompt_ids"], *row["output_ids"][:-1]]])
    with torch.inference_mode():
        p, q = (
            probabilities.to_probs(model(text).logits[0], 1.0)
            for model in (models.target, models.draft)
        )
    overlap = torch.minimum(p, q).sum(-1)[-len(row["output_ids"]) :]
    assert table.loc[table["index"] == 0, "overlap"].tolist() == pytest.approx(
        overlap.tolist(), abs=1e-5
    )


@pytest.mark.slow
def test_rules_agree_at_one_node_and_stay_below_the_bound(swept: Path, models: Pair) -> None:
    table = PROBES["bounds"](models, Evidence.read(swept).frame, nodes=3, draws=4)
    assert set(table["policy"]) == {"sampled", "topk", "hybrid"}
    assert (table["nodes"] == 3).all()
    spread = table.groupby(["policy", "k"])["accepted"].agg(
        lambda column: column.max() - column.min()
    )
    assert (spread < 1e-6).all()
    topk = table[table["policy"] == "topk"]
    assert topk["accepted"].tolist() == pytest.approx(topk["bound"].tolist(), abs=1e-5)
    assert (topk["error"] == 0).all()
    assert (table["accepted"] - 4 * table["error"] < table["bound"] + 1e-5).all()


@pytest.mark.slow
def test_the_prototypes_rule_is_biased_and_the_others_are_not(models: Pair) -> None:
    table = first_token_bias(models, {0: [5, 6, 7], 1: [8, 9]}, T=1.0, samples=300)
    means = table.groupby("rule")["total_variation"].mean()
    assert means["bfs (lossy)"] > max(means["topdown"], means["traversal"])
    assert abs(means["topdown"] - means["traversal"]) < 0.05
    with pytest.raises(ValueError, match="4x8 has 8 levels"):
        first_token_bias(models, {0: [5]}, shape="4x8")


def test_mistakes_cost_one_line(swept: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="own folder"):
        publish([str(swept), "--output", str(swept)])
    with pytest.raises(UsageError, match="--samples"):
        publish([str(swept), "--output", str(tmp_path / "data"), "--samples", "0"])
    with pytest.raises(
        UsageError, match="positions: was not measured there; make such a folder with"
    ):
        figures_command([str(swept), "--output", str(tmp_path / "figures")])
    published = tmp_path / "published"
    Evidence.read(swept).write(published)
    with pytest.raises(UsageError, match="holds no texts"):
        publish([str(published), "--output", str(tmp_path / "data")])
    assert not (tmp_path / "data").exists(), "nothing is left behind"
    with pytest.raises(UsageError, match="have different values of device"):
        publish([str(swept), "figures/data", "--output", str(tmp_path / "data")])
    (published / "bias.parquet").write_bytes(b"PAR1")
    with pytest.raises(UsageError, match=r"bias\.parquet: cannot be read"):
        Evidence.read(published)
    pd.DataFrame({"rule": []}).to_parquet(published / "bias.parquet")
    with pytest.raises(UsageError, match=r"bias\.parquet: has no column index"):
        Evidence.read(published)


def test_what_was_published_there_before_is_gone(swept: Path, tmp_path: Path) -> None:
    output = tmp_path / "data"
    output.mkdir()
    (output / "costs.json").write_text("{}")
    (output / "bias.parquet").write_bytes(b"old")
    replace(Evidence.read(swept), costs=None).write(output)
    assert {path.name for path in output.iterdir()} == {"records.parquet", "README.md"}


@pytest.mark.slow
def test_figures_come_from_the_records_alone(swept: Path, tmp_path: Path) -> None:
    """Once published, neither the models nor the sweep is needed; the same records give the same
    files."""
    data, drawn = tmp_path / "data", [tmp_path / "once", tmp_path / "again"]
    publish([str(swept), "--output", str(data), *SIZES])
    shutil.rmtree(swept)
    books = tmp_path / "notebooks"
    books.mkdir()
    for path in (Path(__file__).parents[2] / "notebooks").glob("04*.ipynb"):
        shutil.copy(path, books)
    for output in drawn:
        assert figures_command([str(data), "--output", str(output), "--notebooks", str(books)]) == 0
    names = sorted(path.name for path in drawn[0].iterdir())
    assert {"comparison.png", "comparison.svg", "04-bound.png"} <= set(names)
    assert all((drawn[0] / name).read_bytes() == (drawn[1] / name).read_bytes() for name in names)
