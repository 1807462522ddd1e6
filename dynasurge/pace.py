"""How large and how deep the next tree of a captured step may be: what shapes.py decides while growing, decided beforehand.

A captured step cannot ask how its tree is coming along, so the number of levels to draft and of nodes to keep is settled
before it, from this prompt's last trees: the size n and depth d that promise the most tokens per second,

    (1 + sum of what levels 1 .. d were worth * the share of it that the n best nodes had) / seconds of such a step,

by the latency curve. What a level is worth is kept as a share of the level above, in doubt the share that the level above
had of its own: so a level that was not drafted lately, or never, is expected to fall as those before it do now. (Kept as a
number of its own it would stay what it was when last drafted, perhaps in a harder part of the text, and never be drafted
again.) Likewise a node that was not kept lately is expected to be worth a little less than the one ahead of it. Texts are
easy or hard for some sentences at a time, so memory is short. Nothing here looks at a clock, so the same curve and seed
give the same text; and past steps may always be used.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, zip_longest

from dynasurge.costs import Costs
from dynasurge.shapes import SLACK

START_DEPTH = 6
FALL = 0.65  # before a prompt teaches better: a level is worth so much of the one above,
PRIOR = 2.0  # as so much of the level above would have it
DOUBT = 0.5  # what nothing was seen of lately is worth what is usual, as so many steps would have it
MEMORY = 0.7  # of the weight of a step in the next
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
    _levels: list[tuple[float, float]] = field(default_factory=list)  # by depth: what the level above was worth, and it
    _ranks: list[tuple[float, float]] = field(default_factory=list)  # by rank among a tree's nodes: likewise
    _recent: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """A new prompt begins."""
        self._levels = [(0.0, 0.0)] * self.max_depth
        self._ranks = [(0.0, 0.0)] * max(self.sizes)
        self._recent, self.cut = [min(START_DEPTH, self.max_depth) - 1], 0.0

    def choose(self) -> Size:
        """For the next step."""
        if self.fixed:
            return Size(nodes=self.sizes[-1], depth=self.max_depth)
        if self.costs is None:
            return Size(nodes=self.sizes[-1], depth=min(self.max_depth, 1 + max(self._recent)))
        best, chosen = 0.0, Size(nodes=self.sizes[0], depth=1)
        worth, levels = self._by_rank(), self._by_level()
        for nodes in self.sizes:
            share = sum(worth[:nodes]) / max(sum(worth), 1e-9)
            tokens, seconds = 1.0, self.costs.target(nodes) + self.costs.step_seconds
            for depth, level in enumerate(levels, start=1):
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
        self._ranks = _remembered(self._ranks, [(1.0, value) for value in ranked])
        self._levels = _remembered(self._levels, pairwise([1.0, *by_level]))

    def _by_level(self) -> list[float]:
        """What each level is worth, none more than the one above."""
        out, ratio = [1.0], FALL
        for parents, children in self._levels:
            ratio = min(1.0, (children + PRIOR * ratio) / (parents + PRIOR))
            out.append(out[-1] * ratio)
        return out[1:]

    def _by_rank(self) -> list[float]:
        """What each node is worth, the best first; in doubt by how sums of so many fall, as a harmonic series."""
        out: list[float] = []
        for rank, (steps, total) in enumerate(self._ranks):
            usual = out[-1] * rank / (rank + 1) if out else FALL
            seen = (total + DOUBT * usual) / (steps + DOUBT)
            out.append(min(seen, out[-1]) if out else seen)
        return out


def _remembered(sums: Sequence[tuple[float, float]], seen: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Pairs of sums that fade, with what was seen of the first of them."""
    pairs = zip_longest(sums, seen, fillvalue=(0.0, 0.0))
    return [(MEMORY * a + new_a, MEMORY * b + new_b) for (a, b), (new_a, new_b) in pairs]
