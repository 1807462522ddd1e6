"""Verification: which path of the drafted tree the target accepts, and the bonus token that follows it.

A rule is a pure function `(tree, p, q, generator) -> Verdict` of

- `tree`: a properly drawn `TokenTree`,
- `p`: `p[u]` is the target's next-token distribution after node u, float [V],
- `q`: `q[u]` is the draft distribution that node u's sampled children were drawn from, float [V] (never read at a leaf),
- `generator`: the source of the acceptance coins and of the bonus draw.

`p` and `q` may be tensors [n, V] or anything indexable by node, so rows can be computed when a rule first looks at them.
Every rule here is *lossless*: the emitted tokens (accepted path, then bonus) have the target's own distribution, whatever
the draft is. To add a rule, write one function and enter it in `RULES`; tests/test_exactness.py enumerates it.

**topdown** (Leviathan et al. 2211.17192; SpecInfer 2305.09781; Sequoia 2402.12374). Walk down from the root. At node u hold
the distribution `p` still to be emitted. A child x with proposal q is accepted with probability min(1, p[x] / q[x]); both
ways of leaving the test keep the law: accepted mass is min(p, q), and what is left, relu(p - q), is what the next sibling
or the bonus token must have. Invariant: given everything rejected so far, the token emitted at u has law p.

**traversal** (Traversal Verification, 2505.12398; on a chain it is Block Verification, 2403.10444). Walk the tree bottom
up: a node is decided only after everything below it was refused. `a` is the probability with which the path down to u still
has to be accepted; the rule emits the sub-measure a * p at u whatever is proposed next. Because a path that is lucky
deeper down makes up for an unlucky token near the root, chains are accepted at least as far as by topdown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from dynasurge import sampling
from dynasurge.tree import TokenTree


class Rows(Protocol):
    """Distributions by node: a tensor [n, V], a list of tensors [V], or rows computed when asked for."""

    def __getitem__(self, node: int, /) -> torch.Tensor: ...


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """path: accepted nodes from the root's child downwards, () if none; bonus: the token emitted after them."""

    path: tuple[int, ...]
    bonus: int


Rule = Callable[[TokenTree, Rows, Rows, torch.Generator], Verdict]


def topdown(tree: TokenTree, p: Rows, q: Rows, generator: torch.Generator) -> Verdict:
    """Top-down verification: accept a child with probability min(1, p/q), else go on with the residual."""
    path: list[int] = []
    node = 0
    while True:
        target = p[node]
        for child, proposal in _proposals(tree, q, node):
            token = tree.tokens[child]
            if sampling.coin(float(target[token] / proposal[token]), generator):
                path.append(child)
                node = child
                break
            leftover, mass = _residual(target, proposal)
            target = leftover if mass > 0 else target  # no mass left only by rounding: p = q never rejects
        else:
            return Verdict(path=tuple(path), bonus=sampling.draw(target, generator))


def traversal(tree: TokenTree, p: Rows, q: Rows, generator: torch.Generator) -> Verdict:
    """Traversal verification: bottom up, a node is decided after everything below it was refused."""

    def visit(node: int, weight: float) -> Verdict | None:
        target = p[node]
        for child, proposal in _proposals(tree, q, node):
            token = tree.tokens[child]
            below = visit(child, min(1.0, weight * float(target[token] / proposal[token])))
            if below is not None:
                return Verdict(path=(child, *below.path), bonus=below.bonus)
            leftover, mass = _residual(weight * target, proposal)
            if mass <= 0:
                if node == 0:
                    break  # only by rounding: the root must emit
                return None
            weight, target = min(1.0, mass / (mass + 1.0 - weight)), leftover
        if node == 0 or sampling.coin(weight, generator):
            return Verdict(path=(), bonus=sampling.draw(target, generator))
        return None

    verdict = visit(0, 1.0)
    assert verdict is not None, "the root always accepts"
    return verdict


RULES: dict[str, Rule] = {"topdown": topdown, "traversal": traversal}


def _proposals(tree: TokenTree, q: Rows, node: int) -> Iterator[tuple[int, torch.Tensor]]:
    """The children of a node in drawing order, each with the distribution [V] its token was really drawn from.

    A sampled child's is the draft's, without its earlier siblings, renormalised; a point child's is all on its token.
    """
    children: Sequence[int] = tree.children[node]
    remaining: torch.Tensor | None = None
    for child in children:
        token = tree.tokens[child]
        if tree.point[child]:
            proposal = torch.zeros_like(q[node])
            proposal[token] = 1.0
        else:
            remaining = q[node].clone() if remaining is None else remaining
            proposal = remaining / remaining.sum()
            remaining[token] = 0.0
        yield child, proposal


def _residual(target: torch.Tensor, proposal: torch.Tensor) -> tuple[torch.Tensor, float]:
    """(relu(target - proposal) normalised, its mass). The mass is 0 when the proposal covers the target everywhere."""
    leftover = torch.relu(target - proposal)
    mass = float(leftover.sum())
    return (leftover / mass if mass > 0 else leftover), mass
