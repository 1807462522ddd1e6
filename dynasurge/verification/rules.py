"""Verification: which path of the drafted tree the target accepts, and the bonus token after it.

A `Rule` turns a properly drawn tree, the target's distributions p at its nodes and the
distributions q that its sampled children were drawn from into a *stop law*: the probability that
the accepted path ends at each node, and the distribution of the bonus token there. So a rule's
arithmetic has no random draws. Tests enumerate it exactly, and analysis computes expected lengths
from it. Decoding adds the only two draws, the node and the bonus token.

Every rule here is *lossless*: for any draft, the emitted tokens (accepted path, then bonus) have
the target's own distribution (proofs: docs/concepts/verification.md). To add a rule, write how it
treats the children of a level, and enter it in `RULES`; tests/verification/test_exactness.py does
the rest.

All rules share one idea. A node holds `R`, the sub-measure that it still has to emit, of mass `a`;
at first R = a * p. A child x with proposal q takes min(R, q) of it, so its subtree is entered with
weight min(1, R[x] / q[x]). If the child is refused, relu(R - q) is left. The node emits it given
the refusal, whose probability is 1 - sum min(R, q).

**topdown** (Leviathan et al. 2211.17192; SpecInfer 2305.09781; Sequoia 2402.12374). Walk down from
the root. At every node a starts at 1, and the weight is the probability of going on to the child.

**traversal** (Traversal Verification, 2505.12398; on a chain it is Block Verification, 2403.10444).
Walk the tree bottom up: a starts at the weight with which the node was entered, and a node is
decided only after everything below it was refused. A lucky path deeper down makes up for an unlucky
token near the root, so chains are accepted at least as far.

**reserved** (derived for this project). Bottom up, too, but a child takes what topdown would give
it, and more only from what topdown leaves unused. So every node is accepted at least as often as
under topdown. It needs sampled children, whose numbers were chosen before the draw.

The nodes of a level are handled together (*families*: nodes with children, in rows of k columns).
Levels follow one another, because a node's weight depends on its parent's. A child costs one sum
over the vocabulary. On a GPU triton_kernels.py does a level of topdown or traversal in one launch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from dynasurge import triton_kernels
from dynasurge.models.cuda_graphs import fused
from dynasurge.probabilities import LEAST
from dynasurge.trees.token_tree import TokenTree
from dynasurge.triton_kernels import Shares
from dynasurge.verification.families import Families, Level, families_of, relations_of


@dataclass(frozen=True, kw_only=True)
class StopLaw:
    """stop: float64 [n], the probability that the accepted path ends at each node. bonus: [n, V],
    the distribution of the bonus token if the path ends there, up to a factor."""

    stop: torch.Tensor
    bonus: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """path: accepted nodes from the root's child downwards, () if none. bonus: the token emitted
    after them. stop[u]: the probability that the path ends at node u."""

    path: tuple[int, ...]
    bonus: int
    stop: tuple[float, ...]


Share = Callable[[Shares, Level, bool], None]
"""How a rule treats the children of the families of a level: (shares, level, bottom up).
It reads the weights with which the nodes were entered from `shares.accept`, and writes those of the
children there; bottom up also what is left of the nodes' own. It replaces p of the nodes by what
their children left of R, up to a factor, and writes the same for the children's tokens to
`shares.kept`."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A verification rule. share: see `Share`. bottom_up: whether nodes are decided after all that
    is below them; otherwise the weights are those of going on. apart: whether `share` gets p and q
    with the children's tokens set to 0 (their own p and q are in `shares`). fixed: whether all
    children must be sampled, and their numbers chosen before the draw. capturable: whether `share`
    never waits for the device and keeps no state, so that a GPU may replay it."""

    share: Share
    bottom_up: bool
    apart: bool = True
    fixed: bool = False
    capturable: bool = False

    def __call__(self, tree: TokenTree, p: torch.Tensor, q: Sequence[torch.Tensor]) -> StopLaw:
        """The stop law of a tree. p: float [n, V], by node. q[u]: float [V], what node u's sampled
        children were drawn from; not read at other nodes. Changes neither."""
        rule = self
        if self.fixed and any(tree.point[1:]):
            rule = RULES["traversal"]  # lossless with points, too
        families, base = families_of(tree, p, q)
        left = torch.nn.functional.pad(p, (0, 0, 0, 1))
        stop = stop_law(rule, families, left, base, *relations_of(tree, p.device)).stop
        return StopLaw(stop=stop, bonus=left[:-1])


class Stops(NamedTuple):
    """stop: float64 [n]. drawn: float [R, k], p of each child's token at its parent, 0 if there is
    no child."""

    stop: torch.Tensor
    drawn: torch.Tensor


def stop_law(
    rule: Rule,
    families: Families,
    p: torch.Tensor,
    q: torch.Tensor,
    parent: torch.Tensor,
    exists: torch.Tensor,
    seen: torch.Tensor,
    *,
    compiled: bool = False,
) -> Stops:
    """Apply a rule. p: float [rows + 1, V], q: float [R + 1, V]; the last rows are spare. parent,
    exists [n], seen [n, n]: see `Nodes` in drafting/kept_nodes.py.

    Overwrites q, and leaves in p the distribution of the bonus token at each node, up to a factor.
    compiled: whether torch.compile fuses the small kernels.
    """
    shares, taken = _prepared(rule, families, p, q, len(exists), compiled=compiled)
    for level in families.levels:
        rule.share(shares, level, rule.bottom_up)
    # where nothing is left (p = q), the target's own distribution stands
    rows_left = p.sum(-1)[: len(shares.node)] if shares.place is None else p.sum(-1)[shares.place]
    left = (rows_left + shares.kept.sum(-1))[:, None] > 0
    put = torch.where(left, shares.kept.to(p.dtype), taken.drawn)
    p.index_put_((taken.of_p, families.token), put)
    stops = fused(_bottom_up if rule.bottom_up else _top_down, compiled)
    return Stops(stops(shares.accept, parent, exists, seen), taken.drawn)


def _prepared(
    rule: Rule,
    families: Families,
    p: torch.Tensor,
    q: torch.Tensor,
    none: int,
    *,
    compiled: bool = False,
) -> tuple[Shares, _Taken]:
    """What a rule's `share` gets. none: how many nodes there are."""
    place = families.place
    if place is None:
        place = torch.arange(len(families.node), device=p.device)
    taken = fused(_taken, compiled)(p, q, families.node, *families[1:4], place, none)
    if rule.apart:
        zero = p.new_zeros(())
        p.index_put_((taken.of_p, families.token), zero)
        q.index_put_((taken.of_q, families.token), zero)
    shares = Shares(
        p=p,
        q=q,
        node=families.node,
        place=families.place,
        child=families.child,
        token=families.token,
        point=families.point,
        drawn=taken.drawn,
        from_q=taken.from_q,
        accept=taken.accept,
        kept=torch.zeros_like(taken.drawn, dtype=torch.float64),
    )
    return shares, taken


