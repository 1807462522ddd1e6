"""Verification in tensors of fixed shape: the rules of verification.py for a tree that only the device knows.

The tree is a `Forest` and the `Nodes` of it that stay (forest.py). A level's rows are handled together, one after the
other because a node's weight depends on its parent's; within a level, each child takes its share of what the node still
has to emit. With p and q the node's distributions and everything drawn there left out of both, what is left of R is

    scale * relu(p - t * q)

with one `scale` and one `t` a node; the few tokens that were drawn are kept apart as numbers. So a child costs one sum over
the vocabulary. On a GPU kernels.py does a level in one launch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dynasurge import kernels, sampling
from dynasurge.forest import POINT, Forest, Nodes
from dynasurge.proposing import draw
from dynasurge.verification import LEAST


@dataclass(frozen=True, kw_only=True)
class Judged:
    """stop: float64 [n + 1], see verification.StopLaw; end, bonus: int64 [1], the node where the path ends and the
    token behind it, -1 if there is none."""

    stop: torch.Tensor
    end: torch.Tensor
    bonus: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class Law:
    """Where the path may end and what follows: stop [n + 1]; t [R + 1] and kept [R + 1, k], what rows leave of R (see
    above; sampled children only), p and q without the drawn tokens, and the p [R + 1, k] of those."""

    stop: torch.Tensor
    row_of: torch.Tensor
    t: torch.Tensor
    kept: torch.Tensor
    drawn: torch.Tensor
    p: torch.Tensor
    q: torch.Tensor
    tokens: torch.Tensor

    def bonus(self, node: torch.Tensor) -> torch.Tensor:
        """The law [m, V] of the token behind nodes [m]: what their children left, or, if that is nothing, the target's."""
        row = self.row_of[node]
        tokens, p = self.tokens[row], self.p[node]
        left = torch.addcmul(p, self.t[row][:, None].to(p.dtype), self.q[row], value=-1.0).relu_()
        left = left.scatter_add(1, tokens, self.kept[row].to(p.dtype))
        mass = left.sum(-1, keepdim=True)
        whole = p.scatter_add(1, tokens, self.drawn[row])
        return torch.where(mass > 0, left, whole)


def law(forest: Forest, nodes: Nodes, p: torch.Tensor, rule: str) -> Law:
    """Apply a rule: `topdown` or `traversal`. p: float [n + 2, V], the target's distributions by node and one row to spare;
    p and the forest's base are overwritten where tokens were drawn."""
    layout, none = forest.layout, nodes.none
    rows, k = layout.row_count, layout.children
    child = nodes.number[1:-1].view(rows, k)
    node = nodes.number[forest.row_slot[:-1]]
    child = torch.where(node[:, None] < none, child, none)
    exists = child < none
    tokens = forest.token[1:-1].view(rows, k)
    point = forest.kind[1:-1].view(rows, k) >= POINT
    drawn = torch.where(exists, p[node[:, None], tokens], 0.0)
    from_q = torch.where(exists & ~point, forest.base[:-1].gather(1, tokens), 0.0)
    zero = p.new_zeros(())
    p.index_put_((torch.where(exists, node[:, None], none), tokens), zero)
    every = torch.arange(rows, device=p.device)[:, None]
    forest.base.index_put_((torch.where(exists, every, rows), tokens), zero)
    accept = torch.zeros(none + 1, dtype=torch.float64, device=p.device)
    accept[:1].fill_(1.0)
    t = torch.zeros(rows + 1, dtype=torch.float64, device=p.device)
    kept = torch.zeros(rows + 1, k, dtype=torch.float64, device=p.device)
    shares = kernels.Shares(
        p=p,
        q=forest.base,
        node=node,
        child=child,
        point=point,
        drawn=drawn,
        from_q=from_q,
        accept=accept,
        t=t,
        kept=kept,
    )
    share = kernels.share if kernels.usable(p) else share_level
    for level in range(1, layout.depth + 1):
        share(shares, layout.rows(level), bottom_up=rule == "traversal")
    row_of = torch.full((none + 1,), rows, dtype=torch.int64, device=p.device)
    row_of = row_of.scatter(0, node, every[:, 0])
    pad = torch.nn.functional.pad
    return Law(
        stop=(_bottom_up if rule == "traversal" else _top_down)(accept[:none], nodes),
        row_of=row_of,
        t=t,
        kept=kept,
        drawn=pad(drawn, (0, 0, 0, 1)),
        p=p,
        q=forest.base,
        tokens=pad(tokens, (0, 0, 0, 1)),
    )


