"""Drafting: a token tree that grows level by level, in tensors.

One draft pass reads the most valuable nodes of a level. Then their children are proposed
(drafting/proposals.py) and valued (drafting/slot_values.py). At the end the most valuable slots
stay. A level is a few tensor operations:

    row     a node that the draft reads: 0 is the root, then the most valuable nodes of each level
    slot    a proposed node: 0 is the root, then `children` slots a row, in drawing order
    node    a slot that stays: the root and the n best slots, numbered in drawing order

A row may have fewer children than slots. A missing one has value 0 and never stays. Slots, rows and
nodes each have one more place, which means "none". After the last level, runs of copies may follow
(drafting/runs.py). Each of their nodes has a row for its parent, which the draft does not read.

**Exact or padded.** A step that is captured (decoding/executors.py) replays tensors of fixed shape:
every level has `width` rows, whether or not so many nodes are worth reading. A step that runs
directly has exactly the rows that can matter: it leaves out nodes that have no place in the tree,
or whose children could have none. Both grow the same tree, with the same random numbers: a row has
those of its rank in the level.

**Why may slots be dropped?** A slot's value is chosen before its token is drawn, and is never above
that of its parent or elder sibling. So keeping the n best slots of a wide frontier gives trees of
the same distribution as growing the best slot one at a time, in fewer passes. Only values decide
whether a slot stays, never its token: the tree is properly drawn (docs/concepts/verification.md).

For the same reason only slot values decide which slots the draft reads next, never a value that
knows the slot's own token. Otherwise a token could push another slot out of the frontier. That slot
would then have no descendants, so its own slot would have fewer rivals, and its place would depend
on its token (tests/drafting/test_growth.py shows the bias).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from dynasurge.drafting.child_kinds import Kind, depth_class
from dynasurge.drafting.prompt_lookup import CONTEXT, find_copies
from dynasurge.drafting.proposals import Copies, Limits, Policy, weighed, without
from dynasurge.drafting.slot_values import limits, shaped, valued
from dynasurge.models.cuda_graphs import fused
from dynasurge.probabilities import Chance

RUNS = 2  # runs of copies in a tree
FRONTIER = 32  # the most nodes of a level that the draft reads in one pass
PARENT = 3.0  # a node with less than so many times the least value of a slot has no children
COMPARED = 4096  # slots that are ordered by comparing all with all,
MATERIALISED = 1024  # ... if torch.compile does not fuse the comparisons


@dataclass(frozen=True, kw_only=True)
class TreeBounds:
    """How large a tree can get: `depth` levels, at most `width` nodes of each read by the draft,
    and `children` children a node.

    widths: the rows of each level, for a static tree. run: the most nodes of a run, 0 for none.
    """

    depth: int
    width: int
    children: int
    widths: tuple[int, ...] = ()
    run: int = 0

    @property
    def level_widths(self) -> tuple[int, ...]:
        """For each level, how many rows its children come from: the root, then the same number for
        all levels, so that all draft passes have one shape."""
        return self.widths or (1, *[self.width] * (self.depth - 1))

    @property
    def row_count(self) -> int:
        """The rows that the draft reads."""
        return sum(self.level_widths)

    def rows(self, level: int) -> slice:
        """The rows whose children make up a level (the first level is 1), if all are padded."""
        widths = self.level_widths
        return slice(sum(widths[: level - 1]), sum(widths[:level]))


def growmap_bounds(children: Sequence[Sequence[int]], depths: Sequence[int]) -> TreeBounds:
    """The bounds of a static tree, from its nodes' children and depths. Its rows are the nodes with
    children."""
    depth = max(depths)
    branching = [
        sum(bool(own) for own, d in zip(children, depths, strict=True) if d == level)
        for level in range(depth)
    ]
    # Few widths make few shapes of draft pass; a chain needs little room.
    widths = tuple(2 if count <= 2 else -(-count // FRONTIER) * FRONTIER for count in branching[1:])
    return TreeBounds(
        depth=depth,
        width=max(widths, default=1),
        children=max(map(len, children)),
        widths=(1, *widths),
    )


@dataclass(kw_only=True)
class GrowingTree:
    """One tree while it grows. S slots and R rows; each tensor has one more place, for "none".

    token, depth, kind, number (in a growmap, for static trees) int64, proposal, q, x, slot_value,
    node_value float64, all [S + 1]. row_slot int64 [R + 1]: the slot of each row. chain int64 [R +
    1, depth]: the rows from the root down to each row, filled up with R. context int64 [R + 1,
    CONTEXT]: the last tokens up to and including each row's own. base float [R + 1, V]: what each
    row's children were sampled from. starts: the first row of each level so far, and the end.
    read: how many rows the draft reads.
    """

    bounds: TreeBounds
    token: torch.Tensor
    depth: torch.Tensor
    kind: torch.Tensor
    proposal: torch.Tensor
    q: torch.Tensor
    x: torch.Tensor
    number: torch.Tensor
    slot_value: torch.Tensor
    node_value: torch.Tensor
    row_slot: torch.Tensor
    chain: torch.Tensor
    context: torch.Tensor
    base: torch.Tensor
    starts: list[int]
    read: int
    padded: bool

    @classmethod
    def empty(
        cls,
        bounds: TreeBounds,
        vocab: int,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        *,
        padded: bool,
    ) -> GrowingTree:
        """Allocate the tensors of one tree. If it is not padded, only rows that are used take
        memory."""
        rows = bounds.row_count + bounds.run * RUNS
        slots = 1 + rows * bounds.children
        whole: dict[str, Any] = {"dtype": torch.int64, "device": device}
        real: dict[str, Any] = {"dtype": torch.float64, "device": device}
        starts = [0]
        for width in (*bounds.level_widths, *[RUNS] * bounds.run):
            starts.append(starts[-1] + width)
        return cls(
            bounds=bounds,
            token=torch.zeros(slots + 1, **whole),
            depth=torch.zeros(slots + 1, **whole),
            kind=torch.full((slots + 1,), Kind.POINT, **whole),
            proposal=torch.ones(slots + 1, **real),
            q=torch.ones(slots + 1, **real),
            x=torch.zeros(slots + 1, **real),
            number=torch.zeros(slots + 1, **whole),
            slot_value=torch.zeros(slots + 1, **real),
            node_value=torch.zeros(slots + 1, **real),
            row_slot=torch.full((rows + 1,), slots, **whole),
            chain=torch.full((rows + 1, bounds.depth), rows, **whole),
            context=torch.full((rows + 1, CONTEXT), -1, **whole),
            base=(torch.zeros if padded else torch.empty)(
                rows + 1, vocab, dtype=dtype, device=device
            ),
            starts=starts,
            read=bounds.row_count,
            padded=padded,
        )

    def rows(self, level: int) -> slice:
        """The rows whose children make up a level (the root's children: level 1)."""
        return slice(self.starts[level - 1], self.starts[level])

    def slots(self, level: int) -> slice:
        """The slots of a level."""
        rows, k = self.rows(level), self.bounds.children
        return slice(1 + rows.start * k, 1 + rows.stop * k)

    @property
    def levels(self) -> int:
        """The levels so far; all of them if padded."""
        return len(self.starts) - 1

    @property
    def used_rows(self) -> int:
        """The rows so far; all of them if padded."""
        return self.starts[-1]

    @property
    def none(self) -> int:
        """The number that stands for no row."""
        return len(self.row_slot) - 1

    @property
    def used_slots(self) -> int:
        """The slots so far, the root's included; all of them if padded."""
        return 1 + self.starts[-1] * self.bounds.children

    def start(self, context: torch.Tensor) -> None:
        """Start a new tree after a text whose last tokens are `context` [CONTEXT] (-1 where there
        is no token)."""
        torch._foreach_zero_([self.slot_value, self.node_value])
        torch._foreach_add_([self.slot_value[:1], self.node_value[:1]], 1.0)
        self.row_slot.fill_(len(self.token) - 1)
        self.row_slot[:1].zero_()
        self.chain[0, :1].zero_()
        self.token[:1].copy_(context[-1:])
        self.context[0].copy_(context)
        if not self.padded:
            self.starts, self.read = [0, 1], 1

    def advance(
        self,
        level: int,
        by: torch.Tensor,
        budget: int,
        cut: torch.Tensor | None = None,
        *,
        compiled: bool = False,
    ) -> torch.Tensor | None:
        """Choose which slots of a level the draft reads next: those with the largest `by` [S + 1],
        the first ones among equals. budget: the most nodes that stay. cut: see `parents`. Returns
        the ranks of the new rows in their level [w], which are all ranks if padded; None if no slot
        of the level has a place in the tree (if padded, the host finds that out by `standing`)."""
        slots, width = self.slots(level), self.bounds.level_widths[level]
        if self.padded:
            ranks, order = torch.arange(width, device=by.device), None
        else:
            useful = self._useful(level, by, budget, cut)
            order = by[slots].sort(descending=True, stable=True).indices[:width]
            ranks = useful[order].nonzero()[:, 0]
            if not len(ranks):
                return None
            order = order[ranks]
            self.starts.append(self.starts[-1] + len(ranks))
            self.read = self.starts[-1]
        rows = self.rows(level + 1)
        texts = (self.chain, self.context, self.token)
        where = (slots.start, slots.stop, rows.start, rows.stop, level, self.bounds.children)
        found = fused(next_rows, compiled)(by, order, *texts, *where)
        copy_all([self.row_slot[rows], self.chain[rows], self.context[rows]], found)
        return ranks

    def _useful(
        self, level: int, by: torch.Tensor, budget: int, cut: torch.Tensor | None
    ) -> torch.Tensor:
        """bool: which slots of a level have a place in the tree so far and could have a child with
        one; the best slot, if it has a place, in any case."""
        slots = self.slots(level)
        values, start = self.slot_value[: self.used_slots], slots.start
        best = values.sort(descending=True, stable=True)
        kept = torch.zeros_like(values, dtype=torch.bool)
        kept[best.indices[: budget + 1]] = True
        kept = kept[start:] & (by[slots] > 0)
        useful = kept & parents(self.node_value[slots], cut)
        if len(values) > budget + 1:
            useful = useful & (self.node_value[slots] > best.values[budget])
        first = by[slots].argmax()
        return (
            useful if bool(useful.any()) else useful.index_fill(0, first.view(1), bool(kept[first]))
        )

    def standing(self, level: int, *, compiled: bool = False) -> torch.Tensor:
        """The largest slot value of a level, chosen before its tokens were drawn, and how many
        slots of earlier levels are at least as valuable; float64 [2]."""
        slots = self.slots(level)
        return fused(best_and_ahead, compiled)(self.slot_value, slots.start, slots.stop)


def best_and_ahead(slot_value: torch.Tensor, start: int, stop: int) -> torch.Tensor:
    """See `GrowingTree.standing`, for the slots `start` to `stop`."""
    best = slot_value[start:stop].amax()
    slots = torch.arange(len(slot_value), device=slot_value.device)  # a size that never changes
    ahead = (slot_value >= best) & (slots > 0) & (slots < start)
    return torch.stack([best, ahead.sum().double()])


def copy_all(mine: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor]) -> None:
    """Copy tensors into others of the same shapes and dtypes; on a GPU one kernel a dtype."""
    for dtype in {one.dtype for one in theirs}:
        chosen = [at for at, one in enumerate(theirs) if one.dtype == dtype]
        torch._foreach_copy_([mine[at] for at in chosen], [theirs[at] for at in chosen])


