"""Verification in tensors of fixed shape: the rules of verification/rules.py for a tree that only
the device knows.

The tree is a `GrowingTree` and its `Nodes` that stay (drafting/captured_tree.py). The rows of a
level are handled together. Levels follow one another, because a node's weight depends on its
parent's. Within a level, each child takes its share of what the node still has to emit. With p and
q the node's distributions without the tokens drawn there, the rest of R is

    scale * relu(p - t * q)

with one `scale` and one `t` a node. The few drawn tokens are kept apart as numbers. So a child
costs one sum over the vocabulary. On a GPU triton_kernels.py does a level in one launch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from dynasurge import probabilities, triton_kernels
from dynasurge.drafting.captured_proposals import draw
from dynasurge.drafting.captured_tree import GrowingTree, Nodes
from dynasurge.drafting.child_kinds import Kind
from dynasurge.models.cuda_graphs import fused
from dynasurge.probabilities import LEAST, Uniforms


class Judged(NamedTuple):
    """stop: float64 [n + 1], the probability that the path ends at each node. end, bonus: int64
    [1], the node where the path ends and the token after it, -1 if there is none."""

    stop: torch.Tensor
    end: torch.Tensor
    bonus: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class CapturedStopLaw:
    """Where the path may end and what follows. stop: [n + 1]. t [R + 1] and kept [R + 1, k]: what
    rows leave of R (see above; sampled children only). p and q: without the drawn tokens. drawn [R
    + 1, k]: the p of those tokens. row_of: see `Families`."""

    stop: torch.Tensor
    row_of: torch.Tensor
    t: torch.Tensor
    kept: torch.Tensor
    drawn: torch.Tensor
    p: torch.Tensor
    q: torch.Tensor
    tokens: torch.Tensor

    def bonus(self, node: torch.Tensor, *, compiled: bool = False) -> torch.Tensor:
        """The distribution [m, V] of the token after nodes [m]: what their children left, or the
        target's if nothing is left."""
        own = (self.q, self.tokens, self.t, self.kept, self.drawn)
        return fused(_bonus, compiled)(self.row_of[node], self.p[node], *own)


def law(
    growing: GrowingTree, nodes: Nodes, p: torch.Tensor, rule: str, *, compiled: bool = False
) -> CapturedStopLaw:
    """Apply a rule: `topdown` or `traversal`. p: float [n + 2, V], the target's distributions by
    node and one spare row. This overwrites p and the growing tree's base at drawn tokens. compiled:
    whether torch.compile fuses the small kernels."""
    bounds, none = growing.bounds, nodes.none
    rows, k = bounds.row_count, bounds.children
    tensors = (nodes.number, growing.row_slot, growing.token, growing.kind, p, growing.base)
    families = fused(_families, compiled)(*tensors, none, k)
    zero = p.new_zeros(())
    p.index_put_((families.of_p, families.tokens[:-1]), zero)
    growing.base.index_put_((families.of_q, families.tokens[:-1]), zero)
    accept = torch.zeros(none + 1, dtype=torch.float64, device=p.device)
    accept[:1].fill_(1.0)
    t = torch.zeros(rows + 1, dtype=torch.float64, device=p.device)
    kept = torch.zeros(rows + 1, k, dtype=torch.float64, device=p.device)
    shares = triton_kernels.Shares(
        p=p,
        q=growing.base,
        node=families.node,
        child=families.child,
        point=families.point,
        drawn=families.drawn[:-1],
        from_q=families.from_q,
        accept=accept,
        t=t,
        kept=kept,
    )
    share = triton_kernels.share if triton_kernels.usable(p) else share_level
    for level in range(1, bounds.depth + 1):
        share(shares, bounds.rows(level), bottom_up=rule == "traversal")
    stops = fused(_bottom_up if rule == "traversal" else _top_down, compiled)
    return CapturedStopLaw(
        stop=stops(accept, nodes.parent, nodes.exists, nodes.seen),
        row_of=families.row_of,
        t=t,
        kept=kept,
        drawn=families.drawn,
        p=p,
        q=growing.base,
        tokens=families.tokens,
    )


