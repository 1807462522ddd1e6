"""The most that any lossless rule accepts of drawn trees, over all their levels: a linear programme.

The single-node bound (single_node_bound.py) looks at one node. A rule that looks at whole trees may do
worse than its product (what a node emits must leave the right law for the nodes below) or better (a
child that is refused makes room for another). This is the exact optimum, on vocabularies that can be
enumerated.

Trees S are drawn with probability w(S). Let A(S, x) be the probability that the path accepted in S
goes through its node x, A(S, root) = 1, and E(x) = sum over S of w(S) A(S, x). Here x stands for the
tokens from the root to the node; p(x) is the target's probability of them. A lossless rule obeys

    A(S, x) >= sum of A(S, y) over the children y of x in S         a path has one end
    E(xy) <= E(x) p(y | x)                                          the law of what is emitted

The second line: texts that begin with x reach it accepted, with mass E(x), or were ended before or at
x by a bonus token and completed by the target, with mass p(x) - E(x). Of the latter, the share
p(y | x) goes on to y, and the former add to it: p(xy) - E(xy) >= (p(x) - E(x)) p(y | x).

Both lines suffice: where the path ends at x, draw the bonus token in proportion to what is missing,
E(x) p(y | x) - E(xy), which sums to the mass of paths that end there. The mean accepted length is the
sum of E(x) over all x but the root. So its maximum under these lines is what the best rule reaches.
(That a rule on one path is an optimum of such a programme is in 2602.16961.)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import coo_array

from dynasurge.trees.token_tree import TokenTree
from dynasurge.verification.rules import tokens_to

Path = tuple[int, ...]
Drawn = Mapping[frozenset[Path], float]


def drawn_paths(trees: Iterable[tuple[float, TokenTree]]) -> Drawn:
    """Trees with their probabilities as sets of paths below the root. The order of siblings makes no
    difference to the optimum."""
    found: dict[frozenset[Path], float] = {}
    for weight, tree in trees:
        key = frozenset(tokens_to(tree, node) for node in range(1, tree.size + 1))
        found[key] = found.get(key, 0.0) + weight
    return found


def best_accepted(drawn: Drawn, p: Callable[[Path], Sequence[float]]) -> float:
    """The mean number of tokens that the best lossless rule accepts.

    drawn: probabilities of trees, from `drawn_paths`. p: the target's distribution after some
    tokens below the root. Raises RuntimeError if the programme cannot be solved.
    """
    lines: list[dict[int, float]] = []  # by variable; a line's sum is at most its limit
    limits: list[float] = []
    masses: dict[Path, dict[int, float]] = defaultdict(dict)  # E(x) by variable
    gain: list[float] = []
    for paths, weight in drawn.items():
        own = {path: len(gain) + at for at, path in enumerate(sorted(paths))}
        gain += [weight] * len(own)
        below: dict[Path, dict[int, float]] = defaultdict(dict)
        for path, number in own.items():
            masses[path][number] = weight
            below[path[:-1]][number] = 1.0
        for head, line in below.items():
            lines.append(line | ({own[head]: -1.0} if head else {}))
            limits.append(0.0 if head else 1.0)
    for path, mass in masses.items():
        head, share = path[:-1], float(p(path[:-1])[path[-1]])
        above = {number: -share * weight for number, weight in masses[head].items()} if head else {}
        lines.append(mass | above)
        limits.append(0.0 if head else share)
    entries = [(row, *entry) for row, line in enumerate(lines) for entry in line.items()]
    rows, columns, values = map(np.array, zip(*entries, strict=True))
    matrix = coo_array((values, (rows, columns)), shape=(len(lines), len(gain))).tocsr()
    solved = linprog(-np.array(gain), A_ub=matrix, b_ub=limits, bounds=(0.0, 1.0), method="highs")
    if not solved.success:
        raise RuntimeError(f"the programme of {len(gain)} nodes: {solved.message}")
    return -float(solved.fun)
