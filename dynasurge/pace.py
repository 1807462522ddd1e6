"""How large and how deep the next tree of a captured step may be: what shapes.py decides while growing, decided beforehand.

A captured step cannot ask how its tree is coming along, so the number of levels to draft and of nodes to keep is settled
before it, from this prompt's last trees: the size n and depth d that promise the most tokens per second,

    (1 + sum of what levels 1 .. d were worth * the share of it that the n best nodes had) / seconds of such a step,

by the latency curve. Levels deeper than the last trees had are expected to go on falling as the last ones did, nodes
beyond the last ones to be worth what the least of them was, ever less. Nothing here looks at a clock, so the same curve
and seed give the same text; and past steps may always be used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from dynasurge.latency import Costs
from dynasurge.shapes import SLACK

START_DEPTH = 6
FALL = 0.65  # before a prompt teaches better: a level is worth so much of the one above,
PRIOR = 2.0  # as so many steps would have it
MEMORY = 0.9  # of the weight of a step in the next
LOOK_BACK = 4  # steps whose depth a tree that is always filled goes by


@dataclass(frozen=True, kw_only=True)
class Size:
    """At most so many nodes, in so many levels."""

    nodes: int
    depth: int


@dataclass(kw_only=True)
class Pace:
    """Chooses among `sizes` (what passes have room for, rising; a tree has at most `budget` nodes) and 1 .. max_depth
    levels. costs: None always takes the largest size, and one level more than recent trees made use of; `fixed` takes the
    largest of both."""

    sizes: Sequence[int]
    budget: int
    max_depth: int
    costs: Costs | None = None
    fixed: bool = False
    cut: float = 0.0  # what a slot must be worth to be proposed
    _levels: list[tuple[float, float]] = field(default_factory=list)  # by depth: steps, and what they were worth
    _ranks: list[tuple[float, float]] = field(default_factory=list)  # by rank among a tree's nodes: likewise
    _recent: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """A new prompt begins."""
        self._levels = [(PRIOR, PRIOR * FALL ** (depth + 1)) for depth in range(self.max_depth)]
        self._ranks = [(PRIOR, PRIOR * FALL / (rank + 1)) for rank in range(max(self.sizes))]
        self._recent, self.cut = [min(START_DEPTH, self.max_depth) - 1], 0.0

    def choose(self) -> Size:
        """For the next step."""
        if self.fixed:
            return Size(nodes=self.sizes[-1], depth=self.max_depth)
        if self.costs is None:
            return Size(nodes=self.sizes[-1], depth=min(self.max_depth, 1 + max(self._recent)))
        best, chosen = 0.0, Size(nodes=self.sizes[0], depth=1)
        worth = self._by_rank()
        for nodes in self.sizes:
            share = sum(worth[:nodes]) / max(sum(worth), 1e-9)
            tokens, seconds = 1.0, self.costs.target(nodes) + self.costs.step_seconds
            for depth, level in enumerate(self._by_level(), start=1):
                tokens, seconds = tokens + share * level, seconds + self.costs.draft(1)
                if depth <= nodes and tokens / seconds > best:
                    best, chosen = tokens / seconds, Size(nodes=nodes, depth=depth)
        return chosen

    def learn(self, size: Size, values: Sequence[float], depths: Sequence[int]) -> None:
        """A tree of this size had nodes of these slot values at these depths (the root left out)."""
        full, least = len(values) == min(size.nodes, self.budget), min(values, default=0.0)
        self.cut = SLACK * (least if full else min(self.cut, least))  # one that was not filled must be offered more
        self._recent = [*self._recent[1 - LOOK_BACK :], max(depths, default=0)]
        by_level = [0.0] * size.depth
        for value, depth in zip(values, depths, strict=True):
            by_level[depth - 1] += value
        ranked = sorted(values, reverse=True) + [0.0] * (size.nodes - len(values))
        for sums, found in ((self._levels, by_level), (self._ranks, ranked)):
            for at, value in enumerate(found):
                steps, total = sums[at]
                sums[at] = MEMORY * steps + 1.0, MEMORY * total + value

    def _by_level(self) -> list[float]:
        """What each level is worth, none more than the one above."""
        out: list[float] = []
        for depth, (steps, total) in enumerate(self._levels):
            seen = total / steps
            if depth > 1 and steps <= PRIOR:  # never drafted: as the last ones fell
                seen = out[-1] * min(0.95, out[-1] / max(out[-2], 1e-9))
            out.append(min(seen, out[-1]) if out else seen)
        return out

    def _by_rank(self) -> list[float]:
        out: list[float] = []
        for rank, (steps, total) in enumerate(self._ranks):
            seen = total / steps
            if rank > 1 and steps <= PRIOR:
                seen = out[-1] * rank / (rank + 1)
            out.append(min(seen, out[-1]) if out else seen)
        return out
