"""`dynasurge growmap` as a user runs it: optimise, show, draw, and one line for every mistake."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import argv, assert_one_line
from readers import numbers

from dynasurge import (
    Growmap,
    build_growmap,
    expected_accepted,
    load_growmap,
    optimal_growmap,
    save_growmap,
)
from dynasurge.cli.growmap import sketch
from dynasurge.cli.main import main

VECTOR = [0.6, 0.2, 0.1]


@pytest.fixture
def tree(tmp_path: Path) -> str:
    path = tmp_path / "2x2-tree.pt"
    save_growmap(build_growmap("2x2"), path)
    return str(path)


def test_optimise_writes_the_best_tree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "best.pt"
    flags = argv(f"--acceptance 0.6,0.2,0.1 --nodes 63 --depth 5 {out}")
    assert main(["growmap", "optimise", *flags]) == 0
    growmap = load_growmap(out)
    assert growmap == optimal_growmap(VECTOR, 63, 5)
    said = numbers(capsys.readouterr().out.replace(str(out), ""))
    assert said == [64, 5, pytest.approx(expected_accepted(growmap, VECTOR), abs=5e-5)]


@pytest.mark.parametrize(
    "content", [VECTOR, {"acceptance": VECTOR}, [VECTOR, VECTOR], {"acceptance": [VECTOR]}]
)
def test_acceptance_may_be_a_file(content: object, tmp_path: Path) -> None:
    path, out = tmp_path / "measured.json", tmp_path / "best.pt"
    path.write_text(json.dumps(content))
    flags = argv(f"--acceptance {path} --nodes 9 --depth 3 {out}")
    assert main(["growmap", "optimise", *flags]) == 0
    assert load_growmap(out) == optimal_growmap(VECTOR, 9, 3)


Shape = tuple["Shape", ...]  # of a node: those of its children


def read_back(drawing: str) -> tuple[Shape, dict[int, int]]:
    """The shape that a drawing shows, and the parent of each node that it names."""
    lines = drawing.splitlines()
    parents: dict[int, int] = {}

    def family(level: int, parent: int) -> Shape:
        """The siblings at the next lines, with all that is drawn below them."""
        shapes: list[Shape] = []
        while lines and (len(lines[0]) - len(lines[0].lstrip("|`- "))) // 4 == level:
            alike, _, chain = lines.pop(0).lstrip("|`- ").rpartition(" alike: ")
            first, *others = chain.split(" - ")
            eldest, _, youngest = (alike or first).partition("..")
            siblings = range(int(eldest), int(youngest or eldest) + 1)
            parents.update(dict.fromkeys(siblings, parent))
            last, length = siblings[0], 1 + len(others)
            for name in others:
                if name == "...":
                    last = -1
                    continue
                node, *more = map(int, numbers(name))
                if last >= 0:
                    parents[node] = last
                last, length = node, more[0] if more else length
            shape = family(level + 1, last)
            for _ in range(length - 1):
                shape = (shape,)
            shapes += [shape] * len(siblings)
        return tuple(shapes)

    (root,) = family(0, -1)
    assert not lines
    return root, parents


def assert_drawn(growmap: Growmap, drawing: str) -> None:
    """Whoever reads the drawing has the tree."""
    shapes: list[Shape] = [()] * growmap.size
    for node in reversed(range(growmap.size)):
        shapes[node] = tuple(shapes[child] for child in growmap.children[node])
    shape, parents = read_back(drawing)
    assert shape == shapes[0]
    assert all(growmap.parents[node] == parent for node, parent in parents.items())


def test_show_prints_sizes_levels_and_the_tree(
    tree: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["growmap", "show", tree, "--acceptance", "0.5,0.25"]) == 0
    head, levels, drawing, _ = capsys.readouterr().out.split("\n\n")
    assert numbers(head.replace(tree, "")) == [5, 2, 2, 1.125], "nodes, depth, width, expected"
    assert [numbers(line) for line in levels.splitlines()[1:]] == [
        [0, 1, 2],
        [1, 2, 1, 1],
        [2, 2, 0, 0],
    ]
    assert_drawn(build_growmap("2x2"), drawing)
    assert main(["growmap", "show", tree]) == 0
    assert 1.125 not in numbers(capsys.readouterr().out.replace(tree, ""))


@pytest.mark.parametrize(
    ("growmap", "lines"),
    [
        (build_growmap("4x8"), 2),
        (build_growmap("chain40"), 1),
        (build_growmap("2ary2"), 3),
        (Growmap(parents=(-1, 0, 0, 0, 0, 1, 1, 2, 5)), 6),
        (Growmap(parents=(-1,)), 1),
        (optimal_growmap(VECTOR, 40, 6), 40),
    ],
    ids=["4x8", "chain40", "2ary2", "lopsided", "root", "optimal"],
)
def test_a_drawing_branches_folds_and_shortens(growmap: Growmap, lines: int) -> None:
    drawing = sketch(growmap)
    assert_drawn(growmap, drawing)
    assert len(drawing.splitlines()) <= lines, "what is alike is drawn once, a chain in one line"
    assert max(map(len, drawing.splitlines())) < 60


def test_large_and_deep_trees_can_be_drawn() -> None:
    growmap = optimal_growmap([0.5 * 0.5**rank for rank in range(12)], 127, 10)
    lines = sketch(growmap).splitlines()
    assert len(lines) < 100, "fewer than nodes"
    assert max(map(len, lines)) < 100
    assert sketch(Growmap(parents=(-1, *(n // 2 * 2 for n in range(6000))))).count("\n") > 2000, (
        "deep, and no recursion"
    )


@pytest.mark.parametrize("suffix", ["png", "SVG"])
def test_draw_writes_a_picture(
    suffix: str, tree: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = str(Path(tree).rename(tmp_path / "no $\\formula$.pt"))
    out = tmp_path / "pictures" / f"tree.{suffix}"
    out.parent.mkdir()
    assert main(["growmap", "draw", tree, "--output", str(out)]) == 0
    assert str(out) in capsys.readouterr().out
    assert out.read_bytes()[:5] in (b"\x89PNG\r", b"<?xml")
    assert list(out.parent.iterdir()) == [out]


@pytest.mark.parametrize("form", ["", "optimise", "show", "draw"])
def test_each_form_explains_itself(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["growmap", *form.split(), "--help"])
    assert done.value.code == 0
    assert f"dynasurge growmap {form}".strip() in capsys.readouterr().out


# --- mistakes: exit code 2, one line that names the flag, the value and the remedy, nothing written

BAD_OPTIMISE = [
    (
        ["--acceptance", "0.6;0.2"],
        "--acceptance 0.6;0.2: not numbers with commas between; write 0.6,0.2,0.1",
    ),
    (["--acceptance", ""], "not numbers with commas between"),
    (["--acceptance", "0.6,"], "not numbers with commas between"),
    (
        ["--acceptance", "0.9,0.9"],
        "--acceptance [0.9, 0.9]: sums to 1.8, but the path goes on to one child at most",
    ),
    (["--acceptance", "nan"], "--acceptance [nan]: has an entry outside [0, 1]"),
    (["--acceptance", "0,0"], "nothing is ever accepted; no tree helps"),
    (["--acceptance", "none.json"], "--acceptance none.json: cannot be read"),
    (["--nodes", "0"], "--nodes 0: must lie in 1..1024; use --nodes 1"),
    (["--nodes", "5000"], "--nodes 5000: must lie in 1..1024; use --nodes 1024"),
    (["--nodes", "x"], "argument --nodes: invalid int value: 'x'"),
    (["--depth", "-1"], "--depth -1: must lie in 1..64; use --depth 1"),
    (["--dept", "3"], "unrecognized arguments: --dept 3"),
]


def fails(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["growmap", *arguments]) == 2
    assert_one_line(message, capsys)


@pytest.mark.parametrize(
    ("flags", "message"), BAD_OPTIMISE, ids=[" ".join(flags) for flags, _ in BAD_OPTIMISE]
)
def test_bad_flags(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = argv(f"optimise {tmp_path / 'best.pt'} --acceptance 0.6,0.2 --nodes 7 --depth 3")
    fails([*good, *flags], message, capsys)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{broken", "cannot be read"),
        (b"\xff\xff", "cannot be read"),
        (b"[" * 100_000, "cannot be read"),
        (b"{}", "holds no list"),
        (b'{"acceptance": 0.5}', "holds no list"),
        (b"[]", "is not a list of numbers"),
        (b'[0.5, "a"]', "is not a list of numbers"),
        (b"[[0.5], [0.9, 0.9]]", "vector 2 of 2 sums to 1.8"),
        (b"[[0.5], null]", "vector 2 of 2 is not a list of numbers"),
    ],
)
def test_bad_acceptance_files(
    content: bytes, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "measured.json", tmp_path / "best.pt"
    path.write_bytes(content)
    flags = argv(f"optimise --acceptance {path} --nodes 7 --depth 3 {out}")
    fails(flags, message, capsys)
    assert not out.exists()


def test_bad_paths(tree: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = argv("optimise --acceptance 0.6,0.2 --nodes 7 --depth 3")
    fails([*good, str(tmp_path / "no" / "best.pt")], "cannot be written", capsys)
    fails(["show", "none.pt"], "none.pt: no such file", capsys)
    fails(["draw", "none.pt", "--output", "tree.png"], "none.pt: no such file", capsys)
    fails(["draw", tree], "the following arguments are required: --output", capsys)
    fails(
        ["draw", tree, "--output", "tree.pdf"],
        "--output tree.pdf: not a .png or .svg file; use --output",
        capsys,
    )
    fails(
        ["draw", tree, "--output", str(tmp_path / "no" / "tree.png")],
        "tree.png: cannot be written",
        capsys,
    )
    (tmp_path / "folder.png").mkdir()
    fails(
        ["draw", tree, "--output", str(tmp_path / "folder.png")],
        "folder.png: cannot be written",
        capsys,
    )
    fails(["show", tree, "--acceptance", "0.9,0.9"], "sums to 1.8", capsys)
    fails(["optimize", "best.pt"], "growmap optimize: not the name of a shape", capsys)
    data = build_growmap("2x2").to_dict() | {"size": 7}
    torch.save(data, tmp_path / "bad.pt")
    fails(["show", str(tmp_path / "bad.pt")], "field 'size' contradicts", capsys)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "2x2-tree.pt",
        "bad.pt",
        "folder.png",
    ]
