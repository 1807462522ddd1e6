"""A token tree that grows in tensors of fixed shape, so that a GPU replays it without the host.

`drafting/growth.py` grows a tree node by node and reads the device once a level. Here a level is a
few tensor operations. Their shapes are known beforehand, so a step can be captured and replayed
(decoding/captured_loop.py). Trees have the same distribution: values are chosen before tokens are
drawn, and the most valuable slots stay.

    row     a node that the draft reads: 0 is the root, then `width` nodes a level, the most valuable ones
    slot    a proposed node: 0 is the root, then `children` slots a row, in drawing order
    node    a slot that stays: the root and the best `budget` slots, numbered in drawing order

A row may have fewer children than slots, a level fewer nodes than rows. A missing one has value 0
and never stays. Slots, rows and nodes each have one more place, which means "none".

Only slot values decide which slots the draft reads next, never a value that knows the slot's own
token. Otherwise a token could push another slot out of the frontier. That slot would then have no
descendants, so its own slot would have fewer rivals, and its place would depend on its token
(tests/drafting/test_captured_tree.py shows the bias).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from dynasurge.drafting.child_kinds import Kind
from dynasurge.drafting.prompt_lookup import LENGTHS
from dynasurge.models.cuda_graphs import fused

FRONTIER = 32  # nodes of a level that the draft reads in one pass
SORTED = 1024  # a level with more slots than this is sorted
CONTEXT = max(LENGTHS)  # the most tokens that a copy may have to match


@dataclass(frozen=True, kw_only=True)
class TreeBounds:
    """How large a tree can get: `depth` levels, at most `width` nodes of each read by the draft,
    and `children` children a node.

    widths: the rows of each level, for a static tree.
    """

    depth: int
    width: int
    children: int
    widths: tuple[int, ...] = ()

    def rows(self, level: int) -> slice:
        """The rows whose children make up a level (the first level is 1)."""
        widths = self.level_widths
        return slice(sum(widths[: level - 1]), sum(widths[:level]))

    def slots(self, level: int) -> slice:
        """The slots of a level."""
        rows = self.rows(level)
        return slice(1 + rows.start * self.children, 1 + rows.stop * self.children)

    @property
    def level_widths(self) -> tuple[int, ...]:
        """For each level, how many rows its children come from: the root, then the same number for
        all levels, so that all draft passes have one shape."""
        return self.widths or (1, *[self.width] * (self.depth - 1))

    @property
    def row_count(self) -> int:
        return sum(self.level_widths)

    @property
    def slot_count(self) -> int:
        return 1 + self.row_count * self.children


@dataclass(frozen=True, kw_only=True)
class GrowingTree:
    """One tree while it grows. S slots and R rows; each tensor has one more place, for "none".

    token, depth, kind, number (in a growmap, for static trees) int64, proposal, x, slot_value,
    node_value float64, all [S + 1]. row_slot int64 [R + 1]: the slot of each row. chain int64 [R +
    1, depth]: the rows from the root down to each row, filled up with R. context int64 [R + 1,
    CONTEXT]: the last tokens up to and including each row's own. base float [R + 1, V]: what each
    row's children were sampled from.
    """

    bounds: TreeBounds
    token: torch.Tensor
    depth: torch.Tensor
    kind: torch.Tensor
    proposal: torch.Tensor
    x: torch.Tensor
    number: torch.Tensor
    slot_value: torch.Tensor
    node_value: torch.Tensor
    row_slot: torch.Tensor
    chain: torch.Tensor
    context: torch.Tensor
    base: torch.Tensor

    @classmethod
    def empty(
        cls,
        bounds: TreeBounds,
        vocab: int,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> GrowingTree:
        """Allocate the tensors of one tree."""
        slots, rows = bounds.slot_count, bounds.row_count
        whole: dict[str, Any] = {"dtype": torch.int64, "device": device}
        real: dict[str, Any] = {"dtype": torch.float64, "device": device}
        depth = torch.zeros(slots + 1, **whole)
        for level in range(1, bounds.depth + 1):
            depth[bounds.slots(level)] = level
        return cls(
            bounds=bounds,
            token=torch.zeros(slots + 1, **whole),
            depth=depth,
            kind=torch.full((slots + 1,), Kind.POINT, **whole),
            proposal=torch.ones(slots + 1, **real),
            x=torch.zeros(slots + 1, **real),
            number=torch.zeros(slots + 1, **whole),
            slot_value=torch.zeros(slots + 1, **real),
            node_value=torch.zeros(slots + 1, **real),
            row_slot=torch.full((rows + 1,), slots, **whole),
            chain=torch.full((rows + 1, bounds.depth), rows, **whole),
            context=torch.full((rows + 1, CONTEXT), -1, **whole),
            base=torch.zeros(rows + 1, vocab, dtype=dtype, device=device),
        )

    def start(self, context: torch.Tensor) -> None:
        """Start a new tree after a text whose last tokens are `context` [CONTEXT] (-1 where there
        is no token)."""
        self.slot_value.zero_()
        self.node_value.zero_()
        self.slot_value[:1].fill_(1.0)
        self.node_value[:1].fill_(1.0)
        self.row_slot.fill_(len(self.token) - 1)
        self.row_slot[:1].zero_()
        self.chain[0, :1].zero_()
        self.token[:1].copy_(context[-1:])
        self.context[0].copy_(context)

    def advance(self, level: int, by: torch.Tensor, *, compiled: bool = False) -> slice:
        """Choose which slots of a level the draft reads next: those with the largest `by` [S + 1],
        the first ones among equals. Returns their rows."""
        bounds, rows = self.bounds, self.bounds.rows(level + 1)
        slots = bounds.slots(level)
        numbers = torch.arange(rows.start, rows.stop, device=by.device)
        start, depth = (
            torch.full((1,), number, device=by.device) for number in (slots.start, level)
        )
        texts = (self.chain, self.context, self.token)
        found = fused(next_rows, compiled)(
            by[slots], numbers, start, depth, *texts, bounds.children
        )
        for mine, theirs in zip((self.row_slot, self.chain, self.context), found, strict=True):
            mine[rows].copy_(theirs)
        return rows

    def best(self, level: int) -> torch.Tensor:
        """The largest slot value of a level, chosen before its tokens were drawn [1]."""
        return self.slot_value[self.bounds.slots(level)].amax().view(1)


def next_rows(
    values: torch.Tensor,
    numbers: torch.Tensor,
    start: torch.Tensor,
    level: torch.Tensor,
    chain: torch.Tensor,
    context: torch.Tensor,
    token: torch.Tensor,
    children: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Give the rows `numbers` [w] the w most valuable slots of a level. values [c]: the level's,
    from slot `start` [1] on. Returns the rows' slots [w], chains and contexts."""
    if len(values) <= SORTED:  # comparing all with all is one small kernel
        places = torch.arange(len(values), device=values.device)
        ahead = (values > values[:, None]) | (
            (values == values[:, None]) & (places < places[:, None])
        )
        order = torch.zeros_like(places).scatter(0, ahead.sum(1), places)
    else:
        order = values.sort(descending=True, stable=True).indices
    chosen = order[: len(numbers)] + start
    chosen = torch.nn.functional.pad(chosen, (0, len(numbers) - len(chosen)), value=len(token) - 1)
    above = (chosen - 1) // children
    at = torch.arange(chain.shape[1], device=values.device) == level
    chains = torch.where(at, numbers[:, None], chain[above])
    return chosen, chains, torch.cat([context[above, 1:], token[chosen][:, None]], dim=1)


