"""The explorer without a page: decodes behind, steps, restarts, compares, and says what is wrong
where it is shown. Whatever a reader sees or touches is found in `Explorer.box` as on the page: by
its label, or in what is drawn."""

from __future__ import annotations

import gzip
import json
import re
import time
import xml.etree.ElementTree as ET
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ipywidgets as ipw
import pytest
from readers import numbers

from dynasurge import Pair, UsageError, generate, trace
from dynasurge.models.engine import Engine
from dynasurge.plots.explorer import Explorer, TreeView
from dynasurge.plots.tree_svg import palette_rules

PROMPT = "w5 w17 w8 w40 w33 w9 w21 w60 w61"
COMMON: dict[str, Any] = {
    "prompt": PROMPT,
    "prompt_len": 16,
    "new_tokens": 24,
    "fill": True,
    "B": 4,
    "T": 0.8,
}
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def explorer(models: Pair) -> Iterator[Explorer]:
    explorer = Explorer(models, **COMMON)
    decoded(explorer)
    yield explorer
    explorer.close()


def decoded(explorer: Explorer) -> None:
    """Wait until the texts have ended."""
    assert explorer.wait(10**6, timeout=60)


def on_page(explorer: Explorer, kind: type) -> list[Any]:
    """The widgets of a kind, as one reads."""

    def below(widget: Any) -> Iterator[Any]:
        yield widget
        for child in getattr(widget, "children", ()):
            yield from below(child)

    return [widget for widget in below(explorer.box) if isinstance(widget, kind)]


def control(explorer: Explorer, label: str, side: int = 0) -> Any:
    """What a reader sets by this label."""
    labelled = on_page(explorer, ipw.ValueWidget)
    return [widget for widget in labelled if widget.description == label][side]


def prompt(explorer: Explorer) -> Any:
    """Where a reader types."""
    return on_page(explorer, ipw.Textarea)[0]


def views(explorer: Explorer) -> list[TreeView]:
    return on_page(explorer, TreeView)


def text(view: TreeView) -> dict[str, str]:
    """The running text by the class of its parts; of several parts of a class the last."""
    spans = ET.fromstring(f"<p>{view.text}</p>")
    return {span.get("class", ""): span.text or "" for span in spans}


def bars(view: TreeView) -> list[str]:
    """The class of every step's bar."""
    rects = ET.fromstring(view.strip).iter(f"{SVG}rect")
    return [rect.get("class", "") for rect in rects if rect.get("data-step")]


def nodes(view: TreeView) -> list[str]:
    """The class of every node that is drawn."""
    groups = ET.fromstring(view.tree).iter(f"{SVG}g")
    return [group.get("class", "") for group in groups]


def shown(explorer: Explorer) -> int:
    """The step that every view shows: its bar is marked, its tree is drawn, the status says it."""
    (step,) = {bars(view).index("step now") for view in views(explorer)}
    for view, steps in zip(views(explorer), explorer.steps, strict=True):
        fates = [f"node {fate}" for fate in steps[step].fates]
        assert nodes(view)[: len(fates)] == fates
        assert numbers(view.status)[0] == step
    assert step == explorer.step
    return step


def sizes(explorer: Explorer) -> set[int]:
    """How many nodes the steps of the first setting drafted."""
    return {step.tree.size for step in explorer.steps[0]}


def send(explorer: Explorer, step: str | int) -> None:
    """What the page sends for a key or a click on a bar."""
    content = {"method": "custom", "content": {"step": step}}
    views(explorer)[0].comm.handle_msg({"content": {"data": content}, "buffers": []})


def click(explorer: Explorer, step: str) -> None:
    (button,) = [b for b in on_page(explorer, ipw.Button) if step in b.tooltip]
    button.click()


def test_it_shows_what_the_same_settings_generate(explorer: Explorer, models: Pair) -> None:
    expected = trace(models, PROMPT, prompt_len=16, new_tokens=24, fill=True, B=4, T=0.8, M=168)
    assert [step.emitted for step in explorer.steps[0]] == [step.emitted for step in expected.steps]
    assert shown(explorer) == 0
    (view,) = views(explorer)
    assert len(bars(view)) == len(expected.steps)
    assert text(view)["prompt"] == PROMPT


