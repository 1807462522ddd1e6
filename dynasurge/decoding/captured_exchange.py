"""What host and device tell each other in a captured step: one copy there, one copy back (see
decoding/captured_loop.py)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from dynasurge.drafting.acceptance_estimates import CELLS, DEPTHS, KINDS, Acceptance, depth_class
from dynasurge.drafting.captured_budget import Pace
from dynasurge.drafting.captured_tree import POINT, Layout
from dynasurge.drafting.growth import Draft
from dynasurge.drafting.tree_budget import Slot
from dynasurge.trees.token_tree import TokenTree

HEAD = (
    3  # numbers that come back of a step: the node where the path ends, its depth, the bonus token;
)
COLUMNS = 8  # and of each node: see `closing`


@dataclass(frozen=True, kw_only=True)
class Trees:
    """What trees a decoder grows: how large they can get and are to be, how rows get children, by
    what estimates.

    budget: nodes at most, whatever a pass has room for; growmap: int64 [size + 1, k] for static
    trees, see `Proposer`; own: whether the draft's own word is the estimate; most: see `Proposer`.
    """

    layout: Layout
    budget: int
    policy: str
    pace: Pace
    acceptance: Acceptance
    growmap: torch.Tensor | None = None
    copies: bool = False
    own: bool = False
    most: int = 1 << 30


class Inputs:
    """What a step is told, in one copy: the estimates, what a slot must be worth, and uniform
    random numbers."""

    def __init__(self, trees: Trees | None, device: torch.device) -> None:
        rows, k = (trees.layout.row_count, trees.layout.children) if trees is not None else (0, 0)
        shapes = (
            ((len(DEPTHS), len(KINDS), CELLS), (1,), (rows, k, 2), (2, 2))
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

    def fill(self, generator: torch.Generator, trees: Trees | None) -> torch.Tensor:
        """What the next step will be told."""
        self._host.reverse()
        numbers = self._host[0]
        torch.rand(len(numbers) - self._told, generator=generator, out=numbers[self._told :])
        if trees is not None and trees.growmap is None:
            numbers[self._told - 1] = trees.pace.cut
            if not trees.own:
                numbers[: self._told - 1].copy_(trees.acceptance.table().flatten())
        return numbers

    def send(self, numbers: torch.Tensor) -> None:
        """Send it, without waiting."""
        self._device.copy_(numbers, non_blocking=True)


def closing(
    end: torch.Tensor,
    bonus: torch.Tensor,
    stop: torch.Tensor,
    length: torch.Tensor,
    row_chain: torch.Tensor,
    children: int,
    of_nodes: tuple[torch.Tensor, ...],
    of_slots: tuple[torch.Tensor, ...],
) -> tuple[torch.Tensor, ...]:
    """What ends a step whose path ends at node `end`: all that the host wants to know; for each
    level of the tree and one more, the token emitted, the place that the path's row goes to, and
    where it is in the target's and in the draft's cache (where there is none, that very place); the
    new length."""
    slot, depths, paths, parent, exists = of_nodes
    token = of_slots[0]
    levels = torch.arange(paths.shape[1], device=end.device)
    last = end.clamp(min=0)
    depth, path = depths[last], paths[last][0]
    drawn = token[torch.nn.functional.pad(slot, (0, 1), value=len(token) - 1)][path[1:]]
    emitted = torch.where(levels < depth, torch.nn.functional.pad(drawn, (0, 1)), bonus)
    chain = row_chain[((slot[last] - 1) // children).clamp(min=0)][0]
    of_target = torch.where(levels <= depth, path, levels)
    of_draft = torch.where(levels < depth, torch.nn.functional.pad(chain, (0, 1)), levels)
    tokens, *numbers = (part[slot] for part in of_slots)
    told = (end, depth, bonus, emitted, exists, tokens, parent, *numbers, stop)
    packed = torch.cat([part.double() for part in told])
    return (
        packed,
        emitted,
        length + levels,
        length + of_target,
        length + of_draft,
        length + depth + 1,
    )


class Outcome:
    """What came back of a step."""

    def __init__(self, numbers: np.ndarray, levels: int) -> None:
        self.end, self.depth, self.bonus = (int(number) for number in numbers[:HEAD])
        self.emitted = [int(token) for token in numbers[HEAD : HEAD + levels]]
        self._nodes = (
            numbers[HEAD + levels + 1 :].reshape(COLUMNS, -1).copy()
            if len(numbers) > HEAD
            else None
        )
        self.stop = self._nodes[-1] if self._nodes is not None else np.ones(1)

    def draft(self, passes: int, *, static: bool) -> Draft:
        """The tree as the rest of the package knows it."""
        assert self._nodes is not None
        count = int(self._nodes[0].sum())
        _, token, parent, proposal, kind, x, value, _ = (
            row[:count].tolist() for row in self._nodes
        )
        tree = TokenTree(
            tokens=tuple(int(t) for t in token),
            parents=tuple(int(p) for p in parent),
            proposal=tuple(proposal),
            point=tuple(node == 0 or k >= POINT for node, k in enumerate(kind)),
            value=() if static else tuple(value),
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
                proposal=proposal[node],
                kind=KINDS[int(kind[node])] + DEPTHS[depth_class(depth)],
                x=x[node],
                slot_value=value[node],
                node_value=value[node],
            )
            for node, depth in enumerate(tree.depths)
        ]
        return Draft(tree=tree, q=[], slots=slots, passes=passes)


def pinned(size: int, device: torch.device) -> torch.Tensor:
    """float64 [size] of the host's, from where a GPU can copy while the host goes on."""
    return torch.zeros(size, dtype=torch.float64, pin_memory=device.type == "cuda")
