"""Growmaps: the shape of a static token tree, chosen before anything is drafted.

A growmap says how many children each node of the tree gets. It says nothing about tokens. Node 0 is
the root (the last accepted token, which costs no budget). Nodes are numbered breadth first: a
parent's number is below its children's, and siblings are numbered in drawing order.

All of it follows from one tuple, `parents`. On disk a growmap is the `.pt` dictionary that the
field already publishes (Sequoia, arXiv 2402.12374): `roots` (node numbers by level), `branches`
(child counts by level), `Successors` (children by node), `mask` (ancestor-or-self, int64), `depth`
(by node, int64) and `size`.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from dynasurge.errors import UsageError
from dynasurge.files import find_above, write_whole
from dynasurge.trees.token_tree import ancestor_mask, children_of, depths_of

SPEC_HELP = "KxD (K chains of depth D, as in 4x8), chainD (one chain of depth D) or KaryD (K children a node, D levels)"


@dataclass(frozen=True, kw_only=True, repr=False)
class Growmap:
    """A static tree shape.

    `parents[u]` is the number of node u's parent, -1 for the root. Numbers are breadth first, so
    `parents` never decreases. Raises ValueError otherwise.
    """

    parents: tuple[int, ...]

    def __repr__(self) -> str:
        return f"<Growmap: {self.size - 1} nodes, {self.depth} levels>"

    def __post_init__(self) -> None:
        if not self.parents or self.parents[0] != -1:
            raise ValueError("parents must start with -1, the root")
        for node, parent in enumerate(self.parents[1:], start=1):
            if not 0 <= parent < node or parent < self.parents[node - 1]:
                raise ValueError(f"parents[{node}] is {parent}: not breadth-first")

    @property
    def size(self) -> int:
        """How many nodes there are, root included: `4x8` has 33."""
        return len(self.parents)

    @cached_property
    def children(self) -> tuple[tuple[int, ...], ...]:
        """`children[u]`: the children of node u in drawing order."""
        return children_of(self.parents)

    @cached_property
    def depths(self) -> tuple[int, ...]:
        """`depths[u]`: edges from the root to u."""
        return depths_of(self.parents)

    @property
    def depth(self) -> int:
        """The depth of the deepest node: how many draft passes a step takes."""
        return self.depths[-1]

    @cached_property
    def levels(self) -> tuple[tuple[int, ...], ...]:
        """Node numbers by level, root first."""
        return tuple(
            tuple(u for u, d in enumerate(self.depths) if d == level)
            for level in range(self.depth + 1)
        )

    def mask(self) -> torch.Tensor:
        """int64 [size, size]: 1 if the column's node is an ancestor of the row's, or the same
        node."""
        return ancestor_mask(self.parents).long()

    def to_dict(self) -> dict[str, Any]:
        """The `.pt` dictionary as published."""
        return {
            "roots": [list(level) for level in self.levels],
            "branches": [[len(self.children[u]) for u in level] for level in self.levels],
            "Successors": [list(c) for c in self.children],
            "mask": self.mask(),
            "depth": torch.tensor(self.depths, dtype=torch.int64),
            "size": self.size,
        }


SPEC = re.compile(r"(\d{1,4})x(\d{1,4})|chain(\d{1,4})|(\d{1,4})ary(\d{1,2})")


def build_growmap(spec: str) -> Growmap:
    """A growmap from its name: `4x8`, `chain8`, `2ary4`. Raises UsageError on anything else."""
    match = SPEC.fullmatch(spec)
    numbers = [int(g) for g in match.groups() if g is not None] if match else []
    if not match or min(numbers) < 1:
        raise UsageError("growmap", spec, "not the name of a shape", f"write {SPEC_HELP}")
    if match[4]:
        k, d = numbers
        size = sum(k**level for level in range(d + 1))
        return _sized(spec, size, lambda: (-1, *(u // k for u in range(size - 1))))
    k, d = numbers if match[1] else (1, numbers[0])
    return _sized(spec, 1 + k * d, lambda: (-1, *([0] * k), *range(1, 1 + k * (d - 1))))


def _sized(spec: str, size: int, parents: Any) -> Growmap:
    if size > 4097:
        raise UsageError(
            "growmap",
            spec,
            f"has {size} nodes",
            "no step pays for more than 4096; choose a smaller shape",
        )
    return Growmap(parents=tuple(parents()))


def save_growmap(growmap: Growmap, path: str | os.PathLike[str]) -> None:
    """Write the `.pt` dictionary, whole or not at all. Raises UsageError if it cannot be
    written."""
    try:
        with write_whole(path) as partial:
            torch.save(growmap.to_dict(), partial)
    except (
        OSError,
        RuntimeError,
    ) as error:  # torch raises RuntimeError for a folder that does not exist
        raise UsageError(
            "growmap", path, f"cannot be written ({error})", "name a writable path"
        ) from error


def load_growmap(path: str | os.PathLike[str]) -> Growmap:
    """Read a `.pt` growmap and check every field against the others. If no such file exists,
    `path` may be a shape's name, which is built, or that of a file of the clone around the current
    folder: `growmaps/8x8-tree.pt` or `optimal15`.

    `Successors` counts as the truth, and the other fields are derived from it; the error names a
    field that disagrees. Raises UsageError if the file is missing, is no growmap, or contradicts
    itself.
    """
    remedy = "make one with: dynasurge growmap 4x8 growmaps/4x8-tree.pt"
    try:
        there = Path(path).is_file()
    except (OSError, ValueError):  # not a valid name
        there = False
    if not there:
        if SPEC.fullmatch(str(path)):
            return build_growmap(str(path))
        if (home := _in_clone(str(path))) is None:
            raise UsageError("--growmap", path, "no such file", remedy)
        path = home
    try:
        data = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # torch.load raises half a dozen unrelated types on a corrupt file
        raise UsageError(
            "--growmap", path, f"not a readable .pt file ({type(error).__name__})", remedy
        ) from error
    if not isinstance(data, dict):
        raise UsageError(
            "--growmap", path, f"holds a {type(data).__name__}, not a dictionary", remedy
        )
    try:
        return _from_dict(data)
    except _FieldError as error:
        raise UsageError("--growmap", path, str(error), remedy) from error


def _in_clone(name: str) -> Path | None:
    """The file of this name, or growmaps/NAME.pt, in a folder above the current one."""
    if not name.strip() or "\0" in name:
        return None
    return find_above(name, Path("growmaps", f"{name}.pt"))


def _same(given: Any, expected: Any) -> bool:
    try:
        if isinstance(expected, torch.Tensor):
            return (
                isinstance(given, torch.Tensor)
                and given.shape == expected.shape
                and bool((given == expected).all())
            )
        return type(given) is type(expected) and bool(given == expected)
    except (
        RuntimeError,
        NotImplementedError,
        TypeError,
    ):  # sparse tensors, or a tensor in place of a number
        return False


class _FieldError(ValueError):
    """Names the field of a growmap file that is missing or wrong."""


def _from_dict(data: dict[str, Any]) -> Growmap:
    missing = [
        f for f in ("roots", "branches", "Successors", "mask", "depth", "size") if f not in data
    ]
    if missing:
        raise _FieldError(f"field '{missing[0]}' is missing")
    successors = data["Successors"]
    if not isinstance(successors, list) or not all(
        isinstance(c, list) and all(type(x) is int for x in c) for c in successors
    ):
        raise _FieldError("field 'Successors' is not a list of lists of node numbers")
    # Breadth-first numbering means that reading all children in node order counts 1, 2, 3, ...
    if [child for children in successors for child in children] != list(range(1, len(successors))):
        raise _FieldError("field 'Successors' does not number the nodes breadth first from 0")
    try:
        growmap = Growmap(
            parents=(-1, *(u for u, children in enumerate(successors) for _ in children))
        )
    except ValueError as error:
        raise _FieldError(f"field 'Successors' is not a tree ({error})") from error
    for field, expected in growmap.to_dict().items():
        if not _same(data[field], expected):
            raise _FieldError(f"field '{field}' contradicts 'Successors'")
    return growmap