def judge(law: Law, uniforms: torch.Tensor) -> Judged:
    """Draw where the path ends, then the bonus token. uniforms: float64 [2, 2]."""
    end = sampling.draw_by(law.stop[None], uniforms[:1, None])[0]
    bonus = law.bonus(end.clamp(min=0))
    return Judged(stop=law.stop, end=end, bonus=draw(bonus, uniforms[1:, None])[0][:, 0])


def _bottom_up(accept: torch.Tensor, nodes: Nodes) -> torch.Tensor:
    """A node gets its turn after everything below it, and below its elder siblings and its ancestors', was refused."""
    seen = nodes.seen.float()
    places = torch.arange(len(accept), device=accept.device)
    elder = (nodes.parent[:, None] == nodes.parent) & (places < places[:, None]) & (nodes.parent >= 0)[:, None]
    before = ((seen @ elder.float() @ seen.T) > 0) | (nodes.seen.T & (places != places[:, None]))
    before &= nodes.exists
    turn = torch.where(before, 1.0 - accept, 1.0).prod(-1)
    return torch.where(nodes.exists, accept * turn, 0.0)


def _top_down(accept: torch.Tensor, nodes: Nodes) -> torch.Tensor:
    """A child is tried if its parent was accepted and its elder siblings were refused."""
    places = torch.arange(len(accept), device=accept.device)
    siblings = (nodes.parent[:, None] == nodes.parent) & (nodes.parent >= 0)[:, None] & nodes.exists
    elder, child = siblings & (places < places[:, None]), nodes.parent == places[:, None]
    refused = torch.where(elder, 1.0 - accept, 1.0).prod(-1)
    enters = torch.where(nodes.seen, accept * refused, 1.0).prod(-1)
    stays = torch.where(child & nodes.exists, 1.0 - accept, 1.0).prod(-1)
    return torch.where(nodes.exists, enters * stays, 0.0)


def share_level(shares: kernels.Shares, rows: slice, *, bottom_up: bool) -> None:
    """What `kernels.share` does, for any float type: each child of a level's rows takes min(R, q) of what is left."""
    node, child = shares.node[rows], shares.child[rows]
    none = len(shares.accept) - 1
    exists, point = child < none, shares.point[rows]
    p, q = shares.p[node.clamp(max=none)], shares.q[rows]
    drawn, from_q = shares.drawn[rows].double(), shares.from_q[rows].double()
    a = shares.accept[node][:, None] if bottom_up else torch.ones(len(p), 1, dtype=torch.float64, device=p.device)
    tiny, free = torch.finfo(p.dtype).tiny, q.sum(-1, keepdim=True, dtype=torch.float64)
    scale, t = a, torch.zeros_like(a)
    weights, kept, waits = torch.zeros_like(drawn), torch.zeros_like(drawn), exists.clone()
    for rank in range(child.shape[1]):
        here = slice(rank, rank + 1)
        tried = exists[:, here] & ~point[:, here]
        total = free + torch.where(waits & ~point, from_q, 0.0).sum(-1, keepdim=True)
        left = (drawn[:, here] - t * from_q[:, here]).relu()
        weight = (scale * left / (from_q[:, here] / total.clamp(min=tiny)).clamp(min=tiny)).clamp(max=1.0)
        weights[:, here] = torch.where(tried, weight, weights[:, here])
        more = t + 1.0 / (total.clamp(min=tiny) * scale.clamp(min=LEAST))
        t = torch.where(tried, more.clamp(max=kernels.MOST), t)
        kept[:, here] = torch.where(tried, (drawn[:, here] - t * from_q[:, here]).relu(), 0.0)
        waits[:, here] &= ~tried
        rest = torch.addcmul(p, t.to(p.dtype), q, value=-1.0).relu_().sum(-1, keepdim=True, dtype=torch.float64)
        rest = rest + torch.where(waits, (drawn - t * from_q).relu(), 0.0).sum(-1, keepdim=True)
        mass = scale * (rest + kept.sum(-1, keepdim=True))
        refused = (1.0 - a + mass).clamp(min=tiny)
        a = torch.where(tried, (mass / refused).clamp(max=1.0), a)
        scale = torch.where(tried, torch.where(scale / refused < 1.0 / LEAST, scale / refused, 0.0), scale)
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