def judge(law: CapturedStopLaw, uniforms: torch.Tensor, *, compiled: bool = False) -> Judged:
    """Draw the node where the path ends, then the bonus token. uniforms: float64 [2, 2]."""
    end = fused(_ends, compiled)(law.stop, uniforms)
    bonus = law.bonus(end.clamp(min=0), compiled=compiled)
    return Judged(
        stop=law.stop, end=end, bonus=draw(bonus, Uniforms(uniforms[1:, None]), 1)[0][:, 0]
    )


class Families(NamedTuple):
    """The R rows of a growing tree, each with its children.

    node int64 [R]; child int64 and point bool [R, k], see `triton_kernels.Shares`. tokens int64 and
    drawn, their p, [R + 1, k] each with a spare row. from_q [R, k]: their q. of_p, of_q int64 [R,
    k]: the row of p and of q where each token is set to 0. row_of int64 [n + 1]: the row of each
    node.
    """

    node: torch.Tensor
    child: torch.Tensor
    point: torch.Tensor
    tokens: torch.Tensor
    drawn: torch.Tensor
    from_q: torch.Tensor
    of_p: torch.Tensor
    of_q: torch.Tensor
    row_of: torch.Tensor


def _families(
    number: torch.Tensor,
    row_slot: torch.Tensor,
    token: torch.Tensor,
    kind: torch.Tensor,
    p: torch.Tensor,
    base: torch.Tensor,
    none: int,
    k: int,
) -> Families:
    """Gather the families of a growing tree's tensors. none: the number that stands for no node."""
    rows, pad = len(row_slot) - 1, torch.nn.functional.pad
    node = number[row_slot[:-1]]
    child = torch.where(node[:, None] < none, number[1:-1].view(rows, k), none)
    exists = child < none
    tokens = token[1:-1].view(rows, k)
    point = kind[1:-1].view(rows, k) >= Kind.POINT
    drawn = torch.where(exists, p[node[:, None], tokens], 0.0)
    from_q = torch.where(exists & ~point, base[:-1].gather(1, tokens), 0.0)
    every = torch.arange(rows, device=p.device)
    of_p, of_q = torch.where(exists, node[:, None], none), torch.where(exists, every[:, None], rows)
    row_of = torch.full((none + 1,), rows, dtype=torch.int64, device=p.device).scatter(
        0, node, every
    )
    spare = (0, 0, 0, 1)
    return Families(
        node, child, point, pad(tokens, spare), pad(drawn, spare), from_q, of_p, of_q, row_of
    )


