"""Verification: which path of the drafted tree the target accepts, and the bonus token that follows it.

A rule is a pure function `(tree, p, q) -> StopLaw` of

- `tree`: a properly drawn `TokenTree`,
- `p`: `p[u]` is the target's next-token distribution after node u, float [V],
- `q`: `q[u]` is the draft distribution that node u's sampled children were drawn from, float [V] (never read elsewhere).

A `StopLaw` says with what probability the accepted path ends at each node, and what law the bonus token then has. All the
arithmetic of a rule is thus free of chance: tests enumerate it exactly, analysis reads expected lengths off it, and
`verify` adds the only two random draws, the node and the bonus.

Every rule here is *lossless*: the emitted tokens (accepted path, then bonus) have the target's own distribution, whatever
the draft is (proofs: docs/verification.md). To add a rule, write how it treats a node's children, and enter it in `RULES`;
tests/test_exactness.py does the rest.

All rules share one idea. A node holds `R`, the sub-measure it still has to emit, of mass `a`; at first R = a * p. A child
x with proposal q takes min(R, q) of it, so its subtree is entered with weight min(1, R[x] / q[x]). If that is refused,
relu(R - q) is left, to be emitted given the refusal, whose probability is 1 - sum min(R, q).

**topdown** (Leviathan et al. 2211.17192; SpecInfer 2305.09781; Sequoia 2402.12374). Walk down from the root; at every node
a starts at 1, and the weight is the probability of going to the child there and then.

**traversal** (Traversal Verification, 2505.12398; on a chain it is Block Verification, 2403.10444). Walk the tree bottom
up: a starts at the weight the node was entered with, and a node is decided only after everything below it was refused.
Because a path that is lucky deeper down makes up for an unlucky token near the root, chains are accepted at least as far.

Nothing here waits for the device or loops over nodes in Python more than it must: nodes of one level are handled together
(`families`), and the host learns node and bonus from a single read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from dynasurge import sampling
from dynasurge.tree import TokenTree

CPU_ROWS = 8  # distributions handled at once on a CPU, where they should stay in its cache; a GPU takes a whole level


class Rows(Protocol):
    """Distributions by node, a tensor [n, V] or rows computed when asked for: int64 [m] nodes -> [m, V]."""

    @property
    def device(self) -> torch.device: ...
    def __getitem__(self, nodes: torch.Tensor, /) -> torch.Tensor: ...


@dataclass(frozen=True, kw_only=True)
class StopLaw:
    """stop: float64 [n], the probability that the accepted path ends at each node; bonus: int64 [m] nodes -> [m, V], the
    bonus token's law if it ends there."""

    stop: torch.Tensor
    bonus: Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """path: accepted nodes from the root's child downwards, () if none; bonus: the token emitted after them; stop[u]: the
    probability that the path had of ending at node u."""

    path: tuple[int, ...]
    bonus: int
    stop: tuple[float, ...]


Rule = Callable[[TokenTree, Rows, Sequence[torch.Tensor]], StopLaw]


def verify(rule: Rule, tree: TokenTree, p: Rows, q: Sequence[torch.Tensor], generator: torch.Generator) -> Verdict:
    """Draw where the accepted path ends, then the bonus token. Raises ValueError if p has no mass (NaN logits)."""
    return draw_verdict(rule(tree, p, q), tree, generator)


def draw_verdict(law: StopLaw, tree: TokenTree, generator: torch.Generator) -> Verdict:
    """The two draws of `verify`."""
    node = sampling.draw_distinct(law.stop[None], 1, generator)[0]
    bonus = sampling.draw_distinct(law.bonus(node.clamp(min=0)), 1, generator)[0]
    end, token, *stop = torch.cat([node, bonus, law.stop]).tolist()  # the one time the host waits for the device
    if end < 0 or token < 0:
        raise ValueError(sampling.NO_MASS)
    return Verdict(path=path_to(tree, int(end)), bonus=int(token), stop=tuple(stop))


@dataclass(frozen=True, kw_only=True)
class Family:
    """m branching nodes of one level with equally many sampled children, and their children, at most k each.

    nodes: int64 [m]; children, tokens: int64 [m, k] in drawing order, sampled ones first; where a node has fewer than k,
    `exists` [m, k] is False, the child is n (no node) and the token repeats the first child's.
    sampled: how many children of each are sampled; base: float [m, V], what those were drawn from ([0] if sampled is 0).
    """

    nodes: torch.Tensor
    children: torch.Tensor
    tokens: torch.Tensor
    exists: torch.Tensor
    sampled: int
    base: torch.Tensor


