"""The rules of the original prototype, kept to reproduce its figure: verification, and the tree's
shape.

Its verification is NOT lossless. Every child that passes its own test min(1, p/q) is kept, breadth
first, and the longest kept path is emitted. Two mistakes change the distribution of the text.
First, among several kept children the rule takes the one with the longest continuation; this
favours tokens that the draft finds easy to continue. Second, the bonus token is drawn from what the
*last dead end visited* left over, even if the emitted path ends at another node. Results made with
this rule are labelled `lossy` everywhere.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

import torch

from dynasurge import probabilities
from dynasurge.probabilities import Chance
from dynasurge.trees.growmap import Growmap
from dynasurge.trees.token_tree import TokenTree
from dynasurge.verification.rules import Verdict, path_to


def bfs(tree: TokenTree, p: torch.Tensor, q: Sequence[torch.Tensor], chance: Chance) -> Verdict:
    """Keep every passing child, take the longest path. Lossy: see above. p [n, V], q: see
    `rules.Rule`."""
    queue, longest, bonus = deque([0]), 0, p[0]
    while queue:
        node = queue.popleft()
        longest = node if tree.depths[node] > tree.depths[longest] else longest
        target, kept = p[node], False
        for child, proposal in proposals(
            tree, q[node] if q[node].numel() else torch.zeros_like(target), node
        ):
            token = tree.tokens[child]
            passes = min(1.0, float(target[token] / proposal[token]))
            if probabilities.draw(
                torch.tensor([1.0 - passes, passes], dtype=torch.float64), chance
            ):
                queue.append(child)
                kept = True
            else:
                leftover = torch.relu(target - proposal)
                mass = leftover.sum()
                target = leftover / mass if mass > 0 else target
        if not kept:
            bonus = target
    # The rule's stop probabilities are not known: record only where it stopped.
    stop = tuple(float(node == longest) for node in range(tree.size + 1))
    return Verdict(path=path_to(tree, longest), bonus=probabilities.draw(bonus, chance), stop=stop)


def proposals(tree: TokenTree, base: torch.Tensor, node: int) -> Iterator[tuple[int, torch.Tensor]]:
    """The children of a node in drawing order, each with the distribution [V] that its token was
    really drawn from.

    For a sampled child this is `base`, the draft's distribution, without its earlier siblings,
    renormalised. For a point child all mass is on its token.
    """
    remaining = base.clone()
    for child in tree.children[node]:
        token = tree.tokens[child]
        if tree.point[child]:
            proposal = torch.zeros_like(remaining)
            proposal[token] = 1.0
        else:
            proposal = remaining / remaining.sum()
            remaining[token] = 0.0
        yield child, proposal


def prototype_growmap(budget: int) -> Growmap:
    """The prototype's dynamic tree, as a growmap: every node gets 2 to 4 children, by budget, left
    to right until the budget is spent. (Where a distribution had too few tokens, the prototype gave
    a node's share to the next node.)"""
    children = 2 if budget <= 16 else 3 if budget <= 32 else 4
    return Growmap(parents=(-1, *(node // children for node in range(budget))))
