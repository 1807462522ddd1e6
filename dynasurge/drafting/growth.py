"""Drafting: growing a token tree level by level, static or dynamic.

One draft pass scores a whole level. Then the children of its nodes are proposed. A *shape*
(drafting/tree_budget.py) decides how many children each node may get, which slots stay, and whether
another level is worth its pass. Slot values come from `Acceptance`
(drafting/acceptance_estimates.py), which learns from this prompt's steps.

Why may a shape drop slots? A slot's value is chosen before its token is drawn, and is never above
that of its parent or elder sibling. So keeping the B best slots of a wide frontier gives trees of
the same distribution as growing the best slot one at a time, in fewer passes. Only values decide
whether a slot stays, never its token: the tree is properly drawn (docs/verification.md).

The draft keeps its cache across steps. The rows of accepted nodes are committed. The next step
first reads the tokens that the draft has not read yet (the bonus token and the last level's).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch

from dynasurge import probabilities
from dynasurge.drafting.acceptance_estimates import Acceptance
from dynasurge.drafting.child_kinds import Class, Kind
from dynasurge.drafting.prompt_lookup import Lookup
from dynasurge.drafting.proposals import Child, Policy, Wish, copied
from dynasurge.drafting.tree_budget import NO_DISTRIBUTION, Shape, Slot
from dynasurge.probabilities import Chance
from dynasurge.trees.token_tree import TokenTree

FAR = 1 << 60  # tokens: no limit


class TreeEngine(Protocol):
    """What decoding needs of an engine (see models/engine.py). The exactness tests put tables of
    probabilities in its place."""

    @property
    def device(self) -> torch.device: ...
    @property
    def length(self) -> int: ...
    def extend(self, tokens: Sequence[int]) -> torch.Tensor: ...
    def forward(self, tokens: Sequence[int], parents: Sequence[int]) -> torch.Tensor: ...
    def commit(self, nodes: Sequence[int]) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A drawn tree and the distributions of its sampled children: q[u] is float [V], empty if node
    u has none.

    slots: the slot of each node; passes: the number of draft passes.
    """

    tree: TokenTree
    q: list[torch.Tensor]
    slots: list[Slot] = field(default_factory=list)
    passes: int = 0

    @property
    def confidence(self) -> float:
        """The mean draft probability of the first proposed child over the nodes; NaN without such a
        child."""
        own = [
            slot.x
            for slot in self.slots
            if slot.rank == 0 and slot.kind in (Kind.FIRST, Kind.POINT) and slot.depth
        ]
        return sum(own) / len(own) if own else math.nan


