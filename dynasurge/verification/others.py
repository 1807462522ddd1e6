"""Verification of other papers, written from their formulas, to be compared with ours.

`hierarchical` has the form of a reader's own rule (verification/audit.py): (tree, p, q, chance) ->
accepted nodes, bonus token. `greedy_paths` is a step: (p, q, chance) -> emitted tokens.

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

**greedy multi-path block verification** (GBV, 2602.16961). The draft writes k paths of n tokens,
independently. One of them is chosen token by token: at each prefix, of the next tokens of those j
paths that begin with it, the one with the largest p[x] / q[x]. Put the tokens in this order, and let
F[x] be the mass of q from x on. Then x is chosen with probability f[x] = F[x]^j - (F[x] - q[x])^j,
and block verification judges the chosen path with f in the place of q. Here f is the law of x given
what was chosen before, so the step is lossless by block verification's proof (*tested*). Written
from the paper's abstract, which names the two parts; its text was not at hand, so its order of
tokens may differ. A refused path is not replaced by another one, as `traversal` does.

**UniVer** (2605.04543) joins optimal transport at each node with the probability that the prefix is
accepted, as `traversal` does with sequential rejection. **RheoSampling** (2609.21827) samples dynamic
trees. Of these not even the formulas were at hand: they are not here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from dynasurge.probabilities import LEAST
from dynasurge.trees.token_tree import TokenTree
from dynasurge.verification.enumeration import Script
from dynasurge.verification.sorted_siblings import first_law, wanted_order


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
    count, bonus = _branch(ratios, p, q, chance)
    return tuple(range(1, count + 1)), bonus


def _branch(
    ratios: Sequence[float],
    p: torch.Tensor | Sequence[torch.Tensor],
    q: Sequence[torch.Tensor],
    chance: Script,
) -> tuple[int, int]:
    """After a whole path was refused: how many of its tokens are accepted, and the bonus token."""
    for node in reversed(range(len(ratios) - 1)):
        left, share = _left(ratios[node], p[node], q[node])
        if node == 0 or chance.coin(share):
            return node, chance.token(left if float(left.sum()) > 0 else p[node])
    raise AssertionError("the first node always branches")


def _left(ratio: float, p: torch.Tensor, q: torch.Tensor) -> tuple[torch.Tensor, float]:
    """What the bonus token follows at a node, up to a factor, and how often the text branches off."""
    left = torch.relu(ratio * p - q)
    more, less = float(left.sum()), float(torch.relu(q - ratio * p).sum())
    return left, more / max(more, less, LEAST)


@dataclass(frozen=True, kw_only=True)
class ChosenPath:
    """A path of n tokens. p, laws: at each node before one, the target's distribution and the law of
    the next token given what was chosen before; p has one more, after the last token."""

    tokens: tuple[int, ...]
    p: list[torch.Tensor]
    laws: list[torch.Tensor]

    @property
    def ratios(self) -> list[float]:
        """The capped ratio by the number of tokens."""
        ratios = [1.0]
        for token, p, law in zip(self.tokens, self.p, self.laws, strict=False):
            ratios.append(min(1.0, ratios[-1] * float(p[token]) / max(float(law[token]), LEAST)))
        return ratios

    @property
    def expected_length(self) -> float:
        """The mean number of its tokens that block verification accepts."""
        ratios = self.ratios
        length, refused = ratios[-1] * len(self.tokens), 1.0 - ratios[-1]
        for node in reversed(range(len(self.tokens))):
            share = _left(ratios[node], self.p[node], self.laws[node])[1]
            length, refused = length + refused * share * node, refused * (1.0 - share)
        return length


Model = Callable[[Sequence[int]], torch.Tensor]


def choose_path(drawn: Sequence[Sequence[int]], p: Model, q: Model) -> ChosenPath:
    """The path that GBV chooses among paths that q wrote independently. p, q: distributions [V]
    after these tokens."""
    chosen: list[int] = []
    laws, alive = [], list(drawn)
    for place in range(len(drawn[0])):
        mine = q(chosen)
        order = wanted_order(p(chosen), mine)
        law = torch.zeros_like(mine)
        law[order] = first_law(mine[order], len(alive))
        laws.append(law)
        token = min((path[place] for path in alive), key=order.tolist().index)
        alive = [path for path in alive if path[place] == token]
        chosen.append(token)
    at = [p(chosen[:place]) for place in range(len(chosen) + 1)]
    return ChosenPath(tokens=tuple(chosen), p=at, laws=laws)


def greedy_paths(p: Model, q: Model, chance: Script, *, paths: int, length: int) -> tuple[int, ...]:
    """A step of GBV. Returns the emitted tokens."""
    drawn = []
    for _ in range(paths):
        path: list[int] = []
        while len(path) < length:
            path.append(chance.token(q(path)))
        drawn.append(path)
    best = choose_path(drawn, p, q)
    if chance.coin(best.ratios[-1]):
        return (*best.tokens, chance.token(best.p[-1]))
    count, bonus = _branch(best.ratios, best.p, best.laws, chance)
    return (*best.tokens[:count], bonus)