Handle = Callable[[Family, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
"""How a rule treats children: (family, a [m, 1], p [m, V]) -> their weights [m, k], a after all of them, and what
they left of R, up to a factor [m, V]."""
Leftovers = list[tuple[torch.Tensor, torch.Tensor]]  # (nodes [m], what their children left [m, V])


def share_out(family: Family, a: torch.Tensor, p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Each child takes min(R, q) of what is left: topdown and traversal."""
    tiny = torch.finfo(p.dtype).tiny
    weights, left, base = [], a * p, family.base
    refused = torch.ones_like(a)
    for rank in range(family.sampled):
        if rank:  # go on given the refusal, without the refused token
            left, base = left.div_(refused), base.scatter(1, family.tokens[:, rank - 1 : rank], 0.0)
        token, total = family.tokens[:, rank : rank + 1], base.sum(-1, keepdim=True)  # q = base / total
        weights.append((left.gather(1, token) * total / base.gather(1, token)).clamp_(max=1.0))
        left = left.addcdiv(base, total, value=-1.0).relu_()
        mass = left.sum(-1, keepdim=True)
        refused = (1.0 - a + mass).clamp_(min=tiny)
        a = (mass / refused).clamp_(max=1.0)
    points = family.tokens[:, family.sampled :]
    if points.shape[1]:  # q = 1 at the token, so a run of points has a closed form
        taken = left.gather(1, points) / refused * family.exists[:, family.sampled :]
        weights.append((taken / (1.0 - taken.cumsum(-1) + taken).clamp_(min=tiny)).clamp_(max=1.0))
        mass = taken.sum(-1, keepdim=True)
        a = ((a - mass) / (1.0 - mass).clamp_(min=tiny)).clamp_(0.0, 1.0)
        left = left.scatter(1, points, 0.0)
    return torch.cat(weights, dim=1), a, left


def reserve(family: Family, a: torch.Tensor, p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Each child takes what topdown would give it, and more only where topdown leaves it unused: reserved."""
    if family.children.shape[1] > family.sampled:
        return share_out(family, a, p)  # point children: lossless too, but without the guarantee
    tiny = torch.finfo(p.dtype).tiny
    weights, target, base = [], p, family.base
    borrowed = torch.zeros_like(p)  # mass already taken from what topdown would leave to later children
    for rank in range(family.sampled - 1):
        token = family.tokens[:, rank : rank + 1]
        q = base / base.sum(-1, keepdim=True)
        common, excess = torch.minimum(target, q), (target - q).relu_()
        rejected = 1.0 - common.sum(-1, keepdim=True)
        # What later children may still need of each token, whatever they turn out to be, stays untouched.
        later = min(family.sampled - 1 - rank, q.shape[-1])
        need = (1.0 / (1.0 - q.topk(later).values.cumsum(-1)).clamp_(min=tiny)).sum(-1, keepdim=True)
        extra = torch.minimum((1.0 - a) * q, a * (excess - borrowed - rejected * need * q).relu_())
        proposed, taken = q.gather(1, token), (a * common + extra).gather(1, token)
        weights.append((taken / proposed).clamp_(max=1.0))
        refused, over = proposed - taken, (q - target).gather(1, token).relu_()
        goes_on = (rejected > 0) & (refused > 0)  # else the child is never refused
        borrowed = (a * borrowed + extra) / (a * rejected).clamp_(min=tiny)
        a = torch.where(goes_on, a * over / refused.clamp(min=tiny), 0.0)
        target, base = excess / rejected.clamp(min=tiny), base.scatter(1, token, 0.0)
    token = family.tokens[:, -1:]
    q, free = base / base.sum(-1, keepdim=True), a * (target - borrowed)
    taken = torch.minimum(q, free.relu())
    weights.append((taken.gather(1, token) / q.gather(1, token)).clamp_(max=1.0))
    left = (free - q).relu_()
    a = left.sum(-1, keepdim=True) / (1.0 - taken.sum(-1, keepdim=True)).clamp_(min=tiny)
    return torch.cat(weights, dim=1), a.clamp_(max=1.0), left


def topdown(tree: TokenTree, p: Rows, q: Sequence[torch.Tensor]) -> StopLaw:
    """Top-down verification: accept a child with probability min(1, p/q), else go on with the residual."""
    reach = _per_node(tree, p)
    stay = torch.ones_like(reach)
    leftovers = []
    for family in families(tree, q, p.device):
        rows = p[family.nodes]
        weights, _, left = share_out(family, rows.new_ones(len(rows), 1), rows)
        leftovers.append((family.nodes, left))
        accept = weights.double() * family.exists
        passed = (1.0 - accept).cumprod(-1)
        reach[family.children] = reach[family.nodes, None] * accept * _shifted(passed)
        stay[family.nodes] = passed[:, -1]
    return StopLaw(stop=(reach * stay)[:-1], bonus=_bonus(tree, p, leftovers))


def traversal(tree: TokenTree, p: Rows, q: Sequence[torch.Tensor]) -> StopLaw:
    """Traversal verification: bottom up, a node is decided after everything below it was refused."""
    return _bottom_up(tree, p, q, share_out)


def reserved(tree: TokenTree, p: Rows, q: Sequence[torch.Tensor]) -> StopLaw:
    """Bottom-up verification that accepts every node at least as often as topdown. Sampled children, counts fixed ahead."""
    return _bottom_up(tree, p, q, reserve)


RULES: dict[str, Rule] = {"topdown": topdown, "traversal": traversal, "reserved": reserved}


def _bottom_up(tree: TokenTree, p: Rows, q: Sequence[torch.Tensor], handle: Handle) -> StopLaw:
    """Post-order: each node gets its turn after everything below it was refused, and accepts with what is left of its a."""
    accept = _per_node(tree, p)  # first the a with which a node is entered, then the a it is left with
    leftovers = []
    for family in families(tree, q, p.device):
        rows = p[family.nodes]
        weights, a, left = handle(family, accept[family.nodes, None].to(rows.dtype), rows)
        leftovers.append((family.nodes, left))
        accept[family.children] = (weights * family.exists).double()
        accept[family.nodes] = a[:, 0].double()
    accept[:1].fill_(1.0)  # the root always accepts (assigning a number would wait for the device)
    order = _to(accept.device, _post_order(tree))
    turns = accept[order]
    stop = torch.zeros_like(accept)
    stop[order] = turns * _shifted((1.0 - turns).cumprod(-1))
    return StopLaw(stop=stop[:-1], bonus=_bonus(tree, p, leftovers))


def families(tree: TokenTree, q: Sequence[torch.Tensor], device: torch.device) -> Iterator[Family]:
    """The branching nodes of a tree, each after its parent. A node without sampled children has no need of a q."""
    groups: dict[tuple[int, int], list[int]] = {}
    for node, branches in enumerate(tree.children):
        if branches:
            groups.setdefault((tree.depths[node], sum(not tree.point[c] for c in branches)), []).append(node)
    for (_, sampled), group in sorted(groups.items()):
        size = CPU_ROWS if device.type == "cpu" else len(group)
        for nodes in (group[start : start + size] for start in range(0, len(group), size)):
            k = max(len(tree.children[u]) for u in nodes)
            children = [[*tree.children[u], *[tree.size + 1] * (k - len(tree.children[u]))] for u in nodes]
            tokens = [[tree.tokens[c] if c <= tree.size else tree.tokens[row[0]] for c in row] for row in children]
            packed = _to(device, [[u, *c, *t] for u, c, t in zip(nodes, children, tokens, strict=True)])
            yield Family(
                nodes=packed[:, 0],
                children=packed[:, 1 : k + 1],
                tokens=packed[:, k + 1 :],
                exists=packed[:, 1 : k + 1] <= tree.size,
                sampled=sampled,
                base=torch.stack([q[u] for u in nodes]) if sampled else torch.empty(0, device=device),
            )


def reach(tree: TokenTree, stop: Sequence[float]) -> list[float]:
    """The probability that each node is accepted: that the path ends there or below."""
    below = list(stop)
    for node in range(tree.size, 0, -1):  # a parent's number is below its children's
        below[tree.parents[node]] += below[node]
    return below


def path_to(tree: TokenTree, node: int) -> tuple[int, ...]:
    """The nodes from the root's child down to `node`; () for the root."""
    return () if node == 0 else (*path_to(tree, tree.parents[node]), node)


def _bonus(tree: TokenTree, p: Rows, leftovers: Leftovers) -> Callable[[torch.Tensor], torch.Tensor]:
    """At a node that branches, what its children left; at a leaf, or where p = q left nothing, the target's own law."""

    def law(nodes: torch.Tensor) -> torch.Tensor:
        rows = p[nodes]
        if leftovers:
            branching, left = (torch.cat(parts) for parts in zip(*leftovers, strict=True))
            place = torch.full((tree.size + 1,), -1, device=p.device)
            place[branching] = torch.arange(len(branching), device=p.device)
            left = left[place[nodes]]  # at a leaf any row: it is not used
            mass = left.sum(-1, keepdim=True) * (place[nodes, None] >= 0)
            rows = torch.where(mass > 0, left / mass, rows)
        return rows

    return law


def _per_node(tree: TokenTree, p: Rows) -> torch.Tensor:
    """Ones, float64 [n + 1]: a number for each node, and a place for children that do not exist."""
    return torch.ones(tree.size + 2, dtype=torch.float64, device=p.device)


def _shifted(products: torch.Tensor) -> torch.Tensor:
    """Running products along the last dimension -> the products before each entry."""
    return torch.cat([torch.ones_like(products[..., :1]), products[..., :-1]], dim=-1)


def _to(device: torch.device, numbers: Sequence[Any]) -> torch.Tensor:
    """Send whole numbers to the device without waiting for it."""
    return torch.tensor(numbers, dtype=torch.int64).to(device, non_blocking=True)


def _post_order(tree: TokenTree) -> list[int]:
    """All nodes, children before their parent, elder siblings first."""
    order, todo = [], [0]
    while todo:  # reversed, this visits a parent before its children, younger siblings first
        order.append(node := todo.pop())
        todo.extend(tree.children[node])
    return order[::-1]
