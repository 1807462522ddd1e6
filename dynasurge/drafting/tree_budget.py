"""Shapes: how wide and how deep a tree grows, and when it stops.

- `StaticShape`: the growmap gives each node's number of children; everything drawn stays.
- `BestFirst`: a dynamic tree. The `budget` most valuable of all slots proposed so far stay.
- `Thrifty`: a dynamic tree. The budget is only a maximum. An accepted token is worth the time that
  decoding takes for one token. So before every step it chooses, from the slot values of this
  prompt's last trees, the size n of the average tree that uses its time best,

      max over n of (sum of the n best slot values) - (tokens per second so far) * (seconds of a target pass over n nodes).

  It then keeps every slot whose value is above the cut, midway between the n-th and the next value.
  So a confident draft gets a larger tree. It drafts a level only if the expected gain pays for the
  draft pass. Seconds come from the latency curve (decoding/latency.py), not from a clock,
  so the same seed gives the same text.

A dynamic tree is properly drawn only if no slot's place depends on its own token, not even through
what is drawn after it. BestFirst may let later levels push slots out, because every slot below a
slot is worth less. Thrifty looks at the tokens of a whole level before it pays for a draft pass. So
there every kept level is final.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from dynasurge.drafting.child_kinds import Kind
from dynasurge.drafting.cost_model import Costs
from dynasurge.drafting.proposals import Wish
from dynasurge.trees.growmap import Growmap

NO_DISTRIBUTION = torch.empty(0)  # of a node that the draft has not read
SLACK = 0.5  # slots are proposed down to this share of the last step's cut
# First guesses, before a prompt teaches better: the r-th best slot of a tree is worth TYPICAL / r.
TYPICAL = 0.6
# For each unit of value in the nodes above it, a level gains this much, net of its nodes' price.
GROWTH = 0.35
STEPS = 2.0  # these guesses count as so many steps
LONGEST_REST = 16  # steps without a draft pass
LATER_CHILD = 0.5  # about right for sampled children; the j-th likeliest token has at most 1 / j


@dataclass(slots=True, kw_only=True)
class Slot:
    """One proposed node while the tree grows. `parent` is an index into the pool. `row` is its
    number among the nodes that the draft read in this step (None: not read)."""

    token: int
    parent: int
    depth: int
    rank: int
    proposal: float
    kind: Kind
    x: float
    slot_value: float
    node_value: float
    row: int | None = None
    q: torch.Tensor = field(default=NO_DISTRIBUTION, repr=False)

    @property
    def point(self) -> bool:
        """Whether the token was chosen without a draw."""
        return self.kind.point


class Shape(Protocol):
    """Decides how a tree grows.

    `max_nodes` and `max_depth` bound every tree. `max_read` bounds the nodes that the draft reads
    for one tree, including those that later lose their place to better, deeper ones.
    """

    max_nodes: int
    max_depth: int
    max_read: int

    def reset(self) -> None:
        """Start a new prompt."""

    def rests(self) -> bool:
        """Whether this step drafts nothing. The drafter calls it once, at the start of a step."""
        return False

    def wish(self, pool: Sequence[Slot], index: int) -> Wish:
        """How many children this slot may get."""
        ...

    def pays(self, value: float) -> bool:
        """Whether a slot of this value is worth proposing."""
        ...

    def keep(self, pool: Sequence[Slot]) -> list[int]:
        """Which slots of the pool stay, in drawing order; the root (0) always stays."""
        ...

    def expand(self, pool: Sequence[Slot], kept: Sequence[int], level: Sequence[int]) -> list[int]:
        """Which slots of the newest level get children; an empty list ends the growth."""
        ...

    def grown(self, pool: Sequence[Slot], kept: Sequence[int], passes: int) -> None:
        """The tree is complete."""

    def verified(self, emitted: int) -> None:
        """The step emitted so many tokens, the bonus token included."""


class StaticShape:
    """The shape of a growmap. A node whose distribution runs out of tokens gets fewer children."""

    def __init__(self, growmap: Growmap) -> None:
        self._growmap = growmap
        self.max_nodes = self.max_read = growmap.size - 1
        self.max_depth = growmap.depth

    def reset(self) -> None: ...

    def rests(self) -> bool:
        return False

    def wish(self, pool: Sequence[Slot], index: int) -> Wish:
        return Wish(k=len(self._growmap.children[self._number(pool, index)]))

    def pays(self, value: float) -> bool:
        return True

    def keep(self, pool: Sequence[Slot]) -> list[int]:
        return list(range(len(pool)))

    def expand(self, pool: Sequence[Slot], kept: Sequence[int], level: Sequence[int]) -> list[int]:
        return [index for index in level if self.wish(pool, index).k > 0]

    def grown(self, pool: Sequence[Slot], kept: Sequence[int], passes: int) -> None: ...

    def verified(self, emitted: int) -> None: ...

    def _number(self, pool: Sequence[Slot], index: int) -> int:
        """The growmap's number of a slot: the path of ranks that leads to it."""
        slot = pool[index]
        return (
            self._growmap.children[self._number(pool, slot.parent)][slot.rank]
            if slot.parent >= 0
            else 0
        )


