"""What proposed children are worth, in tensors of fixed shape (see drafting/captured_tree.py), and
how a level is filled with them.

The values are those of drafting/growth.py: a child's slot is worth what could be said of it before
its token was drawn, never more than its parent's or its elder sibling's. Estimates of acceptance
come as a table, so that looking one up is a gather. All of it is arithmetic on a few numbers a
node, dozens of small kernels that torch.compile can make one.
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

    policy: see drafting/proposals.py. table: float64 [depth classes, kinds, CELLS], estimates of
    drafting/acceptance_estimates.py; None takes the draft's own word. growmap: int64 [size + 1, k],
    the number of each node's children, -1 for none: then shape decides, not value. copies: whether
    the text proposes, too. cut: float64 [1], for `hybrid`, what a slot must be worth to be
    proposed. most: children a node may have, copies not counted. compiled: whether torch.compile
    fuses the small kernels.
    """

    policy: str
    table: torch.Tensor | None = None
    growmap: torch.Tensor | None = None
    copies: bool = False
    cut: torch.Tensor | None = None
    most: int = 1 << 30
    compiled: bool = False

    def frontier(self, growing: GrowingTree) -> torch.Tensor:
        """By what the draft's next rows are chosen."""
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
        """Propose the children that make up a level, of rows whose distributions are q [w, V], and
        settle their values. text, known: see `find_copies`."""
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
    """The children of w nodes, all [w, k], by the field of a `GrowingTree`'s slots that they go to."""

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
    """The children of nodes that are worth slot_value and node_value [w]; table: see `estimates`;
    most: children a node, copies not counted."""
    made = propose(policy, drawn)
    if most < drawn.k:
        made = made._replace(exists=made.exists & ((made.kind >= Kind.ECHO) | _leading(made, most)))
    before, after = estimates(table, made)
    if policy != "sampled":  # points go by their worth
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
    """How many points `hybrid` may have at each node, and the least probability of one, [w, 1]
    each: what the growmap has room for behind the sampled child, or what is worth its slot."""
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
    """`settle` for a static tree: number [w, k], the children's numbers in the growmap, -1 for
    none; branches, whether they have children."""
    made = propose(policy, drawn)
    exists = made.exists & (number >= 0) & (slot_value > 0)[:, None]
    slots = torch.where(exists, 1.0 / (2.0 + number.double()), 0.0)  # breadth first
    nodes = torch.where(branches, slots, 0.0)
    return ValuedChildren(made.tokens, made.kind, made.proposal, made.x, slots, nodes)


def estimates(table: torch.Tensor | None, made: Proposed) -> tuple[torch.Tensor, torch.Tensor]:
    """How likely each child is to be accepted, before and after its token is known, [w, k]. table:
    float64 [kinds, CELLS] of acceptance by kind and feature; None takes the draft's own word."""
    if table is None:
        return made.own_before, made.own
    counted = made.kind >= Kind.ECHO
    curves = table.flatten()

    def look(x: torch.Tensor) -> torch.Tensor:
        x = torch.where(x > 0, x, 0.0)  # not NaN either, of a draft that has gone astray
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
    """Slot and node values [w, k] of children whose parents have the values [w]: never above parent
    or elder sibling."""
    sequential = made.kind <= Kind.LATER  # these are tried given that elder ones were refused
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
