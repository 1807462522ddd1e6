"""What a tree costs on a machine: the seconds of a target pass and of a draft pass, by width.

Curves are straight between measured widths; after the last width they keep its slope.
decoding/latency.py measures and stores them. drafting/tree_budget.py uses them to decide whether
more nodes or another level are worth their time.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property


@dataclass(frozen=True, kw_only=True)
class Costs:
    """widths rise from 1. target_seconds and draft_seconds: a pass over so many tokens, with its
    verification or drawing. step_seconds: the part of a step that does not depend on the tree
    (caches, bookkeeping; so short that `measure` writes 0)."""

    widths: tuple[int, ...]
    target_seconds: tuple[float, ...]
    draft_seconds: tuple[float, ...]
    step_seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.widths[:1] != (1,) or list(self.widths) != sorted(set(self.widths)):
            raise ValueError(f"widths {self.widths} do not rise from 1")
        for seconds in (self.target_seconds, self.draft_seconds):
            if len(seconds) != len(self.widths) or not all(0 < s < math.inf for s in seconds):
                raise ValueError(f"{seconds} are not the seconds of {len(self.widths)} widths")
        if not 0 <= self.step_seconds < math.inf:
            raise ValueError(f"step_seconds is {self.step_seconds}")

    def extended(self, other: Costs) -> Costs:
        """These curves, unchanged, and after their last width the other's, raised so that they do
        not fall."""
        more = [at for at, width in enumerate(other.widths) if width > self.widths[-1]]
        return replace(
            self,
            widths=self.widths + tuple(other.widths[at] for at in more),
            target_seconds=self.target_seconds
            + tuple(max(other.target_seconds[at], *self.target_seconds) for at in more),
            draft_seconds=self.draft_seconds
            + tuple(max(other.draft_seconds[at], *self.draft_seconds) for at in more),
        )

    def target(self, nodes: int) -> float:
        """Seconds of a target pass over a tree of `nodes` drafted nodes, with its verification."""
        return _at(self.widths, self._target_floor, nodes + 1)

    def draft(self, width: int) -> float:
        """Seconds of a draft pass over a level of `width` nodes, with the draw of its children."""
        return _at(self.widths, self._draft_floor, width)

    def step(self, nodes: int, passes: int) -> float:
        """Seconds of a whole step that drafted `nodes` nodes in `passes` passes."""
        width = max(1, round(nodes / passes)) if passes else 1
        return self.target(nodes) + passes * self.draft(width) + self.step_seconds

    @cached_property
    def _target_floor(self) -> list[float]:
        return _floor(self.target_seconds)

    @cached_property
    def _draft_floor(self) -> list[float]:
        return _floor(self.draft_seconds)


def _floor(seconds: Sequence[float]) -> list[float]:
    """The largest curve that never falls and is never above the measured one."""
    return [min(seconds[i:]) for i in range(len(seconds))]


def _at(xs: Sequence[float], ys: Sequence[float], x: float) -> float:
    """Linear between the points; the last slope continues after the end."""
    if len(xs) == 1:
        return ys[0]
    at = min(max(1, bisect.bisect_left(xs, x)), len(xs) - 1)
    return ys[at - 1] + (ys[at] - ys[at - 1]) * (x - xs[at - 1]) / (xs[at] - xs[at - 1])