class Reading(NamedTuple):
    """What a pass reads: tokens, their positions and cache rows [w]. hidden bool [w, columns]: True
    where a token must not see a cache row."""

    tokens: torch.Tensor
    positions: torch.Tensor
    rows: torch.Tensor
    hidden: torch.Tensor


def read_level(
    token: torch.Tensor,
    slots: torch.Tensor,
    chain: torch.Tensor,
    numbers: torch.Tensor,
    length: torch.Tensor,
    depth: torch.Tensor,
    none: int,
    columns: int,
) -> Reading:
    """What the draft reads: the rows `numbers` [w] with slots [w] at a depth [1], after a text of
    `length` [1] tokens and a root. chain [w, d]: see `GrowingTree`; `none` stands for no row."""
    hidden = hidden_rows(length + 1, torch.where(chain < none, length + chain, -1), columns)
    return Reading(token[slots], (length + depth).expand(len(slots)), length + numbers, hidden)


def read_nodes(
    token: torch.Tensor,
    slot: torch.Tensor,
    depth: torch.Tensor,
    path: torch.Tensor,
    length: torch.Tensor,
    columns: int,
) -> Reading:
    """What the target reads: the root and n nodes, as in `Nodes`, after a text of `length` [1]
    tokens."""
    seen = torch.where(path < len(slot), length + path, -1)
    hidden = hidden_rows(length + 1, seen, columns)  # all see the root
    return Reading(
        token[slot], length + depth, length + torch.arange(len(slot), device=slot.device), hidden
    )


