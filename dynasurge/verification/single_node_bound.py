"""The single-node upper bound on acceptance: no lossless verification rule can exceed it at one
node.

At a node with target distribution p the draft proposes a random set D of k tokens. A lossless rule
emits a token with distribution p, and accepts if that token is in D. So a rule is a coupling of D
with p, and the best one solves an optimal transport with membership cost (SpecTr, arXiv
2310.15141). For every token set H, an accepted token is in H, or D is not inside H. Hence

    bound = min over token sets H of  p(H) + Pr(D is not inside H)

and some rule attains it: a coupling is a flow from sets through their own tokens to p, and H is a
cut (the dual, a choice of tokens: Hu et al., "Towards Optimal Multi-Draft Speculative Decoding",
arXiv 2502.18779). The bound is about k x 1 trees, and about the root of any tree. Deeper nodes obey
it under rules that treat each node alone, as topdown does.

**topk**: D is fixed, so the best H is D or the empty set: the bound is p(D). **hybrid**: D is k - 1
fixed tokens and one drawn from b, the rest of q renormalised. A set H without one of the fixed
tokens contains no D. With all of them, each further token x costs p[x] and saves b[x]. The bound is
p(fixed) + sum(min(p, b)). Topdown reaches both exactly, so at a single node no rule accepts more.

**sampled**: let f(H) be the probability that k draws without replacement all fall in H. *The best H
is a prefix of the tokens in increasing order of p/q* (without those with q = 0: they only cost).
This is exact, because f gains ever more per unit of q as H grows: for different tokens x, y outside
a set A,

    (f(A + x) - f(A)) / q[x]  <=  (f(A + x + y) - f(A + x)) / q[y].                                        (*)

Suppose a best H contains x but not y. Then p[x] / q[x] <= (f(H) - f(H - x)) / q[x]; otherwise H
without x would be better. Also (f(H + y) - f(H)) / q[y] <= p[y] / q[y]; otherwise H with y would be
better. By (*), p[x] / q[x] <= p[y] / q[y]. (If these are equal, dropping x changes nothing; so the
smallest of the best sets has no such tie.)

To see (*), let each token i ring at an exponential time of rate q[i]. The order of first rings is
that of draws without replacement. Write a = q[x], b = q[y], and let s < t be the times of the
(k-1)-th and k-th rings among all other tokens. The right side is Pr(y is among the first k, and
they are all in A + x + y) / b. Given the other rings, y is among the first k if it rings before a
time tau, the k-th of those rings. Then probability / b = integral of exp(-b u) over u in (0, tau).
The left side is the same for x, with one more condition: y does not ring before s. Take the mean
over the rings of x and y, for given s and t. If the first k - 1 of the others are in A, the sides
are

    right:  integral of exp(-b u)       over (0, s)  +  integral of exp(-(a + b) u) over (s, t)
    left:   integral of exp(-a u - b s) over (0, s)  +  integral of exp(-(a + b) u) over (s, t)

and u < s in the first integrals. If those k - 1 are not all in A, the left side is 0. ∎

**Computing f.** All draws are in H, unless a token outside H, at total rate R = q(outside H), rings
before k tokens of H have rung:

    1 - f(H) = R * integral over u > 0 of exp(-R u) Pr(fewer than k of H have rung by u) du.

Token i has rung by u with probability 1 - exp(-q[i] u), independently of the others. So the
distribution of how many have rung is a product of two-term polynomials, cut at degree k: adding a
token to H updates k numbers for each u. About 40 values of u are enough.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from dynasurge.drafting.child_kinds import Kind
from dynasurge.drafting.proposals import POLICIES, Limits
from dynasurge.probabilities import Chance
from dynasurge.verification.rules import Rule, first_weights

TAIL = 1e-14  # the part of the integral that may be cut off at large times
STEP = (
    0.7  # of the quadrature, in units of 1 / sqrt(k): about the spread of the k-th ring in log time
)


def acceptance_bound(p: torch.Tensor, q: torch.Tensor, k: int, policy: str) -> float:
    """The largest probability with which a lossless rule can accept one of k children of a node.

    p, q: target and draft distributions [V], of any float type and scale; they are normalised here
    in float64. policy: a name in `POLICIES`. A draft with fewer than k tokens of positive
    probability proposes them all. If q ties at the edge of the top k, `torch.topk` decides, as in
    the policies.

    With topk and hybrid the bound is exact up to rounding. With sampled children every prefix is
    tried, so the only error is the quadrature's. It has either sign and is below 1e-10 (measured:
    3e-11 at k = 8, less elsewhere; see tests). Raises ValueError for an unknown policy, k < 1,
    shapes that differ, or a distribution without mass.
    """
    if policy not in POLICIES:
        raise ValueError(f"unknown policy {policy!r}; choose from {', '.join(POLICIES)}")
    if k < 1:
        raise ValueError(f"a node needs at least one child, not k = {k}")
    if p.shape != q.shape or p.dim() != 1:
        raise ValueError(f"p and q must both be [V], not {list(p.shape)} and {list(q.shape)}")
    p, q = p.double().cpu(), q.double().cpu()
    if not (p.sum() > 0 and q.sum() > 0):
        raise ValueError("p and q need positive mass")
    top = q.topk(min(k, len(q))).indices
    p, q = p / p.sum(), q / q.sum()

    support = q > 0
    if k >= int(support.sum()):  # every policy proposes all tokens
        return float(p[support].sum())
    if policy == "topk":
        return float(p[top].sum())
    if policy == "hybrid" or k == 1:  # one sampled child is a hybrid without points
        rest = q.clone()
        rest[top[: k - 1]] = 0.0
        return float(p[top[: k - 1]].sum() + torch.minimum(p, rest / rest.sum()).sum())

    p, q = p[support], q[support]
    order = (p / q).argsort()
    inside = F.pad(p[order].cumsum(0), (1, 0))
    return float((inside + _escape(q[order], k)).min())


def _escape(q: torch.Tensor, k: int) -> torch.Tensor:
    """1 - f for every prefix: the probability that k draws without replacement are not all among
    the first 0, 1, ... n tokens.

    q: [n], positive, sums to 1, n > k. Returns [n + 1].
    """
    n = len(q)
    t, dt = _quadrature(q, k)
    # About sqrt(n) blocks of about sqrt(n) tokens, so that all blocks advance together. A padding
    # token has rate 0 and never rings.
    size = math.ceil(math.sqrt(n))
    rates = F.pad(q, (0, -n % size)).view(-1, size).T
    outside = F.pad(q.flip(0).cumsum(0).flip(0)[1:], (0, 1 + -n % size)).view(-1, size).T

    # count[1 + j, b, i]: probability that j tokens of block b have rung by t[i]. Row 0 stays 0: it
    # stands for j < 0.
    count = q.new_zeros(k + 1, rates.shape[1], len(t))
    count[1] = 1.0
    for rate in rates:
        count[1:] = _with_token(count, rate, t)
    # The same for all blocks before b: products of polynomials.
    before = torch.zeros_like(count)
    before[1, 0] = 1.0
    for b in range(1, rates.shape[1]):
        for j in range(1, k + 1):
            before[j:, b] += count[j, b - 1] * before[1 : k + 2 - j, b - 1]
    # Then token by token, for every prefix.
    escape = torch.empty_like(outside)
    for i, rate in enumerate(rates):
        before[1:] = _with_token(before, rate, t)
        quiet = torch.exp(-outside[i, :, None] * t) * before.sum(0)
        escape[i] = outside[i] * (quiet @ dt)
    return F.pad(escape.T.reshape(-1)[:n], (1, 0), value=1.0)


def _with_token(count: torch.Tensor, rate: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Rows 1 .. k of `count` [k + 1, blocks, times] after one token of this rate [blocks] is added
    to each block."""
    rung = -torch.expm1(-rate[:, None] * t)
    return torch.lerp(count[1:], count[:-1], rung)


