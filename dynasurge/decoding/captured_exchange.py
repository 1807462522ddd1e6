"""What host and device tell each other in a captured step: one copy there, one copy back (see
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

# What comes back of a step, float64, in this order: of the step, of each level (the tokens
# emitted),
# and of each node.
STEP = ("end", "depth", "bonus")
NODE = ("exists", "token", "parent", "proposal", "kind", "x", "value", "stop")


def report_size(levels: int, nodes: int) -> int:
    """Numbers that come back of a step with a tree of so many levels and nodes, root not counted;
    of no tree if there are no levels."""
    return len(STEP) + (levels + 1 + len(NODE) * (nodes + 1) if levels else 0)


@dataclass(frozen=True, kw_only=True)
class Trees:
    """What trees a decoder grows: how large they can get and are to be, how rows get children, by
    what estimates.

    budget: nodes at most, whatever a pass has room for; growmap: int64 [size + 1, k] for static
    trees, see `Proposer`; own: whether the draft's own word is the estimate; most: see `Proposer`.
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
    """What a step is told, in one copy: the estimates, what a slot must be worth, and uniform
    random numbers."""

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
        ]  # one is being sent while the other is filled

    def fill(self, chance: Random, trees: Trees | None) -> torch.Tensor:
        """What the next step will be told."""
        self._host.reverse()
        numbers = self._host[0]
        torch.rand(len(numbers) - self._told, generator=chance.generator, out=numbers[self._told :])
        if trees is not None and trees.growmap is None:
            numbers[self._told - 1] = trees.planner.cut
            if not trees.own:
                numbers[: self._told - 1].copy_(trees.acceptance.table().flatten())
        return numbers

    def send(self, numbers: torch.Tensor) -> None:
        """Send it, without waiting."""
        self._device.copy_(numbers, non_blocking=True)


class Closing(NamedTuple):
    """What ends a step. report: all that the host wants to know (STEP and NODE); then, for each
    level of the tree and one more: emitted, the token; to, the cache row that the path's row goes
    to; of_target, of_draft, the row where it is (where there is none, that very row); length: of
    the text from now on."""

    report: torch.Tensor
    emitted: torch.Tensor
    to: torch.Tensor
    of_target: torch.Tensor
    of_draft: torch.Tensor
    length: torch.Tensor


class Slots(NamedTuple):
    """Of each slot of a growing, what the host is told; see `GrowingTree`."""

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
    """Close a step. chain: see `GrowingTree`; length [1]: of the text before it; children: slots a
    row."""
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
    """What came back of a step, read by the names of STEP and NODE."""

    def __init__(self, report: np.ndarray, levels: int) -> None:
        step, rest = np.split(report, [len(STEP)])
        self.end, self.depth, self.bonus = (int(number) for number in step)
        emitted, nodes = np.split(rest, [levels + 1 if levels else 0])
        self.emitted = [int(token) for token in emitted[:levels]]
        self._nodes = dict(zip(NODE, nodes.reshape(len(NODE), -1).copy(), strict=True))
        self.stop = self._nodes["stop"] if levels else np.ones(1)

    def draft(self, passes: int, *, static: bool) -> Draft:
        """The tree as the rest of the package knows it."""
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
    """float64 [size] of the host's, from where a GPU can copy while the host goes on."""
    return torch.zeros(size, dtype=torch.float64, pin_memory=device.type == "cuda")
