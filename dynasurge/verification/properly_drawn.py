"""What "properly drawn" means, on a tree small enough to enumerate: a root and its k sampled
children.

`emitted_law` goes through every possible draw of the children and every outcome of verification. It
adds up the distribution of the first emitted token. If the children are properly drawn, this is the
target's own distribution to the last bit, for every draft. If something changes the children
because of their tokens, it is not. `MISTAKES` has three changes that look harmless; each occurs in
public code. (tests/verification/test_exactness.py does the same for whole trees, texts, rules and
policies.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import permutations

import torch

from dynasurge.trees.token_tree import TokenTree
from dynasurge.verification.rules import RULES

Tamper = Callable[[Sequence[int], Sequence[float]], Sequence[int]]
"""(tokens in drawing order, the draft's distribution) -> the tokens that verification sees."""


def _likeliest_first(tokens: Sequence[int], q: Sequence[float]) -> list[int]:
    return sorted(tokens, key=lambda token: -q[token])


def _without_the_unlikeliest(tokens: Sequence[int], q: Sequence[float]) -> list[int]:
    return [
        token
        for token in tokens
        if len(tokens) == 1 or token != min(tokens, key=lambda token: q[token])
    ]


def _by_number(tokens: Sequence[int], q: Sequence[float]) -> list[int]:
    return sorted(tokens)


MISTAKES: dict[str, Tamper] = {
    "siblings sorted by probability": _likeliest_first,
    "the least likely child pruned": _without_the_unlikeliest,
    "children kept in a set, by token id": _by_number,
}


def emitted_law(
    p: Sequence[float],
    q: Sequence[float],
    k: int,
    *,
    rule: str = "topdown",
    tamper: Tamper | None = None,
) -> list[float]:
    """The exact distribution of the first emitted token.

    p, q: the target's and the draft's distribution at the root, over one small vocabulary. k:
    children drawn without replacement from q. rule: a name in `verification.RULES`. Raises
    ValueError if p and q differ in length.
    """
    if len(p) != len(q):
        raise ValueError(f"p has {len(p)} tokens, q has {len(q)}")
    law = torch.zeros(len(p), dtype=torch.float64)
    for chance, tokens in _draws(q, k):
        shown = list(tokens) if tamper is None else list(tamper(tokens, q))
        law += chance * _verified(p, q, shown, rule)
    return law.tolist()


def _draws(q: Sequence[float], k: int) -> Iterator[tuple[float, tuple[int, ...]]]:
    """Every possible sequence of k different tokens, with its probability."""
    tokens = [token for token, mass in enumerate(q) if mass > 0]
    for drawn in permutations(tokens, min(k, len(tokens))):
        chance, left = 1.0, sum(q)
        for token in drawn:
            chance, left = chance * q[token] / left, left - q[token]
        yield chance, drawn


def _verified(
    p: Sequence[float], q: Sequence[float], children: Sequence[int], rule: str
) -> torch.Tensor:
    """The distribution of the first emitted token, given the children. float64 [V]."""
    n = len(children)
    tree = TokenTree(
        tokens=(-1, *children),
        parents=(-1, *[0] * n),
        proposal=(1.0, *[1.0] * n),
        point=(True, *[False] * n),
    )
    rows = torch.tensor([p] * (n + 1), dtype=torch.float64)  # only the first token matters here
    stop = RULES[rule](tree, rows, [torch.tensor(q, dtype=torch.float64)] + [rows.new_empty(0)] * n)
    law = stop.stop[0] * stop.bonus[0] / stop.bonus[0].sum()
    for node, token in enumerate(children, start=1):
        law[token] += stop.stop[node]
    return law
