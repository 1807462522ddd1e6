"""What host and device send each other in a captured step: one copy there, one copy back (see
decoding/captured_loop.py)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from dynasurge.drafting.acceptance_estimates import CELLS, Acceptance
from dynasurge.drafting.captured_budget import SizePlanner
from dynasurge.drafting.captured_tree import Nodes, TreeBounds
from dynasurge.drafting.child_kinds import DEPTHS, TABLED, Kind
from dynasurge.drafting.growth import Draft
from dynasurge.drafting.tree_budget import Slot
from dynasurge.probabilities import Random
from dynasurge.trees.token_tree import TokenTree
from dynasurge.verification.captured_rules import Judged

# What a step sends back, float64, in this order: for the step, for each level (the tokens emitted),
# and for each node.
STEP = ("end", "depth", "bonus")
NODE = ("exists", "token", "parent", "proposal", "kind", "x", "value", "stop")


def report_size(levels: int, nodes: int) -> int:
    """How many numbers a step sends back for a tree of so many levels and nodes (without the root).
    0 levels: there is no tree."""
    return len(STEP) + (levels + 1 + len(NODE) * (nodes + 1) if levels else 0)


@dataclass(frozen=True, kw_only=True)
class Trees:
    """The trees that a decoder grows: how large they are, how rows get children, by which
    estimates.

    budget: the most nodes, even if a pass has room for more. growmap: int64 [size + 1, k] for
    static trees, see `Proposer`. own: whether the draft's own probabilities are the estimates.
    most: see `Proposer`.
    """

    bounds: TreeBounds
    budget: int
    policy: str
    planner: SizePlanner
    acceptance: Acceptance
    growmap: torch.Tensor | None = None
    copies: bool = False
    own: bool = False
    most: int = 1 << 30


class Inputs:
    """What the host sends to a step in one copy: the estimates, the value that a slot needs, and
    uniform random numbers."""

    def __init__(self, trees: Trees | None, device: torch.device) -> None:
        rows, k = (trees.bounds.row_count, trees.bounds.children) if trees is not None else (0, 0)
        shapes = (
            ((len(DEPTHS), len(TABLED), CELLS), (1,), (rows, k, 2), (2, 2))
            if trees is not None
            else ((0,), (0,), (0,), (2, 2))
        )
        sizes = [int(np.prod(shape)) for shape in shapes]
        self._told = sizes[0] + sizes[1]
        self._device = torch.zeros(sum(sizes), dtype=torch.float64, device=device)
        self.table, self.cut, self.uniforms, self.last = (
            part.view(shape) for part, shape in zip(self._device.split(sizes), shapes, strict=True)
        )
        self._host = [
            pinned(sum(sizes), device) for _ in range(2)
        ]  # the device copies one while the host fills the other

    def fill(self, chance: Random, trees: Trees | None) -> torch.Tensor:
        """Fill in what the next step gets. Returns float64 [size] on the host."""
        self._host.reverse()
        numbers = self._host[0]
        torch.rand(len(numbers) - self._told, generator=chance.generator, out=numbers[self._told :])
        if trees is not None and trees.growmap is None:
            numbers[self._told - 1] = trees.planner.cut
            if not trees.own:
                numbers[: self._told - 1].copy_(trees.acceptance.table().flatten())
        return numbers

    def send(self, numbers: torch.Tensor) -> None:
        """Send the numbers to the device, without a wait."""
        self._device.copy_(numbers, non_blocking=True)


class Closing(NamedTuple):
    """The end of a step. report: all that the host reads (STEP and NODE). For each level of the
    tree and one more: emitted, the token; to, the cache row that the path's row moves to;
    of_target, of_draft, the row where it is now (if there is none, row `to`). length: the tokens of
    the text after the step."""

    report: torch.Tensor
    emitted: torch.Tensor
    to: torch.Tensor
    of_target: torch.Tensor
    of_draft: torch.Tensor
    length: torch.Tensor


class Slots(NamedTuple):
    """What the host reads of each slot of a growing tree; see `GrowingTree`."""

    token: torch.Tensor
    proposal: torch.Tensor
    kind: torch.Tensor
    x: torch.Tensor
    value: torch.Tensor


def closing(
    judged: Judged,
    nodes: Nodes,
    slots: Slots,
    chain: torch.Tensor,
    length: torch.Tensor,
    children: int,
) -> Closing:
    """Close a step. chain: see `GrowingTree`. length [1]: the tokens of the text before the step.
    children: slots a row."""
    pad = torch.nn.functional.pad
    levels = torch.arange(nodes.path.shape[1], device=length.device)
    last = judged.end.clamp(min=0)
    depth, path = nodes.depth[last], nodes.path[last][0]
    drawn = slots.token[pad(nodes.slot, (0, 1), value=len(slots.token) - 1)][path[1:]]
    emitted = torch.where(levels < depth, pad(drawn, (0, 1)), judged.bonus)
    rows = chain[((nodes.slot[last] - 1) // children).clamp(min=0)][0]
    of_target = torch.where(levels <= depth, path, levels)
    of_draft = torch.where(levels < depth, pad(rows, (0, 1)), levels)
    kept = Slots(*(part[nodes.slot] for part in slots))
    step = {"end": judged.end, "depth": depth, "bonus": judged.bonus}
    node = kept._asdict() | {"exists": nodes.exists, "parent": nodes.parent, "stop": judged.stop}
    told = [*(step[name] for name in STEP), emitted, *(node[name] for name in NODE)]
    return Closing(
        report=torch.cat([part.double() for part in told]),
        emitted=emitted,
        to=length + levels,
        of_target=length + of_target,
        of_draft=length + of_draft,
        length=length + depth + 1,
    )


class Outcome:
    """What a step sent back, by the names of STEP and NODE."""

    def __init__(self, report: np.ndarray, levels: int) -> None:
        step, rest = np.split(report, [len(STEP)])
        self.end, self.depth, self.bonus = (int(number) for number in step)
        emitted, nodes = np.split(rest, [levels + 1 if levels else 0])
        self.emitted = [int(token) for token in emitted[:levels]]
        self._nodes = dict(zip(NODE, nodes.reshape(len(NODE), -1).copy(), strict=True))
        self.stop = self._nodes["stop"] if levels else np.ones(1)

    def draft(self, passes: int, *, static: bool) -> Draft:
        """The tree as a `Draft`, made in `passes` passes. static: it has no values."""
        count = int(self._nodes["exists"].sum())
        of = {name: numbers[:count].tolist() for name, numbers in self._nodes.items()}
        tree = TokenTree(
            tokens=tuple(int(token) for token in of["token"]),
            parents=tuple(int(parent) for parent in of["parent"]),
            proposal=tuple(of["proposal"]),
            point=tuple(node == 0 or kind >= Kind.POINT for node, kind in enumerate(of["kind"])),
            value=() if static else tuple(of["value"]),
        )
        ranks = {0: 0} | {
            child: rank for family in tree.children for rank, child in enumerate(family)
        }
        slots = [
            Slot(
                token=tree.tokens[node],
                parent=tree.parents[node],
                depth=depth,
                rank=ranks[node],
                proposal=of["proposal"][node],
                kind=Kind(int(of["kind"][node])),
                x=of["x"][node],
                slot_value=of["value"][node],
                node_value=of["value"][node],
            )
            for node, depth in enumerate(tree.depths)
        ]
        return Draft(tree=tree, q=[], slots=slots, passes=passes)


def pinned(size: int, device: torch.device) -> torch.Tensor:
    """float64 [size] on the host, in pinned memory: a GPU copies from it while the host works
    on."""
    return torch.zeros(size, dtype=torch.float64, pin_memory=device.type == "cuda")
