"""Pictures of a step: one layout, whose boxes keep apart, and three drawings of it that say the
same."""

from __future__ import annotations

import random
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import matplotlib.image
import pytest
from IPython.core.formatters import DisplayFormatter
from samples import random_parents, view

from dynasurge import Settings, TokenTree, UsageError
from dynasurge.decoding.trace import Trace
from dynasurge.plots.pictures import png, save_picture
from dynasurge.plots.tree_layout import BOX, LONGEST, Layout, columns_of, visible
from dynasurge.plots.tree_svg import (
    FATES,
    above_one_another,
    palette_rules,
    step_layout,
    step_svg,
    strip_svg,
    text_html,
)

SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize("seed", range(6))
def test_boxes_keep_apart_and_edges_meet_no_other_box(seed: int) -> None:
    parents, rng = tuple(random_parents(seed)), random.Random(seed)
    layout = Layout(parents=parents, labels=tuple("x" * rng.randrange(1, LONGEST) for _ in parents))
    boxes = [
        (x, y - BOX / 2, x + w, y + BOX / 2)
        for x, y, w in zip(layout.left, layout.y, layout.widths, strict=True)
    ]
    for a, b in combinations(boxes, 2):
        assert a[2] < b[0] or b[2] < a[0] or a[3] < b[1] or b[3] < a[1]
    assert min(box[1] for box in boxes) > 0
    assert max(box[2] for box in boxes) < layout.width
    assert max(box[3] for box in boxes) < layout.height
    for child in range(1, len(parents)):
        start, turn, *_, end = layout.edge(child)
        assert start == (boxes[parents[child]][2], layout.y[parents[child]])
        assert end == (boxes[child][0], layout.y[child])
        # The straight part runs in the parent's own row and column, the curve in the gap between
        # two columns.
        for node, (left, top, right, bottom) in enumerate(boxes):
            if node != parents[child]:
                assert not (left < turn[0] and right > start[0] and top < start[1] < bottom)
                assert not (left < end[0] and right > turn[0])


def test_siblings_stand_in_drawing_order() -> None:
    layout = step_layout(view((1, 4)))
    for family in ((1, 2), (3, 4, 5), (7, 9)):  # the last of them is the bonus token
        assert [layout.y[node] for node in family] == sorted(layout.y[node] for node in family)
        assert len({layout.left[node] for node in family}) == 1


def test_white_space_is_shown_and_long_tokens_are_cut() -> None:
    assert visible(" the") == "·the"
    assert visible("\n\t ") == "↵⇥·"
    assert visible("") == "∅"
    assert visible("\x07") == "\\x07"
    assert visible("a" * 40) == "a" * (LONGEST - 1) + "…"
    assert columns_of("語e\u0301") == 3


def facts(title: str) -> dict[str, float]:
    """What hovering over a node says: numbers by the words in front of each."""
    found = re.findall(r"\b(p|q|probability|slot value|chance was|node|token) ([\d.]+)", title)
    return {name: float(number) for name, number in found}


def test_the_picture_has_every_node_with_its_numbers_and_escapes_tokens() -> None:
    step = view((1, 4))
    for standalone in (True, False):
        root = ET.fromstring(step_svg(step, standalone=standalone))
        nodes = [node for node in root.iter(f"{SVG}g") if "node" in node.get("class", "")]
        assert [node.get("class") for node in nodes] == [
            f"node {kind}" for kind in (*step.fates, "bonus")
        ]
        labels = [*(f"·t{n}" for n in range(9)), "↵<b>"]
        assert [node.findtext(f"{SVG}text") for node in nodes] == labels
        titles = [node.findtext(f"{SVG}title") or "" for node in nodes]
        assert [title.splitlines()[0] for title in titles] == labels
        for node in range(1, 9):
            said = facts(titles[node])
            assert FATES[step.fates[node]] in titles[node]
            assert said["p"] == step.p[node]
            assert said.get("q") == step.q[node], "None where the draft was not asked"
            assert said["probability"] == step.tree.proposal[node]
            assert said["slot value"] == step.tree.value[node]
            assert said["chance was"] == pytest.approx(step.reach[node], abs=6e-4)
            assert said["node"] == said["token"] == node
        assert [n for n, title in enumerate(titles) if "stopped" in title] == [step.stop]
        assert sum(rect.get("class") == "stop" for rect in root.iter(f"{SVG}rect")) == 1
        assert (root.find(f"{SVG}style") is not None) == standalone