class Drafter:
    """Grows one tree a step. Keeps the draft's cache and the estimate of acceptance up to date with
    the text."""

    def __init__(
        self,
        engine: TreeEngine,
        shape: Shape,
        policy: Policy,
        acceptance: Acceptance,
        lookup: Lookup | None = None,
        *,
        T: float,
        P: float,
        readable: Callable[[int], int] = lambda prompt: FAR,
    ) -> None:
        """readable: maps the tokens of a prompt to the positions that the draft can read. After
        these, nothing is drafted; only copies are proposed."""
        self._readable, self._limit = readable, FAR
        self._engine, self._shape, self._policy = engine, shape, policy
        self._acceptance, self._lookup = acceptance, lookup
        self._T, self._P = T, P

    def start(self, text: Sequence[int]) -> None:
        """Forget the last prompt, and read the new tokens of this one (all but the last) before the
        first tree."""
        self._acceptance.reset()
        self._shape.reset()
        if self._lookup is not None:
            self._lookup.reset()
        self._limit = self._readable(len(text) + 1)
        if len(text) <= self._limit:
            read_on(self._engine, text)

    def grow(self, text: Sequence[int], chance: Chance, max_depth: int) -> Draft:
        """Draft a tree that continues `text`, with at most `max_depth` levels (at least one)."""
        if self._shape.rests():
            return bare(text[-1])
        pool = [_root(text[-1])]
        level, kept, passes = [0], [0], 0
        if self._lookup is not None:
            self._lookup.read(text)
        last = min(max_depth, self._shape.max_depth)
        drafted = min(last, self._limit - len(text) + 1)  # to draft a level, read the one above it
        if drafted > 0:
            q = probabilities.to_proposal(
                self._engine.extend(text[self._engine.length :])[None], self._T, self._P
            )
            passes = 1
        for depth in range(1, drafted + 1):
            self._propose(pool, level, q, chance)
            kept = self._shape.keep(pool)
            level = self._shape.expand(
                pool, kept, [index for index in kept if pool[index].depth == depth]
            )
            if not level or depth == drafted:
                break
            q = self._score(pool, level)
            passes += 1
        kept = self._copy(pool, kept, last)
        self._shape.grown(pool, kept, passes)
        return _assemble(pool, kept, passes)

    def learn(
        self, draft: Draft, path: Sequence[int], reach: Sequence[float], *, keep: bool = True
    ) -> None:
        """Commit the cache rows of the accepted path and observe every child.

        keep: False if the text does not continue with this path; then no row is committed.
        reach[u]: the probability that the rule accepts node u.
        """
        rows = [draft.slots[node].row for node in path] if keep else []
        self._engine.commit(
            [row for row in rows if row is not None]
        )  # a node that the draft has not read has no row
        teach(self._acceptance, draft, reach)
        self._shape.verified(len(path) + 1)

    def _propose(
        self, pool: list[Slot], level: Sequence[int], q: torch.Tensor, chance: Chance
    ) -> None:
        """Append every node's children to the pool, in drawing order, each with its values."""
        wishes = [self._wish(pool, index) for index in level]
        for index, children in zip(level, self._policy(q, wishes, chance), strict=True):
            pool[index].q = children.base
            self._append(pool, index, children.members)

    def _append(self, pool: list[Slot], index: int, children: Sequence[Child]) -> None:
        parent, estimate = pool[index], self._acceptance.estimate
        level = parent.depth + 1
        worth = [
            (child, estimate(Class.at(child.kind, level), child.x, child.own)) for child in children
        ]
        sampled = [entry for entry in worth if not entry[0].point]
        points = sorted(
            (entry for entry in worth if entry[0].point), key=lambda entry: entry[1], reverse=True
        )
        best_point = points[0][1] if points else 0.0
        cap, refused = parent.slot_value, 1.0
        for rank, (child, after) in enumerate([*sampled, *points]):
            before = after  # differs only for kinds whose own token carries information
            if child.kind.sequential:
                of = Class.at(child.kind, level)
                before = refused * estimate(of, child.x_before, child.own_before)
                after *= refused
                refused -= after
            elif child.kind is Kind.TAIL:
                if not self._shape.pays(parent.node_value * before):
                    continue  # the draft's mass decides alone, not the token
                before = max(
                    before, best_point
                )  # it is verified before the points, so it must stand before them
            cap = min(cap, parent.node_value * before)  # never above parent or elder sibling
            pool.append(
                Slot(
                    token=child.token,
                    parent=index,
                    depth=parent.depth + 1,
                    rank=rank,
                    proposal=child.proposal,
                    kind=child.kind,
                    x=child.x,
                    slot_value=cap,
                    node_value=parent.node_value * after,
                )
            )

    def _wish(self, pool: Sequence[Slot], index: int) -> Wish:
        """What the shape allows here, and what followed here earlier in the text."""
        wish = self._shape.wish(pool, index)
        found = self._lookup.find(_path(pool, index)) if self._lookup is not None else None
        return wish if found is None else replace(wish, copy=found[0], match=float(found[1]))

    def _copy(self, pool: list[Slot], kept: list[int], max_depth: int) -> list[int]:
        """Extend leaves by the tokens that followed them earlier in the text. These levels need no
        draft pass."""
        if self._lookup is None:
            return kept
        level = [index for index in kept if not pool[index].q.numel()]
        while level:
            before = len(pool)
            for index in level:
                found = (
                    self._lookup.find(_path(pool, index)) if pool[index].depth < max_depth else None
                )
                if found is not None:
                    self._append(pool, index, [copied(found[0], float(found[1]), None)])
            kept = self._shape.keep(pool)
            level = [index for index in kept if index >= before]
        return kept

    def _score(self, pool: list[Slot], level: Sequence[int]) -> torch.Tensor:
        """Read a level with the draft. Returns its distributions [m, V]."""
        rows_read = sum(slot.row is not None for slot in pool)
        parents = []
        for offset, index in enumerate(level):
            slot = pool[index]
            slot.row = rows_read + offset
            row = pool[slot.parent].row
            parents.append(-1 if row is None else row)  # the root is part of the text
        logits = self._engine.forward([pool[index].token for index in level], parents)
        return probabilities.to_proposal(logits, self._T, self._P)


def teach(acceptance: Acceptance, draft: Draft, reach: Sequence[float]) -> None:
    """Let the estimate observe every child of a verified tree."""
    for children in draft.tree.children:
        refused = 1.0
        for child in children:
            slot, tried = draft.slots[child], reach[draft.tree.parents[child]]
            if slot.kind.sequential:  # their estimates hold given that elder siblings are refused
                tried, refused = (
                    tried * refused,
                    refused - (reach[child] / tried if tried > 0 else 0.0),
                )
            of = Class.at(slot.kind, slot.depth)
            acceptance.observe(of, slot.x, max(0.0, tried), reach[child])


def read_on(engine: TreeEngine, text: Sequence[int]) -> None:
    """Read the new tokens of a text; the engine has read its beginning."""
    if len(text) > engine.length:
        engine.extend(text[engine.length :])


def bare(token: int) -> Draft:
    """A draft of the root alone."""
    return Draft(tree=TokenTree.root(token), q=[NO_DISTRIBUTION])


def _root(token: int) -> Slot:
    return Slot(
        token=token,
        parent=-1,
        depth=0,
        rank=0,
        proposal=1.0,
        kind=Kind.POINT,
        x=1.0,
        slot_value=1.0,
        node_value=1.0,
    )


def _path(pool: Sequence[Slot], index: int) -> list[int]:
    """The drafted tokens that lead to a slot, its own included."""
    path: list[int] = []
    while index > 0:
        path.append(pool[index].token)
        index = pool[index].parent
    return path[::-1]


def _assemble(pool: Sequence[Slot], kept: Sequence[int], passes: int) -> Draft:
    """Number the kept slots in drawing order."""
    number = {index: node for node, index in enumerate(kept)} | {-1: -1}
    slots = [pool[index] for index in kept]
    tree = TokenTree(
        tokens=tuple(s.token for s in slots),
        parents=tuple(number[s.parent] for s in slots),
        proposal=tuple(s.proposal for s in slots),
        point=tuple(s.point for s in slots),
        value=tuple(s.slot_value for s in slots),
    )
    return Draft(tree=tree, q=[s.q for s in slots], slots=slots, passes=passes)
