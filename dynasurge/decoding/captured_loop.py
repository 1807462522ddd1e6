"""Decoding on a GPU: a step replays a few captured CUDA graphs, one after the other; one read ends
it.

With small models, Python needs longer to launch the kernels of a step than the GPU needs to run
them. So a step is written in tensors of fixed shape (drafting/captured_tree.py,
drafting/captured_proposals.py, verification/captured_rules.py) and captured once:

    root       read the last two tokens with the draft, propose the first level
    level l    choose the nodes that are worth reading, read them, propose level l
    target n   keep the n best nodes, score them all in one pass
    verify n   apply the rule, draw path and bonus token, move the path's cache rows to the front, append to the text

The number of nodes that stay is chosen before a step. The number of levels is chosen during it
(drafting/captured_budget.py): the host looks at the best slot of one level while the device drafts
the next, so the device does not wait. One copy brings random numbers and estimates to the device.
One copy brings back the tree and its verdict.

The next step begins before the host reads this one, because it needs nothing from it. It does not
begin if the text may then be complete; after an end-of-text token its work is lost. While the
target runs, the host makes the last step's record and learns from it. So a tree uses what was known
two steps before it.

The text, its length and the caches live on the device. Draws are those of probabilities.py, from
the same explicit chance.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from dynasurge import probabilities
from dynasurge.decoding.captured_exchange import (
    Inputs,
    Outcome,
    Slots,
    Trees,
    closing,
    pinned,
    report_size,
)
from dynasurge.decoding.loop import StepRecord, cut
from dynasurge.drafting.captured_budget import LAG, Size
from dynasurge.drafting.captured_frontier import Proposer
from dynasurge.drafting.captured_tree import (
    CONTEXT,
    GrowingTree,
    Nodes,
    assemble,
    read_level,
    read_nodes,
)
from dynasurge.drafting.growth import bare, read_on, teach
from dynasurge.models.cuda_graphs import Captured, Graphs, Signal, Stopwatch, fused
from dynasurge.models.engine import Engine
from dynasurge.models.failures import no_numbers, shrinking
from dynasurge.probabilities import Random, Uniforms
from dynasurge.verification.captured_rules import judge, law
from dynasurge.verification.rules import path_to, reach

MARKS = 4  # marks of the stopwatch in a step


@dataclass(kw_only=True)
class StepUnderWay:
    """A step that was begun: its size, the number of levels launched so far, and the place of its
    result. away: seconds before it that the caller took."""

    size: Size
    away: float = 0.0
    depth: int = 0
    result: torch.Tensor | None = None


class CapturedDecoder:
    """Yields the steps of a generation, as `loop.Decoder` does. It has a target engine, and a
    draft's engine and trees unless nothing is drafted."""

    def __init__(
        self,
        target: Engine,
        draft: Engine | None,
        trees: Trees | None,
        *,
        rule: str,
        T: float,
        P: float,
    ) -> None:
        """Captures all graphs. Raises RuntimeError if one cannot be captured."""
        self._target, self._draft, self._trees = target, draft, trees
        self._rule, self._T, self._P = rule, T, P
        self._device = device = target.device
        self._compiled = target.compiled
        self._levels = trees.bounds.depth if trees is not None else 0
        self._sizes = trees.planner.sizes if trees is not None else (0,)
        self._text = torch.full(
            (CONTEXT + target.static_length + self._levels + 2,), -1, device=device
        )
        self._length = torch.zeros(
            1, dtype=torch.int64, device=device
        )  # the number of committed tokens, and the root's position
        self._p = torch.zeros(
            max(self._sizes) + 2, target.vocab, dtype=torch.float32, device=device
        )
        self._inputs = Inputs(trees, device)
        if trees is not None:
            table = None if trees.own or trees.growmap is not None else self._inputs.table
            self._growing = GrowingTree.empty(trees.bounds, target.vocab, device)
            self._proposer = Proposer(
                policy=trees.policy,
                table=table,
                growmap=trees.growmap,
                copies=trees.copies,
                cut=self._inputs.cut,
                most=trees.most,
                compiled=self._compiled,
            )
        for engine in (target, draft):
            if engine is not None:
                engine.reset()
                engine.prepare()
        graphs = Graphs(device)
        self._grow = [graphs.capture(self._root)] if trees is not None else []
        for level in range(2, self._levels + 1):
            self._grow.append(graphs.capture(lambda level=level: self._level(level)))  # type: ignore[misc]
        self._score: dict[int, Captured[Nodes | None]] = {}
        self._verify: dict[int, Captured[torch.Tensor]] = {}
        for n in sorted(
            self._sizes, reverse=True
        ):  # the largest first, so that the others reuse its memory
            self._score[n] = graphs.capture(lambda n=n: self._pass(n))  # type: ignore[misc]
            self._verify[n] = graphs.capture(lambda n=n: self._judge(n), self._length.zero_)  # type: ignore[misc]
        self.capture_seconds = graphs.seconds
        self._watch, self._back = (
            Stopwatch(device),
            [pinned(self._packed(max(self._sizes)), device) for _ in range(2)],
        )
        self._best, self._seen = (
            pinned(self._levels, device),
            [Signal(device) for _ in range(self._levels)],
        )

    def prefill(self, prompt: Sequence[int]) -> None:
        """Read a prompt, and forget what the last prompt taught."""
        self._read_on(prompt)
        if self._trees is not None:
            self._trees.acceptance.reset()
            self._trees.planner.reset()

    def _read_on(self, text: Sequence[int]) -> None:
        """Read the new tokens of a text, whose beginning was read before, except its last token,
        which becomes the root."""
        with shrinking("prompt"):
            for engine in (self._target, self._draft):
                if engine is not None:
                    read_on(engine, text[:-1])
        self._text[CONTEXT : CONTEXT + len(text)] = torch.tensor(text).to(self._device)
        self._length.fill_(len(text) - 1)

    def rehearse(self, length: int, size: Size, chance: Random) -> dict[str, float]:
        """Make a step after the first `length` tokens of the text, only to time it. Returns the
        seconds of its phases, named as in StepRecord."""
        self._length.fill_(length - 1)
        numbers = self._inputs.fill(chance, self._trees)
        self._watch.restart()
        self._read(self._finish(self._begin(size, numbers)), length)
        return self._phases()

    def steps(
        self,
        prompt: Sequence[int],
        new_tokens: int,
        chance: Random,
        eos: frozenset[int] = frozenset(),
    ) -> Iterator[StepRecord]:
        """After `prefill(prompt)`, generate up to `new_tokens` tokens; stop after a token of
        `eos`."""
        left, root, away = new_tokens, prompt[-1], 0.0
        self._watch.restart()
        flying = self._finish(self._begin(*self._prepare(chance)))
        while True:
            ready, following = self._prepare(chance), None
            if left > flying.depth + 1:  # a next step follows, even if all tokens are accepted
                following = self._begin(*ready, away)
            back = self._read(flying, len(prompt) + new_tokens - left)
            phases = self._phases(flying.away)
            room = left - 1  # for drafted tokens: the last token always counts as the bonus
            emitted = cut([*back.emitted[: back.depth], back.bonus], left, eos)
            left -= len(emitted)
            last = left == 0 or emitted[-1] in eos
            if not last:
                following = self._finish(following or self._begin(*ready, away))
            record = self._learn(flying, back, root, emitted, room, phases)
            left_at = time.perf_counter()
            yield record
            away = time.perf_counter() - left_at  # the caller's own time with the record
            if following is None or last:
                return
            root, flying = emitted[-1], following

    def follow(
        self, text: Sequence[int], places: Sequence[int], chance: Random, limit: int
    ) -> Iterator[StepRecord]:
        """The step after each of the first `places` (rising) tokens of a fixed text; the emitted
        tokens are not appended. See `Decoder.follow`."""
        for place in places:
            self._read_on(text[:place])
            self._watch.restart()
            step = self._finish(self._begin(*self._prepare(chance)))
            back = self._read(step, place)
            emitted = [*back.emitted[: back.depth], back.bonus]
            room = max(0, min(self._levels, limit - place))
            yield self._learn(step, back, text[place - 1], emitted, room, self._phases())

    # --- the captured graphs

    def _root(self) -> torch.Tensor:
        """Read the last two tokens with the draft (it may not have read the first of them) and
        propose the first level. Returns the level's best slot value [1]."""
        assert self._draft is not None
        steps = torch.arange(CONTEXT, device=self._device)
        self._growing.start(self._text[self._length + 1 + steps])
        positions = (self._length - 1 + steps[:2]).clamp(min=0)
        hidden = torch.arange(self._draft.static_length, device=self._device) > positions[:, None]
        logits = self._draft.score_at(self._text[CONTEXT + positions], positions, positions, hidden)
        return self._fill(1, logits[1:])

    def _level(self, level: int) -> torch.Tensor:
        """Read the most valuable nodes of the level above with the draft and propose their
        children. Returns the best slot value of the new level [1]."""
        assert self._draft is not None
        growing, length = self._growing, self._length
        rows = growing.advance(level - 1, self._proposer.frontier(growing), compiled=self._compiled)
        numbers = torch.arange(rows.start, rows.stop, device=self._device)
        depth = torch.full((1,), level - 1, device=self._device)
        own = (growing.token, growing.row_slot[rows], growing.chain[rows], numbers)
        reading = fused(read_level, self._compiled)
        read = reading(*own, length, depth, growing.bounds.row_count, self._draft.static_length)
        return self._fill(level, self._draft.score_at(*read))

    def _fill(self, level: int, logits: torch.Tensor) -> torch.Tensor:
        q = fused(probabilities.to_proposal, self._compiled)(logits, self._T, self._P)
        rows = self._growing.bounds.rows(level)
        self._proposer.fill(
            self._growing,
            level,
            q,
            Uniforms(self._inputs.uniforms[rows]),
            self._text,
            self._length + 1,
        )
        return self._growing.best(level)

    def _pass(self, n: int) -> Nodes | None:
        """Score the root and the n best nodes in one pass of the target."""
        nodes = None
        if self._trees is None:
            tokens, positions, rows = self._text[CONTEXT + self._length], self._length, self._length
            hidden = (torch.arange(self._target.static_length, device=self._device) > self._length)[
                None
            ]
        else:
            nodes = assemble(self._growing, n, self._trees.budget, compiled=self._compiled)
            own = (self._growing.token, nodes.slot, nodes.depth, nodes.path)
            reading = fused(read_nodes, self._compiled)
            tokens, positions, rows, hidden = reading(
                *own, self._length, self._target.static_length
            )
        logits = self._target.score_at(tokens, positions, rows, hidden)
        self._p[: n + 1].copy_(probabilities.to_probs(logits, self._T, self._P))
        return nodes

    def _judge(self, n: int) -> torch.Tensor:
        """Apply the rule, move the accepted path to the front of the caches, append path and bonus
        token to the text. Returns the report for the host (STEP and NODE)."""
        length, nodes = self._length, self._score[n].result
        if nodes is None:
            bonus = probabilities.draw_by(self._p[:1], self._inputs.last[1:, None])[0]
            self._text.index_copy_(
                0, CONTEXT + 1 + length, bonus.clamp(min=0)
            )  # -1 means no numbers; the next step may read it before the host sees it
            length += 1
            return torch.cat([bonus.clamp(max=0), torch.zeros_like(bonus), bonus]).double()  # STEP
        growing = self._growing
        found = law(growing, nodes, self._p[: n + 2], self._rule, compiled=self._compiled)
        judged = judge(found, self._inputs.last, compiled=self._compiled)
        slots = Slots(growing.token, growing.proposal, growing.kind, growing.x, growing.slot_value)
        done = fused(closing, self._compiled)(
            judged, nodes, slots, growing.chain, length, growing.bounds.children
        )
        assert self._draft is not None
        self._text.index_copy_(0, CONTEXT + 1 + done.to, done.emitted.clamp(min=0))  # -1: see above
        self._target.move(done.of_target, done.to)
        self._draft.move(done.of_draft, done.to)
        length.copy_(done.length)
        return done.report

    # --- the host's side

    def _prepare(self, chance: Random) -> tuple[Size, torch.Tensor]:
        """Choose the next tree's size, and fill in the numbers that its step gets."""
        size = self._trees.planner.choose() if self._trees is not None else Size(nodes=0, depth=0)
        return size, self._inputs.fill(chance, self._trees)

    def _begin(self, size: Size, numbers: torch.Tensor, away: float = 0.0) -> StepUnderWay:
        """Start a step, as far as possible without reading from the device. Nothing waits. away:
        see `StepUnderWay`."""
        self._watch.mark()
        self._inputs.send(numbers)
        step = StepUnderWay(size=size, away=away)
        while step.depth < (size.depth if size.least <= 0 else min(LAG, size.depth)):
            self._deepen(step)
        return step if size.least > 0 else self._finish(step)

    def _deepen(self, step: StepUnderWay) -> None:
        """Draft one more level."""
        level, step.depth = step.depth, step.depth + 1
        self._grow[level].replay()
        if step.size.least > 0:
            self._best[level : level + 1].copy_(self._grow[level].result, non_blocking=True)
            self._seen[level].set()

    def _finish(self, step: StepUnderWay) -> StepUnderWay:
        """Draft as many levels as pay for their passes, then launch the rest. Does nothing if it is
        already launched."""
        if step.result is not None:
            return step
        while step.depth < step.size.depth:
            looked_at = step.depth - LAG
            self._seen[looked_at].wait()
            if not step.size.goes_on(float(self._best[looked_at])):
                break
            self._deepen(step)
        n = step.size.nodes
        self._watch.mark()
        self._score[n].replay()
        self._watch.mark()
        self._verify[n].replay()
        self._back.reverse()  # the other buffer holds the step before, which may be unread
        step.result = self._back[0][: self._packed(n)]
        step.result.copy_(self._verify[n].result, non_blocking=True)
        self._watch.mark()
        return step

    def _read(self, step: StepUnderWay, length: int) -> Outcome:
        """Wait for the earliest unread step. length: tokens of the text before it, for the error
        line. Raises UsageError if the target's logits are no numbers."""
        assert step.result is not None
        self._watch.wait(MARKS)
        back = Outcome(step.result.numpy(), self._levels)
        if back.end < 0 or back.bonus < 0:
            raise no_numbers("--target", f"after {length} tokens")
        return back

    def _packed(self, n: int) -> int:
        return report_size(self._levels, n)

    def _phases(self, away: float = 0.0) -> dict[str, float]:
        """Seconds by phase of the step that was read last. away: see `StepUnderWay`."""
        idle, draft, target, verify = self._watch.laps(MARKS)
        rest = max(0.0, idle - away)
        return {
            "draft_seconds": draft,
            "target_seconds": target,
            "verify_seconds": verify,
            "other_seconds": rest,
        }

    def _learn(
        self,
        step: StepUnderWay,
        back: Outcome,
        root: int,
        emitted: list[int],
        room: int,
        phases: dict[str, float],
    ) -> StepRecord:
        """Make the record of a step and learn from it for the next trees. room: how many drafted
        tokens the text has room for."""
        trees, draft = self._trees, bare(root)
        if trees is not None:
            draft = back.draft(step.depth, static=trees.growmap is not None)
        stop = back.stop[: draft.tree.size + 1].tolist()
        if trees is not None and trees.growmap is None:
            teach(trees.acceptance, draft, reach(draft.tree, stop))
            trees.planner.learn(
                step.size, draft.tree.value[1:], draft.tree.depths[1:], draft.passes
            )
        return StepRecord(
            tree=draft.tree,
            path=path_to(draft.tree, back.end)[: min(len(emitted), room)],
            emitted=tuple(emitted),
            stop=tuple(stop),
            expected=sum(
                chance * min(depth, room)
                for chance, depth in zip(stop, draft.tree.depths, strict=True)
            ),
            confidence=draft.confidence,
            passes=draft.passes,
            **phases,
        )