def test_a_notebook_shows_steps_and_traces_as_pictures() -> None:
    step = view((1, 4))
    trace = Trace(prompt="a", settings=Settings(), text="b", steps=[step, step])
    for shown, kind, count in ((step, "node", 10), (trace, "step", 2)):
        bundle, _ = DisplayFormatter().format(shown)
        picture = ET.fromstring(bundle["image/svg+xml"])
        assert bundle["image/png"].startswith(b"\x89PNG"), "for a notebook that is not trusted"
        assert picture.find(f"{SVG}style") is not None
        assert sum(kind in part.get("class", "").split() for part in picture.iter()) == count


def test_a_bare_root_and_a_step_that_the_end_cut_are_drawn() -> None:
    bare = replace(
        view(()), tree=TokenTree.root(7), texts=("end",), p=(None,), q=(None,), reach=(1.0,)
    )
    assert len(ET.fromstring(step_svg(bare)).findall(f"{SVG}g")) == 2
    cut = replace(view((1,)), bonus=None, emitted=(1,))
    assert len(ET.fromstring(step_svg(cut)).findall(f"{SVG}g")) == 9


def test_static_pictures_carry_both_themes_and_the_page_brings_its_own() -> None:
    picture = step_svg(view((1, 4)))
    assert "var(" not in picture, "nobody is there to say what it is"
    assert "prefers-color-scheme: dark" in picture
    for theme in (
        '[data-jp-theme-light="true"]',
        '[data-jp-theme-light="false"]',
        "prefers-color-scheme: dark",
    ):
        assert theme in palette_rules()
    both = ET.fromstring(above_one_another([picture, picture]))
    one = ET.fromstring(picture)
    assert [float(part.get("y", 0)) for part in both] == [0.0, float(one.get("height", 0))]


def test_bars_and_text_follow_the_generation() -> None:
    steps = [replace(view(path), number=number) for number, path in enumerate([(1, 4), (), (2,)])]
    bars = ET.fromstring(strip_svg(steps, 1))
    columns = [rect for rect in bars.iter(f"{SVG}rect") if rect.get("data-step")]
    assert [column.get("class") for column in columns] == ["step", "step now", "step"]
    accepted = [
        float(rect.get("height", 0))
        for rect in bars.iter(f"{SVG}rect")
        if rect.get("class") == "accepted"
    ]
    assert accepted[0] == pytest.approx(2 * accepted[2], rel=1e-4)
    assert accepted[1] == 0
    page = ET.fromstring(f"<p>{text_html('a <b>', steps, 1)}</p>")
    assert [(span.get("class"), span.text) for span in page] == [
        ("prompt", "a <b>"),
        ("accepted", " t1"),
        ("accepted", " t4"),
        ("bonus", "\n<b>"),
        ("drafted", " t1 t3 t6"),
        ("bonus now", "\n<b>"),
    ]


def test_pictures_for_papers_are_the_same_drawing(tmp_path: Path) -> None:
    step = view((1, 4))
    trace = Trace(prompt="a", settings=Settings(), text="b", steps=[step, step])
    save_picture(step, tmp_path / "step.svg")
    assert (tmp_path / "step.svg").read_text() == step_svg(step)
    for shown, svg in ((step, step_svg(step)), (trace, strip_svg(trace.steps, standalone=True))):
        save_picture(shown, tmp_path / "a.png")
        assert (tmp_path / "a.png").read_bytes() == png(svg, scale=3.0)
    image = matplotlib.image.imread(tmp_path / "a.png")
    assert image[0, 0].tolist() == [1, 1, 1, 1], "on white"
    assert len({tuple(colour) for colour in image.reshape(-1, 4).tolist()}) > 4
    with pytest.raises(UsageError, match=r"tree.pdf: not a .png or .svg file"):
        save_picture(step, tmp_path / "tree.pdf")
    with pytest.raises(UsageError, match="nowhere"):
        save_picture(step, tmp_path / "nowhere" / "tree.svg")
    with pytest.raises(UsageError, match="picture TokenTree: is neither trace nor step of one"):
        save_picture(step.tree, tmp_path / "tree.svg")  # type: ignore[arg-type]
