"""Drafting: growing a token tree level by level, static or dynamic.

One draft pass scores a whole level. Its nodes' children are then drawn, and a *shape* decides two things: how many
children each node may get, and which of all the slots drawn so far stay in the tree.

- `StaticShape`: the growmap says how many; everything drawn stays.
- `BestFirst`: under a budget of B nodes, the B slots of highest value stay. A slot's value is known before its token is
  drawn and never exceeds its parent's or its earlier sibling's, so keeping the B best of a wide frontier draws exactly the
  same law as growing the best slot one at a time until B are drawn; it only takes fewer draft passes. That a slot stays
  is thus decided by values alone, never by the token it turned out to have: the tree is properly drawn.

The draft keeps its cache across steps: rows of accepted nodes are committed, and the one or two newest tokens are read
at the start of the next step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from dynasurge import sampling
from dynasurge.growmap import Growmap
from dynasurge.policies import Policy
from dynasurge.tree import TokenTree

NO_DISTRIBUTION = torch.empty(0)


@dataclass(slots=True, kw_only=True)
class Slot:
    """One drawn node while the tree grows. `parent` is an index into the pool; `row` its number in the draft's pass."""

    token: int
    parent: int
    depth: int
    rank: int
    proposal: float
    point: bool
    slot_value: float
    node_value: float
    row: int | None = None
    q: torch.Tensor = field(default_factory=lambda: NO_DISTRIBUTION, repr=False)


class Shape(Protocol):
    """Decides how wide and how deep a tree grows.

    `max_nodes` and `max_depth` bound every tree it allows; `max_read` is how many nodes the draft reads for one at most,
    those included that lose their place to better ones deeper down.
    """

    max_nodes: int
    max_depth: int
    max_read: int

    def width(self, pool: Sequence[Slot], level: Sequence[int]) -> list[int]:
        """How many children each slot of this level may get."""
        ...

    def keep(self, pool: Sequence[Slot]) -> list[int]:
        """Which slots of the pool stay, in drawing order; the root (0) always does."""
        ...


class StaticShape:
    """The shape of a growmap. A node whose distribution runs out of tokens gets fewer children."""

    def __init__(self, growmap: Growmap) -> None:
        self._growmap = growmap
        self.max_nodes, self.max_depth = growmap.size - 1, growmap.depth
        self.max_read = self.max_nodes

    def width(self, pool: Sequence[Slot], level: Sequence[int]) -> list[int]:
        return [len(self._growmap.children[self._number(pool, index)]) for index in level]

    def keep(self, pool: Sequence[Slot]) -> list[int]:
        return list(range(len(pool)))

    def _number(self, pool: Sequence[Slot], index: int) -> int:
        """The growmap's number of a slot: the path of ranks that leads to it."""
        slot = pool[index]
        return self._growmap.children[self._number(pool, slot.parent)][slot.rank] if slot.parent >= 0 else 0


class BestFirst:
    """At most `budget` nodes, the slots of highest value; ties go to the slot drawn first."""

    def __init__(self, *, budget: int, max_depth: int, max_children: int) -> None:
        self.max_nodes, self.max_depth = budget, min(max_depth, budget)
        self.max_read = budget * (self.max_depth - 1)
        self._max_children = min(max_children, budget)

    def width(self, pool: Sequence[Slot], level: Sequence[int]) -> list[int]:
        return [self._max_children] * len(level)

    def keep(self, pool: Sequence[Slot]) -> list[int]:
        worth = [index for index in range(1, len(pool)) if pool[index].slot_value > 0]
        # sort() is stable: equal values keep drawing order, so a parent or an earlier sibling always goes first
        worth.sort(key=lambda index: -pool[index].slot_value)
        return [0, *sorted(worth[: self.max_nodes])]