def hidden_rows(known: torch.Tensor, seen: torch.Tensor, columns: int) -> torch.Tensor:
    """bool [w, columns]: True for cache rows that a token must not see: those from `known` [1] on,
    except its `seen` [w, d] (-1 for none)."""
    places = torch.arange(columns, device=seen.device)
    return (places >= known) & ~(seen[:, :, None] == places).any(1)


class Nodes(NamedTuple):
    """The tree that stays: the root and n nodes. slot, parent, depth int64 [n + 1], exists bool [n
    + 1]. number int64 [S + 1]: the node of each slot, n + 1 for none. path int64 [n + 1, depth +
    1]: the nodes from the root down to each, filled up with n + 1. seen bool [n + 1, n + 1]: True
    for the nodes on the path of each."""

    slot: torch.Tensor
    parent: torch.Tensor
    depth: torch.Tensor
    exists: torch.Tensor
    number: torch.Tensor
    path: torch.Tensor
    seen: torch.Tensor

    @property
    def none(self) -> int:
        return len(self.slot)


def assemble(
    growing: GrowingTree, n: int, budget: int | None = None, *, compiled: bool = False
) -> Nodes:
    """Keep the root and the n most valuable slots (at most `budget`, if given), the first ones
    among equals, numbered in drawing order. compiled: whether torch.compile fuses the small
    kernels."""
    most = n if budget is None else min(n, budget)
    tensors = (growing.slot_value, growing.depth, growing.row_slot, growing.chain)
    return fused(best_nodes, compiled)(*tensors, n, most, growing.bounds.children)


def best_nodes(
    slot_value: torch.Tensor,
    slot_depth: torch.Tensor,
    row_slot: torch.Tensor,
    row_chain: torch.Tensor,
    n: int,
    most: int,
    children: int,
) -> Nodes:
    """The n best nodes of a growing tree's tensors. At most `most` of them exist."""
    slots, rows, levels = len(slot_value) - 1, len(row_slot) - 1, row_chain.shape[1]
    order = slot_value.sort(descending=True, stable=True).indices[: most + 1]
    order = torch.where(slot_value[order] > 0, order, slots)
    if len(order) < n + 1:
        order = torch.nn.functional.pad(order, (0, n + 1 - len(order)), value=slots)
    slot = order.sort().values
    places = torch.arange(n + 1, device=slot.device)
    exists = slot < slots
    number = torch.full((slots + 1,), n + 1, dtype=torch.int64, device=slot.device)
    number = number.scatter(0, slot, torch.where(exists, places, n + 1))
    depth, above = slot_depth[slot], ((slot - 1) // children).clamp(min=0)
    above = torch.where(exists, above, rows)
    chain = number[row_slot[row_chain[above]]]  # [n + 1, depth]
    level = torch.arange(levels + 1, device=slot.device)
    chain = torch.nn.functional.pad(chain, (0, 1), value=n + 1)
    path = torch.where(level < depth[:, None], chain, n + 1)
    path = torch.where((level == depth[:, None]) & exists[:, None], places[:, None], path)
    parent = torch.where(depth > 0, path.gather(1, (depth - 1).clamp(min=0)[:, None])[:, 0], -1)
    seen = torch.zeros(n + 1, n + 2, dtype=torch.bool, device=slot.device).scatter(1, path, True)[
        :, :-1
    ]
    return Nodes(slot, parent, depth, exists, number, path, seen)


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
