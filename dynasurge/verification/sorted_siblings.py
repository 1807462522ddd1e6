"""A rule that tries siblings in the order in which the target wants them (of this project).

`topdown` and `traversal` try siblings in the order in which they were drawn. That wastes siblings: a
first child that the target hardly wants is often accepted although a later one is a token that the
target wants and the draft seldom finds. The most that any rule accepts (optimum.py) is reached only
if such tokens get the first try. But siblings that are sorted by need no longer have the laws that
they were drawn from, and without replacement those of a new order have no closed form.

If the k children of a node are drawn *independently of each other*, with replacement, they have.
Put all tokens in the order of falling p[x] / q[x], and let Q be the mass of those that may still
come, F[x] the share of it from x on. If j of the draws are left, the first of them in this order is
x with probability

    f[x] = F[x]^j - (F[x] - q[x] / Q)^j

Given that it is x, and that m of the draws were x, the other j - m are drawn independently from the
tokens behind x. So the law of the next one to be tried has the same form, again and again. `traversal`
with these laws in the place of proposals is lossless by its own proof, which needs the law of the
next child given what was tried before. (A chain that takes the first of each family and gives up when
it is refused is GBV's, others.py.)

Draws that are equal are one node of the tree, with the largest of their subtrees: fewer nodes than
draws. How many draws a node gets, and what is below each, must be chosen before its children are
drawn, as static shapes do: then the laws hold (*tested* by enumeration). How much it accepts, and why
dynamic trees gain nothing by it: docs/results/rules.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from dynasurge.drafting.proposals import POLICIES, Drawn, Limits, Policy, Proposed
from dynasurge.probabilities import LEAST, Chance, Uniforms
from dynasurge.trees.token_tree import TokenTree
from dynasurge.verification.rules import StopLaw


@dataclass
class Node:
    """What a node still has to emit: the sub-measure `wanted` [V], of mass a."""

    a: float
    wanted: torch.Tensor

    def refused(self, law: torch.Tensor) -> bool:
        """Go on after a child with this law was refused. Returns False if nothing is left."""
        left = torch.relu(self.wanted - law)
        most = float(left.sum())
        self.a = min(1.0, most / max(most + 1.0 - self.a, LEAST))
        self.wanted = self.a * left / max(most, LEAST)
        return most > LEAST


def _draw(
    q: torch.Tensor, chance: Chance, k: int, limits: Limits
) -> tuple[torch.Tensor | None, Drawn]:
    """k tokens of each row, drawn independently of each other."""
    draws = []
    for place in range(k):
        own = Uniforms(chance.numbers[:, place:]) if isinstance(chance, Uniforms) else chance
        draws.append(POLICIES["sampled"].draw(q, own, 1, limits)[1])
    tokens, masses = (
        torch.cat([getattr(one, name) for one in draws], dim=1) for name in ("tokens", "masses")
    )
    return q, draws[0]._replace(k=k, tokens=tokens, masses=masses)


def _propose(drawn: Drawn) -> Proposed:
    assert drawn.masses is not None
    assert drawn.total is not None
    each = drawn.masses / drawn.total[:, None]
    return POLICIES["sampled"].propose(drawn)._replace(proposal=each, x=each, own=each)


INDEPENDENT = Policy(draw=_draw, propose=_propose, points=False)
"""The policy whose trees the rule verifies; equal siblings stay apart."""


def sorted_siblings(tree: TokenTree, p: torch.Tensor, q: Sequence[torch.Tensor]) -> StopLaw:
    """The rule's stop law, see verification/rules.py, for a tree of `INDEPENDENT` children. p:
    float [n, V]. q[u]: what the children of u were drawn from."""
    stop, bonus = torch.zeros(len(p), dtype=torch.float64), p.clone()

    def visit(u: int, a: float, turn: float) -> float:
        """Decide the subtree of u, entered with weight a, whose turn comes with probability `turn`.
        Returns the probability that it then refuses."""
        node, refuses = Node(a, a * p[u]), 1.0
        for child, law in tried(tree, u, p[u], q[u]):
            token = tree.tokens[child]
            weight = min(1.0, float(node.wanted[token] / law[token]))
            refuses *= visit(child, weight, turn * refuses)
            if not node.refused(law):
                return refuses
        stop[u], bonus[u] = turn * refuses * node.a, node.wanted
        return refuses * (1.0 - node.a)

    stop[0] += visit(0, 1.0, 1.0)  # the root always accepts
    return StopLaw(stop=stop, bonus=bonus)


def tried(
    tree: TokenTree, u: int, p: torch.Tensor, q: torch.Tensor
) -> Iterator[tuple[int, torch.Tensor]]:
    """The children of node u in the order in which they are tried, each with its law [V] given those
    tried before."""
    children = list(tree.children[u])
    if not children:
        return
    order = wanted_order(p, q)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=order.device)
    left = q[order]
    while children:
        child = min(children, key=lambda c: (int(place[tree.tokens[c]]), -_size(tree, c)))
        here = int(place[tree.tokens[child]])
        share = left / left.sum()
        law = torch.zeros_like(q)
        law[order] = first_law(share, len(children))
        yield child, law
        children = [c for c in children if tree.tokens[c] != tree.tokens[child]]
        left[: here + 1] = 0.0


def wanted_order(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """All tokens, those first that the target wants most for what the draft gives them: int64 [V]."""
    ratio = torch.where(q > 0, p / q.clamp(min=LEAST), 0.0)
    return ratio.argsort(descending=True, stable=True)


def first_law(share: torch.Tensor, draws: int) -> torch.Tensor:
    """The law of the first of some independent draws from `share` [V], in the order of its entries.
    a^j - b^j as (a - b) times a sum, which loses no digits."""
    from_here = share.flip(0).cumsum(0).flip(0)
    behind = (from_here - share).clamp(min=0.0)
    powers = sum(from_here**i * behind ** (draws - 1 - i) for i in range(draws))
    law: torch.Tensor = share * powers
    return law


def _size(tree: TokenTree, u: int) -> int:
    """How many nodes the subtree of u has."""
    return 1 + sum(_size(tree, child) for child in tree.children[u])