class _Taken(NamedTuple):
    """drawn, from_q [R, k]: p and q of the children's tokens, 0 if there is no child. of_p, of_q
    int64 [R, k]: the rows of p and q in which each token is. accept: float64 [n + 1]."""

    drawn: torch.Tensor
    from_q: torch.Tensor
    of_p: torch.Tensor
    of_q: torch.Tensor
    accept: torch.Tensor


def _taken(
    p: torch.Tensor,
    q: torch.Tensor,
    node: torch.Tensor,
    child: torch.Tensor,
    token: torch.Tensor,
    point: torch.Tensor,
    place: torch.Tensor,
    none: int,
) -> _Taken:
    exists = child < none
    drawn = torch.where(exists, p[place[:, None], token], 0.0)
    every = torch.arange(len(node), device=p.device)[:, None]
    from_q = torch.where(exists & ~point, q[every, token], 0.0)
    of_p = torch.where(exists, place[:, None], len(p) - 1)
    of_q = torch.where(exists, every, len(q) - 1)
    places = torch.arange(none + 1, device=p.device)
    return _Taken(drawn, from_q, of_p, of_q, (places == 0).double())


def _bottom_up(
    accept: torch.Tensor, parent: torch.Tensor, exists: torch.Tensor, seen: torch.Tensor
) -> torch.Tensor:
    """The probability [n] that the path ends at each node. A node gets its turn after these were
    refused: all nodes below it, and all elder siblings of it and of its ancestors, with all nodes
    below those."""
    places, sees = torch.arange(len(exists), device=accept.device), seen.float()
    accept = torch.where(places == 0, 1.0, accept[:-1])  # the root always accepts
    elder = (parent[:, None] == parent) & (places < places[:, None]) & (parent >= 0)[:, None]
    before = ((sees @ elder.float() @ sees.T) > 0) | (seen.T & (places != places[:, None]))
    turn = torch.where(before & exists, 1.0 - accept, 1.0).prod(-1)
    return torch.where(exists, accept * turn, 0.0)


