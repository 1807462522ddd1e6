"""How large the next tree of a captured step may be, and when the host stops drafting it.

A captured step cannot look at its growing tree without a wait. So the number of nodes is chosen
before the step, from the last trees of this prompt. It is the size n with the most predicted tokens
per second by the latency curve:

    (1 + values of the n best nodes) / (seconds of a target pass over n nodes + of as many draft passes as lately).

The host launches levels one by one. It looks at one level while the device works on the next. It
drafts a level only if the predicted gain pays for a draft pass (its seconds at the rate above). The
predicted gain is the best slot value LAG levels above, times what levels lately gained for each
unit of such a value. Level LAG has no level so far above it: there the best node value of the last
trees decides. So easy text gets deep trees and hard text shallow ones, which an average depth
would not do.

Only the best slot of a level decides, not the level's sum. A sum would break proper drawing: a slot
with a good token could cause further levels, other nodes' descendants in them could take its place,
and its place would depend on its own token. With the best slot, this cannot happen: if the
descendants of a slot decide for a level, the slot is worth more than all that follows, because no
slot is worth more than its parent (tests/drafting/test_captured_tree.py tests both).

Text is easy or hard for some sentences at a time, so memory is short. A rank that no recent tree
filled is expected to be worth a little less than the rank before it. Nothing here reads a clock:
the same curve and seed give the same text. Past steps may always be used.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, zip_longest

from dynasurge.drafting.cost_model import Costs
from dynasurge.drafting.tree_budget import SLACK

LAG = 2  # levels between the one that the host looks at and the one that it decides on
START_DEPTH = 6  # levels of a prompt's first tree,
PRIOR = 2.0  # a guess that counts as this many steps
FIRST = 0.65  # value of the best node of a tree, before the prompt teaches better
# First guess: a level is worth the best slot LAG levels above it. It counts as so much slot value.
HOPE = 0.5
DOUBT = 0.5  # a rank without recent nodes gets the usual value; this guess counts as so many steps
MEMORY = 0.7  # the weight of past steps shrinks by this factor each step


@dataclass(frozen=True, kw_only=True)
class Size:
    """At most `nodes` nodes in `depth` levels. A level exists only if the best slot LAG levels
    above it is worth at least `least`."""

    nodes: int
    depth: int
    least: float = 0.0

    def goes_on(self, best: float) -> bool:
        """Whether a level whose best slot is worth `best` gets a level LAG levels below it."""
        return best >= self.least


@dataclass(kw_only=True)
class SizePlanner:
    """Chooses a tree size among `sizes` (the widths that passes have room for, rising).

    A tree has at most `budget` nodes and max_depth levels. Without costs (None) the planner takes
    the largest size and stops where no slot would stay. `fixed` takes the largest size and the full
    depth.
    """

    sizes: Sequence[int]
    budget: int
    max_depth: int
    costs: Costs | None = None
    fixed: bool = False
    cut: float = 0.0  # what a slot must be worth to be proposed
    _ranks: list[tuple[float, float]] = field(
        default_factory=list
    )  # by rank in a tree: steps, sum of values
    _passes: tuple[float, float] = (0.0, 0.0)  # steps, draft passes
    _below: tuple[float, float] = (
        0.0,
        0.0,
    )  # sum of levels' best slot values, sum of slot values LAG levels below
    _taught: bool = False

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start a new prompt: forget what the last one taught."""
        self._ranks, self._passes, self._below = (
            [(0.0, 0.0)] * max(self.sizes),
            (0.0, 0.0),
            (0.0, 0.0),
        )
        self.cut, self._taught = 0.0, False

    def choose(self) -> Size:
        """The size of the next step's tree."""
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
        price = costs.draft(1) * rates[nodes]  # in tokens
        depth = self.max_depth if worth[0] >= price else LAG - 1
        return Size(nodes=nodes, depth=depth, least=price * (best + HOPE) / (below + HOPE))

    def learn(
        self, size: Size, values: Sequence[float], depths: Sequence[int], passes: int
    ) -> None:
        """Learn from a grown tree: its slot values and depths (without the root), and its draft
        passes."""
        full, least = len(values) == min(size.nodes, self.budget), min(values, default=0.0)
        self.cut = SLACK * (
            least if full else min(self.cut, least)
        )  # a tree that was not full needs more proposals
        ranked = sorted(values, reverse=True) + [0.0] * (size.nodes - len(values))
        best, sums = [0.0] * passes, [0.0] * passes  # by level
        for value, depth in zip(values, depths, strict=True):
            best[depth - 1], sums[depth - 1] = max(best[depth - 1], value), sums[depth - 1] + value
        self._ranks = _remembered(self._ranks, [(1.0, value) for value in ranked])
        [self._passes] = _remembered([self._passes], [(1.0, float(passes))])
        [self._below] = _remembered([self._below], [(sum(best[:-LAG]), sum(sums[LAG:]))])
        self._taught = True

    def _by_rank(self) -> list[float]:
        """The expected value of each node, the best first. A rank with few steps leans to a
        harmonic series: there values fall as 1 / rank."""
        out: list[float] = []
        for rank, (steps, total) in enumerate(self._ranks):
            usual = out[-1] * rank / (rank + 1) if out else FIRST
            seen = (total + DOUBT * usual) / (steps + DOUBT)
            out.append(min(seen, out[-1]) if out else seen)
        return out


def _remembered(
    sums: Sequence[tuple[float, float]], seen: Iterable[tuple[float, float]]
) -> list[tuple[float, float]]:
    """Add new pairs to fading sums of pairs, place by place."""
    pairs = zip_longest(sums, seen, fillvalue=(0.0, 0.0))
    return [(MEMORY * a + new_a, MEMORY * b + new_b) for (a, b), (new_a, new_b) in pairs]
