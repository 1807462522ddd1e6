"""Verification: which path of the drafted tree the target accepts, and the bonus token after it.

A rule is a pure function `(tree, p, q) -> StopLaw` of

- `tree`: a properly drawn `TokenTree`,
- `p`: `p[u]` is the target's next-token distribution after node u, float [V],
- `q`: `q[u]` is the draft distribution that node u's sampled children were drawn from, float [V]
  (not read at other nodes).

A `StopLaw` gives the probability that the accepted path ends at each node, and the distribution of
the bonus token there. So a rule's arithmetic has no random draws. Tests enumerate it exactly, and
analysis computes expected lengths from it. `verify` adds the only two draws, the node and the bonus
token.

Every rule here is *lossless*: for any draft, the emitted tokens (accepted path, then bonus) have
the target's own distribution (proofs: docs/verification.md). To add a rule, write how it treats a
node's children, and enter it in `RULES`; tests/verification/test_exactness.py does the rest.

All rules share one idea. A node holds `R`, the sub-measure that it still has to emit, of mass `a`;
at first R = a * p. A child x with proposal q takes min(R, q) of it, so its subtree is entered with
weight min(1, R[x] / q[x]). If the child is refused, relu(R - q) is left. The node emits it given
the refusal, whose probability is 1 - sum min(R, q).

**topdown** (Leviathan et al. 2211.17192; SpecInfer 2305.09781; Sequoia 2402.12374). Walk down from
the root. At every node a starts at 1, and the weight is the probability of going on to the child.

**traversal** (Traversal Verification, 2505.12398; on a chain it is Block Verification, 2403.10444).
Walk the tree bottom up: a starts at the weight with which the node was entered, and a node is
decided only after everything below it was refused. A lucky path deeper down makes up for an unlucky
token near the root, so chains are accepted at least as far.

The code handles the nodes of one level together (`families`), without a Python loop over nodes or a
wait for the device where it can. One read brings the host both node and bonus token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from dynasurge import probabilities
from dynasurge.probabilities import LEAST, Chance
from dynasurge.trees.token_tree import TokenTree

# Distributions handled at once on a CPU, so that they stay in its cache. A GPU takes a whole level.
CPU_ROWS = 8


class Rows(Protocol):
    """Distributions by node: a tensor [n, V], or rows computed at a look-up, int64 [m] nodes -> [m,
    V]."""

    @property
    def device(self) -> torch.device: ...
    def __getitem__(self, nodes: torch.Tensor, /) -> torch.Tensor: ...


@dataclass(frozen=True, kw_only=True)
class StopLaw:
    """stop: float64 [n], the probability that the accepted path ends at each node. bonus: int64 [m]
    nodes -> [m, V], the distribution of the bonus token if the path ends there."""

    stop: torch.Tensor
    bonus: Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """path: accepted nodes from the root's child downwards, () if none. bonus: the token emitted
    after them. stop[u]: the probability that the path ends at node u."""

    path: tuple[int, ...]
    bonus: int
    stop: tuple[float, ...]


Rule = Callable[[TokenTree, Rows, Sequence[torch.Tensor]], StopLaw]


def verify(
    rule: Rule, tree: TokenTree, p: Rows, q: Sequence[torch.Tensor], chance: Chance
) -> Verdict:
    """Draw the node where the accepted path ends, then the bonus token. Raises NoMassError if p has
    no mass (NaN logits)."""
    return draw_verdict(rule(tree, p, q), tree, chance)


def draw_verdict(law: StopLaw, tree: TokenTree, chance: Chance) -> Verdict:
    """Draw the node and the bonus token of a `StopLaw`. Raises NoMassError if one has no mass."""
    node = chance.draw(law.stop[None], 1)[0]
    bonus = chance.draw(law.bonus(node.clamp(min=0)), 1)[0]
    end, token, *stop = torch.cat(
        [node, bonus, law.stop]
    ).tolist()  # the host waits for the device only here
    if end < 0 or token < 0:
        raise probabilities.NoMassError
    return Verdict(path=path_to(tree, int(end)), bonus=int(token), stop=tuple(stop))


@dataclass(frozen=True, kw_only=True)
class Family:
    """m nodes of one level that branch, and their children in k columns. The first `sampled`
    columns are for sampled children.

    nodes: int64 [m]. children, tokens: int64 [m, k] in drawing order. If a node has no child for a
    column, `exists` [m, k] is False, the child is n (no node) and the token repeats the first
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
        """The last four arguments of a `Handle`."""
        return self.base, self.tokens, self.exists, self.sampled


Handle = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, int],
    tuple[torch.Tensor, torch.Tensor, torch.Tensor],
]
"""How a rule treats the children of m nodes: (a [m, 1], p [m, V], a `Family`'s base, tokens, exists and sampled) -> their
weights [m, k], a after all of them [m, 1], what they left of R, up to a factor [m, V]. It may overwrite p and base."""
Leftovers = list[tuple[torch.Tensor, torch.Tensor]]  # (nodes [m], what their children left [m, V])