def _top_down(
    accept: torch.Tensor, parent: torch.Tensor, exists: torch.Tensor, seen: torch.Tensor
) -> torch.Tensor:
    """The probability [n] that the path ends at each node. A child is tried if its parent was
    accepted and its elder siblings were refused."""
    places = torch.arange(len(exists), device=accept.device)
    accept = torch.where(places == 0, 1.0, accept[:-1])
    siblings = (parent[:, None] == parent) & (parent >= 0)[:, None] & exists
    elder, child = siblings & (places < places[:, None]), parent == places[:, None]
    refused = torch.where(elder, 1.0 - accept, 1.0).prod(-1)
    enters = torch.where(seen, accept * refused, 1.0).prod(-1)
    stays = torch.where(child & exists, 1.0 - accept, 1.0).prod(-1)
    return torch.where(exists, enters * stays, 0.0)


def share(shares: Shares, level: Level, bottom_up: bool) -> None:
    """Let each child take min(R, q) of what is left: topdown and traversal. See `Share`.

    With p and q the node's distributions without the tokens drawn there, the rest of R is always

        scale * relu(p - t * q)

    with one `scale` and one `t` a node: a child subtracts a multiple of q, cuts at 0 and scales.
    Only the few drawn tokens are kept apart, as numbers.
    """
    if triton_kernels.usable(shares.p):
        triton_kernels.share(shares, level.rows, bottom_up=bottom_up)
    else:
        share_level(shares, level, bottom_up)