def test_a_captured_session_shows_the_trees_that_it_grew(
    models: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU; on a CPU nothing is captured, but the same functions are called."""
    monkeypatch.setattr("dynasurge.decoding.engines.can_capture", lambda pair: True)
    expected = generate(models, PROMPT, prompt_len=16, new_tokens=24, fill=True, B=4, T=0.8)
    explorer = Explorer(models, **COMMON)
    decoded(explorer)
    assert [step.tree for step in explorer.steps[0]] == [step.tree for step in expected.steps]
    assert [step.p for step in explorer.steps[0]] == [step.p for step in expected.steps]
    assert shown(explorer) == 0
    explorer.close()


@pytest.mark.parametrize("way", [send, click])
def test_keys_and_buttons_step_and_stay_within_the_text(explorer: Explorer, way: Any) -> None:
    last = len(explorer.steps[0]) - 1
    asked = ["previous", "next", "next", "previous", "last", "next", "first"]
    found = []
    for step in asked:
        way(explorer, step)
        found.append(shown(explorer))
    assert found == [0, 1, 2, 1, last, last, 0]


def test_a_click_on_a_bar_shows_its_step(explorer: Explorer) -> None:
    send(explorer, 3)
    assert shown(explorer) == 3


def test_a_changed_setting_decodes_anew_and_keeps_the_step(explorer: Explorer) -> None:
    explorer.step = 2
    control(explorer, "B").value = 8
    decoded(explorer)
    assert shown(explorer) == 2
    assert max(sizes(explorer)) == 8
    control(explorer, "mode").value = "sTree"
    decoded(explorer)
    assert max(sizes(explorer)) == 32
    assert control(explorer, "B").disabled
    assert not control(explorer, "growmap").disabled
    control(explorer, "growmap").value = "chain3"
    decoded(explorer)
    assert 3 in sizes(explorer)
    control(explorer, "mode").value = "auto"
    decoded(explorer)
    assert sizes(explorer) == {0}


def test_a_budget_may_be_filled_or_left_to_the_machine(explorer: Explorer) -> None:
    assert control(explorer, "fill").value
    control(explorer, "B").value = "auto"
    decoded(explorer)
    assert shown(explorer) == 0
    control(explorer, "B").value, control(explorer, "fill").value = 4, False
    decoded(explorer)
    assert max(sizes(explorer)) <= 4


def test_a_long_prompt_is_cut_and_the_page_says_so(explorer: Explorer) -> None:
    (view,) = views(explorer)
    assert 16 not in numbers(view.status)
    prompt(explorer).value = " ".join(["w5"] * 40)
    decoded(explorer)
    assert text(view)["prompt"].split() == ["w5"] * 16
    assert 16 in numbers(view.status)


def test_two_settings_share_prompt_seed_and_step(explorer: Explorer) -> None:
    control(explorer, "compare two settings").value = True
    control(explorer, "rule", side=1).value = "traversal"
    decoded(explorer)
    first, second = explorer.steps
    assert {step.rule for step in first} == {"topdown"}
    assert {step.rule for step in second} == {"traversal"}
    before = [step.emitted for step in first]
    control(explorer, "seed").value = 7
    decoded(explorer)
    assert [step.emitted for step in explorer.steps[0]] != before
    send(explorer, 1)
    assert shown(explorer) == 1
    assert len({text(view)["prompt"] for view in views(explorer)}) == 1
    control(explorer, "compare two settings").value = False
    assert len(explorer.steps) == len(views(explorer)) == 1


def test_mistakes_are_said_on_the_page_and_can_be_mended(explorer: Explorer) -> None:
    (view,) = views(explorer)
    control(explorer, "mode").value = "sTree"
    for spec in ("9x30", "nonsense"):
        control(explorer, "growmap").value = spec
        assert spec in view.status
        assert "--" not in view.status, "a page has no flags"
        assert view.stale
    prompt(explorer).value = ""
    control(explorer, "mode").value = "dTree"
    decoded(explorer)
    assert view.status.startswith("prompt ")
    assert view.stale


def test_the_page_never_waits_for_decoding(models: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """With steps of a fifth of a second, controls answer at once and a change drops the run that it
    makes stale."""
    score, passes = Engine.score, []

    def slow(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.model is models.target:
            passes.append(self.length)
            time.sleep(0.2)
        return score(self, *args, **kwargs)

    monkeypatch.setattr(Engine, "score", slow)
    start = time.perf_counter()
    explorer = Explorer(models, **COMMON)
    control(explorer, "B").value = 2
    send(explorer, "next")
    assert time.perf_counter() - start < 1.0, "not a whole generation, which takes seconds"
    assert "decoding" in views(explorer)[0].status
    assert explorer.wait(1, timeout=30)
    assert 0 < len(passes) < 8, "the stale run was left alone"
    assert max(sizes(explorer)) <= 2
    explorer.close()


def unpacked(page: str) -> Any:
    """The steps in a page."""
    packed = re.search(r'id="steps">([^<]*)<', page)
    assert packed is not None
    return json.loads(gzip.decompress(b64decode(packed[1])))


def test_where_widgets_cannot_run_it_is_a_picture_or_a_page(
    models: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two outputs: the widget with pictures, and the page, made again after each generation."""
    shown: list[dict[str, Any]] = []

    class Handle:
        def update(self, bundle: dict[str, Any], raw: bool) -> None:
            shown.append(bundle)

    def display(bundle: dict[str, Any], raw: bool, display_id: bool = False) -> Handle:
        shown.append(bundle)
        return Handle()

    monkeypatch.setattr("IPython.display.display", display)
    explorer = Explorer(models, compare={"T": 0.0}, **COMMON)
    decoded(explorer)
    explorer._ipython_display_()
    widget, first = shown
    alone = {"application/vnd.jupyter.widget-view+json", "text/plain"}
    assert set(widget) == alone, "`make notebooks` leaves it out"
    bundle = explorer._repr_mimebundle_()
    picture = ET.fromstring(bundle["image/svg+xml"])
    assert len(picture.findall(f"{SVG}svg")) == 2, "one above the other"
    assert b64decode(bundle["image/png"]).startswith(b"\x89PNG")
    control(explorer, "B").value = 2
    decoded(explorer)
    again = shown[-1]
    assert len(shown) == 3
    for bundle, budget in ((first, 4), (again, 2)):
        (frame,) = ET.fromstring(f"<p>{bundle['text/html']}</p>").iter("iframe")
        sides = unpacked(frame.attrib["srcdoc"])["sides"]
        assert f"B={budget}" in sides[0]["code"]
        assert [len(side["tree"]) for side in sides] == [len(side["text"]) for side in sides]
    explorer.to_html(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert [len(side["tree"]) for side in unpacked(page)["sides"]] == [
        len(steps) for steps in explorer.steps
    ]
    assert not re.search("https?://(?!www.w3.org/2000/svg)", page), "nothing is fetched"
    explorer.close()


def test_it_begins_with_any_valid_setting(models: Pair) -> None:
    static = {"mode": "sTree", "growmap": "2x2", "use_bfs": True, "etv": "reserved", "T": 9.0}
    explorer = Explorer(
        models,
        prompt=PROMPT,
        prompt_len=16,
        new_tokens=8,
        compare={"policy": "topk", "etv": "bfs"},
        **static,
    )
    decoded(explorer)
    assert [{step.rule for step in steps} for steps in explorer.steps] == [{"reserved"}, {"bfs"}]
    assert [control(explorer, "T", side).value for side in (0, 1)] == [9.0, 9.0]
    explorer.close()


def test_wrong_settings_are_refused_at_once(models: Pair) -> None:
    with pytest.raises(UsageError, match="--T -1"):
        Explorer(models, T=-1)
    with pytest.raises(UsageError, match="--policy best"):
        Explorer(models, compare={"policy": "best"})
    with pytest.raises(UsageError, match=r"T 101\.0: is above 100, the largest"):
        Explorer(models, T=101.0)
    with pytest.raises(UsageError, match="compare foo: is no field of Settings"):
        Explorer(models, compare={"T": 1.0, "foo": 2})
    with pytest.raises(UsageError, match="compare seed"):
        Explorer(models, compare={"seed": 3})
    explorer = Explorer(models, prompt=PROMPT, B=500, M=900)
    decoded(explorer)
    (view,) = views(explorer)
    assert "B 500" in view.status
    assert 128 in numbers(view.status), "what it may be"
    explorer.close()
    assert explorer.wait(10**6, timeout=60), "nobody waits for what was closed"


def test_the_page_side_is_whole_and_needs_no_network() -> None:
    sent = [value for value in TreeView().get_state().values() if isinstance(value, str)]
    page = "\n".join(sent)
    assert not re.search(r"https?:|import |@import|url\(", page)
    assert re.search(r"export default \{.*\brender\b", page)
    used = set(re.findall(r"var\((--\w+)\)", page))
    assert used
    assert used <= set(re.findall(r"(--\w+):", palette_rules())), "colours of either theme"
    for part in ("accepted", "rejected", "bonus", "status", "tip"):
        assert re.search(rf"\.{part}\b[^{{}}]*{{", page), "has a style"


def test_a_prompt_may_be_the_users_turn(models: Pair) -> None:
    own = models.tokenizer.chat_template
    models.tokenizer.chat_template = "w9 {{ messages[0].content }} w10"
    try:
        explorer = Explorer(models, **COMMON | {"prompt": "w5 w6", "chat": True})
        decoded(explorer)
        assert explorer.steps[0]
        assert explorer._shown[0].run.prompt == "w9 w5 w6 w10"
        explorer.close()
    finally:
        models.tokenizer.chat_template = own


def test_only_what_can_be_decoded_is_offered(models: Pair) -> None:
    explorer = Explorer(models, **COMMON)
    mode, rule, policy, growmap = (
        control(explorer, name) for name in ("mode", "rule", "policy", "growmap")
    )
    assert list(rule.options) == ["topdown", "traversal", "bfs (lossy)"]
    assert growmap.disabled
    mode.value = "sTree"
    assert not growmap.disabled
    assert "optimal15" in growmap.options
    assert list(rule.options) == ["topdown", "traversal", "reserved", "bfs (lossy)"]
    growmap.value = "2x2"
    for chosen, expected in {"reserved": "reserved", "bfs (lossy)": "bfs"}.items():
        rule.value = chosen
        decoded(explorer)
        assert {step.rule for step in explorer.steps[0]} == {expected}
    rule.value = "reserved"
    policy.value = "topk"
    assert rule.value == "topdown", "children chosen outright have no such rule"
    decoded(explorer)
    assert not views(explorer)[0].stale
    tree = views(explorer)[0].tree
    growmap.value = "9x"
    assert explorer.wait(timeout=30)
    assert views(explorer)[0].status.startswith("growmap 9x: no such file")
    assert views(explorer)[0].stale
    assert views(explorer)[0].tree == tree, "what was there stays, dimmed"
    explorer.close()
