"""Verification: which path of the drafted tree the target accepts, and the bonus token that follows
it.

A rule is a pure function `(tree, p, q) -> StopLaw` of

- `tree`: a properly drawn `TokenTree`,
- `p`: `p[u]` is the target's next-token distribution after node u, float [V],
- `q`: `q[u]` is the draft distribution that node u's sampled children were drawn from, float [V]
  (never read elsewhere).

A `StopLaw` says with what probability the accepted path ends at each node, and what law the bonus
token then has. All the arithmetic of a rule is thus free of chance: tests enumerate it exactly,
analysis reads expected lengths off it, and `verify` adds the only two random draws, the node and
the bonus.

Every rule here is *lossless*: the emitted tokens (accepted path, then bonus) have the target's own
distribution, whatever the draft is (proofs: docs/verification.md). To add a rule, write how it
treats a node's children, and enter it in `RULES`; tests/verification/test_exactness.py does the
rest.

All rules share one idea. A node holds `R`, the sub-measure it still has to emit, of mass `a`; at
first R = a * p. A child x with proposal q takes min(R, q) of it, so its subtree is entered with
weight min(1, R[x] / q[x]). If that is refused, relu(R - q) is left, to be emitted given the
refusal, whose probability is 1 - sum min(R, q).

**topdown** (Leviathan et al. 2211.17192; SpecInfer 2305.09781; Sequoia 2402.12374). Walk down from
the root; at every node a starts at 1, and the weight is the probability of going to the child there
and then.

**traversal** (Traversal Verification, 2505.12398; on a chain it is Block Verification, 2403.10444).
Walk the tree bottom up: a starts at the weight the node was entered with, and a node is decided
only after everything below it was refused. Because a path that is lucky deeper down makes up for an
unlucky token near the root, chains are accepted at least as far.

Nothing here waits for the device or loops over nodes in Python more than it must: nodes of one
level are handled together (`families`), and the host learns node and bonus from a single read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from dynasurge import probabilities
from dynasurge.probabilities import LEAST, Chance
from dynasurge.trees.token_tree import TokenTree

# distributions handled at once on a CPU, where they should stay in its cache; a GPU takes a whole
# level
CPU_ROWS = 8


class Rows(Protocol):
    """Distributions by node, a tensor [n, V] or rows computed when asked for: int64 [m] nodes ->
    [m, V]."""

    @property
    def device(self) -> torch.device: ...
    def __getitem__(self, nodes: torch.Tensor, /) -> torch.Tensor: ...


@dataclass(frozen=True, kw_only=True)
class StopLaw:
    """stop: float64 [n], the probability that the accepted path ends at each node; bonus: int64 [m]
    nodes -> [m, V], the bonus token's law if it ends there."""

    stop: torch.Tensor
    bonus: Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """path: accepted nodes from the root's child downwards, () if none; bonus: the token emitted
    after them; stop[u]: the probability that the path had of ending at node u."""

    path: tuple[int, ...]
    bonus: int
    stop: tuple[float, ...]


Rule = Callable[[TokenTree, Rows, Sequence[torch.Tensor]], StopLaw]


def verify(
    rule: Rule, tree: TokenTree, p: Rows, q: Sequence[torch.Tensor], chance: Chance
) -> Verdict:
    """Draw where the accepted path ends, then the bonus token. Raises NoMassError if p has none
    (NaN logits)."""
    return draw_verdict(rule(tree, p, q), tree, chance)


def draw_verdict(law: StopLaw, tree: TokenTree, chance: Chance) -> Verdict:
    """The two draws of `verify`."""
    node = chance.draw(law.stop[None], 1)[0]
    bonus = chance.draw(law.bonus(node.clamp(min=0)), 1)[0]
    end, token, *stop = torch.cat(
        [node, bonus, law.stop]
    ).tolist()  # the one time the host waits for the device
    if end < 0 or token < 0:
        raise probabilities.NoMassError
    return Verdict(path=path_to(tree, int(end)), bonus=int(token), stop=tuple(stop))


@dataclass(frozen=True, kw_only=True)
class Family:
    """m branching nodes of one level and their children: k columns, the first `sampled` of them for
    sampled children.

    nodes: int64 [m]; children, tokens: int64 [m, k] in drawing order; where a node has no child for
    a column, `exists` [m, k] is False, the child is n (no node) and the token repeats the first
    child's. base: float [m, V], what the sampled children were drawn from ([m, 0] if there are
    none).
    """

    nodes: torch.Tensor
    children: torch.Tensor
    tokens: torch.Tensor
    exists: torch.Tensor
    sampled: int
    base: torch.Tensor

    @property
    def proposals(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
        """What a `Handle` needs to know."""
        return self.base, self.tokens, self.exists, self.sampled


Handle = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, int],
    tuple[torch.Tensor, torch.Tensor, torch.Tensor],
]
"""How a rule treats the children of m nodes: (a [m, 1], p [m, V], a `Family`'s base, tokens, exists and sampled) -> their
weights [m, k], a after all of them [m, 1], and what they left of R, up to a factor [m, V]. It may overwrite p and base."""
Leftovers = list[tuple[torch.Tensor, torch.Tensor]]  # (nodes [m], what their children left [m, V])


