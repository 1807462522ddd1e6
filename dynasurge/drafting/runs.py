"""Runs of copies: the text proposes chains below nodes that the draft has not read.

When drafting ends, the best leaves look for their last tokens in the text, as in
drafting/prompt_lookup.py. Those with a match get a chain of the tokens that followed it: point
children, one below the other, each valued by its match's length. Then all slots compete for a place
once more. A run costs a few look-ups, and no draft pass.

Which leaves get runs depends on the values of their slots, and on tokens. A match of a leaf can
take the run of a leaf with a smaller slot value. All that could stand below the latter is worth
less than the former's slot. So no slot's place depends on its own token.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from dynasurge.drafting.child_kinds import Kind, depth_class
from dynasurge.drafting.growth import RUNS, GrowingTree
from dynasurge.drafting.kept_nodes import best_slots
from dynasurge.drafting.prompt_lookup import find_runs
from dynasurge.models.cuda_graphs import fused

LEAVES = 16  # the best leaves, which look for a match


class Runs(NamedTuple):
    """RUNS runs of `run` nodes. slot int64 [RUNS]: the leaf of each, S for none. token, match
    int64, value float64 [RUNS, run]; a value of 0 stands for no node."""

    slot: torch.Tensor
    token: torch.Tensor
    match: torch.Tensor
    value: torch.Tensor


def add_runs(
    growing: GrowingTree,
    n: int,
    worth: torch.Tensor,
    table: torch.Tensor,
    text: torch.Tensor,
    known: torch.Tensor,
    room: torch.Tensor,
    *,
    compiled: bool = False,
) -> None:
    """Add runs to a tree that keeps its n best slots. worth: see `assemble`. table: see `Proposer`.
    text, known: see `find_runs`. room [1]: the deepest level that may be. compiled: whether
    torch.compile fuses the small kernels."""
    k, run = growing.bounds.children, growing.bounds.run
    tree = (growing.slot_value[: growing.used_slots], growing.node_value, growing.depth)
    rows = (growing.row_slot, growing.context, growing.token)
    given = (worth, table[:, Kind.BLIND], text, known, room)
    runs = fused(find, compiled)(*tree, *rows, *given, n, k, run)
    width = RUNS
    if not growing.padded:
        runs = Runs(*(part[runs.value[:, 0] > worth] for part in runs))
        width = len(runs.slot)
        if not width:
            return
        growing.starts += [growing.read + width * level for level in range(1, run + 1)]
    where = (growing.read, width, run, k)
    rows_of = fused(new_rows, compiled)
    row, row_slot, depth, chain = rows_of(runs.slot, growing.depth, growing.chain, *where)
    slot = 1 + row * k
    for mine, at, value in (
        (growing.row_slot, row, row_slot),
        (growing.chain, row, chain),
        (growing.token, slot, runs.token),
        (growing.depth, slot, depth),
        (growing.kind, slot, torch.full_like(slot, Kind.BLIND)),
        (growing.proposal, slot, torch.ones_like(runs.value)),
        (growing.q, slot, torch.full_like(runs.value, torch.nan)),
        (growing.x, slot, runs.match.double()),
        (growing.slot_value, slot, runs.value),
        (growing.node_value, slot, runs.value),
    ):
        mine[at] = value


def new_rows(
    leaf: torch.Tensor,
    slot_depth: torch.Tensor,
    row_chain: torch.Tensor,
    read: int,
    width: int,
    run: int,
    children: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The rows of runs below the slots `leaf` [w], level by level behind the first `read` rows,
    `width` a level: their numbers, their slots and the depths of their children, [w, run] each, and
    their chains."""
    level = torch.arange(run, device=leaf.device)
    row = read + level * width + torch.arange(len(leaf), device=leaf.device)[:, None]
    slot = 1 + row * children
    row_slot = torch.cat([leaf[:, None], slot[:, :-1]], dim=1)
    depth = slot_depth[leaf][:, None]
    chains = row_chain[(leaf - 1) // children]
    at = torch.arange(chains.shape[1], device=leaf.device) - depth  # [w, depth]
    own = row.gather(1, at.clamp(min=0, max=run - 1))
    mine = (at[:, None] >= 0) & (at[:, None] <= level[:, None])  # the rows of the run itself
    return row, row_slot, depth + 1 + level, torch.where(mine, own[:, None], chains[:, None])


def find(
    slot_value: torch.Tensor,
    node_value: torch.Tensor,
    depth: torch.Tensor,
    row_slot: torch.Tensor,
    context: torch.Tensor,
    token: torch.Tensor,
    worth: torch.Tensor,
    table: torch.Tensor,
    text: torch.Tensor,
    known: torch.Tensor,
    room: torch.Tensor,
    n: int,
    children: int,
    run: int,
) -> Runs:
    """Find the runs of a growing tree's tensors, see `add_runs`. table: [depth classes, CELLS]."""
    none = len(token) - 1
    order, kept = best_slots(slot_value, worth, n)
    above = ((order - 1) // children).clamp(min=0)
    parents = torch.zeros(none + 1, dtype=torch.bool, device=order.device)
    parents = parents.scatter(0, torch.where(kept & (order > 0), row_slot[above], none), True)
    leaf = kept & (order > 0) & ~parents[order]  # the root gets its copies with the first level
    # the best leaves, in the order of their values
    ahead = (~leaf).to(torch.int8).sort(stable=True).indices[:LEAVES]
    slot, leaf, above = order[ahead], leaf[ahead], above[ahead]
    contexts = torch.cat([context[above, 1:], token[slot][:, None]], dim=1)
    tokens, match = find_runs(text, known, contexts, run)
    level = depth[slot][:, None] + 1 + torch.arange(run, device=slot.device)
    exists = (match > 0) & leaf[:, None] & (level <= room)
    chance = torch.where(exists, table[depth_class(level), match], 0.0)
    value = torch.minimum(node_value[slot][:, None] * chance.cumprod(1), slot_value[slot][:, None])
    best = (~exists[:, 0]).to(torch.int8).sort(stable=True).indices[:RUNS]
    found = exists[best, 0]
    return Runs(torch.where(found, slot[best], none), tokens[best], match[best], value[best])
