"""`dynasurge calibrate` as a user runs it, and the files that it makes: the latency cache and
priors."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import toy
from conftest import argv, assert_one_line, tiny_model
from readers import aligned, numbers, records

import dynasurge.cli.calibrate
from dynasurge.cli.main import main
from dynasurge.decoding import latency
from dynasurge.decoding.engines import Engines
from dynasurge.decoding.latency import cache_file, load_costs, widths_of
from dynasurge.drafting.acceptance_estimates import TEXTS, load_priors, make_acceptance
from dynasurge.drafting.child_kinds import Class, Kind
from dynasurge.drafting.cost_model import Costs
from dynasurge.errors import UsageError
from dynasurge.experiments import calibration
from dynasurge.models import cuda_graphs
from dynasurge.models.engine import Engine


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("DYNASURGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def fails(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", *arguments]) == 2
    assert_one_line(message, capsys)


def stop(*_: Any, **__: Any) -> Any:
    raise KeyboardInterrupt


@pytest.mark.parametrize("form", ["", "acceptance", "ranks"])
def test_each_form_explains_itself(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["calibrate", *form.split(), "--help"])
    assert done.value.code == 0
    assert f"dynasurge calibrate {form}".strip() in capsys.readouterr().out


# --- latency


def test_latency_is_measured_anew_and_shown(
    pair: list[str],
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By a clock that only passes move on, by 10 ms and one a node, and the draft's by one more."""
    clock, score = [0.0], Engine.score

    def timed(self: Engine, tokens: Any, *others: Any, **options: Any) -> Any:
        drafts = self.model.config.num_hidden_layers == 1
        clock[0] += (10 + len(tokens) + drafts) / 1e3
        return score(self, tokens, *others, **options)

    monkeypatch.setattr(Engine, "score", timed)
    monkeypatch.setattr(cuda_graphs, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(latency, "WIDTHS", (1, 2, 4))
    for _ in range(2):
        assert main(["calibrate", *pair, "--device", "cpu"]) == 0
        printed = capsys.readouterr().out
        table = aligned(printed)
        assert numbers(" ".join(table["1"])) == [11, 12], "a root alone has no price a node"
        assert numbers(" ".join(table["2"])) == [12, 13, 1]
        assert numbers(" ".join(table["4"])) == [14, 15, 1]
        (file,) = cache.rglob("*.json")
        assert str(file) in printed
        costs = latency.read_costs(file)
        assert costs is not None
        assert costs.widths == (1, 2, 4)
        assert costs.target_seconds == pytest.approx((0.011, 0.012, 0.014))
        assert costs.draft_seconds == pytest.approx((0.012, 0.013, 0.015))
        file.write_text("damaged")


def test_a_cache_that_cannot_be_written_is_named(
    pair: list[str],
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cache.write_text("in the way")
    monkeypatch.setattr(latency, "WIDTHS", (1,))
    fails([*pair, "--device", "cpu"], "cannot be written", capsys)


def test_ctrl_c_leaves_the_old_curves(
    pair: list[str],
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(latency, "measure", stop)
    assert main(["calibrate", *pair, "--device", "cpu"]) == 130
    assert "stopped; nothing was written" in capsys.readouterr().err
    assert not list(cache.rglob("*.*"))


@pytest.fixture
def engines() -> Engines:
    return Engines(Engine(tiny_model("llama"), 128), Engine(tiny_model("llama", layers=1), 128))


def curve(*widths: int) -> Costs:
    return Costs(
        widths=widths, target_seconds=(1.0,) * len(widths), draft_seconds=(0.1,) * len(widths)
    )


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{broken",
        "[]",
        "{}",
        "[" * 100_000,
        '{"widths": [1], "target_seconds": [1.0], "draft_seconds": [0.1]}',
        '{"widths": [1], "target_seconds": [1.0], "draft_seconds": [0.1], "step_seconds": 0, "more": [1]}',
        '{"widths": [1], "target_seconds": [1.0], "draft_seconds": [], "step_seconds": 0}',
        '{"widths": [2, 1], "target_seconds": [1.0, 1.0], "draft_seconds": [0.1, 0.1], "step_seconds": 0}',
        '{"widths": [1], "target_seconds": [NaN], "draft_seconds": [0.1], "step_seconds": 0}',
        '{"widths": [1], "target_seconds": ["1"], "draft_seconds": [0.1], "step_seconds": 0}',
        '{"widths": [1], "target_seconds": [1.0], "draft_seconds": [0.1], "step_seconds": null}',
    ],
)
def test_damaged_curves_are_measured_again(
    content: str, engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = curve(*widths_of(engines))
    monkeypatch.setattr(latency, "measure", lambda *_: fresh)
    file = cache_file(engines)
    file.parent.mkdir(parents=True)
    file.write_text(content)
    assert load_costs(engines) == fresh
    monkeypatch.setattr(
        latency, "measure", lambda *_: pytest.fail("what was measured again is kept")
    )
    assert load_costs(engines) == fresh


def test_curves_that_stop_short_are_measured_again(
    engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session with narrow engines comes first; those of a wider one must not be judged by its
    curve."""
    assert widths_of(engines) == (1, 2, 4, 8, 16, 24, 32, 48, 64, 96)
    narrow, wider = (Engines(Engine(engines.target.model, n), engines.draft) for n in (8, 32))
    monkeypatch.setattr(latency, "measure", lambda engines, *_: curve(*widths_of(engines)))
    assert load_costs(narrow).widths[-1] == 4
    assert load_costs(wider).widths[-1] == 24
    assert load_costs(narrow).widths[-1] == 24, "a longer curve serves"


def test_a_cache_that_cannot_be_written_costs_no_session(
    engines: Engines, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.write_text("in the way")
    monkeypatch.setattr(latency, "measure", lambda *_: curve(1))
    assert load_costs(engines) == curve(1)
    with pytest.raises(OSError, match="cache"):
        load_costs(engines, anew=True)


# --- acceptance


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "TEMPERATURES", (0.6,))
    monkeypatch.setattr(calibration, "BUDGET", 4)
    monkeypatch.setattr(calibration, "LEAST", 0.1)


@pytest.mark.slow
def test_acceptance_is_measured_and_can_be_used(
    pair: list[str], prompts: str, quick: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(prompts).write_text('{"text": "w5 w6 w7 w5 w6"}\n')
    file = str(tmp_path / "mine.json")
    flags = argv(f"--dataset {prompts} --device cpu --dtype float32")
    command = ["calibrate", "acceptance", file, *pair, *flags]
    assert main(command) == 0
    assert file in capsys.readouterr().out
    priors = load_priors(file)
    assert set(priors) == set(TEXTS)
    assert [list(priors[text]) for text in TEXTS] == [[0.6], [0.6], [0.0]]
    assert {of.kind for of in priors["topdown"][0.6]} >= set(list(Kind)[: Kind.ECHO])
    assert all(of.kind.point for of in priors["greedy"][0.0]), "nothing is drawn"
    assert main([*command, "--priors", file]) == 0, "a second round"
    out = tmp_path / "out"
    flags = argv(f"--prompt-len 4 --new-tokens 4 --B 4 --dataset {prompts} --output {out}")
    assert main([*pair, *flags, "--device", "cpu", "--priors", file]) == 0
    assert [row["settings"]["priors"] for row in records(out)] == [file]


def test_ctrl_c_leaves_the_old_file(
    pair: list[str],
    prompts: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(dynasurge.cli.calibrate, "calibrate", stop)
    (tmp_path / "mine.json").write_text("old")
    assert (
        main(["calibrate", "acceptance", str(tmp_path / "mine.json"), *pair, "--dataset", prompts])
        == 130
    )
    assert "stopped; nothing was written" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.json", "prompts.jsonl"]
    assert (tmp_path / "mine.json").read_text() == "old"


def test_mistakes_are_one_line(
    pair: list[str], prompts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(tmp_path / "mine.json")
    good = ["acceptance", file, *pair, "--dataset", prompts]
    fails([*pair, "--draft", str(tmp_path / "nowhere")], "nowhere: there is no such folder", capsys)
    fails(
        [*good, "--target", str(tmp_path / "nowhere")], "nowhere: there is no such folder", capsys
    )
    fails([*good, "--device", "toaster"], "--device toaster: not on this machine", capsys)
    fails(
        ["acceptance", str(tmp_path / "no" / "mine.json"), *good[2:]],
        "mine.json: cannot be written",
        capsys,
    )
    fails(
        ["acceptance", str(tmp_path), *good[2:]],
        "cannot be written ([Errno 21] Is a directory",
        capsys,
    )
    fails([*good, "--dataset", "none.jsonl"], "none.jsonl: cannot be read", capsys)
    fails([*good, "--priors", "none.json"], "--priors none.json: cannot be read", capsys)
    fails(["acceptance"], "the following arguments are required: FILE", capsys)
    fails(["acceptence", file], "unrecognized arguments: acceptence", capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["prompts.jsonl"]


KNOTS = {"x": [0.1, 0.9], "acceptance": [0.2, 0.8]}


def priors(**change: Any) -> str:
    by_text = {text: {"point": KNOTS} for text in TEXTS} | change
    return json.dumps({text: {"0.6": curves} for text, curves in by_text.items()})


def test_priors_that_a_file_holds_are_used(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text(priors())
    acceptance = make_acceptance("fixed", "topdown", 0.6, str(file))
    assert toy.estimate(acceptance, Class(Kind.POINT), 0.5) == pytest.approx(0.5, abs=0.01)
    file.write_text(priors(topdown={"point": {"x": [0.5], "acceptance": [1.0]}}))
    acceptance = make_acceptance("fixed", "topdown", 0.6, str(file))
    assert toy.estimate(acceptance, Class(Kind.POINT), 0.5) == 1.0, "read anew"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{broken", "cannot be read"),
        (b"\xff", "cannot be read"),
        (b"[" * 100_000, "cannot be read"),
        (b"[]", "its entries are not topdown, traversal, greedy"),
        (b'{"topdown": {}}', "its entries are not topdown, traversal, greedy"),
        (priors(greedy=[]), "is no calibration"),
        (json.dumps({text: [5] for text in TEXTS}), "is no calibration"),
        (priors().replace("0.6", "warm"), "is no calibration"),
        (priors().replace("0.6", "nan"), "topdown: is of no temperature"),
        (json.dumps({text: {} for text in TEXTS}), "topdown: is of no temperature"),
        (json.dumps({text: {"point": KNOTS} for text in TEXTS}), "is no calibration"),
        (priors(greedy={"points": KNOTS}), "greedy: 'points' is no kind of child"),
        (priors(greedy={"point": {"x": [0.5]}}), "is no calibration ('acceptance')"),
        (priors(greedy={"point": KNOTS | {"x": []}}), "greedy, point: not rising knots"),
        (priors(greedy={"point": KNOTS | {"x": [0.9, 0.1]}}), "greedy, point: not rising knots"),
        (
            priors(greedy={"point": KNOTS | {"acceptance": [0.1, 1.1]}}),
            "greedy, point: not rising knots",
        ),
        (priors(greedy={"point": KNOTS | {"acceptance": [0.1, None]}}), "is no calibration"),
        (
            priors(topdown={"later+": {"x": [1, 2], "acceptance": [0.2, 0.1]}}),
            "topdown, later+: its knots are no probabilities",
        ),
    ],
)
def test_bad_priors_are_one_line(content: bytes | str, reason: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UsageError) as caught:
        load_priors(file)
    line = str(caught.value)
    assert line.startswith(f"--priors {file}: ")
    assert reason in line
    assert line.endswith("; make one with: dynasurge calibrate acceptance FILE")
    assert "\n" not in line


# --- acceptance by rank


def test_ranks_are_what_a_static_tree_is_optimised_for(
    pair: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, tree = tmp_path / "ranks.json", tmp_path / "best.pt"
    assert main(["calibrate", "ranks", str(file), *pair, *argv("--T 0.9 --device cpu")]) == 0
    (shares,) = json.loads(file.read_text())["acceptance"]
    assert shares[0] == max(shares)
    assert 0.05 < sum(shares) <= 1.0
    line = f"--acceptance {file} --nodes 5 --depth 3 {tree}"
    assert main(["growmap", "optimise", *argv(line)]) == 0
    assert tree.is_file()
    capsys.readouterr()
    fails(["ranks", str(file), *pair, "--T", "-1"], "--T -1.0", capsys)
