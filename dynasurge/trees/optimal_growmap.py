"""The best static tree for a measured acceptance vector, and its best size for a measured machine.

Suppose that the acceptance of a drafted node depends only on its sibling rank (and, if measured, on
its level): when the accepted path reaches a node, it goes on to the child of rank j with
probability `a[j]`. These outcomes exclude each other, so a vector sums to at most one; the rest is
the probability that the path ends there. A node then lies on the accepted path with the product of
the entries from the root down to it. The expected number of accepted tokens is the sum of these
products over all nodes (Sequoia, arXiv 2402.12374).

Dynamic programming finds the best tree. Let `below[m]` be the most that m nodes below a node of
some level can add, given that the path reaches that node. Let `rest_j[m]` be the same with only its
children of rank j and later:

    rest_j[m] = max(0,  max over i = 1..m of  a[j] * (1 + below_child[i - 1]) + rest_{j+1}[m - i]),      below = rest_0

where `below_child` is `below` one level down. Siblings are drawn in order, so rank j + 1 gets a
node only if rank j has one. On the deepest level `below` is 0, and the recursion climbs from there,
so each level may have its own vector. With k ranks, depth d and n nodes it takes d k n^2 additions:
hundredths of a second for n = 255 and k = d = 16. If no vector rises, adding the likeliest free
slot n times finds a tree of the same value. The tests compare the two, and compare the programme
with every small tree.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from dynasurge.errors import UsageError
from dynasurge.trees.growmap import Growmap

Acceptance = Sequence[float] | Sequence[Sequence[float]]
Latency = Mapping[int, float] | Callable[[int], float]
MAX_NODES, MAX_DEPTH = 1024, 64
ROUNDING = 0.01  # rounded entries may sum to a little more than one


@dataclass(frozen=True, kw_only=True)
class SizedGrowmap:
    """A growmap and its expected results on the machine that it was chosen for.

    expected_accepted: drafted tokens accepted a step. seconds: one step, draft passes and target
    pass. tokens_per_second: (expected_accepted + 1) / seconds.
    """

    growmap: Growmap
    expected_accepted: float
    seconds: float
    tokens_per_second: float


def optimal_growmap(acceptance: Acceptance, nodes: int, depth: int) -> Growmap:
    """The growmap with the highest expected accepted length, with at most `nodes` nodes (root not
    counted) on `depth` levels.

    acceptance: `a[j]`, the probability that the accepted path goes on to the child of rank j, given
    that it reaches the parent. Or a list of such vectors, one a level from the root's children
    down; the last is for all deeper levels. A node has at most as many children as its vector has
    entries, so the tree can be smaller than `nodes`. Nodes that add nothing are left out. Raises
    UsageError if a number is out of range or nothing is ever accepted.
    """
    _check_range("--nodes", nodes, MAX_NODES)
    _check_range("--depth", depth, MAX_DEPTH)
    return _tree(_programme(acceptance_levels(acceptance, min(depth, nodes)), nodes)[1], nodes)


def expected_accepted(growmap: Growmap, acceptance: Acceptance) -> float:
    """The mean number of drafted tokens that a step with this growmap accepts, if acceptance
    depends on rank and level only.

    A rank that the vector does not have counts as never accepted. Raises UsageError for a bad
    vector.
    """
    levels = acceptance_levels(acceptance, growmap.depth)
    reached = [1.0] + [0.0] * (growmap.size - 1)
    for u, children in enumerate(growmap.children):
        for child, chance in zip(
            children, levels[growmap.depths[u]] if children else (), strict=False
        ):
            reached[child] = reached[u] * float(chance)
    return sum(reached[1:])


def best_size(
    acceptance: Acceptance,
    latency: Latency,
    draft_time: float,
    *,
    max_nodes: int = 128,
    max_depth: int = 16,
) -> SizedGrowmap:
    """The optimal growmap of the size and depth that emit the most tokens per second.

    latency: seconds of a target pass by the number of its tokens, root included. A function, or
    measurements; these are interpolated linearly, and no larger tree is considered. draft_time:
    seconds of one draft pass, one a level. Maximises (expected accepted + 1) / (latency(nodes + 1)
    + depth * draft_time) over 1..max_nodes nodes and 1..max_depth levels. At least one node is
    drafted: compare `tokens_per_second` with 1 / latency(1) to see whether drafting pays. Raises
    UsageError if a number is out of range.
    """
    _check_range("max_nodes", max_nodes, MAX_NODES)
    _check_range("max_depth", max_depth, MAX_DEPTH)
    if not 0 <= draft_time < np.inf:
        raise UsageError("draft_time", draft_time, "not a duration", "give seconds, 0 or more")
    target = _pass_seconds(latency, max_nodes)
    nodes = len(target)
    fastest, tree = 0.0, Growmap(parents=(-1, 0))
    for depth in range(1, min(max_depth, nodes) + 1):
        below, splits = _programme(acceptance_levels(acceptance, depth), nodes)
        speeds = (below[1:] + 1) / (target + depth * draft_time)
        if speeds.max() > fastest:
            fastest, tree = float(speeds.max()), _tree(splits, int(speeds.argmax()) + 1)
    expected = expected_accepted(tree, acceptance)
    seconds = float(target[tree.size - 2]) + tree.depth * draft_time
    return SizedGrowmap(
        growmap=tree,
        expected_accepted=expected,
        seconds=seconds,
        tokens_per_second=(expected + 1) / seconds,
    )


def acceptance_levels(acceptance: Acceptance, depth: int) -> list[NDArray[np.float64]]:
    """One checked float64 vector a level, `depth` of them; the last given vector is repeated.
    Raises UsageError."""
    if len(acceptance) and isinstance(acceptance[0], Sequence | np.ndarray):
        rows = [
            _vector(row, f"vector {n} of {len(acceptance)} ")
            for n, row in enumerate(acceptance, start=1)
        ]
    else:
        rows = [_vector(acceptance, "")]
    if not rows[0].any():
        raise UsageError(
            "--acceptance",
            rows[0].tolist(),
            "nothing is ever accepted",
            "no tree helps: use --mode auto",
        )
    return [rows[min(level, len(rows) - 1)] for level in range(depth)]


def _vector(row: object, which: str) -> NDArray[np.float64]:
    try:
        vector = np.asarray(row, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        vector = np.zeros(0)
    if vector.ndim != 1 or not vector.size:
        reason = "is not a list of numbers"
    elif not ((vector >= 0) & (vector <= 1)).all():
        reason = "has an entry outside [0, 1]"
    elif vector.sum() > 1 + ROUNDING:
        reason = f"sums to {vector.sum():.4g}, but the path goes on to one child at most"
    else:
        return vector
    remedy = "entry j is P(the accepted path goes on to the child of rank j | it reaches the parent), as in 0.6,0.2,0.1"
    raise UsageError("--acceptance", reprlib.repr(row), f"{which}{reason}", remedy)


def _programme(
    levels: Sequence[NDArray[np.float64]], nodes: int
) -> tuple[NDArray[np.float64], list[list[NDArray[np.intp]]]]:
    """The recursion of the module's docstring.

    Returns below [nodes + 1]: the most that 0, 1, ... nodes below the root add. And
    splits[level][j] [nodes + 1]: of m nodes left for rank j and later, how many go to rank j and
    all below it (0: no more siblings).
    """
    below = np.zeros(nodes + 1)
    splits: list[list[NDArray[np.intp]]] = [[]]
    outside = np.full(nodes, -np.inf)
    for chances in reversed(levels):
        subtree = np.concatenate([[0.0], 1 + below[:-1]])
        rest, ranks = np.zeros(nodes + 1), []
        for chance in chances[nodes - 1 :: -1]:
            # others[m, i] = rest[m - i], -inf for i > m: a view, so a max-plus convolution is one
            # sum and one argmax
            others = sliding_window_view(np.concatenate([outside, rest]), nodes + 1)[:, ::-1]
            gain = others + chance * subtree
            gain[:, 0] = 0
            ranks.append(
                gain.argmax(axis=1)
            )  # the first of equals: a node that adds nothing is left out
            rest = gain.max(axis=1)
        splits.append(ranks[::-1])
        below = rest
    return below, splits[::-1]


def _tree(splits: Sequence[Sequence[NDArray[np.intp]]], nodes: int) -> Growmap:
    """Give out the nodes from the root down. A queue makes the numbering breadth first."""
    parents, queue = [-1], [(0, nodes)]
    for u, (level, left) in enumerate(queue):  # the queue grows during the loop
        for split in splits[level]:
            share = int(split[left])
            if share == 0:
                break
            parents.append(u)
            queue.append((level + 1, share - 1))
            left -= share
    return Growmap(parents=tuple(parents))


def _pass_seconds(latency: Latency, max_nodes: int) -> NDArray[np.float64]:
    """Seconds [n] of a target pass over the root and 1, 2, ... n nodes."""
    if isinstance(latency, Mapping):
        sizes = sorted(latency)
        if not sizes or sizes[-1] < 2:
            raise UsageError(
                "latency", dict(latency), "no pass of 2 tokens or more", "measure some tree sizes"
            )
        tokens = np.arange(2, min(max_nodes + 1, sizes[-1]) + 1)
        seconds = np.interp(tokens, sizes, [latency[size] for size in sizes])
    else:
        seconds = np.array(
            [latency(tokens) for tokens in range(2, max_nodes + 2)], dtype=np.float64
        )
    if not ((seconds > 0) & np.isfinite(seconds)).all():
        raise UsageError("latency", seconds.min(), "a pass takes time", "give seconds above 0")
    return seconds


def _check_range(name: str, value: int, most: int) -> None:
    if not 1 <= value <= most:
        raise UsageError(
            name, value, f"must lie in 1..{most}", f"use {name} {max(1, min(value, most))}"
        )