class BestFirst:
    """The `budget` slots of highest value; ties go to the slot proposed first."""

    def __init__(
        self, *, budget: int, max_depth: int, max_children: int, later_child: float = LATER_CHILD
    ) -> None:
        """later_child: the j-th child of a node is rarely accepted more often than later_child / j.
        The shape proposes no more children than this allows."""
        self._later_child = later_child
        self.max_nodes, self.max_depth = budget, min(max_depth, budget)
        self.max_read = budget * (self.max_depth - 1)
        self._max_children = min(max_children, budget)
        self.reset()

    def reset(self) -> None:
        self._cut = 0.0  # the last step kept no slot below this value

    def rests(self) -> bool:
        return False

    def wish(self, pool: Sequence[Slot], index: int) -> Wish:
        value, cut = pool[index].node_value, SLACK * self._cut
        if cut <= 0 or value <= 0:
            return Wish(k=self._max_children if value > 0 else 0)
        return Wish(
            k=min(self._max_children, 1 + int(self._later_child * value / cut)), floor=cut / value
        )

    def pays(self, value: float) -> bool:
        return value >= SLACK * self._cut

    def keep(self, pool: Sequence[Slot]) -> list[int]:
        return [0, *sorted(_by_value(pool, 1)[: self.max_nodes])]

    def expand(self, pool: Sequence[Slot], kept: Sequence[int], level: Sequence[int]) -> list[int]:
        # New slots push the least valuable ones out of a full tree. A node that could not have such
        # a child needs no draft pass.
        price = min(pool[index].slot_value for index in kept) if len(kept) > self.max_nodes else 0.0
        return [index for index in level if pool[index].node_value > price]

    def grown(self, pool: Sequence[Slot], kept: Sequence[int], passes: int) -> None:
        lowest = min((pool[index].slot_value for index in kept[1:]), default=0.0)
        # A tree that was not full needs more proposals next time.
        self._cut = lowest if len(kept) > self.max_nodes else SLACK * min(self._cut, lowest)

    def verified(self, emitted: int) -> None: ...


class Thrifty(BestFirst):
    """At most `budget` nodes, and only nodes that pay for their time. A kept level is final."""

    def __init__(
        self,
        *,
        budget: int,
        max_depth: int,
        max_children: int,
        costs: Costs,
        later_child: float = LATER_CHILD,
    ) -> None:
        self._costs = costs
        self._target = [costs.target(nodes) for nodes in range(budget + 1)]
        self._final, self._seen = (
            [0],
            1,
        )  # the slots that stay so far, and how much of the pool was considered
        self._expanded = 1.0  # sum of the values of the nodes above the newest level
        super().__init__(
            budget=budget, max_depth=max_depth, max_children=max_children, later_child=later_child
        )

    def reset(self) -> None:
        super().reset()
        self._worth = [
            STEPS * TYPICAL / rank for rank in range(1, self.max_nodes + 1)
        ]  # sums over steps, by rank
        guesses = [
            (1.0 + sum(self._worth[:n]) / STEPS, self._costs.step(n, n.bit_length()))
            for n in range(len(self._worth))
        ]
        tokens, seconds = max(guesses, key=lambda guess: guess[0] / guess[1])
        self._steps, self._tokens, self._seconds = STEPS, STEPS * tokens, STEPS * seconds
        self._above, self._gained = STEPS, STEPS * GROWTH
        self._nodes = self._passes = self._rest = 0
        self._grew, self._pause = False, 1
        self._begin()

    @property
    def rate(self) -> float:
        """Tokens per second so far by the latency curve."""
        return self._tokens / self._seconds

    def rests(self) -> bool:
        self._nodes = self._passes = 0
        self._grew = False
        self._rest -= 1
        return self._rest >= 0

    def keep(self, pool: Sequence[Slot]) -> list[int]:
        new = [index for index in _by_value(pool, self._seen) if pool[index].slot_value > self._cut]
        self._final += new[: self.max_nodes + 1 - len(self._final)]
        self._seen = len(pool)
        return sorted(self._final)

    def expand(self, pool: Sequence[Slot], kept: Sequence[int], level: Sequence[int]) -> list[int]:
        if self._expanded:
            self._above += self._expanded
            self._gained += sum(pool[index].slot_value - self._cut for index in level)
        level = (
            [index for index in level if pool[index].node_value > self._cut]
            if len(kept) <= self.max_nodes
            else []
        )
        self._expanded = sum(pool[index].node_value for index in level)
        gain = self._expanded * self._gained / self._above
        return level if level and gain > self.rate * self._costs.draft(len(level)) else []

    def grown(self, pool: Sequence[Slot], kept: Sequence[int], passes: int) -> None:
        self._nodes, self._passes, self._grew = len(kept) - 1, passes, True
        for rank, index in enumerate(_by_value(pool, 1)[: self.max_nodes]):
            self._worth[rank] += pool[index].slot_value

    def verified(self, emitted: int) -> None:
        self._tokens += emitted
        self._seconds += self._costs.step(self._nodes, self._passes)
        if self._grew:
            self._steps += 1.0
            self._begin()
            pays = self._cut < 1.0
            self._rest, self._pause = (
                (0, 1) if pays else (self._pause, min(2 * self._pause, LONGEST_REST))
            )

    def _begin(self) -> None:
        """Choose, before a step, the value that its slots must exceed."""
        self._final, self._seen, self._expanded = [0], 1, 1.0
        net, best, size = 0.0, 0.0, 0
        for n, worth in enumerate(self._worth, start=1):
            net += worth / self._steps - self.rate * (self._target[n] - self._target[n - 1])
            best, size = max((best, size), (net, n))
        beyond = self._worth[size] if size < self.max_nodes else 0.0
        self._cut = (self._worth[size - 1] + beyond) / 2 / self._steps if size else 1.0


def _by_value(pool: Sequence[Slot], start: int) -> list[int]:
    """Slots from number `start` on with a value above 0, best first."""
    # sort() is stable: equal values keep drawing order: a parent or earlier sibling goes first
    return sorted(
        (index for index in range(start, len(pool)) if pool[index].slot_value > 0),
        key=lambda i: -pool[i].slot_value,
    )
