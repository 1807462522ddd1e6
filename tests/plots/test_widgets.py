"""The explorer without a page: decodes behind, steps, restarts, compares, and says what is wrong
where it is shown."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import dynasurge
from dynasurge import Pair, UsageError, load_pair, trace
from dynasurge.plots.explorer import Explorer, TreeView

PROMPT = "w5 w17 w8 w40 w33 w9 w21 w60 w61"
COMMON: dict[str, Any] = {
    "prompt": PROMPT,
    "prompt_len": 16,
    "new_tokens": 24,
    "fill": True,
    "B": 4,
    "T": 0.8,
}
ASSETS = Path(dynasurge.__file__).parent / "assets"


@pytest.fixture(scope="module")
def pair(tiny_folders: dict[str, tuple[str, str]]) -> Pair:
    return load_pair(*tiny_folders["llama"], dtype="float32", device="cpu")


@pytest.fixture
def explorer(pair: Pair) -> Iterator[Explorer]:
    explorer = Explorer(pair, **COMMON)
    assert explorer.wait(10**6, timeout=60), "decoded to its end"
    yield explorer
    explorer.close()


def views(explorer: Explorer) -> list[TreeView]:
    return [side.view for side in explorer._shown]


def ask(explorer: Explorer, step: str | int) -> None:
    """What the page sends."""
    views(explorer)[0]._handle_custom_msg({"step": step}, [])


def test_it_shows_what_the_same_settings_generate(explorer: Explorer, pair: Pair) -> None:
    expected = trace(pair, PROMPT, prompt_len=16, new_tokens=24, fill=True, B=4, T=0.8, M=168)
    assert [step.emitted for step in explorer.steps[0]] == [step.emitted for step in expected.steps]
    view = views(explorer)[0]
    assert view.status.startswith("step 0 ·")
    assert 'class="node root"' in view.tree
    assert view.strip.count("data-step") == len(expected.steps)
    assert "w61" in view.text


def test_keys_buttons_and_bars_step_and_stay_within_the_text(explorer: Explorer) -> None:
    last = len(explorer.steps[0]) - 1
    for asked, step in (
        ("previous", 0),
        ("next", 1),
        ("next", 2),
        ("previous", 1),
        ("last", last),
        ("next", last),
        (3, 3),
    ):
        ask(explorer, asked)
        assert explorer.step == step
        assert views(explorer)[0].status.startswith(f"step {step} ·")
    ask(explorer, "first")
    assert explorer.step == 0


def test_a_changed_setting_decodes_anew_and_keeps_the_step(explorer: Explorer) -> None:
    explorer.step = 2
    side = explorer._shown[0]
    side.controls["B"].value = 8
    assert explorer.wait(10**6, timeout=60)
    assert explorer.step == 2
    assert max(step.tree.size for step in explorer.steps[0]) == 8
    side.controls["mode"].value = "sTree"
    assert explorer.wait(10**6, timeout=60)
    assert max(step.tree.size for step in explorer.steps[0]) == 32
    assert side.controls["B"].disabled
    assert not side.controls["growmap"].disabled
    side.controls["growmap"].value = "chain3"
    assert explorer.wait(10**6, timeout=60)
    assert {step.tree.size for step in explorer.steps[0]} >= {3}
    side.controls["mode"].value = "auto"
    assert explorer.wait(10**6, timeout=60)
    assert all(step.tree.size == 0 for step in explorer.steps[0])


def test_a_budget_may_be_filled_or_left_to_the_machine(explorer: Explorer) -> None:
    controls = explorer._shown[0].controls
    assert controls["fill"].value
    controls["B"].value = "auto"
    assert explorer.wait(10**6, timeout=60)
    assert views(explorer)[0].status.startswith("step 0 ·")
    controls["B"].value, controls["fill"].value = 4, False
    assert explorer.wait(10**6, timeout=60)
    assert max(step.tree.size for step in explorer.steps[0]) <= 4


def test_a_long_prompt_is_cut_and_the_page_says_so(explorer: Explorer) -> None:
    assert "cut" not in views(explorer)[0].status
    explorer._prompt.value = " ".join(["w5"] * 40)
    assert explorer.wait(10**6, timeout=60)
    assert "prompt cut to its first 16 tokens" in views(explorer)[0].status


def test_two_settings_share_prompt_seed_and_step(explorer: Explorer) -> None:
    explorer._both.value = True
    explorer._sides[1].controls["rule"].value = "traversal"
    assert explorer.wait(10**6, timeout=60)
    first, second = explorer.steps
    assert {step.rule for step in first} == {"topdown"}
    assert {step.rule for step in second} == {"traversal"}
    before = [step.emitted for step in first]
    explorer._seed.value = 7
    assert explorer.wait(10**6, timeout=60)
    assert [step.emitted for step in explorer.steps[0]] != before
    ask(explorer, 1)
    assert all(view.status.startswith("step 1 ·") for view in views(explorer))
    explorer._both.value = False
    assert len(explorer.steps) == 1


def test_mistakes_are_said_on_the_page_and_can_be_mended(explorer: Explorer) -> None:
    side = explorer._shown[0]
    side.controls["rule"].value = "reserved"
    assert "--etv reserved" in side.view.status
    assert side.view.tree == ""
    side.controls["rule"].value = "topdown"
    assert explorer.wait(10**6, timeout=60)
    assert side.view.status.startswith("step 0 ·")
    side.controls["mode"].value = "sTree"
    for spec, said in (("9x30", "at most 128"), ("nonsense", "nonsense")):
        side.controls["growmap"].value = spec
        assert said in side.view.status
    explorer._prompt.value = ""
    side.controls["mode"].value = "dTree"
    assert explorer.wait(10**6, timeout=60)
    assert "shorter than one token" in side.view.status


def test_the_page_never_waits_for_decoding(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """With steps of a fifth of a second, controls answer at once and a change drops the run that it
    makes stale."""
    forward = dynasurge.models.engine.Engine.forward

    def slow(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.model is pair.target:
            time.sleep(0.2)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(dynasurge.models.engine.Engine, "forward", slow)
    start = time.perf_counter()
    explorer = Explorer(pair, **COMMON)
    stale = explorer._shown[0].run
    explorer._shown[0].controls["B"].value = 2
    ask(explorer, "next")
    assert time.perf_counter() - start < 1.0, "not a whole generation, which takes seconds"
    assert "decoding" in views(explorer)[0].status
    assert explorer.wait(1, timeout=30)
    assert stale.cancelled
    assert len(stale.steps) < 8
    assert max(step.tree.size for step in explorer.steps[0]) <= 2
    explorer.close()


def test_where_widgets_cannot_run_it_is_a_picture(pair: Pair) -> None:
    explorer = Explorer(pair, compare={"T": 0.0}, **COMMON)
    assert explorer.wait(10**6, timeout=60)
    bundle = explorer._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert bundle["image/svg+xml"].count("<style>") == 2
    explorer.close()


def test_it_begins_with_any_valid_setting(pair: Pair) -> None:
    static = {"mode": "sTree", "growmap": "2x2", "use_bfs": True, "etv": "reserved", "T": 9.0}
    explorer = Explorer(
        pair,
        prompt=PROMPT,
        prompt_len=16,
        new_tokens=8,
        compare={"policy": "topk", "etv": "bfs"},
        **static,
    )
    assert explorer.wait(10**6, timeout=60)
    assert [{step.rule for step in steps} for steps in explorer.steps] == [{"reserved"}, {"bfs"}]
    assert [side.controls["T"].value for side in explorer._shown] == [9.0, 9.0]
    explorer.close()


def test_wrong_settings_are_refused_at_once(pair: Pair) -> None:
    with pytest.raises(UsageError, match="--T -1"):
        Explorer(pair, T=-1)
    with pytest.raises(UsageError, match="--policy best"):
        Explorer(pair, compare={"policy": "best"})
    with pytest.raises(UsageError, match="compare seed: is the same on both sides"):
        Explorer(pair, compare={"seed": 3})
    explorer = Explorer(pair, prompt=PROMPT, B=500, M=900)
    assert explorer.wait(10**6, timeout=60)
    assert "--B 500: has 500 nodes; use at most 128" in views(explorer)[0].status
    explorer.close()
    assert explorer.wait(10**6, timeout=60), "nobody waits for what was closed"


def test_the_page_side_needs_no_network_and_is_packaged() -> None:
    for name in ("tree.js", "tree.css", "widget.css"):
        text = (ASSETS / name).read_text(encoding="utf-8")
        assert not re.search(r"https?:|import |@import|url\(", text), name
    assert "export default { render }" in (ASSETS / "tree.js").read_text(encoding="utf-8")
    assert (ASSETS / "tree.css").read_text(encoding="utf-8") in str(TreeView._css)