def share_level(shares: Shares, level: Level, bottom_up: bool) -> None:
    """`share` in torch operations, for any float type."""
    rows, columns, count = level
    node, child = shares.node[rows], shares.child[rows, :columns]
    exists, point = child < len(shares.accept) - 1, shares.point[rows, :columns]
    drawn, from_q = (part[rows, :columns].double() for part in (shares.drawn, shares.from_q))
    a = shares.accept[node][:, None] if bottom_up else torch.ones_like(drawn[:, :1])
    tiny, scale, t = torch.finfo(shares.p.dtype).tiny, a, torch.zeros_like(a)
    weights, kept, waits = torch.zeros_like(drawn), torch.zeros_like(drawn), exists.clone()
    if count:
        sampled = (exists & ~point).any(-1, keepdim=True)
        p, q = shares.p_of(rows), shares.q[rows].masked_fill(~sampled, 0.0)  # q may be no numbers
        free, left = q.sum(-1, keepdim=True).double(), torch.empty_like(p)
    for rank in range(count):
        here = slice(rank, rank + 1)
        tried = exists[:, here] & ~point[:, here]
        total = free + torch.where(waits & ~point, from_q, 0.0).sum(-1, keepdim=True)
        ahead = (drawn[:, here] - t * from_q[:, here]).relu()
        proposed = (from_q[:, here] / total.clamp(min=tiny)).clamp(min=tiny)
        weights[:, here] = torch.where(tried, (scale * ahead / proposed).clamp(max=1.0), 0.0)
        more = t + 1.0 / (total.clamp(min=tiny) * scale.clamp(min=LEAST))
        t = torch.where(tried, more.clamp(max=triton_kernels.MOST), t)
        kept[:, here] = torch.where(tried, (drawn[:, here] - t * from_q[:, here]).relu(), 0.0)
        waits[:, here] &= ~tried
        torch.addcmul(p, t.to(p.dtype), q, value=-1.0, out=left)
        rest = left.relu_().sum(-1, keepdim=True).double()
        rest = rest + torch.where(waits, (drawn - t * from_q).relu(), 0.0).sum(-1, keepdim=True)
        mass = scale * (rest + kept.sum(-1, keepdim=True))
        refused = (1.0 - a + mass).clamp(min=tiny)
        a = torch.where(tried, (mass / refused).clamp(max=1.0), a)  # go on given the refusal
        more = scale / refused  # 0 if the refusal is so rare that any finite value is right
        scale = torch.where(tried, torch.where(more < 1.0 / LEAST, more, 0.0), scale)
    # q = 1 at a point's token, so a run of points has a closed form
    taken = torch.where(exists & point, scale * (drawn - t * from_q).relu(), 0.0)
    chance = (taken / (1.0 - taken.cumsum(-1) + taken).clamp(min=tiny)).clamp(max=1.0)
    weights = torch.where(exists & point, chance, weights)
    mass = taken.sum(-1, keepdim=True)
    a = ((a - mass) / (1.0 - mass).clamp(min=tiny)).clamp(0.0, 1.0)
    if count:
        shares.leave(rows, left)
    _write(shares, rows, weights, kept, a if bottom_up else None)


def reserve(shares: Shares, level: Level, bottom_up: bool) -> None:
    """Let each child take what topdown would give it, and more only from what topdown leaves
    unused: reserved. See `Share`; all children are sampled, p and q have their tokens."""
    rows, columns, _ = level
    node = shares.node[rows]
    child, token = shares.child[rows, :columns], shares.token[rows, :columns]
    exists = child < len(shares.accept) - 1
    count = exists.sum(-1, keepdim=True)
    p, base, a = shares.p_of(rows), shares.q[rows], shares.accept[node][:, None].to(shares.p.dtype)
    target, borrowed = p, torch.zeros_like(p)  # mass taken so far from what topdown leaves later
    left, weights, rest = p, torch.zeros_like(shares.drawn[rows, :columns]), a
    later = min(columns, p.shape[-1])
    for rank in range(columns):
        tried, last = exists[:, rank : rank + 1], count == rank + 1
        own = token[:, rank : rank + 1]
        q = base / base.sum(-1, keepdim=True).clamp(min=LEAST)
        common, excess = torch.minimum(target, q), (target - q).relu()
        rejected = excess.sum(-1, keepdim=True)  # 1 - sum of common, with less rounding
        # Leave of each token what later children may still need, for every draw of theirs.
        shares_of = 1.0 / (1.0 - q.topk(later).values.cumsum(-1)).clamp(min=LEAST)
        ranks = torch.arange(later, device=p.device)
        need = torch.where(ranks < count - 1 - rank, shares_of, 0.0).sum(-1, keepdim=True)
        extra = torch.minimum((1.0 - a) * q, a * (excess - borrowed - rejected * need * q).relu())
        free = a * (target - borrowed)  # the last child may have all that is left
        takes = torch.where(last, torch.minimum(q, free.relu()), a * common + extra)
        proposed, taken = q.gather(1, own), takes.gather(1, own)
        weight = (taken / proposed.clamp(min=LEAST)).clamp(max=1.0)
        weights[:, rank : rank + 1] = torch.where(tried, weight, 0.0)
        unused = (free - q).relu()
        end = unused.sum(-1, keepdim=True) / (1.0 - takes.sum(-1, keepdim=True)).clamp(min=LEAST)
        left, rest = torch.where(last, unused, left), torch.where(last, end.clamp(max=1.0), rest)
        refused, over = proposed - taken, (q - target).gather(1, own).relu()
        goes_on = (rejected > 0) & (refused > 0)  # otherwise the child is never refused
        borrowed = (a * borrowed + extra) / (a * rejected).clamp(min=LEAST)
        a = torch.where(goes_on, (a * over / refused.clamp(min=LEAST)).clamp(max=1.0), 0.0)
        target, base = excess / rejected.clamp(min=LEAST), base.scatter(1, own, 0.0)
    left = torch.where(left.sum(-1, keepdim=True) > 0, left, p)
    shares.leave(rows, left)
    kept = torch.where(exists, left.gather(1, token), 0.0).double()
    _write(shares, rows, weights.double(), kept, rest.double())