def _ends(stop: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    node, none = probabilities.invert(stop[None], uniforms[:1, 0])
    return torch.where(none, -1, node)


def _bonus(
    row: torch.Tensor,
    p: torch.Tensor,
    q: torch.Tensor,
    tokens: torch.Tensor,
    t: torch.Tensor,
    kept: torch.Tensor,
    drawn: torch.Tensor,
) -> torch.Tensor:
    tokens = tokens[row]
    left = (p - t[row][:, None].to(p.dtype) * q[row]).relu()
    left = left.scatter_add(1, tokens, kept[row].to(p.dtype))
    mass = left.sum(-1, keepdim=True)
    whole = p.scatter_add(1, tokens, drawn[row])
    return torch.where(mass > 0, left, whole)


def _bottom_up(
    accept: torch.Tensor, parent: torch.Tensor, exists: torch.Tensor, seen: torch.Tensor
) -> torch.Tensor:
    """The probability [n + 1] that the path ends at each node. A node gets its turn after these were
    refused: all nodes below it, and all elder siblings of it and of its ancestors, with all nodes
    below those."""
    accept, sees = accept[:-1], seen.float()
    places = torch.arange(len(accept), device=accept.device)
    elder = (parent[:, None] == parent) & (places < places[:, None]) & (parent >= 0)[:, None]
    before = ((sees @ elder.float() @ sees.T) > 0) | (seen.T & (places != places[:, None]))
    turn = torch.where(before & exists, 1.0 - accept, 1.0).prod(-1)
    return torch.where(exists, accept * turn, 0.0)


def _top_down(
    accept: torch.Tensor, parent: torch.Tensor, exists: torch.Tensor, seen: torch.Tensor
) -> torch.Tensor:
    """The probability [n + 1] that the path ends at each node. A child is tried if its parent was
    accepted and its elder siblings were refused."""
    accept = accept[:-1]
    places = torch.arange(len(accept), device=accept.device)
    siblings = (parent[:, None] == parent) & (parent >= 0)[:, None] & exists
    elder, child = siblings & (places < places[:, None]), parent == places[:, None]
    refused = torch.where(elder, 1.0 - accept, 1.0).prod(-1)
    enters = torch.where(seen, accept * refused, 1.0).prod(-1)
    stays = torch.where(child & exists, 1.0 - accept, 1.0).prod(-1)
    return torch.where(exists, enters * stays, 0.0)


def share_level(shares: triton_kernels.Shares, rows: slice, *, bottom_up: bool) -> None:
    """Let each child of a level's rows take min(R, q) of the rest. It computes what
    `triton_kernels.share` computes, for any float type."""
    node, child = shares.node[rows], shares.child[rows]
    none = len(shares.accept) - 1
    exists, point = child < none, shares.point[rows]
    p, q = shares.p[node.clamp(max=none)], shares.q[rows]
    drawn, from_q = shares.drawn[rows].double(), shares.from_q[rows].double()
    a = (
        shares.accept[node][:, None]
        if bottom_up
        else torch.ones(len(p), 1, dtype=torch.float64, device=p.device)
    )
    tiny, free = torch.finfo(p.dtype).tiny, q.sum(-1, keepdim=True, dtype=torch.float64)
    scale, t = a, torch.zeros_like(a)
    weights, kept, waits = torch.zeros_like(drawn), torch.zeros_like(drawn), exists.clone()
    for rank in range(child.shape[1]):
        here = slice(rank, rank + 1)
        tried = exists[:, here] & ~point[:, here]
        total = free + torch.where(waits & ~point, from_q, 0.0).sum(-1, keepdim=True)
        left = (drawn[:, here] - t * from_q[:, here]).relu()
        weight = (scale * left / (from_q[:, here] / total.clamp(min=tiny)).clamp(min=tiny)).clamp(
            max=1.0
        )
        weights[:, here] = torch.where(tried, weight, weights[:, here])
        more = t + 1.0 / (total.clamp(min=tiny) * scale.clamp(min=LEAST))
        t = torch.where(tried, more.clamp(max=triton_kernels.MOST), t)
        kept[:, here] = torch.where(tried, (drawn[:, here] - t * from_q[:, here]).relu(), 0.0)
        waits[:, here] &= ~tried
        rest = (
            torch.addcmul(p, t.to(p.dtype), q, value=-1.0)
            .relu_()
            .sum(-1, keepdim=True, dtype=torch.float64)
        )
        rest = rest + torch.where(waits, (drawn - t * from_q).relu(), 0.0).sum(-1, keepdim=True)
        mass = scale * (rest + kept.sum(-1, keepdim=True))
        refused = (1.0 - a + mass).clamp(min=tiny)
        a = torch.where(tried, (mass / refused).clamp(max=1.0), a)
        scale = torch.where(
            tried, torch.where(scale / refused < 1.0 / LEAST, scale / refused, 0.0), scale
        )
    taken = torch.where(exists & point, scale * (drawn - t * from_q).relu(), 0.0)
    chance = (taken / (1.0 - taken.cumsum(-1) + taken).clamp(min=tiny)).clamp(max=1.0)
    weights = torch.where(exists & point, chance, weights)
    mass = taken.sum(-1, keepdim=True)
    a = ((a - mass) / (1.0 - mass).clamp(min=tiny)).clamp(0.0, 1.0)
    shares.accept.scatter_(0, child.flatten(), weights.flatten())
    if bottom_up:
        shares.accept.scatter_(0, node, a[:, 0])
    shares.accept[:1].fill_(1.0)
    shares.t[rows].copy_(t[:, 0])
    shares.kept[rows].copy_(kept)