class TreeEngine(Protocol):
    """What decoding needs of an engine (see engine.py); the exactness tests put tables of probabilities behind it."""

    @property
    def device(self) -> torch.device: ...
    @property
    def length(self) -> int: ...
    def extend(self, tokens: Sequence[int]) -> torch.Tensor: ...
    def forward(self, tokens: Sequence[int], parents: Sequence[int]) -> torch.Tensor: ...
    def commit(self, nodes: Sequence[int]) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A drawn tree and the distributions its children were drawn from: q[u] is float [V], empty at leaves."""

    tree: TokenTree
    q: list[torch.Tensor]
    rows: list[int | None]  # each node's number in the draft's pending pass; None where the draft has not read it


class Drafter:
    """Grows one tree a step and keeps the draft model's cache in step with the text."""

    def __init__(self, engine: TreeEngine, shape: Shape, policy: Policy, *, T: float, P: float) -> None:
        self._engine, self._shape, self._policy = engine, shape, policy
        self._T, self._P = T, P

    def read(self, text: Sequence[int]) -> None:
        """Read the prompt ahead of the first tree."""
        self._engine.extend(text)

    def grow(self, text: Sequence[int], generator: torch.Generator, max_depth: int) -> Draft:
        """Draft a tree that continues `text`, at most `max_depth` levels of it (at least one)."""
        pool = [_root(text[-1])]
        level, kept = [0], [0]
        q = self._probs(self._engine.extend(text[self._engine.length :])[None])
        for depth in range(1, min(max_depth, self._shape.max_depth) + 1):
            self._draw_children(pool, level, q, generator)
            kept = self._shape.keep(pool)
            level = [index for index in kept if pool[index].depth == depth and self._may_branch(pool, index)]
            if not level or depth == min(max_depth, self._shape.max_depth):
                break
            q = self._score(pool, level)
        return _assemble(pool, kept)

    def commit(self, draft: Draft, path: Sequence[int]) -> None:
        """Keep the cache rows of the accepted nodes that the draft has read; `extend` will read the rest."""
        rows = [draft.rows[node] for node in path]
        self._engine.commit([row for row in rows if row is not None])

    def _probs(self, logits: torch.Tensor) -> torch.Tensor:
        # At T = 0 any proposal is lossless, and the draft's own ranking of tokens is what point children need.
        return sampling.to_probs(logits, self._T or 1.0, self._P if self._T else 1.0)

    def _may_branch(self, pool: Sequence[Slot], index: int) -> bool:
        return self._shape.width(pool, [index])[0] > 0

    def _draw_children(
        self, pool: list[Slot], level: Sequence[int], q: torch.Tensor, generator: torch.Generator
    ) -> None:
        widths = self._shape.width(pool, level)
        for index, children in zip(level, self._policy(q, widths, generator), strict=True):
            parent = pool[index]
            parent.q = children.base
            worth = parent.slot_value
            for rank, token in enumerate(children.tokens):
                worth = min(worth, parent.node_value * children.slot[rank])  # never above parent or elder sibling
                pool.append(
                    Slot(
                        token=token,
                        parent=index,
                        depth=parent.depth + 1,
                        rank=rank,
                        proposal=children.proposal[rank],
                        point=children.point[rank],
                        slot_value=worth,
                        node_value=parent.node_value * children.node[rank],
                    )
                )

    def _score(self, pool: list[Slot], level: Sequence[int]) -> torch.Tensor:
        """Read a level with the draft. Returns its distributions [m, V]."""
        rows_read = sum(slot.row is not None for slot in pool)
        parents = []
        for offset, index in enumerate(level):
            slot = pool[index]
            slot.row = rows_read + offset
            row = pool[slot.parent].row
            parents.append(-1 if row is None else row)  # the root is part of the text
        return self._probs(self._engine.forward([pool[index].token for index in level], parents))


def _root(token: int) -> Slot:
    return Slot(token=token, parent=-1, depth=0, rank=0, proposal=1.0, point=True, slot_value=1.0, node_value=1.0)


def _assemble(pool: Sequence[Slot], kept: Sequence[int]) -> Draft:
    """Number the kept slots in drawing order."""
    number = {index: node for node, index in enumerate(kept)} | {-1: -1}
    slots = [pool[index] for index in kept]
    tree = TokenTree(
        tokens=tuple(s.token for s in slots),
        parents=tuple(number[s.parent] for s in slots),
        proposal=tuple(s.proposal for s in slots),
        point=tuple(s.point for s in slots),
    )
    return Draft(tree=tree, q=[s.q for s in slots], rows=[s.row for s in slots])
