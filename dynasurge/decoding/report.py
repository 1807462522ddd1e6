"""What host and device send each other in a step: one copy there, one copy back."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from dynasurge.drafting.acceptance_estimates import CELLS, Acceptance
from dynasurge.drafting.child_kinds import DEPTHS, Class, Kind
from dynasurge.drafting.growth import TreeBounds
from dynasurge.drafting.kept_nodes import Nodes, tokens_at
from dynasurge.drafting.proposals import Policy
from dynasurge.drafting.tree_budget import Size, SizePlanner
from dynasurge.probabilities import Source, StepChance, StepUniforms
from dynasurge.trees.token_tree import TokenTree

# What a step sends back, float64, in this order: for the step, for each level (the tokens emitted),
# and for each node.
STEP = ("end", "depth", "bonus")
NODE = ("exists", "token", "parent", "proposal", "kind", "q", "x", "slot_value", "stop", "p")


def report_size(levels: int, nodes: int) -> int:
    """How many numbers a step sends back for a tree of so many levels and nodes (without the root).
    0 levels: there is no tree."""
    return len(STEP) + (levels + 1 + len(NODE) * (nodes + 1) if levels else 0)


@dataclass(frozen=True, kw_only=True)
class Trees:
    """The trees that a decoder grows: how large they are, how rows get children, by which
    estimates.

    budget: the most nodes, even if a pass has room for more. growmap: int64 [size + 1, k] for
    static trees, see `Proposer`. own: whether the draft's own probabilities are the estimates.
    most: see `Proposer`. readable: maps the tokens of a prompt to the positions that the draft can
    read; after these, nothing is drafted.
    """

    bounds: TreeBounds
    budget: int
    policy: Policy
    planner: SizePlanner
    acceptance: Acceptance
    growmap: torch.Tensor | None = None
    copies: bool = False
    own: bool = False
    most: int = 1 << 30
    readable: Callable[[int], int] = lambda prompt: 1 << 60


class Inputs:
    """What the host sends to a step in one copy: the estimates; the values that a slot needs to be
    proposed (`cut`) and to stay (`worth`); the most levels (`room`); uniform random numbers."""

    def __init__(self, trees: Trees | None, device: torch.device) -> None:
        rows, k = (trees.bounds.row_count, trees.bounds.children) if trees is not None else (0, 0)
        shapes = (
            ((len(DEPTHS), len(Kind), CELLS), (1,), (1,), (1,), (rows, k, 2), (2, 2))
            if trees is not None
            else ((0,), (0,), (0,), (0,), (0,), (2, 2))
        )
        sizes = [math.prod(shape) for shape in shapes]
        self._told = sum(sizes[:4])
        self._device = torch.zeros(sum(sizes), dtype=torch.float64, device=device)
        self.table, self.cut, self.worth, self.room, tree, last = (
            part.view(shape) for part, shape in zip(self._device.split(sizes), shapes, strict=True)
        )
        self.chance = StepUniforms(tree, last)
        # the device copies one while the host fills the other
        self._host = [pinned(sum(sizes), device) for _ in range(2)]

    def fill(
        self, source: Source, trees: Trees | None, size: Size
    ) -> tuple[torch.Tensor, StepChance]:
        """Fill in what the next step gets. Returns float64 [size] on the host, and its chance."""
        self._host.reverse()
        numbers = self._host[0]
        chance = source.step(numbers[self._told :], self.chance)
        if trees is not None and trees.growmap is None:
            numbers[self._told - 3], numbers[self._told - 2] = trees.planner.cut, size.worth
            if not trees.own:
                numbers[: self._told - 3].copy_(trees.acceptance.table().flatten())
        return numbers, chance

    def send(self, numbers: torch.Tensor, room: int) -> None:
        """Send the numbers to the device, without a wait. room: the most levels of the tree."""
        if len(self.room):
            numbers[self._told - 1] = room
        self._device.copy_(numbers, non_blocking=True)


class Judged(NamedTuple):
    """stop: float64 [n], the probability that the path ends at each node. end, bonus: int64 [1],
    the node where the path ends and the token after it, -1 if there is none. p: float64 [n], the
    target's probability of each node's token."""

    stop: torch.Tensor
    end: torch.Tensor
    bonus: torch.Tensor
    p: torch.Tensor


class Likeliest(NamedTuple):
    """The likeliest next tokens, the likeliest first. target int64, p float [n, K]: the target's
    after each node, and their probabilities. draft, q [R, K]: the draft's after each row that it
    read, 0 in q if it did not. node int64 [R]: each row's node, n or more for none."""

    target: torch.Tensor
    p: torch.Tensor
    draft: torch.Tensor
    q: torch.Tensor
    node: torch.Tensor


