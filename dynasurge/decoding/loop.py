"""Decoding: grow, score, verify, commit, record - one loop for all three modes.

Each step drafts a tree that continues the text. One target pass scores its root and all its nodes.
The rule accepts a path, and the step appends that path and the bonus token to the text. `auto` is
the same loop with a root alone for a tree: every pass then emits only the bonus token, which is
ordinary autoregressive decoding on the same engine.

Invariant at the top of the loop: the target's cache holds the whole text except its last token, the
root. Emitted tokens have the target's own distribution at temperature T and top-p P, for every
draft and every tree (see verification/rules.py).
"""

from __future__ import annotations

import operator
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from dynasurge import probabilities
from dynasurge.drafting.growth import Draft, Drafter, TreeEngine, bare, read_on
from dynasurge.models.failures import no_numbers, shrinking
from dynasurge.probabilities import Chance
from dynasurge.trees.token_tree import TokenTree
from dynasurge.verification.rules import Rows, Verdict, reach


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """What one target pass did.

    tree: the drafted tree. path: its accepted nodes, () if none. emitted: the tokens appended to
    the text, path then bonus; the end of the generation cuts both. stop[u]: the probability that
    the accepted path ends at node u. expected: the mean number of accepted tokens by `stop`.
    confidence: the draft's, see `Draft`. passes: the number of draft passes. *_seconds: wall time
    by phase (`other`: the loop, caches, bookkeeping).
    """

    tree: TokenTree
    path: tuple[int, ...]
    emitted: tuple[int, ...]
    stop: tuple[float, ...]
    expected: float
    confidence: float
    passes: int
    draft_seconds: float
    target_seconds: float
    verify_seconds: float
    other_seconds: float

    @property
    def accepted(self) -> int:
        """How many drafted tokens the target accepted."""
        return len(self.path)

    @property
    def reach(self) -> list[float]:
        """The probability, by node, that the path goes through it."""
        return reach(self.tree, self.stop)


Verify = Callable[[TokenTree, Rows, Sequence[torch.Tensor], Chance], Verdict]


class Decoder:
    """Yields the steps of a generation. It has a target engine, a drafter (None: no trees), and a
    rule that verifies."""

    def __init__(
        self, target: TreeEngine, drafter: Drafter | None, verify: Verify, *, T: float, P: float
    ) -> None:
        self._target, self._drafter, self._verify = target, drafter, verify
        self._T, self._P = T, P

    def prefill(self, prompt: Sequence[int]) -> None:
        """Read a prompt of at least one token, except its last token, which is the first root. The
        engines are empty or have read its beginning."""
        with shrinking("prompt"):
            read_on(self._target, prompt[:-1])
            if self._drafter is not None:
                self._drafter.start(prompt[:-1])

    def steps(
        self,
        prompt: Sequence[int],
        new_tokens: int,
        chance: Chance,
        eos: frozenset[int] = frozenset(),
    ) -> Iterator[StepRecord]:
        """After `prefill(prompt)`, generate up to `new_tokens` tokens; stop after a token of `eos`.

        Yields one record a target pass; their `emitted` tokens, joined, are the output. Raises
        UsageError if the target's logits are no numbers, or if memory runs out.
        """
        text = list(prompt)
        end = len(prompt) + new_tokens
        clock = _Clock(self._target.device)
        while len(text) < end:
            draft, verdict = self._step(text, chance, end - len(text) - 1, clock)
            emitted = cut(
                [draft.tree.tokens[node] for node in verdict.path] + [verdict.bonus],
                end - len(text),
                eos,
            )
            text += emitted
            clock.mark("other")
            yield _record(draft, verdict, emitted, clock)
            if emitted[-1] in eos:
                return

    def follow(
        self, text: Sequence[int], places: Sequence[int], chance: Chance, limit: int
    ) -> Iterator[StepRecord]:
        """The step after each of the first `places` (rising) tokens of a fixed text, of which
        `prefill` has read a part. The emitted tokens are not appended, so trees can be compared at
        the same places. A tree may go on behind the text's end, up to `limit` tokens."""
        clock = _Clock(self._target.device)
        for place in places:
            with shrinking("prompt"):
                read_on(self._target, text[: place - 1])
            draft, verdict = self._step(
                list(text[:place]), chance, max(0, limit - place), clock, keep=False
            )
            clock.mark("other")
            yield _record(
                draft,
                verdict,
                [draft.tree.tokens[node] for node in verdict.path] + [verdict.bonus],
                clock,
            )

    def _step(
        self,
        text: list[int],
        chance: Chance,
        room: int,
        clock: _Clock,
        *,
        keep: bool = True,
    ) -> tuple[Draft, Verdict]:
        """Draft, score, verify; then commit the path if `keep`."""
        clock.start()
        with shrinking("tree"), torch.inference_mode():
            draft = self._grow(text, chance, room)
            clock.mark("draft")
            logits = self._target.forward(draft.tree.tokens, draft.tree.parents)
            clock.mark("target")
            verdict = self._judge(draft, logits, chance, len(text))
            clock.mark("verify")
            self._target.commit((0, *verdict.path) if keep else ())
            if self._drafter is not None:
                self._drafter.learn(draft, verdict.path, reach(draft.tree, verdict.stop), keep=keep)
        return draft, verdict

    def _grow(self, text: list[int], chance: Chance, max_depth: int) -> Draft:
        if self._drafter is None or max_depth == 0:
            return bare(text[-1])
        return self._drafter.grow(text, chance, max_depth)

    def _judge(self, draft: Draft, logits: torch.Tensor, chance: Chance, length: int) -> Verdict:
        """Verify a tree after a text of `length` tokens. Raises UsageError if the logits are no
        numbers."""
        try:
            return self._verify(draft.tree, self._probs(logits), draft.q, chance)
        except probabilities.NoMassError as error:
            # verification notices this without one more wait for the device
            raise no_numbers("--target", f"after {length} tokens") from error

    def _probs(self, logits: torch.Tensor) -> Rows:
        # On a GPU, all rows at once take less time than the launch of one more kernel.
        lazy = logits.device.type == "cpu"
        return (
            _LazyProbs(logits, self._T, self._P)
            if lazy
            else probabilities.to_probs(logits, self._T, self._P)
        )


