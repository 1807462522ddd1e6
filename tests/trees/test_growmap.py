"""Growmaps: shapes, the published file format, and files that contradict themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dynasurge import Growmap, UsageError, build_growmap, load_growmap, save_growmap

SHIPPED = Path(__file__).parents[2] / "growmaps"


def test_4x8_is_four_chains_of_depth_eight() -> None:
    growmap = build_growmap("4x8")
    assert growmap.size == 33
    assert len(growmap.levels) == 9
    assert [len(c) for c in growmap.children] == [4] + [1] * 28 + [0] * 4
    assert growmap.levels[:3] == ((0,), (1, 2, 3, 4), (5, 6, 7, 8))
    assert growmap.mask()[29].nonzero().flatten().tolist() == [0, 1, 5, 9, 13, 17, 21, 25, 29]


def test_chains_and_kary_trees() -> None:
    assert build_growmap("chain3").parents == (-1, 0, 1, 2) == build_growmap("1x3").parents
    assert build_growmap("3ary2").parents == (-1, 0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3)
    assert build_growmap("2ary4").size == 31


BAD_SPECS = [
    "",
    "4x",
    "x8",
    "0x8",
    "4x0",
    "chain0",
    "bush",
    "4x8x2",
    "-1x3",
    "9ary9",
    "9ary3000000",
    "1" * 5000 + "x1",
]


@pytest.mark.parametrize("spec", BAD_SPECS, ids=lambda spec: spec[:12])
def test_unknown_shapes_are_refused(spec: str) -> None:
    with pytest.raises(UsageError, match="growmap"):
        build_growmap(spec)


@pytest.mark.parametrize("parents", [(), (0,), (-1, 1), (-1, 0, 2), (-1, 0, 1, 0), (-1, -1)])
def test_only_breadth_first_trees_are_growmaps(parents: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="parents"):
        Growmap(parents=parents)


@pytest.mark.parametrize("spec", ["4x8", "8x8", "chain8", "2ary4", "3ary3"])
def test_files_round_trip(spec: str, tmp_path: Path) -> None:
    growmap = build_growmap(spec)
    save_growmap(growmap, tmp_path / "tree.pt")
    assert load_growmap(tmp_path / "tree.pt") == growmap
    assert [p.name for p in tmp_path.iterdir()] == ["tree.pt"]


def test_the_file_holds_the_fields_others_read(tmp_path: Path) -> None:
    save_growmap(build_growmap("2x2"), tmp_path / "tree.pt")
    data = torch.load(tmp_path / "tree.pt", weights_only=True)
    assert data["roots"] == [[0], [1, 2], [3, 4]]
    assert data["branches"] == [[2], [1, 1], [0, 0]]
    assert data["Successors"] == [[1, 2], [3], [4], [], []]
    assert data["depth"].tolist() == [0, 1, 1, 2, 2]
    assert data["depth"].dtype == data["mask"].dtype == torch.int64
    assert data["mask"].tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 0, 1, 0, 0],
        [1, 1, 0, 1, 0],
        [1, 0, 1, 0, 1],
    ]
    assert data["size"] == 5


@pytest.mark.parametrize(
    ("name", "spec"),
    [
        ("4x8-tree", "4x8"),
        ("8x8-tree", "8x8"),
        ("chain8", "chain8"),
        ("2ary4", "2ary4"),
        ("2x2", "2x2"),
    ],
)
def test_shipped_files_are_what_they_are_called(name: str, spec: str) -> None:
    assert load_growmap(SHIPPED / f"{name}.pt") == build_growmap(spec)


def breakages() -> dict[str, Any]:
    return {
        "roots": lambda d: d["roots"][1].reverse(),
        "branches": lambda d: d["branches"][0].append(1),
        "Successors": lambda d: d["Successors"][0].reverse(),
        "mask": lambda d: d["mask"].__setitem__((1, 2), 1),
        "depth": lambda d: d.__setitem__("depth", d["depth"][:-1]),
        "size": lambda d: d.__setitem__("size", 6),
    }


@pytest.mark.parametrize("field", breakages())
@pytest.mark.parametrize("how", ["missing", "wrong", "wrong type"])
def test_a_bad_file_names_the_field(field: str, how: str, tmp_path: Path) -> None:
    data = build_growmap("2x2").to_dict()
    if how == "missing":
        del data[field]
    elif how == "wrong":
        breakages()[field](data)
    else:
        data[field] = "tree"
    torch.save(data, tmp_path / "bad.pt")
    with pytest.raises(UsageError, match=f"bad.pt: field '{field}'"):
        load_growmap(tmp_path / "bad.pt")


def test_a_loop_in_successors_is_refused(tmp_path: Path) -> None:
    torch.save(
        build_growmap("2x2").to_dict() | {"Successors": [[], [1, 2], [3], [4], []]},
        tmp_path / "loop.pt",
    )
    with pytest.raises(UsageError, match="'Successors' is not a tree"):
        load_growmap(tmp_path / "loop.pt")


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 torn"])
def test_corrupt_and_foreign_files_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bad.pt"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"not a readable \.pt file"):
        load_growmap(path)
    torch.save([1, 2], path)
    with pytest.raises(UsageError, match="holds a list"):
        load_growmap(path)
    with pytest.raises(UsageError, match="no such file"):
        load_growmap(tmp_path / "none.pt")
    assert load_growmap("3x2") == build_growmap("3x2"), "a shape needs no file"
    with pytest.raises(UsageError, match="cannot be written"):
        save_growmap(build_growmap("2x2"), tmp_path / "no" / "folder.pt")


@pytest.mark.parametrize("name", ["", ".", "no/folder.pt"])
def test_paths_that_cannot_be_written(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="cannot be written"):
        save_growmap(build_growmap("2x2"), name)
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".partial"]


@pytest.mark.parametrize(
    "bad", [{"mask": torch.eye(5).to_sparse()}, {"roots": [[torch.tensor([1, 2])]]}]
)
def test_odd_tensors_in_a_file_are_refused(bad: dict[str, Any], tmp_path: Path) -> None:
    torch.save(build_growmap("2x2").to_dict() | bad, tmp_path / "bad.pt")
    with pytest.raises(UsageError, match="contradicts 'Successors'"):
        load_growmap(tmp_path / "bad.pt")


def test_shipped_shapes_have_names_wherever_one_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """README's `optimal15` and `growmaps/8x8-tree.pt`, from a folder of the clone, too."""
    monkeypatch.chdir(Path(__file__).parent)
    assert load_growmap("optimal15").size == 16
    assert load_growmap("growmaps/8x8-tree.pt").size == 65
    monkeypatch.chdir(tmp_path)
    for name in ("optimal15", "growmaps/8x8-tree.pt", "", "\0"):
        with pytest.raises(UsageError, match="no such file"):
            load_growmap(name)
