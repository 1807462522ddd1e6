"""How large the next tree of a captured step may be, and when to stop drafting it.

A captured step cannot ask how its tree is coming along without waiting, so the number of nodes to
keep is settled before it, from this prompt's last trees: the size n that promises the most tokens
per second by the latency curve,

    (1 + what the n best nodes were worth) / (seconds of a target pass over n nodes + of as many draft passes as lately).

Levels are launched one by one, though, so the host can look at one level while the device is at
work on the next. A level is drafted if it promises to be worth a draft pass, its seconds at that
rate: by the most valuable slot LAG levels above, times what levels were lately worth for each such
slot's token. (Level LAG has none above it: it goes by what the best node of a tree was lately
worth.) Where the text is easy the draft runs on, where it is hard it stops early; an average depth
would do neither.

The best slot alone decides, not what a whole level is worth. Were it the sum, a slot whose token
came out well could bring about levels in which other nodes' descendants take its own place in the
tree, and whether it stays would depend on its token. As it is, a slot whose descendants tipped the
scale is worth more than all that follows, for a slot is never worth more than its parent
(tests/drafting/test_captured_tree.py has both).

Texts are easy or hard for some sentences at a time, so memory is short. A node that was not kept
lately is expected to be worth a little less than the one ahead of it. Nothing here looks at a
clock, so the same curve and seed give the same text; and past steps may always be used.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, zip_longest

from dynasurge.drafting.cost_model import Costs
from dynasurge.drafting.tree_budget import SLACK

LAG = 2  # levels from the one that is looked at to the one that is decided on
START_DEPTH = 6  # levels, before a prompt teaches better,
PRIOR = 2.0  # as so many steps would have it
FIRST = 0.65  # what the best node of a tree is worth, before a prompt teaches better
# a level is worth the best slot LAG levels above it, in doubt, as so much worth of slots would have
# it
HOPE = 0.5
DOUBT = (
    0.5  # what nothing was seen of lately is worth what is usual, as so many steps would have it
)
MEMORY = 0.7  # of the weight of a step in the next


@dataclass(frozen=True, kw_only=True)
class Size:
    """At most so many nodes, in so many levels; none LAG levels below one without a slot that is
    worth `least`."""

    nodes: int
    depth: int
    least: float = 0.0

    def goes_on(self, best: float) -> bool:
        """Whether there will be a level LAG levels below one whose best slot is worth that."""
        return best >= self.least


@dataclass(kw_only=True)
class SizePlanner:
    """Chooses among `sizes` (what passes have room for, rising; a tree has at most `budget` nodes),
    for at most max_depth levels. costs: None always takes the largest size, and stops where nothing
    would stay; `fixed` takes the largest of both."""

    sizes: Sequence[int]
    budget: int
    max_depth: int
    costs: Costs | None = None
    fixed: bool = False
    cut: float = 0.0  # what a slot must be worth to be proposed
    _ranks: list[tuple[float, float]] = field(
        default_factory=list
    )  # by rank in a tree: steps, its worth
    _passes: tuple[float, float] = (0.0, 0.0)  # steps, draft passes
    _below: tuple[float, float] = (
        0.0,
        0.0,
    )  # what levels' best slots were worth, and the levels LAG below them
    _taught: bool = False

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """A new prompt begins."""
        self._ranks, self._passes, self._below = (
            [(0.0, 0.0)] * max(self.sizes),
            (0.0, 0.0),
            (0.0, 0.0),
        )
        self.cut, self._taught = 0.0, False

    def choose(self) -> Size:
        """For the next step."""
        if self.fixed:
            return Size(nodes=self.sizes[-1], depth=self.max_depth)
        if self.costs is None:
            depth = self.max_depth if self._taught else min(START_DEPTH, self.max_depth)
            return Size(nodes=self.sizes[-1], depth=depth, least=self.cut)
        costs, worth = self.costs, self._by_rank()
        tokens = list(accumulate(worth, initial=1.0))
        steps, passes = self._passes
        drafting = costs.draft(1) * (passes + PRIOR * START_DEPTH) / (steps + PRIOR)
        rates = {
            n: tokens[n] / (costs.target(n) + costs.step_seconds + drafting) for n in self.sizes
        }
        nodes = max(self.sizes, key=rates.__getitem__)
        best, below = self._below
        price = costs.draft(1) * rates[nodes]  # tokens
        depth = self.max_depth if worth[0] >= price else LAG - 1
        return Size(nodes=nodes, depth=depth, least=price * (best + HOPE) / (below + HOPE))

    def learn(
        self, size: Size, values: Sequence[float], depths: Sequence[int], passes: int
    ) -> None:
        """A tree of this size had nodes of these slot values at these depths (the root left out),
        after so many draft passes."""
        full, least = len(values) == min(size.nodes, self.budget), min(values, default=0.0)
        self.cut = SLACK * (
            least if full else min(self.cut, least)
        )  # one that was not filled must be offered more
        ranked = sorted(values, reverse=True) + [0.0] * (size.nodes - len(values))
        best, sums = [0.0] * passes, [0.0] * passes  # by level
        for value, depth in zip(values, depths, strict=True):
            best[depth - 1], sums[depth - 1] = max(best[depth - 1], value), sums[depth - 1] + value
        self._ranks = _remembered(self._ranks, [(1.0, value) for value in ranked])
        [self._passes] = _remembered([self._passes], [(1.0, float(passes))])
        [self._below] = _remembered([self._below], [(sum(best[:-LAG]), sum(sums[LAG:]))])
        self._taught = True

    def _by_rank(self) -> list[float]:
        """What each node is worth, the best first; in doubt by how sums of so many fall, as a
        harmonic series."""
        out: list[float] = []
        for rank, (steps, total) in enumerate(self._ranks):
            usual = out[-1] * rank / (rank + 1) if out else FIRST
            seen = (total + DOUBT * usual) / (steps + DOUBT)
            out.append(min(seen, out[-1]) if out else seen)
        return out


def _remembered(
    sums: Sequence[tuple[float, float]], seen: Iterable[tuple[float, float]]
) -> list[tuple[float, float]]:
    """Pairs of sums that fade, with what was seen of the first of them."""
    pairs = zip_longest(sums, seen, fillvalue=(0.0, 0.0))
    return [(MEMORY * a + new_a, MEMORY * b + new_b) for (a, b), (new_a, new_b) in pairs]
