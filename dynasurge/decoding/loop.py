"""Decoding: grow, score, verify, commit, record - one loop for all modes and machines.

Each step drafts a tree that continues the text. One target pass scores its root and all its nodes.
The rule accepts a path, and the step appends that path and the bonus token to the text. `auto` is
the same loop with a root alone for a tree: every pass then emits only the bonus token, which is
ordinary autoregressive decoding on the same engine.

An executor (decoding/executors.py) calls the phases of a step, or replays them. With a lag of 2 the
host is one step behind, so that the device never waits for it: the next step begins before the host
reads this one, because it needs nothing from it. It does not begin if the text may then be
complete; after an end-of-text token its work is lost. While the target runs, the host makes the
last step's record and learns from it. So a tree uses what was known two steps before it.

Invariant at the top of a step: the target's cache holds the whole text except its last token, the
root. Emitted tokens have the target's own distribution at temperature T and top-p P, for every
draft and every tree (see verification/rules.py).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from dynasurge.decoding.executors import Executor
from dynasurge.decoding.report import (
    STEP,
    Likeliest,
    Likely,
    Outcome,
    likely_by_node,
    read_report,
)
from dynasurge.drafting.tree_budget import Size
from dynasurge.models.cuda_graphs import Stopwatch
from dynasurge.models.failures import no_numbers, shrinking
from dynasurge.models.law import Law
from dynasurge.probabilities import NoMassError, Source
from dynasurge.trees.token_tree import TokenTree
from dynasurge.verification.rules import path_to, reach

MARKS = 4  # marks of the stopwatch in a step


@dataclass(frozen=True, kw_only=True, repr=False)
class StepRecord:
    """What one target pass did.

    tree: the drafted tree. end: the node where verification stopped. path: the accepted nodes down
    to it, () if none. emitted: the tokens appended to the text, path then bonus; the end of the
    generation cuts both. Tuples by node: stop, the probability that the accepted path ends there; p
    and q, the target's and the draft's probability of the node's token, 1 for the root (at T = 0, q
    is the draft's at T = 1; NaN for a copy below a node that the draft has not read). expected: the
    mean number of accepted tokens by `stop`. confidence: the draft's, see `Outcome`. passes: the
    number of draft passes. *_seconds: wall time by phase (`other`: the loop, caches, bookkeeping).
    likely: by node, the likeliest tokens after it, if the session keeps them.
    """

    tree: TokenTree
    end: int
    path: tuple[int, ...]
    emitted: tuple[int, ...]
    stop: tuple[float, ...]
    p: tuple[float, ...]
    q: tuple[float, ...]
    expected: float
    confidence: float
    passes: int
    draft_seconds: float
    target_seconds: float
    verify_seconds: float
    other_seconds: float
    likely: tuple[Likely, ...] = ()

    def __repr__(self) -> str:
        return f"<StepRecord: {self.tree.size} drafted, {self.accepted} accepted>"

    @property
    def accepted(self) -> int:
        """How many drafted tokens the target accepted."""
        return len(self.path)

    @property
    def reach(self) -> list[float]:
        """The probability, by node, that the path goes through it."""
        return reach(self.tree, self.stop)


@dataclass(kw_only=True)
class StepUnderWay:
    """A step that was begun: its size, the tokens of the text before it, the levels launched so far,
    the tokens that each draft pass reads, and the place of its report. away: seconds before it that
    the caller took."""

    size: Size
    read: int
    away: float = 0.0
    depth: int = 0
    widths: Sequence[int] = ()
    report: torch.Tensor | None = None
    likeliest: Likeliest | None = None


class Decoder:
    """Yields the steps of a generation."""

    def __init__(self, executor: Executor) -> None:
        self._run, self._phases = executor, executor.phases
        self._trees = executor.phases.trees
        self._watch = Stopwatch(executor.phases.device)
        self._limit = 0  # positions of this text that the draft can read

    @property
    def capture_seconds(self) -> float:
        """The seconds that capturing the steps took; 0 if nothing is captured."""
        return self._run.capture_seconds

    def prefill(self, prompt: Sequence[int], law: Law | None = None) -> None:
        """Read a prompt of at least one token, except its last token, which is the first root, and
        forget what the last prompt taught. The engines are empty or have read its beginning. law:
        the target's from now on; None leaves it as it is. If steps are captured, it may differ from
        the last one only in processors that look at the text."""
        trees = self._trees
        if law is not None:
            self._phases.take_law(law)
        self._limit = trees.readable(len(prompt)) if trees is not None else 0
        self._phases.read_on(prompt)
        if trees is not None:
            trees.acceptance.reset()
            trees.planner.reset()

    def steps(
        self,
        prompt: Sequence[int],
        new_tokens: int,
        source: Source,
        eos: frozenset[int] = frozenset(),
    ) -> Iterator[StepRecord]:
        """After `prefill(prompt)`, generate up to `new_tokens` tokens; stop after a token of `eos`, or
        where the law says.

        Yields one record a target pass; their `emitted` tokens, joined, are the output. Raises
        UsageError if the target's logits are no numbers, or if memory runs out.
        """
        left, root, away, ahead = new_tokens, prompt[-1], 0.0, self._run.lag > 1
        text, stops = list(prompt), self._phases.stops
        self._watch.restart()
        flying = self._finish(self._begin(self._prepare(source), len(prompt), left))
        while True:
            read, ready, following = len(prompt) + new_tokens - left, None, None
            if ahead:
                ready = self._prepare(source)
                # a next step follows, even if all of this one are accepted
                if left > flying.depth + self._phases.run + 1:
                    following = self._begin(ready, read + 1, left - 1, away)
            outcome = self._read(flying, root)
            phases = self._laps(flying.away)
            room = left - 1  # for drafted tokens: the last token always counts as the bonus
            emitted = cut([*outcome.emitted], left, eos)
            last = len(emitted) == left or emitted[-1] in eos
            for count, token in enumerate(emitted if stops is not None else (), start=1):
                text.append(token)
                if stops is not None and stops(text):
                    emitted, last = emitted[:count], True
                    break
            left -= len(emitted)
            if ahead and not last:
                assert ready is not None
                begun = following or self._begin(ready, read + len(emitted), left, away)
                following = self._finish(begun)
            record = self._learn(flying, outcome, emitted, room, phases)
            left_at = time.perf_counter()
            yield record
            away = time.perf_counter() - left_at  # the caller's own time with the record
            if last:
                return
            root = emitted[-1]
            if not ahead:
                begun = self._begin(self._prepare(source), read + len(emitted), left, away)
                following = self._finish(begun)
            assert following is not None
            flying = following

    def follow(
        self, text: Sequence[int], places: Sequence[int], source: Source, limit: int
    ) -> Iterator[StepRecord]:
        """The step after each of the first `places` (rising) tokens of a fixed text, of which
        `prefill` has read a part. The emitted tokens are not appended, so trees can be compared at
        the same places. A tree may go on behind the text's end, up to `limit` tokens."""
        for place in places:
            self._phases.read_on(text[:place])
            self._watch.restart()
            room = max(0, limit - place)
            step = self._finish(self._begin(self._prepare(source), place, room + 1))
            outcome = self._read(step, text[place - 1])
            yield self._learn(step, outcome, [*outcome.emitted], room, self._laps())

    def rehearse(self, length: int, size: Size, source: Source) -> dict[str, float]:
        """Make a step after the first `length` tokens of the text, only to time it. Returns the
        seconds of its phases, named as in StepRecord. All levels of `size` are drafted."""
        self._phases.length.fill_(length - 1)
        numbers = self._phases.take(source, size)
        self._watch.restart()
        step = self._begin((size, numbers), length, size.depth + 1)
        while step.depth < size.depth:
            self._run.standing(step.depth + 1 - self._run.lag)  # the host looks, as in a real step
            self._deepen(step)
        self._read(self._finish(step), 0)
        return self._laps()

    def _prepare(self, source: Source) -> tuple[Size, torch.Tensor]:
        """Choose the next tree's size, and fill in the numbers that its step gets."""
        trees = self._trees
        size = trees.planner.choose() if trees is not None else Size(nodes=0, depth=0)
        return size, self._phases.take(source, size)

    def _begin(
        self, prepared: tuple[Size, torch.Tensor], read: int, left: int, away: float = 0.0
    ) -> StepUnderWay:
        """Start a step after a text of `read` tokens, as far as possible without looking at its
        tree. left: how many tokens may follow. away: see `StepUnderWay`."""
        size, numbers = prepared
        # to draft a level, the draft reads the one above it
        depth = max(0, min(size.depth, left - 1, self._limit - read + 1))
        step = StepUnderWay(size=replace(size, depth=depth), read=read, away=away)
        self._watch.mark()
        self._phases.inputs.send(numbers, min(left - 1, self._phases.depth))
        with shrinking("tree"):
            if self._trees is not None and not depth:
                self._run.grow(0, 0)
            while step.depth < min(self._run.lag, depth) and self._deepen(step):
                pass
        return step

    def _deepen(self, step: StepUnderWay) -> bool:
        """Draft one more level. Returns False if there is nothing to draft."""
        assert self._trees is not None
        budget = min(step.size.nodes, self._trees.budget)
        if self._run.grow(step.depth + 1, budget):
            step.depth += 1
            return True
        step.size = replace(step.size, depth=step.depth)
        return False

    def _finish(self, step: StepUnderWay) -> StepUnderWay:
        """Draft as many levels as pay for their passes, then launch the rest."""
        with shrinking("tree"):
            while step.depth < step.size.depth:
                standing = self._run.standing(step.depth + 1 - self._run.lag)
                if not step.size.goes_on(*standing) or not self._deepen(step):
                    break
            n = step.size.nodes if step.size.depth else min(self._sizes)
            self._watch.mark()
            self._run.score(n)
            self._watch.mark()
            try:
                done = self._run.verify(n)
            except NoMassError as error:  # only a verification on the host notices it so early
                raise no_numbers("--target", f"after {step.read} tokens") from error
            step.report, step.likeliest = done.report, done.likeliest
            self._watch.mark()
        if self._trees is not None:
            step.widths = tuple(self._run.widths(step.depth))
        return step

    @property
    def _sizes(self) -> Sequence[int]:
        return self._trees.planner.sizes if self._trees is not None else (0,)

    def _read(self, step: StepUnderWay, root: int) -> Outcome:
        """Wait for the earliest unread step. root: its root's token. Raises UsageError if the
        target's logits are no numbers."""
        assert step.report is not None
        self._watch.wait(MARKS)
        trees = self._trees
        if (step.report[: len(STEP)] < 0).any():
            raise no_numbers("--target", f"after {step.read} tokens")
        values = trees is not None and trees.growmap is None
        return read_report(step.report.numpy(), self._phases.depth, root, values=values)

    def _laps(self, away: float = 0.0) -> dict[str, float]:
        """Seconds by phase of the step that was read last. away: see `StepUnderWay`."""
        idle, draft, target, verify = self._watch.laps(MARKS)
        return {
            "draft_seconds": draft,
            "target_seconds": target,
            "verify_seconds": verify,
            "other_seconds": max(0.0, idle - away),
        }

    def _learn(
        self,
        step: StepUnderWay,
        outcome: Outcome,
        emitted: list[int],
        room: int,
        phases: dict[str, float],
    ) -> StepRecord:
        """Make the record of a step and learn from it for the next trees. room: how many drafted
        tokens the text has room for."""
        trees, tree, stop = self._trees, outcome.tree, outcome.stop
        if trees is not None and trees.growmap is None:
            outcome.teach(trees.acceptance, reach(tree, stop))
            trees.planner.learn(step.size, tree.value[1:], outcome.levels[1:], step.widths)
        found = step.likeliest
        return StepRecord(
            tree=tree,
            likely=likely_by_node(found, tree.size + 1) if found is not None else (),
            end=outcome.end,
            path=path_to(tree, outcome.end)[: min(len(emitted), room)],
            emitted=tuple(emitted),
            stop=stop,
            p=outcome.p,
            q=outcome.q,
            expected=sum(
                chance * min(depth, room) for chance, depth in zip(stop, tree.depths, strict=True)
            ),
            confidence=outcome.confidence,
            passes=step.depth,
            **phases,
        )


def cut(tokens: list[int], room: int, eos: frozenset[int]) -> list[int]:
    """The tokens up to and including the first end-of-text token, at most `room` of them."""
    for position, token in enumerate(tokens):
        if token in eos:
            return tokens[: min(position + 1, room)]
    return tokens[:room]
