"""The phases of a step, as functions of tensors on the device.

    level 1    read the last tokens with the draft, propose the first level
    level l    choose the nodes that are worth reading, read them, propose level l
    score      keep the n best nodes, score them all in one pass of the target
    verify     apply the rule, draw path and bonus token, move the path's cache rows to the front, append to the text

Text, length and caches live on the device. A phase that is *padded* has tensors of fixed shape and
never waits for the device, so it can be captured. Otherwise rows, nodes and the cache rows that
attention sees are exactly those needed. The rest is the same code: the same tree grows either way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
from transformers import LogitsProcessorList

from dynasurge import probabilities
from dynasurge.decoding.report import Inputs, Judged, Likeliest, Slots, Trees, Verified, closing
from dynasurge.drafting.child_kinds import Kind
from dynasurge.drafting.growth import RUNS, GrowingTree, Proposer
from dynasurge.drafting.kept_nodes import Nodes, assemble, tokens_at
from dynasurge.drafting.prompt_lookup import CONTEXT
from dynasurge.drafting.proposals import draw_tokens
from dynasurge.drafting.reading import Reading, read_level, read_nodes
from dynasurge.drafting.runs import add_runs
from dynasurge.drafting.tree_budget import Size
from dynasurge.models.cuda_graphs import fused
from dynasurge.models.failures import shrinking
from dynasurge.models.law import Law, Stops
from dynasurge.models.processors import captures, drafted, processed
from dynasurge.probabilities import Chance, Source, StepChance
from dynasurge.trees.token_tree import TokenTree
from dynasurge.verification.families import Families, Level
from dynasurge.verification.rules import Rule, Verdict, stop_law


class TreeEngine(Protocol):
    """What decoding needs of an engine (see models/engine.py). The exactness tests put tables of
    probabilities in its place."""

    compiled: bool
    static_length: int
    vocab: int
    rereads: bool

    @property
    def device(self) -> torch.device: ...
    @property
    def length(self) -> int: ...
    @property
    def spread(self) -> bool: ...
    def reset(self) -> None: ...
    def prepare(self) -> None: ...
    def extend(self, tokens: Sequence[int], /) -> torch.Tensor: ...
    def score(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        rows: torch.Tensor,
        hidden: torch.Tensor,
        parents: torch.Tensor | None = None,
        *,
        captured: bool,
    ) -> torch.Tensor: ...
    def move(self, rows: torch.Tensor, to: torch.Tensor) -> None: ...


Verify = Callable[[TokenTree, torch.Tensor, Sequence[torch.Tensor], Chance], Verdict]
"""A verification that looks at its tree on the host: (tree, p [n, V], q by node, chance) -> verdict."""


@dataclass(frozen=True, kw_only=True)
class Judge:
    """How trees are verified: by a rule, or on the host by `verify`. T, P, processors: the target's
    law (models/law.py). `verify`, and processors that look at the text, cannot be captured."""

    rule: Rule
    T: float
    P: float
    verify: Verify | None = None
    processors: LogitsProcessorList | None = None

    @property
    def captures(self) -> bool:
        """Whether verification can be captured."""
        return self.verify is None and captures(self.processors)


class Gathered(NamedTuple):
    """The tree that stays (None: a root alone), and what the target reads of it."""

    nodes: Nodes | None
    read: Reading


class Scored(NamedTuple):
    """The tree that stays (None: a root alone), and the target's logits [n + 1, V]."""

    nodes: Nodes | None
    logits: torch.Tensor


