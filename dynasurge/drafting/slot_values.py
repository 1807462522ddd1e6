"""What proposed children are worth, before and after their tokens are known.

A *slot value* uses only what is known before the slot's token is drawn. It estimates the
probability that this slot ends on the accepted path, and is never above the value of its parent or
elder sibling. It decides what stays. A *node value* knows the token. It only passes on to the
slots below.

Estimates of acceptance come as a table (drafting/acceptance_estimates.py), so a look-up is a
gather. This is arithmetic on a few numbers a node: dozens of small kernels, which torch.compile can
fuse into one.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from dynasurge.drafting.acceptance_estimates import CELLS
from dynasurge.drafting.child_kinds import Kind
from dynasurge.drafting.proposals import Copies, Drawn, Limits, Policy, Proposed, with_copies

LATER_CHILD = 0.5


class Children(NamedTuple):
    """The valued children of w nodes, [w, k] each. Each field goes to the field of this name in
    `GrowingTree`."""

    token: torch.Tensor
    kind: torch.Tensor
    proposal: torch.Tensor
    q: torch.Tensor
    x: torch.Tensor
    slot_value: torch.Tensor
    node_value: torch.Tensor


def limits(
    policy: Policy,
    cut: torch.Tensor | None,
    node_value: torch.Tensor,
    number: torch.Tensor | None,
    most: int,
) -> Limits:
    """How many children each of w nodes may have, and the least probability of a point. number [w,
    k]: see `shaped`. most: see `valued`. The j-th child must be worth its slot, by `cut` [1], the
    least value of a slot: it is rarely accepted more often than 1 / j (a point), LATER_CHILD / j (a
    sampled child)."""
    if number is not None:
        return Limits((number >= 0).sum(1, keepdim=True))
    if cut is None:
        return Limits(torch.full_like(node_value[:, None], most))
    worth = node_value[:, None].clamp(min=1e-9)
    share = 1.0 if policy.points else LATER_CHILD
    places = 1.0 + (share * worth / cut.clamp(min=1e-9)).floor()
    return Limits(places.clamp(max=most), cut / worth)


def valued(
    policy: Policy,
    drawn: Drawn,
    copies: Copies | None,
    slot_value: torch.Tensor,
    node_value: torch.Tensor,
    table: torch.Tensor | None,
    cut: torch.Tensor | None,
    places: torch.Tensor,
) -> Children:
    """The children of nodes with the values slot_value and node_value [w]. table: see `estimates`.
    cut [1]: the least value of a sampled child before points. places [w, 1]: how many children
    each may have, without copies."""
    made = policy.propose(drawn)
    place = torch.arange(drawn.k, device=made.kind.device)
    made = made._replace(exists=made.exists & (place < places))
    if copies is not None:
        made = with_copies(made, copies, drawn, points=policy.points)
        made = made._replace(exists=made.exists & (places > 0))
    before, after = estimates(table, made)
    if policy.points:  # the likeliest to be accepted first
        by = torch.where(made.kind == Kind.TAIL.value, 2.0, torch.where(made.exists, after, -1.0))
        order = by.sort(dim=1, descending=True, stable=True).indices
        made = Proposed(*(part.gather(1, order) for part in made))
        before, after = before.gather(1, order), after.gather(1, order)
    if cut is not None:
        pays = (made.kind != Kind.TAIL.value) | (node_value[:, None] * before >= cut)
        made = made._replace(exists=made.exists & pays)
    slots, nodes = values(made, before, after, slot_value, node_value)
    return Children(made.token, made.kind, made.proposal, made.q, made.x, slots, nodes)


def shaped(
    policy: Policy,
    drawn: Drawn,
    slot_value: torch.Tensor,
    number: torch.Tensor,
    branches: torch.Tensor,
) -> Children:
    """The children of nodes of a static tree. number [w, k]: their numbers in the growmap, -1 for
    none. branches [w, k]: whether they have children. Values only say what exists, in breadth-first
    order, and what has children."""
    made = policy.propose(drawn)
    exists = made.exists & (number >= 0) & (slot_value > 0)[:, None]
    slots = torch.where(exists, 1.0 / (2.0 + number.double()), 0.0)
    nodes = torch.where(branches, slots, 0.0)
    return Children(made.token, made.kind, made.proposal, made.q, made.x, slots, nodes)


def estimates(table: torch.Tensor | None, made: Proposed) -> tuple[torch.Tensor, torch.Tensor]:
    """The probability that each child is accepted, before and after its token is known, [w, k]
    each. table: float64 [kinds, CELLS], by kind and feature; None takes the draft's own
    probabilities."""
    if table is None:
        return made.own_before, made.own
    counted = made.kind >= Kind.ECHO.value
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
    """Slot and node values [w, k] of children, from the values [w] of their parents."""
    # these are tried only if their elder siblings are refused
    sequential = made.kind <= Kind.LATER.value
    rejected = torch.where(sequential & made.exists, 1.0 - after, 1.0).cumprod(1)
    refused = torch.cat([torch.ones_like(rejected[:, :1]), rejected[:, :-1]], 1)
    point = made.kind >= Kind.POINT.value
    best_point = torch.where(point & made.exists, after, 0.0).amax(1, keepdim=True)
    # a child sampled before points is verified before them, so it must stand before them
    tail = torch.maximum(before, best_point)
    before = torch.where(made.kind == Kind.TAIL.value, tail, refused * before)
    worth = torch.where(made.exists, node_value[:, None] * before, torch.inf)
    slot = torch.minimum(worth.cummin(1).values, slot_value[:, None])
    node = node_value[:, None] * torch.where(sequential, refused, 1.0) * after
    return torch.where(made.exists, slot, 0.0), torch.where(made.exists, node, 0.0)
