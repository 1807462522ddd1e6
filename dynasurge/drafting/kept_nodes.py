"""The tree that stays of a growing tree: the root and its most valuable slots, as nodes."""

from __future__ import annotations

from typing import NamedTuple

import torch

from dynasurge.drafting.growth import GrowingTree, ordered
from dynasurge.models.cuda_graphs import fused


class Nodes(NamedTuple):
    """The tree that stays: the root and n nodes. slot, parent, depth int64 [n + 1], exists bool [n
    + 1]. number int64 [S + 1]: the node of each slot, n + 1 for none. path int64 [n + 1, depth +
    1]: the nodes from the root down to each, filled up with n + 1. seen bool [n + 1, n + 1]: True
    for the nodes on the path of each."""

    slot: torch.Tensor
    parent: torch.Tensor
    depth: torch.Tensor
    exists: torch.Tensor
    number: torch.Tensor
    path: torch.Tensor
    seen: torch.Tensor

    @property
    def none(self) -> int:
        return len(self.slot)


def tokens_at(places: torch.Tensor, slot: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
    """The tokens of nodes, by their numbers; any token for none. slot: see `Nodes`. token: of a
    growing tree."""
    return token[torch.nn.functional.pad(slot, (0, 1), value=len(token) - 1)][places]


def assemble(
    growing: GrowingTree,
    n: int,
    budget: int | None = None,
    worth: torch.Tensor | None = None,
    *,
    compiled: bool = False,
) -> Nodes:
    """Keep the root and the n most valuable slots (at most `budget`, if given) that are worth more
    than `worth` [1], the first ones among equals, numbered in drawing order. A tree that is not
    padded has no more nodes than exist. compiled: whether torch.compile fuses the small
    kernels."""
    most = n if budget is None else min(n, budget)
    values = growing.slot_value[: growing.used_slots]
    worth = values.new_zeros(1) if worth is None else worth
    if not growing.padded:
        n = most = min(most, max(1, int((values > worth).sum())) - 1)
    tensors = (values, worth, growing.depth, growing.row_slot, growing.chain)
    return fused(best_nodes, compiled)(*tensors, n, most, growing.bounds.children)


def best_nodes(
    slot_value: torch.Tensor,
    worth: torch.Tensor,
    slot_depth: torch.Tensor,
    row_slot: torch.Tensor,
    row_chain: torch.Tensor,
    n: int,
    most: int,
    children: int,
) -> Nodes:
    """The n best nodes of a growing tree's tensors. At most `most` of them exist."""
    slots, rows, levels = len(slot_depth) - 1, len(row_slot) - 1, row_chain.shape[1]
    order, kept = best_slots(slot_value, worth, most)
    order = torch.where(kept, order, slots)
    if len(order) < n + 1:
        order = torch.nn.functional.pad(order, (0, n + 1 - len(order)), value=slots)
    slot = order[ordered(-order, n + 1)]
    places = torch.arange(n + 1, device=slot.device)
    exists = slot < slots
    number = torch.full((slots + 1,), n + 1, dtype=torch.int64, device=slot.device)
    number = number.scatter(0, slot, torch.where(exists, places, n + 1))
    depth, above = slot_depth[slot], ((slot - 1) // children).clamp(min=0)
    above = torch.where(exists, above, rows)
    chain = number[row_slot[row_chain[above]]]  # [n + 1, depth]
    level = torch.arange(levels + 1, device=slot.device)
    chain = torch.nn.functional.pad(chain, (0, 1), value=n + 1)
    path = torch.where(level < depth[:, None], chain, n + 1)
    path = torch.where((level == depth[:, None]) & exists[:, None], places[:, None], path)
    parent = torch.where(depth > 0, path.gather(1, (depth - 1).clamp(min=0)[:, None])[:, 0], -1)
    seen = torch.zeros(n + 1, n + 2, dtype=torch.bool, device=slot.device).scatter(1, path, True)[
        :, :-1
    ]
    return Nodes(slot, parent, depth, exists, number, path, seen)


def best_slots(
    slot_value: torch.Tensor, worth: torch.Tensor, most: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The root and the `most` best slots, the best first, and which of them stay: those that are
    worth more than `worth` [1], and the root."""
    order = ordered(slot_value, min(most + 1, len(slot_value)))
    return order, (slot_value[order] > worth) | (order == 0)