class Verified(NamedTuple):
    """report: what the host reads of a step, see `Closing`. likeliest: None if nobody asked. moves:
    the rows of a spread target that are still to be moved, and where to."""

    report: torch.Tensor
    likeliest: Likeliest | None = None
    moves: tuple[torch.Tensor, torch.Tensor] | None = None


Guesses = tuple[tuple[int, float], ...]


class Likely(NamedTuple):
    """After one node: tokens with their probabilities, the likeliest first. draft: () if it has not
    read the node."""

    target: Guesses
    draft: Guesses


def likely_by_node(found: Likeliest, nodes: int) -> tuple[Likely, ...]:
    """What both models thought likely after each of so many nodes, root included."""

    def pairs(tokens: torch.Tensor, chances: torch.Tensor) -> list[Guesses]:
        rows = zip(tokens.tolist(), chances.tolist(), strict=True)
        return [tuple((t, c) for t, c in zip(*row, strict=True) if c > 0) for row in rows]

    read = zip(found.node.tolist(), pairs(found.draft, found.q), strict=True)
    of_node = {node: own for node, own in read if own}  # a run of copies has rows that nobody read
    target = pairs(found.target[:nodes], found.p[:nodes])
    return tuple(Likely(own, of_node.get(node, ())) for node, own in enumerate(target))


class Closing(NamedTuple):
    """The end of a step. report: all that the host reads (STEP and NODE). For each level of the
    tree and one more: emitted, the token; to, the cache row that the path's row moves to;
    of_target, of_draft, the row where it is now (if there is none, row `to`). length: the tokens of
    the text after the step. read: how many of them the draft has certainly read."""

    report: torch.Tensor
    emitted: torch.Tensor
    to: torch.Tensor
    of_target: torch.Tensor
    of_draft: torch.Tensor
    length: torch.Tensor
    read: torch.Tensor


class Slots(NamedTuple):
    """What the host reads of each slot of a growing tree; see `GrowingTree`."""

    token: torch.Tensor
    proposal: torch.Tensor
    kind: torch.Tensor
    q: torch.Tensor
    x: torch.Tensor
    slot_value: torch.Tensor