def _record(draft: Draft, verdict: Verdict, emitted: list[int], clock: _Clock) -> StepRecord:
    return StepRecord(
        tree=draft.tree,
        path=verdict.path[: len(emitted)],
        emitted=tuple(emitted),
        stop=verdict.stop,
        expected=sum(map(operator.mul, verdict.stop, draft.tree.depths)),
        confidence=draft.confidence,
        passes=draft.passes,
        **clock.lap(),
    )


class _LazyProbs:
    """Target distributions by node, computed when a rule reads them: it never reads most leaves."""

    def __init__(self, logits: torch.Tensor, T: float, P: float) -> None:
        self._logits, self._T, self._P = logits, T, P
        self.device = logits.device

    def __getitem__(self, nodes: torch.Tensor) -> torch.Tensor:
        return probabilities.to_probs(self._logits.index_select(0, nodes), self._T, self._P)


def cut(tokens: list[int], room: int, eos: frozenset[int]) -> list[int]:
    """The tokens up to and including the first end-of-text token, at most `room` of them."""
    for position, token in enumerate(tokens):
        if token in eos:
            return tokens[: min(position + 1, room)]
    return tokens[:room]


class _Clock:
    """Wall time by phase. Drafting and verification end with a read from the device, so the host's
    clock is right for them. On a GPU only the device knows when the target's pass ends between
    them."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._phases: dict[str, float] = {}
        self._events: list[torch.cuda.Event] = []
        self._last = 0.0

    def start(self) -> None:
        self._last = time.perf_counter()
        self._events = []

    def mark(self, phase: str) -> None:
        now = time.perf_counter()
        self._phases[f"{phase}_seconds"] = now - self._last
        self._last = now
        if self._on_gpu and phase in ("draft", "target"):
            self._events.append(torch.cuda.Event(enable_timing=True))
            self._events[-1].record()

    def lap(self) -> dict[str, float]:
        phases, self._phases = self._phases, {}
        if self._events:
            both = phases["target_seconds"] + phases["verify_seconds"]
            phases["target_seconds"] = min(
                both, self._events[0].elapsed_time(self._events[1]) / 1e3
            )
            phases["verify_seconds"] = both - phases["target_seconds"]
        return phases
