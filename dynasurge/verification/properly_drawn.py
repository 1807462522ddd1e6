"""Which condition of "properly drawn" (docs/concepts/verification.md) a drawing breaks, for the
audit."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from dynasurge.trees.token_tree import TokenTree
from dynasurge.verification.enumeration import EXACT, Table, as_model, outcomes

# of "properly drawn"; what shows in one case may be hidden in another, the last one is the clearest
REORDERED = "siblings stand in another order than the one that they were drawn in (iii)"
NOT_DRAWN = "a child's token does not come from its proposal (ii)"
DROPPED = "a drawn node is dropped or merged because of the token that it turned out to be (iv)"
CONDITIONS = ["", REORDERED, NOT_DRAWN, DROPPED]


def broken_condition(drawing: Callable[..., Any], draft: Table) -> str:
    """Which condition of "properly drawn" a drawing breaks at the root; empty if none. Decided from
    the exact law of the root's sampled children, in the order in which the tree has them."""
    q = as_model(draft)
    law: dict[tuple[int, ...], float] = defaultdict(float)
    lost = False
    for one in outcomes(lambda chance: drawing(q, chance)):
        tree: TokenTree = one.result
        own = [u for u in tree.children[0] if not tree.point[u]]
        law[tuple(tree.tokens[u] for u in own)] += one.weight
        lost |= one.draws > tree.size - sum(tree.point[1:])
    root = draft(())
    if all(abs(gap) <= EXACT for gap in _gaps(law, root)):
        return ""
    if lost:
        return DROPPED
    sets: dict[frozenset[int], float] = defaultdict(float)
    for key in {frozenset(key) for key in law}:
        sets[key] = sum(law[k] for k in law if frozenset(k) == key)
        sets[key] -= sum(_mass_of_draws(order, root) for order in itertools.permutations(key))
    if max(map(abs, sets.values())) <= EXACT:
        return REORDERED
    return NOT_DRAWN


def _gaps(law: dict[tuple[int, ...], float], root: Sequence[float]) -> Iterator[float]:
    """For each beginning of the siblings: the next one's law, less the draft's without them."""
    heads = {key[:length] for key in law for length in range(len(key))}
    for head in heads:
        longer = [(key, mass) for key, mass in law.items() if key[: len(head)] == head != key]
        total = sum(mass for _, mass in longer)
        left = 1.0 - sum(root[token] for token in head)
        for token, mass in enumerate(root):
            found = sum(own for key, own in longer if key[len(head)] == token)
            proper = 0.0 if token in head or left <= EXACT else mass / left
            yield found / total - proper if total > EXACT else 0.0


def _mass_of_draws(tokens: Sequence[int], root: Sequence[float]) -> float:
    """The probability that these tokens are drawn without replacement in this order."""
    mass, left = 1.0, 1.0
    for token in tokens:
        mass, left = mass * (root[token] / left if left > EXACT else 0.0), left - root[token]
    return mass