def closing(
    judged: Judged,
    nodes: Nodes,
    slots: Slots,
    chain: torch.Tensor,
    length: torch.Tensor,
    children: int,
    read: int,
) -> Closing:
    """Close a step. chain: see `GrowingTree`. length [1]: the tokens of the text before the step.
    children: slots a row. read: how many rows the draft has read."""
    pad = torch.nn.functional.pad
    levels = torch.arange(nodes.path.shape[1], device=length.device)
    last = judged.end.clamp(min=0)
    depth, path = nodes.depth[last], nodes.path[last][0]
    drawn = tokens_at(path[1:], nodes.slot, slots.token)
    emitted = torch.where(levels < depth, pad(drawn, (0, 1)), judged.bonus)
    rows = pad(chain[((nodes.slot[last] - 1) // children).clamp(min=0)][0], (0, 1))
    of_target = torch.where(levels <= depth, path, levels)
    known = (levels < depth) & (rows < read)
    of_draft = torch.where(known, rows, levels)
    kept = Slots(*(part[nodes.slot] for part in slots))
    step = {"end": judged.end, "depth": depth, "bonus": judged.bonus}
    node = kept._asdict() | {"exists": nodes.exists, "parent": nodes.parent}
    node |= {"stop": judged.stop, "p": judged.p}
    told = [*(step[name] for name in STEP), emitted, *(node[name] for name in NODE)]
    return Closing(
        report=torch.cat([part.double() for part in told]),
        emitted=emitted,
        to=length + levels,
        of_target=length + of_target,
        of_draft=length + of_draft,
        length=length + depth + 1,
        read=length + known.sum().clamp(min=1),
    )


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a step sent back. end: the node where the path ends; bonus: the token after it (-1: the
    logits are no numbers). Tuples by node: kinds, x (see drafting/child_kinds.py), p and q, the
    target's and the draft's probability of the token, stop, the probability that the path ends
    there."""

    tree: TokenTree
    end: int
    bonus: int
    emitted: tuple[int, ...]
    kinds: tuple[Kind, ...]
    x: tuple[float, ...]
    p: tuple[float, ...]
    q: tuple[float, ...]
    stop: tuple[float, ...]

    @property
    def confidence(self) -> float:
        """The mean draft probability of the first proposed child over the nodes; NaN without such a
        child."""
        first = [family[0] for family in self.tree.children if family]
        own = [self.x[child] for child in first if self.kinds[child] in (Kind.FIRST, Kind.POINT)]
        return sum(own) / len(own) if own else math.nan

    @property
    def levels(self) -> tuple[int, ...]:
        """The level of each node, 0 for the root and for nodes of runs, which took no draft pass."""
        runs = zip(self.kinds, self.tree.depths, strict=True)
        return tuple(0 if kind is Kind.BLIND else depth for kind, depth in runs)

    def teach(self, acceptance: Acceptance, reach: list[float]) -> None:
        """Let the estimate observe every child. reach: the probability that each node is
        accepted."""
        for parent, family in enumerate(self.tree.children):
            refused = 1.0
            for child in family:
                kind, tried = self.kinds[child], reach[parent]
                if kind.sequential:  # their estimates hold given that elder siblings are refused
                    tried, refused = (
                        tried * refused,
                        refused - (reach[child] / tried if tried > 0 else 0.0),
                    )
                of = Class.at(kind, self.tree.depths[child])
                acceptance.observe(of, self.x[child], max(0.0, tried), reach[child])


def read_report(report: np.ndarray, levels: int, root: int, *, values: bool) -> Outcome:
    """A step's report, as `closing` made it, or three numbers if no tree was drafted. root: the
    root's token. values: whether slots have values."""
    end, depth, bonus = (int(number) for number in report[: len(STEP)])
    if not levels:
        one = (1.0,)
        return Outcome(
            tree=TokenTree.root(root),
            end=end,
            bonus=bonus,
            emitted=(bonus,),
            kinds=(Kind.POINT,),
            x=one,
            p=one,
            q=one,
            stop=one,
        )
    emitted, rest = np.split(report[len(STEP) :], [levels + 1])
    nodes = dict(zip(NODE, rest.reshape(len(NODE), -1), strict=True))
    count = int(nodes["exists"].sum())
    of = {name: tuple(numbers[:count].tolist()) for name, numbers in nodes.items()}
    kinds = tuple(Kind(int(kind)) for kind in of["kind"])
    return Outcome(
        tree=TokenTree(
            tokens=tuple(map(int, of["token"])),
            parents=tuple(map(int, of["parent"])),
            proposal=of["proposal"],
            point=tuple(kind.point for kind in kinds),
            value=of["slot_value"] if values else (),
        ),
        end=end,
        bonus=bonus,
        emitted=(*(int(token) for token in emitted[:depth]), bonus),
        kinds=kinds,
        x=of["x"],
        p=of["p"],
        # one object: tuples that hold it compare equal
        q=tuple(math.nan if math.isnan(number) else number for number in of["q"]),
        stop=of["stop"],
    )


def pinned(size: int, device: torch.device) -> torch.Tensor:
    """float64 [size] on the host, in pinned memory: a GPU copies from it while the host works
    on."""
    return torch.zeros(size, dtype=torch.float64, pin_memory=device.type == "cuda")
