"""Verification: which path of the drafted tree the target accepts, and the bonus token that follows it.

A rule is a pure function `(tree, p, q) -> StopLaw` of

- `tree`: a properly drawn `TokenTree`,
- `p`: `p[u]` is the target's next-token distribution after node u, float [V],
- `q`: `q[u]` is the draft distribution that node u's sampled children were drawn from, float [V] (never read at a leaf).

`p` and `q` may be tensors [n, V] or anything indexable by node, so rows can be computed when a rule first looks at them.
A `StopLaw` says with what probability the accepted path ends at each node, and what law the bonus token then has. All the
arithmetic of a rule is thus free of chance: tests enumerate it exactly, analysis reads expected lengths off it, and
`verify` adds the only two random draws, the node and the bonus.

Every rule here is *lossless*: the emitted tokens (accepted path, then bonus) have the target's own distribution, whatever
the draft is. To add a rule, write how it treats one node, and enter it in `RULES`; tests/test_exactness.py does the rest.

**topdown** (Leviathan et al. 2211.17192; SpecInfer 2305.09781; Sequoia 2402.12374). Walk down from the root. At node u hold
the distribution `p` still to be emitted. A child x with proposal q is accepted with probability min(1, p[x] / q[x]); both
ways of leaving the test keep the law: accepted mass is min(p, q), and what is left, relu(p - q), is what the next sibling
or the bonus token must have. Invariant: given everything rejected so far, the token emitted at u has law p.

**traversal** (Traversal Verification, 2505.12398; on a chain it is Block Verification, 2403.10444). Walk the tree bottom
up: a node is decided only after everything below it was refused. `a` is the probability with which the path down to u
still has to be accepted; the rule emits the sub-measure a * p at u whatever is proposed next. Because a path that is lucky
deeper down makes up for an unlucky token near the root, chains are accepted at least as far as by topdown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch

from dynasurge import sampling
from dynasurge.tree import TokenTree


class Rows(Protocol):
    """Distributions by node: a tensor [n, V], a list of tensors [V], or rows computed when asked for."""

    def __getitem__(self, node: int, /) -> torch.Tensor: ...


@dataclass(frozen=True, kw_only=True)
class StopLaw:
    """stop[u]: the probability that the accepted path ends at node u; bonus(u): the bonus token's law [V] if it does."""

    stop: list[float]
    bonus: Callable[[int], torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """path: accepted nodes from the root's child downwards, () if none; bonus: the token emitted after them."""

    path: tuple[int, ...]
    bonus: int


Rule = Callable[[TokenTree, Rows, Rows], StopLaw]


def verify(rule: Rule, tree: TokenTree, p: Rows, q: Rows, generator: torch.Generator) -> Verdict:
    """Draw where the accepted path ends, then the bonus token."""
    law = rule(tree, p, q)
    node = sampling.draw(torch.tensor(law.stop, dtype=torch.float64), generator)
    bonus = sampling.draw(law.bonus(node), generator)
    return Verdict(path=path_to(tree, node), bonus=bonus)


def topdown(tree: TokenTree, p: Rows, q: Rows) -> StopLaw:
    """Top-down verification: accept a child with probability min(1, p/q), else go on with the residual."""

    def visit(node: int) -> tuple[list[float], torch.Tensor]:
        """Each child's acceptance probability once its elder siblings are rejected, and the law left after them all."""
        target, accept = p[node], []
        for child, proposal in proposals(tree, q, node):
            token = tree.tokens[child]
            accept.append(min(1.0, float(target[token] / proposal[token])))
            leftover, mass = residual(target, proposal)
            target = leftover if mass > 0 else target  # no mass is left only where p = q, which never rejects
        return accept, target

    stop = [1.0] + [0.0] * tree.size
    for node, children in enumerate(tree.children):  # a parent's number is below its children's
        if children and stop[node] > 0:
            for child, accept in zip(children, visit(node)[0], strict=True):
                stop[child] = stop[node] * accept
                stop[node] -= stop[child]
    return StopLaw(stop=stop, bonus=lambda node: visit(node)[1])


def traversal(tree: TokenTree, p: Rows, q: Rows) -> StopLaw:
    """Traversal verification: bottom up, a node is decided after everything below it was refused."""
    weights = [1.0] + [0.0] * tree.size  # a, as each node is entered

    def visit(node: int) -> tuple[float, torch.Tensor]:
        """Enter each child in turn as if all before it were refused; returns the node's own a and law at the end."""
        weight, target = weights[node], p[node]
        for child, proposal in proposals(tree, q, node):
            token = tree.tokens[child]
            weights[child] = min(1.0, weight * float(target[token] / proposal[token]))
            leftover, mass = residual(weight * target, proposal)
            if mass <= 0:
                return 0.0, target  # nothing is left to emit here
            weight, target = min(1.0, mass / (mass + 1.0 - weight)), leftover
        return weight, target

    return _bottom_up(tree, weights, visit)


def reserved(tree: TokenTree, p: Rows, q: Rows) -> StopLaw:
    """Bottom-up verification that accepts every node at least as often as topdown. Sampled children, counts fixed ahead."""
    weights = [1.0] + [0.0] * tree.size

    def visit(node: int) -> tuple[float, torch.Tensor]:
        weight, target = weights[node], p[node]
        borrowed = torch.zeros_like(target)  # mass already taken from what topdown would leave to later children
        later = len(tree.children[node])
        for child, proposal in proposals(tree, q, node):
            token, later = tree.tokens[child], later - 1
            if later == 0:
                taken = torch.minimum(proposal, weight * torch.relu(target - borrowed))
                weights[child] = float(taken[token] / proposal[token])
                leftover, mass = residual(weight * (target - borrowed), taken)
                refused = 1.0 - float(taken.sum())
                return (min(1.0, mass / refused) if refused > 0 else 0.0), (leftover if mass > 0 else target)
            common, excess = torch.minimum(target, proposal), torch.relu(target - proposal)
            rejected = 1.0 - float(common.sum())
            # What later children may still need of each token, whatever they turn out to be, stays untouched.
            left = 1.0 - proposal.topk(min(later, proposal.numel())).values.cumsum(0)
            need = float((1.0 / left).sum()) if bool((left > 0).all()) else float("inf")
            spare = torch.relu(excess - borrowed - rejected * need * proposal) if need < float("inf") else 0.0 * excess
            extra = torch.minimum((1.0 - weight) * proposal, weight * spare)
            taken = weight * common + extra
            weights[child] = min(1.0, float(taken[token] / proposal[token]))
            refused = float(proposal[token] - taken[token])
            if rejected <= 0 or refused <= 0:
                return 0.0, target  # the child is never refused, so nothing behind it is ever looked at
            borrowed = (weight * borrowed + extra) / (weight * rejected)
            weight *= float(torch.relu(proposal - target)[token]) / refused
            target = excess / rejected
            if weight <= 0:
                return 0.0, target
        return weight, target

    return _bottom_up(tree, weights, visit)


def _bottom_up(tree: TokenTree, weights: list[float], visit: Callable[[int], tuple[float, torch.Tensor]]) -> StopLaw:
    """Post-order: each node gets its turn after everything below it was refused.

    weights[u]: the a with which node u is entered; `visit(u)` sets its children's and returns u's own a and law at the end.
    """
    stop = [0.0] * (tree.size + 1)

    def descend(node: int, undecided: float) -> float:
        """A subtree that is reached with probability `undecided`; returns what is undecided after it."""
        if weights[node] <= 0:
            return undecided
        accept = visit(node)[0] if tree.children[node] else weights[node]
        for child in tree.children[node]:
            undecided = descend(child, undecided)
        stop[node] = undecided if node == 0 else undecided * accept  # the root always accepts
        return undecided - stop[node]

    descend(0, 1.0)
    return StopLaw(stop=stop, bonus=lambda node: visit(node)[1])


RULES: dict[str, Rule] = {"topdown": topdown, "traversal": traversal, "reserved": reserved}


def path_to(tree: TokenTree, node: int) -> tuple[int, ...]:
    """The nodes from the root's child down to `node`; () for the root."""
    return () if node == 0 else (*path_to(tree, tree.parents[node]), node)


def proposals(tree: TokenTree, q: Rows, node: int) -> Iterator[tuple[int, torch.Tensor]]:
    """The children of a node in drawing order, each with the distribution [V] its token was really drawn from.

    A sampled child's is the draft's, without its earlier siblings, renormalised; a point child's is all on its token.
    """
    remaining: torch.Tensor | None = None
    for child in tree.children[node]:
        token = tree.tokens[child]
        if tree.point[child]:
            proposal = torch.zeros_like(q[node])
            proposal[token] = 1.0
        else:
            remaining = q[node].clone() if remaining is None else remaining
            proposal = remaining / remaining.sum()
            remaining[token] = 0.0
        yield child, proposal


def residual(target: torch.Tensor, proposal: torch.Tensor) -> tuple[torch.Tensor, float]:
    """(relu(target - proposal) normalised, its mass). The mass is 0 when the proposal covers the target everywhere."""
    leftover = torch.relu(target - proposal)
    mass = float(leftover.sum())
    return (leftover / mass if mass > 0 else leftover), mass