def share_out(
    a: torch.Tensor,
    p: torch.Tensor,
    base: torch.Tensor,
    tokens: torch.Tensor,
    exists: torch.Tensor,
    sampled: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Let each child take min(R, q) of what is left: topdown and traversal. A `Handle`; it
    overwrites p and base.

    At a token that is not drawn yet, R changes in three ways only: a multiple of `base` is
    subtracted, it is cut at 0, and it is scaled. So always R = scale * relu(p - t * base), with one
    scale and one t a node. Only the drawn tokens are kept apart.
    """
    tiny, weights, apart = torch.finfo(p.dtype).tiny, [], []
    scale, t, left = a, torch.zeros_like(a), p
    for rank in range(sampled):
        token, total = tokens[:, rank : rank + 1], base.sum(-1, keepdim=True)
        total = torch.where(total > 0, total, 1.0)
        base, t = (
            base.div_(total),
            t * total,
        )  # now base is q: little mass may be left after likely siblings
        weights.append((scale * left.gather(1, token) / base.gather(1, token)).clamp_(max=1.0))
        t = t + exists[:, rank : rank + 1] / scale.clamp(min=LEAST)
        room = (
            p if rank == sampled - 1 else torch.empty_like(p)
        )  # p is not needed after the last child
        left = torch.addcmul(p, base, t, value=-1.0, out=room).relu_()
        apart.append(left.gather(1, token))
        for rows in (p, base, left):
            rows.scatter_(1, token, 0.0)
        mass = scale * (left.sum(-1, keepdim=True) + sum(apart))
        refused = (1.0 - a + mass).clamp_(min=tiny)
        a, scale = (mass / refused).clamp_(max=1.0), scale / refused  # go on given the refusal
        scale = torch.where(
            scale < 1.0 / LEAST, scale, 0.0
        )  # the refusal is so rare that any finite value is right
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
    """Let each child take what topdown would give it, and more only from what topdown leaves
    unused: reserved. A `Handle`; all nodes have the same number of sampled children."""
    if tokens.shape[1] > sampled:
        return share_out(
            a, p, base, tokens, exists, sampled
        )  # with points: lossless too, but it may accept a node less often than topdown
    weights, target = [], p
    borrowed = torch.zeros_like(p)  # mass taken so far from what topdown leaves to later children
    for rank in range(sampled - 1):
        token = tokens[:, rank : rank + 1]
        q = base / base.sum(-1, keepdim=True)
        common, excess = torch.minimum(target, q), (target - q).relu_()
        rejected = excess.sum(-1, keepdim=True)  # 1 - sum of common, with less rounding
        # Leave of each token what later children may still need, for every draw of theirs.
        later = min(sampled - 1 - rank, q.shape[-1])
        need = (1.0 / (1.0 - q.topk(later).values.cumsum(-1)).clamp_(min=LEAST)).sum(
            -1, keepdim=True
        )
        extra = torch.minimum((1.0 - a) * q, a * (excess - borrowed - rejected * need * q).relu_())
        proposed, taken = q.gather(1, token), (a * common + extra).gather(1, token)
        weights.append((taken / proposed).clamp_(max=1.0))
        refused, over = proposed - taken, (q - target).gather(1, token).relu_()
        goes_on = (rejected > 0) & (refused > 0)  # otherwise the child is never refused
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
    """Top-down verification: accept a child with probability min(1, p/q), otherwise go on with the
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
    """Bottom-up verification that accepts every node at least as often as topdown. It takes sampled
    children, whose numbers were chosen before the draw."""
    return _bottom_up(tree, p, q, reserve, mixed=False)


RULES: dict[str, Rule] = {"topdown": topdown, "traversal": traversal, "reserved": reserved}


def _bottom_up(
    tree: TokenTree, p: Rows, q: Sequence[torch.Tensor], handle: Handle, *, mixed: bool
) -> StopLaw:
    """Decide the nodes in post-order. Each node gets its turn after everything below it was
    refused, and accepts with what is left of its a."""
    accept = _per_node(tree, p)  # first the a with which a node is entered, then the a that is left
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
    """The nodes of a tree that branch, each after its parent. A node without sampled children needs
    no q.

    mixed: nodes of one family may have different numbers of sampled children (but all have some, or
    none has).
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
        # sort by the number of sampled children, so that few columns stay empty
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
    """Pack members, pairs (number of sampled children, node), into one `Family`."""
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
    """The bonus token's distribution: at a node that branches, what its children left; at a leaf,
    or if nothing is left (p = q), the target's."""

    def law(nodes: torch.Tensor) -> torch.Tensor:
        rows = p[nodes]
        if leftovers:
            branching, left = (torch.cat(parts) for parts in zip(*leftovers, strict=True))
            place = torch.full((tree.size + 1,), -1, device=p.device)
            place[branching] = torch.arange(len(branching), device=p.device)
            left = left[place[nodes]]  # a leaf takes any row, which is not used
            mass = left.sum(-1, keepdim=True) * (place[nodes, None] >= 0)
            rows = torch.where(mass > 0, left / mass, rows)
        return rows

    return law


def _per_node(tree: TokenTree, p: Rows) -> torch.Tensor:
    """Ones, float64 [n + 1]: a number for each node, and one place for children that do not
    exist."""
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
