"""Verification rules of other papers, written from their formulas, to be compared on the same trees.

They have the form of a reader's own rule (verification/audit.py): (tree, p, q, chance) -> accepted
nodes, bonus token.

**hierarchical** (Hierarchical Speculative Decoding, 2601.05724; chains only). Let r_k be the product
of p[x] / q[x] over the first k tokens, and c_k = r_k / max(1, r_1, ..., r_k) the *capped* ratio. The
whole chain is accepted with probability c_n. Otherwise the rule goes back, from the last token to
the first: at token k the text branches off with probability D+ / max(D+, D-), and the bonus token
follows relu(c_{k-1} p - q) / D+. Here D+ and D- are the sums of relu(c_{k-1} p - q) and
relu(q - c_{k-1} p).

This is block verification, so `traversal` on chains: the capped product obeys
c_k = min(1, c_{k-1} p[x] / q[x]), since dividing by the running maximum is the same as cutting off
at 1 on the way; and D- = D+ + 1 - c_{k-1}, so the branch has traversal's probability. (Enumerated:
tests/verification/test_others.py.) Block verification accepts the most of all rules on a chain
(2602.16961), so no rule can accept more there and be lossless. A public implementation compares the
last token with the ratio that is not capped: it accepts more, and is not lossless (verification/
mistakes.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dynasurge.probabilities import LEAST
from dynasurge.trees.token_tree import TokenTree
from dynasurge.verification.enumeration import Script


def hierarchical(
    tree: TokenTree,
    p: torch.Tensor,
    q: Sequence[torch.Tensor],
    chance: Script,
    *,
    capped: bool = True,
) -> tuple[tuple[int, ...], int]:
    """Hierarchical verification of a chain of sampled tokens. capped: whether the last token is
    accepted by the capped ratio; otherwise the rule is not lossless. Raises ValueError for other
    trees."""
    if tree.size != tree.depth or any(tree.point[1:]):
        raise ValueError("hierarchical verifies chains of sampled tokens")
    ratio, most = 1.0, 1.0
    ratios = [1.0]  # capped, by the number of tokens
    for node in range(1, tree.size + 1):
        token = tree.tokens[node]
        ratio *= float(p[node - 1][token]) / max(float(q[node - 1][token]), LEAST)
        most = max(most, ratio)
        ratios.append(ratio / most)
    if chance.coin(ratios[-1] if capped else ratio):
        return tuple(range(1, tree.size + 1)), chance.token(p[tree.size])
    for node in reversed(range(tree.size)):
        left = torch.relu(ratios[node] * p[node] - q[node])
        more, less = float(left.sum()), float(torch.relu(q[node] - ratios[node] * p[node]).sum())
        if node == 0 or chance.coin(more / max(more, less, LEAST)):
            return tuple(range(1, node + 1)), chance.token(left if more > 0 else p[node])
    return (), chance.token(p[0])