def _write(
    shares: Shares,
    rows: slice,
    weights: torch.Tensor,
    kept: torch.Tensor,
    rest: torch.Tensor | None,
) -> None:
    """Write the results of some families. rest [m, 1]: what is left of the nodes' own weights."""
    columns = weights.shape[1]
    shares.accept.scatter_(0, shares.child[rows, :columns].flatten(), weights.flatten())
    if rest is not None:
        shares.accept.scatter_(0, shares.node[rows], rest[:, 0])
    shares.kept[rows, :columns] = kept


RULES: dict[str, Rule] = {
    "topdown": Rule(share=share, bottom_up=False, capturable=True),
    "traversal": Rule(share=share, bottom_up=True, capturable=True),
    "reserved": Rule(share=reserve, bottom_up=True, apart=False, fixed=True, capturable=True),
}


def first_weights(
    rule: Rule,
    p: torch.Tensor,
    base: torch.Tensor,
    token: torch.Tensor,
    point: torch.Tensor,
    exists: torch.Tensor,
) -> torch.Tensor:
    """The weight with which each child of m roots is entered, float64 [m, k].

    p, base: float [m, V], the target's distributions, and what the sampled children were drawn
    from. token, point, exists: [m, k], the children in drawing order, sampled ones first.
    """
    m, k = token.shape
    every = torch.arange(m, device=p.device)
    child = torch.where(exists, m + torch.arange(m * k, device=p.device).view(m, k), m + m * k)
    families = Families(every, child, token, point, every, [Level(slice(0, m), k, k)])
    pad = torch.nn.functional.pad
    p, base = pad(p, (0, 0, 0, 1)), pad(base, (0, 0, 0, 1))
    shares, _ = _prepared(rule, families, p, base, m + m * k)
    shares.accept[:m].fill_(1.0)
    rule.share(shares, families.levels[0], rule.bottom_up)
    return torch.where(exists, shares.accept[child], 0.0)


def reach(tree: TokenTree, stop: Sequence[float]) -> list[float]:
    """The probability that each node is accepted: that the path ends there or below."""
    below = list(stop)
    for node in range(tree.size, 0, -1):  # a parent's number is below its children's
        below[tree.parents[node]] += below[node]
    return below


def path_to(tree: TokenTree, node: int) -> tuple[int, ...]:
    """The nodes from the root's child down to `node`; () for the root."""
    return () if node == 0 else (*path_to(tree, tree.parents[node]), node)


def tokens_to(tree: TokenTree, node: int) -> tuple[int, ...]:
    """The tokens of the path to a node, without the root's."""
    return tuple(tree.tokens[u] for u in path_to(tree, node))
