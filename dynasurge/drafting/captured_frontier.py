"""Values of proposed children, in tensors of fixed shape (see drafting/captured_tree.py), and how
they fill a level.

The values are those of drafting/growth.py. A child's slot value uses only what is known before its
token is drawn. It is never above the value of its parent or elder sibling. Estimates of acceptance
come as a table, so a look-up is a gather. This is arithmetic on a few numbers a node: dozens of
small kernels, which torch.compile can fuse into one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from dynasurge.drafting.acceptance_estimates import CELLS
from dynasurge.drafting.captured_proposals import (
    Drawn,
    Proposed,
    draw_children,
    find_copies,
    propose,
)
from dynasurge.drafting.captured_tree import GrowingTree
from dynasurge.drafting.child_kinds import Kind, depth_class
from dynasurge.models.cuda_graphs import fused
from dynasurge.probabilities import Chance


@dataclass(frozen=True, kw_only=True)
class Proposer:
    """How the rows of a level get children.

    policy: see drafting/proposals.py. table: float64 [depth classes, kinds, CELLS], the estimates
    of drafting/acceptance_estimates.py; None takes the draft's own probabilities. growmap: int64
    [size + 1, k], the numbers of each node's children, -1 for none; with it the shape decides, not
    values. copies: whether the text also proposes. cut: float64 [1], for `hybrid`, the value that a
    slot needs to be proposed. most: how many children a node may have, without copies. compiled:
    whether torch.compile fuses the small kernels.
    """

    policy: str
    table: torch.Tensor | None = None
    growmap: torch.Tensor | None = None
    copies: bool = False
    cut: torch.Tensor | None = None
    most: int = 1 << 30
    compiled: bool = False

    def frontier(self, growing: GrowingTree) -> torch.Tensor:
        """The values by which the draft's next rows are chosen, [S + 1]."""
        return growing.slot_value if self.growmap is None else growing.node_value

    def fill(
        self,
        growing: GrowingTree,
        level: int,
        q: torch.Tensor,
        chance: Chance,
        text: torch.Tensor,
        known: torch.Tensor,
    ) -> None:
        """Propose the children that make up a level, and set their values. q [w, V]: the
        distributions of the rows above. text, known: see `find_copies`."""
        rows, slots = growing.bounds.rows(level), growing.bounds.slots(level)
        above = growing.row_slot[rows]
        slot_value, node_value = growing.slot_value[above], growing.node_value[above]
        found = self._run(find_copies, text, known, growing.context[rows]) if self.copies else None
        cut = self.cut if self.policy == "hybrid" and self.growmap is None else None
        number = self.growmap[growing.number[above]] if self.growmap is not None else None
        base, drawn = draw_children(
            self.policy,
            q,
            chance,
            growing.bounds.children,
            found,
            *_limits(cut, node_value, number),
        )
        if number is not None:
            assert self.growmap is not None
            growing.number[slots].copy_(number.flatten())
            children = self._run(
                shaped, self.policy, drawn, slot_value, number, self.growmap[number, 0] >= 0
            )
        else:
            table = self.table[depth_class(level)] if self.table is not None else None
            children = self._run(
                value_children, self.policy, drawn, slot_value, node_value, table, cut, self.most
            )
        for name, of_children in children._asdict().items():
            getattr(growing, name)[slots].copy_(of_children.flatten())
        if base is not None:
            growing.base[rows].copy_(base)

    def _run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return fused(function, self.compiled)(*arguments)


class ValuedChildren(NamedTuple):
    """The children of w nodes, [w, k] each. Each field goes to the field of this name in
    `GrowingTree`."""

    token: torch.Tensor
    kind: torch.Tensor
    proposal: torch.Tensor
    x: torch.Tensor
    slot_value: torch.Tensor
    node_value: torch.Tensor


