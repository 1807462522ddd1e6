"""A rule that looks at two siblings before it tries one (of this project; for static trees).

`topdown` and `traversal` try siblings in the order in which they were drawn. That wastes siblings: a
first child that the target hardly wants is often accepted, although the second one is a token that
the target wants and the draft seldom finds. The most that any rule accepts at one node
(single_node_bound.py) is reached by giving such *needy* tokens the first try. But siblings that are
sorted by need no longer have the laws that they were drawn from. For two siblings the laws of a
changed order can be written down.

Let the first two children be drawn from q without replacement, and call a token needy if
a p[x] > bar q[x] (a p is what the node has to emit). If the second child is needy and the first is
not, they change places. Let N be the needy tokens and H the others, Q_H the mass of H under q, and
A = sum over H of q[h] / (1 - q[h]). Then the child that is tried first is x with probability

    f[x] = q[x] (1 + A)                        x needy: drawn first, or second after one of H
    f[x] = q[x] (Q_H - q[x]) / (1 - q[x])      x not needy: drawn first, and the second is in H

and after x, the child that is tried second is y with a probability in proportion to

    q[y] / (1 - q[x]) + [y in H] q[y] / (1 - q[y])      x needy
    [y in H] q[y]                                       x not needy

(y is not x). So they are tried if the second child has at least as much below it as the first, which
the shape says. `traversal` with these laws in the place of proposals is lossless by its own proof: it
needs the law of the next child given what was tried before. Further children come in pairs, too,
drawn from what is left of q; a last one alone has its own law.

The pair must be drawn at once: if whether there is a second child depends on what was drawn at the
first, the laws are others. So the rule is for static trees with sampled children, like `reserved`.
It costs two sums over the vocabulary a pair. How much it accepts: docs/results/rules.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from dynasurge.probabilities import LEAST
from dynasurge.trees.token_tree import TokenTree
from dynasurge.verification.enumeration import Script
from dynasurge.verification.rules import path_to

BAR = 1.5  # how much more a token is wanted than proposed, to be needy


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


def lookahead(
    tree: TokenTree, p: torch.Tensor, q: Sequence[torch.Tensor], chance: Script
) -> tuple[tuple[int, ...], int]:
    """Verify a static tree of sampled children. p: float [n, V]. q[u]: what the children of u were
    drawn from. Returns the accepted path and the bonus token. Raises ValueError for points."""
    if any(tree.point[1:]):
        raise ValueError("lookahead verifies sampled children")

    def accepts(u: int, a: float) -> tuple[int, int] | None:
        """The node where the path ends and the bonus token; None if the subtree refuses."""
        node = Node(a, a * p[u])
        for child, law in tried(tree, u, q[u], node):
            token = tree.tokens[child]
            found = accepts(child, min(1.0, float(node.wanted[token] / law[token])))
            if found is not None:
                return found
            if not node.refused(law):
                return None
        return (u, chance.token(node.wanted)) if chance.coin(node.a) else None

    end, bonus = accepts(0, 1.0) or (0, chance.token(p[0]))  # the root always accepts
    return path_to(tree, end), bonus


def expected_length(tree: TokenTree, p: torch.Tensor, q: Sequence[torch.Tensor]) -> float:
    """The mean number of tokens that `lookahead` accepts of this tree, exact over its coins."""

    def accepts(u: int, a: float) -> tuple[float, float]:
        """The mean depth at which the path ends inside the subtree, and how often it refuses."""
        node, length, refuses = Node(a, a * p[u]), 0.0, 1.0
        for child, law in tried(tree, u, q[u], node):
            token = tree.tokens[child]
            own, refused = accepts(child, min(1.0, float(node.wanted[token] / law[token])))
            length, refuses = length + refuses * own, refuses * refused
            if not node.refused(law):
                return length, refuses
        return length + refuses * node.a * tree.depths[u], refuses * (1.0 - node.a)

    return accepts(0, 1.0)[0]


def tried(
    tree: TokenTree, u: int, q: torch.Tensor, node: Node
) -> Iterator[tuple[int, torch.Tensor]]:
    """The children of node u in the order in which they are tried, each with its law [V] given those
    tried before. `node` changes on the way: what is needy depends on what is still wanted."""
    children, left = list(tree.children[u]), q.clone()
    while children:
        left = left / left.sum()
        some = children[:2]
        if len(some) == 2 and _size(tree, some[1]) >= _size(tree, some[0]):
            yield from _pair(tree.tokens, some[0], some[1], left, node.wanted)
        else:  # a last one, or one with more below it than the next
            some = some[:1]
            yield some[0], left.clone()
        left[[tree.tokens[child] for child in some]] = 0.0
        del children[: len(some)]


def _size(tree: TokenTree, u: int) -> int:
    """How many nodes the subtree of u has."""
    return 1 + sum(_size(tree, child) for child in tree.children[u])


def _pair(
    tokens: Sequence[int], first: int, second: int, q: torch.Tensor, wanted: torch.Tensor
) -> Iterator[tuple[int, torch.Tensor]]:
    """Two children that were drawn from q, in the order in which they are tried, with their laws."""
    needy = wanted > BAR * q
    other = torch.where(needy, 0.0, q)
    rest = (1.0 - q).clamp(min=LEAST)
    law = torch.where(
        needy, q * (1.0 + (other / rest).sum()), q * (other.sum() - q).clamp(min=0.0) / rest
    )
    if needy[tokens[second]] and not needy[tokens[first]]:
        first, second = second, first
    x = tokens[first]
    after = q / rest[x] + other / rest if needy[x] else other.clone()
    after[x] = 0.0
    yield first, law
    yield second, after / after.sum()
