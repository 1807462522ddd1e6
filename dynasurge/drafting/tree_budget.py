"""How large the next tree may be, and when drafting stops.

The number of nodes is chosen before the step, from the last trees of this prompt. It is the size n
with the most predicted tokens per second by the latency curve:

    (1 + values of the n best nodes) / (seconds of a target pass over n nodes + of as many draft passes as lately).

A level is drafted only if the predicted gain pays for a draft pass (its seconds at the rate above).
The predicted gain is the best slot value `lag` levels above, times what levels lately gained for
each unit of such a value, net of the nodes whose places they took. The first level is drafted
unless a step without a tree is faster. A second level without a level so far above it is decided by
the best node value of the last trees. So easy text gets deep trees and hard text shallow ones,
which an average depth would not do. Levels also end where no slot would have a place in the tree.

The lag is 1 where the host sees a level before it drafts the next. It is 2 where steps are
captured: there the host looks at one level while the device works on the next.

Only the best slot of a level decides, not the level's sum. A sum would break proper drawing: a slot
with a good token could cause further levels, other nodes' descendants in them could take its place,
and its place would depend on its own token. With the best slot, this cannot happen: if the
descendants of a slot decide for a level, the slot is worth more than all that follows, because no
slot is worth more than its parent (tests/drafting/test_growth.py tests both).

A captured pass over n nodes costs the same whether or not all of them exist, so the n best slots
stay. With a lag of 1 a pass is just as wide as its tree. There n is the size of an average tree: a
slot stays if it is worth more than what lies midway between the n-th and the next node of the
average tree. So a confident draft gets a larger tree.

Text is easy or hard for some sentences at a time, so memory is short. A rank that no recent tree
filled is expected to be worth a little less than the rank before it. If not even the first node
pays, steps without a draft pass follow, more and more of them, each time until the planner looks
again. Nothing here reads a clock: the same curve and seed give the same text. Past steps may always
be used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, zip_longest

from dynasurge.drafting.cost_model import Costs

START_DEPTH = 6  # levels of a prompt's first tree,
PRIOR = 2.0  # a first guess that counts as this many steps
FIRST = 0.65  # value of the best node of a tree, before the prompt teaches better
# First guess: a level is worth the best slot `lag` levels above it. It counts as so much slot value.
HOPE = 0.5
DOUBT = 0.5  # a rank without recent nodes gets the usual value; this guess counts as so many steps
MEMORY = 0.7  # the weight of past steps shrinks by this factor each step
SLACK = 0.5  # slots are proposed down to this share of the last step's least value
LONGEST_REST = 16  # steps without a draft pass


@dataclass(frozen=True, kw_only=True)
class Size:
    """At most `nodes` nodes in `depth` levels, each worth more than `worth`. A level exists only if
    the best slot `lag` levels above it is worth at least `least`. All are 0 for a step that drafts
    nothing."""

    nodes: int
    depth: int
    least: float = 0.0
    worth: float = 0.0

    def goes_on(self, best: float, ahead: float) -> bool:
        """Whether a level whose best slot is worth `best` gets a level `lag` levels below it.
        ahead: how many slots of earlier levels are at least as valuable."""
        return best > 0.0 and best >= self.least and ahead < self.nodes


@dataclass(kw_only=True)
class SizePlanner:
    """Chooses a tree size among `sizes` (the widths that passes have room for, rising; 0 if a step
    may draft nothing).

    A tree has at most `budget` nodes and max_depth levels. Without costs (None) the planner takes
    the largest size and stops where no slot would stay. `fixed` takes the largest size and the full
    depth.
    """

    sizes: Sequence[int]
    budget: int
    max_depth: int
    lag: int
    costs: Costs | None = None
    fixed: bool = False
    cut: float = 0.0  # what a slot must be worth to be proposed
    _worth: float = 0.0  # of the last tree's size
    _ranks: list[tuple[float, float]] = field(default_factory=list)  # by rank: steps, values
    _passes: tuple[float, float] = (0.0, 0.0)  # steps, draft passes
    _seconds: tuple[float, float] = (0.0, 0.0)  # draft passes, their seconds
    # sum of levels' best slot values, sum of what the slots `lag` levels below gained
    _below: tuple[float, float] = (0.0, 0.0)
    _taught: bool = False
    _rested: int = 0  # steps since the last draft pass
    _pause: int = 1  # steps without a draft pass before the planner looks again

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start a new prompt: forget what the last one taught."""
        price = self.costs.draft(1) if self.costs is not None else 0.0
        self._ranks, self._below = [(0.0, 0.0)] * max(self.sizes), (0.0, 0.0)
        self._passes, self._seconds = (PRIOR, PRIOR * START_DEPTH), (PRIOR, PRIOR * price)
        self.cut, self._worth, self._taught, self._rested, self._pause = 0.0, 0.0, False, 0, 1
        if self.costs is not None:
            self._predicted = self._predict(self.costs)

    def choose(self) -> Size:
        """The size of the next step's tree."""
        if self.fixed or self.costs is None:
            depth = self.max_depth
            if not self.fixed and not self._taught:
                depth = min(START_DEPTH, depth)
            return Size(nodes=self.sizes[-1], depth=depth, least=0.0 if self.fixed else self.cut)
        worth, rates, price = self._predicted
        nodes, depth = _best(rates), self.max_depth
        if not nodes:
            if self._rested < self._pause:
                return Size(nodes=0, depth=0)
            nodes = _best({n: rate for n, rate in rates.items() if n})  # look again
        if self.lag > 1 and worth[0] < price * rates[nodes]:
            depth = self.lag - 1
        best, below = self._below
        least = price * rates[nodes] * (best + HOPE) / (below + HOPE)
        if self.lag > 1:
            return Size(nodes=nodes, depth=depth, least=least)
        self._worth = sum([*worth, 0.0][nodes - 1 : nodes + 1]) / 2
        self.cut = max(self.cut, SLACK * self._worth)
        return Size(nodes=self.sizes[-1], depth=depth, least=least, worth=self._worth)

    def learn(
        self, size: Size, values: Sequence[float], levels: Sequence[int], widths: Sequence[int]
    ) -> None:
        """Learn from a grown tree: its slot values and levels (without the root; 0: no level of the
        draft), and the number of tokens that each draft pass read."""
        if not widths:
            self._rested += 1
            return
        passes = len(widths)
        full, least = len(values) == min(size.nodes, self.budget), min(values, default=0.0)
        # a tree that was not full needs more proposals
        self.cut = SLACK * (least if full else min(self.cut, least))
        ranked = sorted(values, reverse=True) + [0.0] * (size.nodes - len(values))
        best, sums = [0.0] * (passes + 1), [0.0] * (passes + 1)  # by level
        displaced = max(self._worth, least if full else 0.0)  # what a node takes the place of
        for value, level in zip(values, levels, strict=True):
            best[level] = max(best[level], value)
            sums[level] += value - displaced
        self._ranks = _remembered(self._ranks, [(1.0, value) for value in ranked])
        [self._passes] = _remembered([self._passes], [(1.0, float(passes))])
        below = (sum(best[1 : -self.lag]), sum(sums[1 + self.lag :]))
        [self._below] = _remembered([self._below], [below])
        if self.costs is not None:
            spent = sum(self.costs.draft(width) for width in widths)
            [self._seconds] = _remembered([self._seconds], [(float(passes), spent)])
            self._predicted = _, rates, price = self._predict(self.costs)
            hopeless = not _best(rates) and ranked[0] < price * rates[0]
            self._pause = min(2 * self._pause, LONGEST_REST) if hopeless else 1
        self._taught, self._rested = True, 0

    def _predict(self, costs: Costs) -> tuple[list[float], dict[int, float], float]:
        """The expected value of each node, the best first; tokens per second by size; the seconds
        of a draft pass."""
        worth = self._by_rank()
        tokens = list(accumulate(worth, initial=1.0))
        passes, seconds = self._seconds
        steps, drafted = self._passes
        price = seconds / passes
        drafting = price * drafted / steps
        rates = {
            n: tokens[n] / (costs.target(n) + costs.step_seconds + (drafting if n else 0.0))
            for n in self.sizes
        }
        return worth, rates, price

    def _by_rank(self) -> list[float]:
        """The expected value of each node, the best first. A rank with few steps leans to a
        harmonic series: there values fall as 1 / rank."""
        out: list[float] = []
        for rank, (steps, total) in enumerate(self._ranks):
            usual = out[-1] * rank / (rank + 1) if out else FIRST
            seen = (total + DOUBT * usual) / (steps + DOUBT)
            out.append(min(seen, out[-1]) if out else seen)
        return out


def _best(rates: Mapping[int, float]) -> int:
    return max(rates, key=rates.__getitem__)


def _remembered(
    sums: Sequence[tuple[float, float]], seen: Iterable[tuple[float, float]]
) -> list[tuple[float, float]]:
    """Add new pairs to fading sums of pairs, place by place."""
    pairs = zip_longest(sums, seen, fillvalue=(0.0, 0.0))
    return [(MEMORY * a + new_a, MEMORY * b + new_b) for (a, b), (new_a, new_b) in pairs]