class Phases:
    """The phases of the steps of one decoder."""

    def __init__(
        self,
        target: TreeEngine,
        draft: TreeEngine | None,
        trees: Trees | None,
        judge: Judge,
        *,
        padded: bool,
        captured: bool = False,
        dtype: torch.dtype = torch.float32,
        likely: int = 0,
    ) -> None:
        """captured: whether phases will be captured; then they must be padded. dtype: of
        probabilities; tests that enumerate take float64. likely: how many of the likeliest tokens
        to keep after each node, for who looks at trees."""
        self.target, self.draft, self.trees, self.padded = target, draft, trees, padded
        self._judge, self.device, self._captured = judge, target.device, captured
        self.compiled = target.compiled and captured
        self.depth = trees.bounds.depth if trees is not None else 0
        self.run = trees.bounds.run if trees is not None else 0
        length = CONTEXT + target.static_length + self.depth + 2
        self._text = torch.full((length,), -1, device=self.device)
        # the number of committed tokens, and the root's position
        self.length = torch.zeros(1, dtype=torch.int64, device=self.device)
        self._likely = min(likely, target.vocab)
        self._read = 0  # how many tokens the draft has read; not known if captured
        self.stops: Stops | None = None  # where the text ends besides end tokens
        widest = max(trees.planner.sizes) if trees is not None else 0
        room = (widest + 2, target.vocab)
        new = (
            torch.zeros if padded else torch.empty
        )  # the latter takes memory only where it is used
        self._p = new(room, dtype=dtype, device=self.device)
        self.inputs = Inputs(trees, self.device)
        self._chance: StepChance = self.inputs.chance
        if trees is not None:
            bounds = trees.bounds
            rows = bounds.row_count + bounds.run * RUNS + 1
            kept = (rows, self._likely)
            self._draft_tokens = torch.zeros(kept, dtype=torch.int64, device=self.device)
            self._draft_q = torch.zeros(kept, dtype=dtype, device=self.device)
            self._growing = GrowingTree.empty(
                bounds, target.vocab, self.device, dtype, padded=padded
            )
            table = None if trees.own or trees.growmap is not None else self.inputs.table
            self._proposer = Proposer(
                policy=trees.policy,
                table=table,
                growmap=trees.growmap,
                copies=trees.copies,
                cut=self.inputs.cut,
                most=trees.most,
                compiled=self.compiled,
            )

    @property
    def captures_verify(self) -> bool:
        """Whether verification can be captured, as all else can."""
        return self._judge.captures

    def take_law(self, law: Law) -> None:
        """Draw from this law from now on."""
        self._judge = replace(self._judge, T=law.T, P=law.P, processors=law.processors)
        self.stops = law.stops

    def read_on(self, text: Sequence[int]) -> None:
        """Read the new tokens of a text, whose beginning was read before, except its last token,
        which becomes the root."""
        with shrinking("prompt"):
            readers = [self.target]
            if self.draft is not None and self.trees is not None:
                readers += [self.draft] * (len(text) - 1 <= self.trees.readable(len(text)))
            for engine in readers:
                if len(text) - 1 > engine.length:
                    engine.extend(text[engine.length : -1])
        self._text[CONTEXT : CONTEXT + len(text)] = torch.tensor(text).to(self.device)
        self.length.fill_(len(text) - 1)
        self._read = len(text) - 1

    def take(self, source: Source, size: Size) -> torch.Tensor:
        """Take the chance of the next step, whose tree has this size. Returns its numbers, float64
        on the host."""
        numbers, self._chance = self.inputs.fill(source, self.trees, size)
        self._source = source
        return numbers

    def bare(self) -> torch.Tensor:
        """Start a tree without levels. Returns the root's standing (see `GrowingTree`)."""
        steps = torch.arange(CONTEXT, device=self.device)
        self._growing.start(self._text[self.length + 1 + steps])
        self._draft_q.zero_()
        self.widths: list[int] = []  # how many tokens each draft pass of this tree has read
        return torch.zeros(2, dtype=torch.float64, device=self.device)

    def level(self, level: int, budget: int) -> torch.Tensor | None:
        """Draft one more level. budget: the most nodes that stay (not used if padded). Returns its
        standing; None if no node of the level above is worth reading."""
        return self._first() if level == 1 else self._next(level, budget)

    def _first(self) -> torch.Tensor:
        """Read the last tokens with the draft: all that it has not read, or, if captured, as many as
        these can be: the root, the last node of a path, and a run. A draft that rereads reads all
        tokens from the last root on."""
        assert self.draft is not None
        self.bare()
        columns = self._columns(self.draft, 1)
        if self._captured:
            bounds = self._growing.bounds
            most = bounds.run + 2 + (bounds.depth if self.draft.rereads else 0)
            steps = torch.arange(most, device=self.device)
            positions = (self.length + 1 - most + steps).clamp(min=0)
        else:
            positions = torch.arange(min(self._read, columns - 1), columns, device=self.device)
        hidden = torch.arange(columns, device=self.device) > positions[:, None]
        tokens = self._text[CONTEXT + positions]
        logits = self.draft.score(tokens, positions, positions, hidden, captured=self._captured)
        self.widths = [len(positions)]
        return self._fill(1, logits[-1:], torch.zeros(1, dtype=torch.int64, device=self.device))

    def _next(self, level: int, budget: int) -> torch.Tensor | None:
        """Read the most valuable nodes of the level above with the draft."""
        assert self.draft is not None
        growing, by = self._growing, self._proposer.frontier(self._growing)
        cut = None if self._proposer.growmap is not None else self._proposer.cut
        ranks = growing.advance(level - 1, by, budget, cut, compiled=self.compiled)
        if ranks is None:
            return None
        rows = growing.rows(level)
        columns = self._columns(self.draft, rows.stop)
        numbers = torch.arange(rows.start, rows.stop, device=self.device)
        depth = torch.full((1,), level - 1, device=self.device)
        own = (growing.token, growing.row_slot[rows], growing.chain[rows], numbers)
        reading = fused(read_level, self.compiled)
        read = reading(*own, self.length, depth, growing.none, columns)
        logits = self.draft.score(*read, captured=self._captured)
        self.widths.append(len(numbers))
        return self._fill(level, logits, ranks)

    def _fill(self, level: int, logits: torch.Tensor, ranks: torch.Tensor) -> torch.Tensor:
        T, P, processors = self._judge.T, self._judge.P, self._judge.processors
        if processors is not None:
            growing, rows = self._growing, self._growing.rows(level)
            paths = growing.token[growing.row_slot[growing.chain[rows, 1:]]]
            depth = torch.full((len(paths),), level - 1, device=self.device)
            own = (self._before(self._captured), paths, depth, logits)
            logits, P = drafted(processors, *own), 1.0
            T = 1.0 if T > 0 else 0.0
        q = fused(probabilities.to_proposal, self.compiled)(logits, T, P)
        if self._likely:
            best, above = q.topk(self._likely), self._growing.rows(level)
            self._draft_tokens[above], self._draft_q[above] = best.indices, best.values
        rows = self._growing.bounds.rows(level)
        chance = self._chance.rows(rows if self.padded else rows.start + ranks)
        self._proposer.fill(self._growing, level, q, chance, *self._known())
        return self._growing.standing(level, compiled=self.compiled)

    def _known(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The text, for `find_copies`, and how many of its tokens are known [1]."""
        known = self.length + 1
        return self._text if self._captured else self._text[: CONTEXT + int(known)], known

    def score(self, n: int) -> Scored:
        """Score the root and the n best nodes in one pass of the target."""
        return self.passed(self.gathered(n))

    def passed(self, gathered: Gathered) -> Scored:
        """The target's pass."""
        logits = self.target.score(*gathered.read, captured=self._captured)
        return Scored(gathered.nodes, logits)

    def gathered(self, n: int) -> Gathered:
        """Choose the n best nodes."""
        if self.trees is None:
            columns = self._columns(self.target, 1)
            tokens = self._text[CONTEXT + self.length]
            hidden = (torch.arange(columns, device=self.device) > self.length)[None]
            return Gathered(None, Reading(tokens, self.length, self.length, hidden))
        growing, budget, inputs = self._growing, self.trees.budget, self.inputs
        if growing.bounds.run and n:
            given = (inputs.table, *self._known(), inputs.room)
            most = min(n, budget)
            add_runs(growing, most, inputs.worth, *given, compiled=self.compiled)
        nodes = assemble(growing, n, budget, inputs.worth, compiled=self.compiled)
        columns = self._columns(self.target, len(nodes.slot))
        own = (growing.token, nodes.slot, nodes.depth, nodes.path)
        return Gathered(nodes, fused(read_nodes, self.compiled)(*own, self.length, columns))

    def _columns(self, engine: TreeEngine, rows: int) -> int:
        """How many cache rows a pass sees that writes up to `rows` rows after the text."""
        return engine.static_length if self._captured else int(self.length) + rows

    def verify(self, scored: Scored) -> Verified:
        """Apply the rule, move the accepted path to the front of the caches, append path and bonus
        token to the text. Returns the report for the host (see decoding/report.py)."""
        length, nodes = self.length, scored.nodes
        if self._judge.processors is not None:
            self._root_text = self._before(self._captured and self._judge.captures)
        likeliest = self._likeliest(nodes, scored.logits) if self._likely else None
        if nodes is None:
            root = torch.zeros_like(length)
            self._p[:1].copy_(self._probs(None, root, scored.logits))
            bonus = draw_tokens(self._p[:1], self._chance.bonus, 1)[0]
            # -1 means no numbers; the next step may read it before the host sees it
            self._text.index_copy_(0, CONTEXT + 1 + length, bonus.clamp(min=0))
            length += 1
            report = torch.cat([bonus.clamp(max=0), torch.zeros_like(bonus), bonus]).double()
            return Verified(report, likeliest)
        growing = self._growing
        judged = self._judged(nodes, scored.logits)
        slots = Slots(*(getattr(growing, name) for name in Slots._fields))
        done = fused(closing, self.compiled)(
            judged, nodes, slots, growing.chain, length, growing.bounds.children, growing.read
        )
        assert self.draft is not None
        self._text.index_copy_(0, CONTEXT + 1 + done.to, done.emitted.clamp(min=0))  # -1: see above
        levels = len(done.to) if self._captured else int(done.length - length)
        moves = (done.of_target[:levels], done.to[:levels])
        if not self.target.spread:
            self.target.move(*moves)
        self.draft.move(done.of_draft[:levels], done.to[:levels])
        if not self._captured and self.draft.rereads:
            self._read = int(length)
        elif not self._captured and self.widths:
            self._read = int(done.read)
        length.copy_(done.length)
        return Verified(done.report, likeliest, moves if self.target.spread else None)

    def end(self, done: Verified) -> None:
        """What a verification leaves to do on several devices, which no graph can capture."""
        if done.moves is not None:
            self.target.move(*done.moves)

    def _likeliest(self, nodes: Nodes | None, logits: torch.Tensor) -> Likeliest:
        """What both models think likely after each node, before the rule changes p and q."""
        none = torch.zeros(0, dtype=torch.int64, device=self.device)
        which = torch.arange(len(logits) if nodes is None else nodes.none, device=self.device)
        p = self._probs(nodes, which, logits[: len(which)]).topk(self._likely)
        if nodes is None:
            empty = p.values[:0]
            return Likeliest(p.indices, p.values, p.indices[:0], empty, none)
        rows = self._growing.used_rows
        node = nodes.number[self._growing.row_slot[:rows]]
        draft = (self._draft_tokens[:rows].clone(), self._draft_q[:rows].clone())
        return Likeliest(p.indices, p.values, *draft, node)

    def _probs(
        self, nodes: Nodes | None, which: torch.Tensor, logits: torch.Tensor
    ) -> torch.Tensor:
        """The target's distributions [m, V] at the nodes `which` [m], from their logits."""
        judge = self._judge
        if judge.processors is None:
            return fused(probabilities.to_probs, self.compiled)(logits, judge.T, judge.P)
        depth = torch.zeros_like(which)
        paths = torch.zeros(len(which), 0, dtype=torch.int64, device=self.device)
        if nodes is not None:
            depth = nodes.depth[which]
            paths = tokens_at(nodes.path[which, 1:], nodes.slot, self._growing.token)
        scores = processed(judge.processors, self._root_text, paths, depth, logits)
        return probabilities.to_probs(scores, 1.0 if judge.T else 0.0)

    def _before(self, padded: bool) -> torch.Tensor:
        """The text up to the root; if padded, all places of the text, with the root's token again
        and again at the end."""
        text = self._text[CONTEXT:].clamp(min=0)  # -1: no numbers, or not yet a text
        if not padded:
            return text[: int(self.length) + 1]
        places = torch.arange(len(text), device=self.device)
        return torch.where(places <= self.length, text, text[self.length])

    def _judged(self, nodes: Nodes, logits: torch.Tensor) -> Judged:
        if self._judge.verify is not None:
            return self._judged_on_host(nodes, logits, self._judge.verify)
        families, q, inner = self._families(nodes)
        p = self._p[: 1 + (nodes.none if inner is None else len(inner))]
        which = torch.arange(nodes.none, device=self.device) if inner is None else inner
        p[:-1].copy_(self._probs(nodes, which, logits if inner is None else logits[inner]))
        relations = (nodes.parent, nodes.exists, nodes.seen)
        found = stop_law(self._judge.rule, families, p, q, *relations, compiled=self.compiled)
        self._left = (p, inner, nodes, logits)
        chance = self._chance.end
        end = fused(type(chance).pick, self.compiled)(chance, found.stop)
        bonus = draw_tokens(self.left_at(end.clamp(min=0)), self._chance.bonus, 1)[:, 0]
        return Judged(found.stop, end, bonus, _by_node(families.child, found.drawn, nodes.none))

    def left_at(self, node: torch.Tensor) -> torch.Tensor:
        """The distribution [1, V] of the token after a node [1] of the verified tree, up to a
        factor: what its children left, or the target's own."""
        p, inner, nodes, logits = self._left
        if inner is None:
            return p[node]
        place = (inner == node).nonzero()[:, 0]  # a leaf's distribution is computed only now
        return p[place] if len(place) else self._probs(nodes, node, logits[node])

    def _families(self, nodes: Nodes) -> tuple[Families, torch.Tensor, torch.Tensor | None]:
        """The rows of the growing tree, as families; what their children were sampled from; and,
        unless padded, the nodes of the families: the others are leaves, and p is not needed
        there."""
        growing, none = self._growing, nodes.none
        rows, k = growing.used_rows, growing.bounds.children
        tensors = (nodes.number, growing.row_slot, growing.token, growing.kind)
        node, child, token, point = fused(_families, self.compiled)(*tensors, none, rows, k)
        levels = range(1, growing.levels + 1)
        if self.padded:
            drawn = growing.bounds.depth  # levels; then come runs
            own = [Level(growing.rows(level), k, k * (level <= drawn)) for level in levels]
            return Families(node, child, token, point, node, own), growing.base, None
        columns = torch.arange(1, k + 1, device=self.device)
        there = child < none
        last = torch.stack([there, there & ~point], dim=1) * columns
        counts = last.amax(2).tolist()  # the last column with a child, and with a sampled one
        inner, own = [row for row, (count, _) in enumerate(counts) if count], []
        for level in levels:
            at, start = growing.rows(level), own[-1].rows.stop if own else 0
            of_level = [count for count in counts[at] if count[0]]
            if of_level:
                most = map(max, zip(*of_level, strict=True))
                own.append(Level(slice(start, start + len(of_level)), *most))
        used = torch.tensor([*inner, rows], device=self.device)
        node, child, token, point = (part[used[:-1]] for part in (node, child, token, point))
        base = growing.base[used]
        return Families(node, child, token, point, None, own), base, node

    def _judged_on_host(self, nodes: Nodes, logits: torch.Tensor, verify: Verify) -> Judged:
        growing, slot = self._growing, nodes.slot
        count = int(nodes.exists.sum())
        slot = slot[:count]
        tree = TokenTree(
            tokens=tuple(growing.token[slot].tolist()),
            parents=tuple(nodes.parent[:count].tolist()),
            proposal=tuple(growing.proposal[slot].tolist()),
            point=tuple((growing.kind[slot] >= Kind.POINT).tolist()),
        )
        families, q, _ = self._families(nodes)
        p = self._probs(nodes, torch.arange(count, device=self.device), logits[:count])
        base = dict(zip(families.node.tolist(), q, strict=False))
        none = torch.empty(0)
        verdict = verify(tree, p, [base.get(u, none) for u in range(count)], self._source)
        end, bonus = (
            torch.tensor([number], device=self.device)
            for number in ((0, *verdict.path)[-1], verdict.bonus)
        )
        stop = torch.tensor(verdict.stop, dtype=torch.float64, device=self.device)
        own = p[nodes.parent[:count].clamp(min=0), growing.token[slot]].double()
        own[:1] = 1.0  # the root
        return Judged(stop, end, bonus, own)


def _families(
    number: torch.Tensor,
    row_slot: torch.Tensor,
    token: torch.Tensor,
    kind: torch.Tensor,
    none: int,
    rows: int,
    k: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Nodes [R], children, tokens and points [R, k] of a growing tree's rows, see `Families`."""
    slots = slice(1, 1 + rows * k)
    node = number[row_slot[:rows]]
    child = torch.where(node[:, None] < none, number[slots].view(rows, k), none)
    return node, child, token[slots].view(rows, k), kind[slots].view(rows, k) >= Kind.POINT.value


def _by_node(child: torch.Tensor, drawn: torch.Tensor, none: int) -> torch.Tensor:
    """The entries of `drawn` [R, k] by child, 1 for the root; float64 [n]."""
    out = torch.ones(none + 1, dtype=torch.float64, device=drawn.device)
    return out.scatter(0, child.flatten(), drawn.double().flatten())[:-1]