def parents(node_value: torch.Tensor, cut: torch.Tensor | None) -> torch.Tensor:
    """bool: which nodes may have children: their children must be worth their slots. cut [1]: the
    least value of a slot."""
    return node_value > (0.0 if cut is None else cut * PARENT)


def ordered(values: torch.Tensor, width: int) -> torch.Tensor:
    """The places of the `width` largest values, the first ones among equals; places after the last
    one if there are fewer values. int64 [width]."""
    most = COMPARED if torch.compiler.is_compiling() else MATERIALISED
    if values.is_cuda and len(values) <= most:  # one small kernel
        order = by_comparing(values)
    else:
        order = values.sort(descending=True, stable=True).indices
    order = order[:width]
    return torch.nn.functional.pad(order, (0, width - len(order)), value=1 << 40)


def by_comparing(values: torch.Tensor) -> torch.Tensor:
    """The places of all values, the largest first and the first ones among equals: a place is where
    it is counted."""
    places = torch.arange(len(values), device=values.device)
    ahead = (values > values[:, None]) | ((values == values[:, None]) & (places < places[:, None]))
    return torch.zeros_like(places).scatter(0, ahead.sum(1), places)


def next_rows(
    by: torch.Tensor,
    order: torch.Tensor | None,
    chain: torch.Tensor,
    context: torch.Tensor,
    token: torch.Tensor,
    start: int,
    stop: int,
    first: int,
    last: int,
    level: int,
    children: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The rows `first` to `last` for slots of a level, which are the slots `start` to `stop`: those
    at the places `order` [w], None: the ones with the largest `by` [S + 1]. Returns the rows' slots
    [w], chains and contexts."""
    if order is None:
        order = ordered(by[start:stop], last - first)
    numbers = torch.arange(first, last, device=by.device)
    chosen = (order + start).clamp(max=len(token) - 1)
    above = (chosen - 1) // children
    at = torch.arange(chain.shape[1], device=by.device) == level
    chains = torch.where(at, numbers[:, None], chain[above])
    return chosen, chains, torch.cat([context[above, 1:], token[chosen][:, None]], dim=1)


@dataclass(frozen=True, kw_only=True)
class Proposer:
    """How the rows of a level get children.

    table: float64 [depth classes, kinds, CELLS], the estimates of drafting/acceptance_estimates.py;
    None takes the draft's own probabilities. growmap: int64 [size + 1, k], the numbers of each
    node's children, -1 for none; with it the shape decides, not values. copies: whether the text
    also proposes. cut: float64 [1], the value that a slot needs to be proposed. most: how many
    children a node may have, without copies. compiled: whether torch.compile fuses the
    small kernels.
    """

    policy: Policy
    table: torch.Tensor | None = None
    growmap: torch.Tensor | None = None
    copies: bool = False
    cut: torch.Tensor | None = None
    most: int = 1 << 30
    compiled: bool = False

    def frontier(self, growing: GrowingTree) -> torch.Tensor:
        """The values by which the draft's next rows are chosen, [S + 1]."""
        return growing.slot_value if self.growmap is None else growing.node_value

    def fill(
        self,
        growing: GrowingTree,
        level: int,
        q: torch.Tensor,
        chance: Chance,
        text: torch.Tensor,
        known: torch.Tensor,
    ) -> None:
        """Propose the children that make up a level, and set their values. q [w, V]: the
        distributions of the rows above. text, known: see `find_copies`."""
        policy, rows, slots = self.policy, growing.rows(level), growing.slots(level)
        above = growing.row_slot[rows]
        number = self.growmap[growing.number[above]] if self.growmap is not None else None
        k, found = growing.bounds.children, None
        if self.copies:
            found = (text, known, growing.context[rows])
        own = (above, growing.slot_value, growing.node_value, number, self.cut, self.most)
        ready = self._run(prepared, policy, q, *own, found, growing.padded)
        q, copies, bounds, slot_value, node_value = ready
        if not growing.padded:  # as many columns as children may exist
            more = int(copies is not None)
            k = min(k, max(1, int(bounds.places.max())) + more)
        base, drawn = policy.draw(q, chance, k, bounds)
        if number is not None:
            assert self.growmap is not None
            growing.number[slots].copy_(number.flatten())
            branches = self.growmap[number[:, :k], 0] >= 0
            children = self._run(shaped, policy, drawn, slot_value, number[:, :k], branches)
        else:
            table = self.table[depth_class(level)] if self.table is not None else None
            cut = self.cut if policy.tails else None
            known_values = (slot_value, node_value, table, cut, bounds.places)
            children = self._run(valued, policy, drawn, copies, *known_values)
        growing.depth[slots].fill_(level)
        if k < growing.bounds.children:
            growing.slot_value[slots].zero_()
        mine = [
            getattr(growing, name)[slots].view(len(above), -1)[:, :k] for name in children._fields
        ]
        copy_all(mine, children)
        if base is not None:
            growing.base[rows].copy_(base)

    def _run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return fused(function, self.compiled)(*arguments)


class Ready(NamedTuple):
    """What is known of w nodes before the draw: what children are sampled from [w, V], the nodes'
    copies, how many children they may have, and their two values [w]."""

    q: torch.Tensor
    copies: Copies | None
    limits: Limits
    slot_value: torch.Tensor
    node_value: torch.Tensor


def prepared(
    policy: Policy,
    q: torch.Tensor,
    above: torch.Tensor,
    slot_value: torch.Tensor,
    node_value: torch.Tensor,
    number: torch.Tensor | None,
    cut: torch.Tensor | None,
    most: int,
    found: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None,
    padded: bool,
) -> Ready:
    """What a draw needs, for w nodes in the slots `above` with the draft distributions q [w, V].
    found: arguments of `find_copies`, None without copies. Other arguments: see `GrowingTree`,
    `Proposer` and `limits`."""
    slot_value, node_value, copies = slot_value[above], node_value[above], None
    if found is not None:
        copies = weighed(q, find_copies(*found), echoes=policy.points)
        if padded or bool(copies.good.any()):
            q = without(q, copies)
        else:
            copies = None
    places, floor = limits(policy, cut, node_value, number, most)
    assert places is not None
    if number is None:
        places = torch.where(parents(node_value, cut)[:, None], places, 0)
    return Ready(q, copies, Limits(places, floor), slot_value, node_value)