def _quadrature(q: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Times and weights for the integral over t > 0: equal steps in u of t = exp(u - exp(-u)), a
    double-exponential rule.

    The integrand is a sum of exponentials. Their rates may differ by many orders of magnitude. In
    log time the integrand is equally smooth around all of them, and few steps go towards t = 0,
    where it is flat.
    """
    # Deal the tokens, likeliest first, to k hands. When every hand has a token that rang, k have
    # rung. The last hand is the slowest.
    slowest = float(q.sort(descending=True).values[k - 1 :: k].sum())
    end, step = math.log(math.log(k / TAIL) / slowest), STEP / math.sqrt(max(k, 8))
    u = torch.arange(-3.6, end + step, step, dtype=q.dtype)
    t = torch.exp(u - torch.exp(-u))
    return t, step * t * (1.0 + torch.exp(-u))


def node_acceptance(
    rule: Rule,
    p: torch.Tensor,
    q: torch.Tensor,
    k: int,
    policy: str,
    draws: int,
    chance: Chance,
) -> torch.Tensor:
    """The probability that `rule` accepts one of k children, for each of `draws` drawn sets of
    children: float64 [draws].

    p, q: [V]. Each is exact for its set, so a mean over them has only the error of the draw: below
    0.5 / sqrt(draws).
    """
    own = POLICIES[policy]
    base, drawn = own.draw(q.expand(draws, -1), chance, k, Limits())
    made, rows = own.propose(drawn), p.expand(draws, -1)
    base = base if base is not None else torch.zeros_like(rows)
    point = made.kind >= Kind.POINT
    weights = first_weights(rule, rows, base, made.token, point, made.exists)
    return 1.0 - (1.0 - weights.double()).prod(-1)