def value_children(
    policy: str,
    drawn: Drawn,
    slot_value: torch.Tensor,
    node_value: torch.Tensor,
    table: torch.Tensor | None,
    cut: torch.Tensor | None,
    most: int,
) -> ValuedChildren:
    """The children of nodes with the values slot_value and node_value [w]. table: see `estimates`.
    most: how many children a node may have, without copies."""
    made = propose(policy, drawn)
    if most < drawn.k:
        made = made._replace(exists=made.exists & ((made.kind >= Kind.ECHO) | _leading(made, most)))
    before, after = estimates(table, made)
    if policy != "sampled":  # points are ordered by value
        by = torch.where(made.kind == Kind.TAIL, 2.0, torch.where(made.exists, after, -1.0))
        order = by.sort(dim=1, descending=True, stable=True).indices
        made = Proposed(*(part.gather(1, order) for part in made))
        before, after = before.gather(1, order), after.gather(1, order)
    if cut is not None:
        made = made._replace(
            exists=made.exists & ((made.kind != Kind.TAIL) | (node_value[:, None] * before >= cut))
        )
    slots, nodes = values(made, before, after, slot_value, node_value)
    return ValuedChildren(made.tokens, made.kind, made.proposal, made.x, slots, nodes)


def _limits(
    cut: torch.Tensor | None, node_value: torch.Tensor, number: torch.Tensor | None
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """For `hybrid`: how many points each node may have, and the least probability of one, [w, 1]
    each. A growmap leaves room after the sampled child; otherwise a point must be worth its slot.
    """
    if number is not None:
        return (number >= 0).sum(1, keepdim=True) - 1, None
    if cut is None:
        return None, None
    worth = node_value[:, None].clamp(min=1e-9)
    return (worth / cut.clamp(min=1e-9)).floor(), cut / worth


def _leading(made: Proposed, most: int) -> torch.Tensor:
    """bool [w, k]: the first `most` children."""
    return torch.arange(made.kind.shape[1], device=made.kind.device).expand_as(made.kind) < most


def shaped(
    policy: str,
    drawn: Drawn,
    slot_value: torch.Tensor,
    number: torch.Tensor,
    branches: torch.Tensor,
) -> ValuedChildren:
    """The children of nodes of a static tree. number [w, k]: their numbers in the growmap, -1 for
    none. branches [w, k]: whether they have children."""
    made = propose(policy, drawn)
    exists = made.exists & (number >= 0) & (slot_value > 0)[:, None]
    slots = torch.where(exists, 1.0 / (2.0 + number.double()), 0.0)  # breadth first
    nodes = torch.where(branches, slots, 0.0)
    return ValuedChildren(made.tokens, made.kind, made.proposal, made.x, slots, nodes)


def estimates(table: torch.Tensor | None, made: Proposed) -> tuple[torch.Tensor, torch.Tensor]:
    """The probability that each child is accepted, before and after its token is known, [w, k]
    each. table: float64 [kinds, CELLS], by kind and feature; None takes the draft's own
    probabilities."""
    if table is None:
        return made.own_before, made.own
    counted = made.kind >= Kind.ECHO
    curves = table.flatten()

    def look(x: torch.Tensor) -> torch.Tensor:
        x = torch.where(x > 0, x, 0.0)  # also turns the NaN of a broken draft into 0
        cell = torch.where(counted, x, x.sqrt() * (CELLS - 1)).clamp(0, CELLS - 1).long()
        return curves[made.kind * CELLS + cell]

    return look(made.x_before), look(made.x)


def values(
    made: Proposed,
    before: torch.Tensor,
    after: torch.Tensor,
    slot_value: torch.Tensor,
    node_value: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Slot and node values [w, k] of children, from the values [w] of their parents. No slot value
    is above that of its parent or elder sibling."""
    sequential = made.kind <= Kind.LATER  # these are tried only if their elder siblings are refused
    rejected = torch.where(sequential & made.exists, 1.0 - after, 1.0).cumprod(1)
    refused = torch.cat([torch.ones_like(rejected[:, :1]), rejected[:, :-1]], 1)
    point = made.kind >= Kind.POINT
    best_point = torch.where(point & made.exists, after, 0.0).amax(1, keepdim=True)
    before = torch.where(
        made.kind == Kind.TAIL, torch.maximum(before, best_point), refused * before
    )
    worth = torch.where(made.exists, node_value[:, None] * before, torch.inf)
    slot = torch.minimum(worth.cummin(1).values, slot_value[:, None])
    node = node_value[:, None] * torch.where(sequential, refused, 1.0) * after
    return torch.where(made.exists, slot, 0.0), torch.where(made.exists, node, 0.0)