def share_out(
    a: torch.Tensor,
    p: torch.Tensor,
    base: torch.Tensor,
    tokens: torch.Tensor,
    exists: torch.Tensor,
    sampled: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Each child takes min(R, q) of what is left: topdown and traversal. A `Handle`; it overwrites
    p and base.

    All that ever happens to R at a token not drawn yet is that a multiple of `base` is taken away,
    it is cut at 0 and scaled. So R = scale * relu(p - t * base) throughout, with one scale and one
    t a node; only the drawn tokens are kept apart.
    """
    tiny, weights, apart = torch.finfo(p.dtype).tiny, [], []
    scale, t, left = a, torch.zeros_like(a), p
    for rank in range(sampled):
        token, total = tokens[:, rank : rank + 1], base.sum(-1, keepdim=True)
        total = torch.where(total > 0, total, 1.0)
        base, t = (
            base.div_(total),
            t * total,
        )  # now base is q: what is left after likely siblings may be tiny
        weights.append((scale * left.gather(1, token) / base.gather(1, token)).clamp_(max=1.0))
        t = t + exists[:, rank : rank + 1] / scale.clamp(min=LEAST)
        room = (
            p if rank == sampled - 1 else torch.empty_like(p)
        )  # p is not needed after the last one
        left = torch.addcmul(p, base, t, value=-1.0, out=room).relu_()
        apart.append(left.gather(1, token))
        for rows in (p, base, left):
            rows.scatter_(1, token, 0.0)
        mass = scale * (left.sum(-1, keepdim=True) + sum(apart))
        refused = (1.0 - a + mass).clamp_(min=tiny)
        a, scale = (mass / refused).clamp_(max=1.0), scale / refused  # go on given the refusal
        scale = torch.where(
            scale < 1.0 / LEAST, scale, 0.0
        )  # refused so rarely that anything finite will do
    points = tokens[:, sampled:]
    if points.shape[1]:  # q = 1 at the token, so a run of points has a closed form
        taken = scale * left.gather(1, points) * exists[:, sampled:]
        weights.append((taken / (1.0 - taken.cumsum(-1) + taken).clamp_(min=tiny)).clamp_(max=1.0))
        mass = taken.sum(-1, keepdim=True)
        a = ((a - mass) / (1.0 - mass).clamp_(min=tiny)).clamp_(0.0, 1.0)
        left.scatter_(1, points, 0.0)
    if apart:
        left.scatter_add_(1, tokens[:, :sampled], torch.cat(apart, dim=1))
    return torch.cat(weights, dim=1), a, left


def reserve(
    a: torch.Tensor,
    p: torch.Tensor,
    base: torch.Tensor,
    tokens: torch.Tensor,
    exists: torch.Tensor,
    sampled: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Each child takes what topdown would give it, and more only where topdown leaves it unused:
    reserved. A `Handle`; all nodes have equally many sampled children."""
    if tokens.shape[1] > sampled:
        return share_out(
            a, p, base, tokens, exists, sampled
        )  # point children: lossless too, but without the guarantee
    weights, target = [], p
    borrowed = torch.zeros_like(
        p
    )  # mass already taken from what topdown would leave to later children
    for rank in range(sampled - 1):
        token = tokens[:, rank : rank + 1]
        q = base / base.sum(-1, keepdim=True)
        common, excess = torch.minimum(target, q), (target - q).relu_()
        rejected = excess.sum(-1, keepdim=True)  # 1 - sum of common, without its rounding
        # What later children may still need of each token, whatever they turn out to be, stays
        # untouched.
        later = min(sampled - 1 - rank, q.shape[-1])
        need = (1.0 / (1.0 - q.topk(later).values.cumsum(-1)).clamp_(min=LEAST)).sum(
            -1, keepdim=True
        )
        extra = torch.minimum((1.0 - a) * q, a * (excess - borrowed - rejected * need * q).relu_())
        proposed, taken = q.gather(1, token), (a * common + extra).gather(1, token)
        weights.append((taken / proposed).clamp_(max=1.0))
        refused, over = proposed - taken, (q - target).gather(1, token).relu_()
        goes_on = (rejected > 0) & (refused > 0)  # else the child is never refused
        borrowed = (a * borrowed + extra) / (a * rejected).clamp_(min=LEAST)
        a = torch.where(goes_on, (a * over / refused.clamp(min=LEAST)).clamp_(max=1.0), 0.0)
        target, base = excess / rejected.clamp(min=LEAST), base.scatter(1, token, 0.0)
    token = tokens[:, -1:]
    q, free = base / base.sum(-1, keepdim=True), a * (target - borrowed)
    taken = torch.minimum(q, free.relu())
    weights.append((taken.gather(1, token) / q.gather(1, token)).clamp_(max=1.0))
    left = (free - q).relu_()
    a = left.sum(-1, keepdim=True) / (1.0 - taken.sum(-1, keepdim=True)).clamp_(min=LEAST)
    return torch.cat(weights, dim=1), a.clamp_(max=1.0), left


def topdown(tree: TokenTree, p: Rows, q: Sequence[torch.Tensor]) -> StopLaw:
    """Top-down verification: accept a child with probability min(1, p/q), else go on with the
    residual."""
    reach = _per_node(tree, p)
    stay = torch.ones_like(reach)
    leftovers = []
    for family in families(tree, q, p.device):
        rows = p[family.nodes]
        weights, _, left = share_out(rows.new_ones(len(rows), 1), rows, *family.proposals)
        leftovers.append((family.nodes, left))
        accept = torch.where(family.exists, weights, 0.0).double()
        passed = (1.0 - accept).cumprod(-1)
        reach[family.children] = reach[family.nodes, None] * accept * _shifted(passed)
        stay[family.nodes] = passed[:, -1]
    return StopLaw(stop=(reach * stay)[:-1], bonus=_bonus(tree, p, leftovers))


def traversal(tree: TokenTree, p: Rows, q: Sequence[torch.Tensor]) -> StopLaw:
    """Traversal verification: bottom up, a node is decided after everything below it was
    refused."""
    return _bottom_up(tree, p, q, share_out, mixed=True)


def reserved(tree: TokenTree, p: Rows, q: Sequence[torch.Tensor]) -> StopLaw:
    """Bottom-up verification that accepts every node at least as often as topdown. Sampled
    children, counts fixed ahead."""
    return _bottom_up(tree, p, q, reserve, mixed=False)


RULES: dict[str, Rule] = {"topdown": topdown, "traversal": traversal, "reserved": reserved}


def _bottom_up(
    tree: TokenTree, p: Rows, q: Sequence[torch.Tensor], handle: Handle, *, mixed: bool
) -> StopLaw:
    """Post-order: each node gets its turn after everything below it was refused, and accepts with
    what is left of its a."""
    accept = _per_node(
        tree, p
    )  # first the a with which a node is entered, then the a it is left with
    leftovers = []
    for family in families(tree, q, p.device, mixed=mixed):
        rows = p[family.nodes]
        weights, a, left = handle(
            accept[family.nodes, None].to(rows.dtype), rows, *family.proposals
        )
        leftovers.append((family.nodes, left))
        accept[family.children] = torch.where(family.exists, weights, 0.0).double()
        accept[family.nodes] = a[:, 0].double()
    accept[:1].fill_(1.0)  # the root always accepts (assigning a number would wait for the device)
    order = _to(accept.device, _post_order(tree))
    turns = accept[order]
    stop = torch.zeros_like(accept)
    stop[order] = turns * _shifted((1.0 - turns).cumprod(-1))
    return StopLaw(stop=stop[:-1], bonus=_bonus(tree, p, leftovers))


def families(
    tree: TokenTree, q: Sequence[torch.Tensor], device: torch.device, *, mixed: bool = True
) -> Iterator[Family]:
    """The branching nodes of a tree, each after its parent. A node without sampled children has no
    need of a q.

    mixed: nodes of one family may have differently many sampled children (but not some and none).
    """
    groups: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for node, branches in enumerate(tree.children):
        if branches:
            count = sum(not tree.point[child] for child in branches)
            groups.setdefault((tree.depths[node], min(count, 1) if mixed else count), []).append(
                (count, node)
            )
    for _, group in sorted(groups.items()):
        size = CPU_ROWS if device.type == "cpu" else len(group)
        # nodes with equally many sampled children stand together, so that few columns stay empty
        group.sort()
        for start in range(0, len(group), size):
            yield _family(tree, q, group[start : start + size], device, mixed)


def _family(
    tree: TokenTree,
    q: Sequence[torch.Tensor],
    members: Sequence[tuple[int, int]],
    device: torch.device,
    mixed: bool,
) -> Family:
    """members: (sampled children, node)."""
    none, sampled = tree.size + 1, max(count for count, _ in members)
    points = max(len(tree.children[node]) - count for count, node in members)
    packed = []
    for count, node in members:
        own = tree.children[node]
        row = [*own[:count], *[none] * (sampled - count), *own[count:]]
        row += [none] * (sampled + points - len(row))
        packed.append(
            [node, *row, *[tree.tokens[child if child < none else own[0]] for child in row]]
        )
    numbers = _to(device, packed)
    children = numbers[:, 1 : 1 + sampled + points]
    return Family(
        nodes=numbers[:, 0],
        children=children,
        tokens=numbers[:, 1 + sampled + points :],
        exists=children < none,
        sampled=sampled,
        base=torch.stack([q[node] for _, node in members])
        if sampled
        else torch.empty(len(members), 0, device=device),
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


def _bonus(
    tree: TokenTree, p: Rows, leftovers: Leftovers
) -> Callable[[torch.Tensor], torch.Tensor]:
    """At a node that branches, what its children left; at a leaf, or where p = q left nothing, the
    target's own law."""

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
