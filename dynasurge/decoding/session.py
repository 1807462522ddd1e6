"""The library in three lines: load a pair, generate, look at the tree of any step.

    pair = dynasurge.load_pair()
    result = dynasurge.generate(pair, "The harbour council met on Tuesday", mode="dTree", B=16, T=0.6)
    result.steps[3].tree

`generate` builds a `Session` (engines with their caches, a drafter, a rule) for one prompt; a
Session serves many.
"""

from __future__ import annotations

import hashlib
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList

from dynasurge.decoding.assembly import Parts, make_decoder
from dynasurge.decoding.engines import Engines, check_positions, make_engines
from dynasurge.decoding.loop import StepRecord
from dynasurge.decoding.phases import Verify
from dynasurge.decoding.tree_room import draft_rows, most_nodes
from dynasurge.drafting.acceptance_estimates import Acceptance
from dynasurge.drafting.cost_model import Costs
from dynasurge.drafting.proposals import Policy
from dynasurge.errors import UsageError, at_least
from dynasurge.models.compatibility import readable
from dynasurge.models.law import Asked, Law
from dynasurge.models.pair import Pair
from dynasurge.models.prompts import Prompt
from dynasurge.probabilities import Random
from dynasurge.settings import Settings, settings_of
from dynasurge.verification.rules import Rule

ROOM = 256  # tokens by which the room for prompts grows


@dataclass(frozen=True, kw_only=True, repr=False)
class Generation:
    """One prompt's result. prompt_ids, output_ids: token ids. text: the decoded output,
    without special tokens. prefill_seconds: the time both models took to read the prompt. seconds:
    the whole time, with prefill."""

    prompt_ids: list[int]
    output_ids: list[int]
    text: str
    steps: list[StepRecord]
    prefill_seconds: float
    seconds: float

    def __repr__(self) -> str:
        tokens, steps = len(self.output_ids), len(self.steps)
        said = f"{tokens} tokens in {steps} steps and {self.seconds:.2f} s"
        return f"<Generation of {said}: {textwrap.shorten(self.text, 60)!r}>"


class Session:
    """A pair ready to decode under fixed settings. Sessions share models; each has its own
    caches."""

    def __init__(
        self,
        pair: Pair,
        settings: Settings,
        *,
        engines: Engines | None = None,
        longest: int | None = None,
        costs: Costs | None = None,
        acceptance: Acceptance | None = None,
        policy: Policy | None = None,
        rule: Rule | None = None,
        verify: Verify | None = None,
        logits_processor: LogitsProcessor | LogitsProcessorList | None = None,
        law: Law | None = None,
        likely: int = 0,
    ) -> None:
        """Prepare engines and a decoder. What the settings leave open of the target's law, its
        generation config says.

        engines: made for a plan that has these settings (see `make_engines`), to share them with
        other sessions. Two sessions that share engines take turns prompt by prompt.

        longest: how many tokens a prompt may have. None takes `settings.prompt_len`. If that is
        None too, the session makes room for the first prompt, and more for a longer one.

        costs, acceptance, policy, rule: replace this machine's latency curves, the estimate of
        acceptance, the child policy and the rule. verify: a verification that looks at its tree on
        the host, in place of a rule. logits_processor: a user's own, one or several; they change the target's law
        as in transformers' `generate`. law: replaces the law of the settings. likely: how many of
        the likeliest tokens after each node records keep. Raises UsageError for
        a law that `generate` or a tree cannot have. On a GPU, a line says so if a step with these
        parts cannot be captured.
        """
        self.pair, self.settings = pair, settings.under(pair.generation_config)
        self._asked = Asked(pair, self.settings, logits_processor) if law is None else None
        self.eos = self._asked.eos if self._asked is not None else pair.eos
        self._shared = engines
        self._parts = Parts(
            costs=costs,
            acceptance=acceptance,
            policy=policy,
            rule=rule,
            verify=verify,
            law=self._asked.first if self._asked is not None else law,
            likely=likely,
        )
        fixed = longest if longest is not None else settings.prompt_len
        self._longest, self._grows = 0, fixed is None
        if fixed is not None:
            check_positions(pair, fixed, settings.new_tokens)
            self._make_room(fixed)

    def _make_room(self, longest: int) -> None:
        """Make engines and a decoder for prompts of up to `longest` tokens."""
        settings = replace(self.settings, prompt_len=longest)
        nodes = most_nodes(settings)
        settings.check_room(longest, nodes)
        self.engines = self._shared or make_engines(self.pair, [settings], longest)
        rows = draft_rows(settings, padded=False)
        self.engines.check_room(longest + settings.new_tokens, nodes, rows)
        self._decoder = make_decoder(self.pair, settings, self.engines, longest, self._parts)
        self._longest = longest

    @property
    def capture_seconds(self) -> float:
        """The seconds that capturing the steps took; 0 without a GPU."""
        return self._decoder.capture_seconds if self._longest else 0.0

    def encode(self, prompt: Prompt) -> list[int]:
        """A prompt's token ids, see `encode`."""
        return encode(self.pair, self.settings, prompt)

    def generate(
        self,
        prompt: Prompt,
        *,
        index: int = 0,
        new_tokens: int | None = None,
        on_step: Callable[[StepRecord], None] | None = None,
    ) -> Generation:
        """Generate after `prompt`: a text, token ids (a list, tensor or array; they are not cut),
        what a tokenizer returns, or, if the settings say `chat`, messages.

        index: the prompt's number in its dataset. (seed, index) names the random stream, so a
        prompt's text does not depend on the prompts before it. The session calls on_step with each
        record, as soon as it is made. Raises UsageError if the prompt does not fit.
        """
        ids, steps = self.encode(prompt), list[StepRecord]()
        count = self._fit(ids, new_tokens)
        start = time.perf_counter()
        self._prefill(ids, count)
        prefilled = time.perf_counter()
        for step in self._steps(ids, index, count, self.eos):
            steps.append(step)
            if on_step is not None:
                on_step(step)
        end = time.perf_counter()
        output = [token for step in steps for token in step.emitted]
        return Generation(
            prompt_ids=ids,
            output_ids=output,
            text=str(self.pair.tokenizer.decode(output, skip_special_tokens=True)),
            steps=steps,
            prefill_seconds=prefilled - start,
            seconds=end - start,
        )

    def stream(
        self,
        prompt: Prompt,
        *,
        index: int = 0,
        new_tokens: int | None = None,
        eos: frozenset[int] | None = None,
    ) -> Iterator[StepRecord]:
        """The records of `generate`, each decoded when the caller takes it: to watch, or to stop
        anywhere.

        eos: the tokens that end the text; None takes those of the settings or the pair. If this session, or one that
        shares its engines, starts another text, this text ends: its next step raises UsageError.
        """
        ids = self.encode(prompt)
        count = self._fit(ids, new_tokens)
        self._prefill(ids, count)
        yield from self._steps(ids, index, count, self.eos if eos is None else eos)

    def _prefill(self, ids: list[int], new_tokens: int) -> None:
        self.engines.reset()
        self._decoder.prefill(ids, self._law(ids, new_tokens))
        if self.pair.target.device.type == "cuda":
            torch.cuda.synchronize(self.pair.target.device)

    def _law(self, ids: list[int], new_tokens: int) -> Law | None:
        """The law after this prompt; None if it is that of every prompt."""
        asked = self._asked
        return None if asked is None or asked.fixed else asked.after(ids, new_tokens)

    def _fit(self, ids: list[int], new_tokens: int | None) -> int:
        """Make room for a prompt and `new_tokens` new tokens (None: the settings'). Returns the
        number of new tokens. Raises UsageError if they do not fit."""
        new_tokens = self.settings.new_tokens if new_tokens is None else new_tokens
        if not isinstance(new_tokens, int) or not 0 < new_tokens <= self.settings.new_tokens:
            reason = f"this session generates 1 to {self.settings.new_tokens} tokens"
            raise UsageError(
                "new_tokens", new_tokens, reason, "make a session with a larger new_tokens"
            )
        check_positions(self.pair, len(ids), new_tokens)
        if len(ids) > self._longest:
            if not self._grows:
                reason = f"this session reads 1 to {self._longest} tokens"
                raise UsageError(
                    "prompt", f"of {len(ids)} tokens", reason, "cut it, or set prompt_len"
                )
            self._make_room(len(ids) if not self._longest else -(-len(ids) // ROOM) * ROOM)
        return new_tokens

    def _steps(
        self, ids: list[int], index: int, new_tokens: int, eos: frozenset[int]
    ) -> Iterator[StepRecord]:
        target = self.engines.target
        text = target.texts
        for step in self._decoder.steps(ids, new_tokens, _stream(self.settings.seed, index), eos):
            yield step
            if target.texts != text:
                reason = "another text that uses the same engines began"
                raise UsageError(
                    "prompt",
                    index,
                    reason,
                    "finish a text first, or give each session engines of its own",
                )


def follow(
    sessions: Sequence[Session],
    prompt: list[int],
    text: list[int],
    *,
    index: int = 0,
    every: int = 4,
) -> list[list[StepRecord]]:
    """The steps that each session would make after every `every` tokens of a fixed `text` that
    follows `prompt`; the emitted tokens are not appended.

    So the trees of all sessions stand at the same places, and sessions learn on the way. Engines
    that sessions share read the text once. Returns a list of records for each session.
    """
    at_least("every", every, 1, 4)
    places, walks = range(len(prompt), len(prompt) + len(text), every), []
    for session in sessions:
        session._fit(prompt, len(text))
    for engines in {session.engines for session in sessions}:
        engines.reset()
    for session in sessions:
        session._decoder.prefill(prompt, session._law(prompt, len(text)))
        chance = _stream(session.settings.seed, index)
        limit = readable(session.pair.target.config, len(prompt))
        walks.append(session._decoder.follow([*prompt, *text], places, chance, limit))
    records: list[list[StepRecord]] = [[] for _ in sessions]
    for place in places:
        for session, walk, own in zip(sessions, walks, records, strict=True):
            session.engines.cut(place - 1)  # a step has read its root
            own.append(next(walk))
    return records


def encode(pair: Pair, settings: Settings, prompt: Prompt) -> list[int]:
    """A prompt's token ids. A text or a chat is cut to `prompt_len` tokens, if that is set. Raises
    UsageError for a prompt without tokens."""
    return pair.encode(prompt, chat=settings.chat, limit=settings.prompt_len)


def _stream(seed: int, index: int) -> Random:
    """The random stream of one prompt. torch's CPU generator reads 32 bits of a seed; a hash
    spreads ours over them."""
    digest = hashlib.sha256(f"{seed}:{index}".encode()).digest()
    return Random.seeded(int.from_bytes(digest[:4], "big"))


def generate(pair: Pair, prompt: Prompt, **settings: Any) -> Generation:
    """Generate once. prompt: see `Session.generate`. Keyword arguments are the fields of
    `Settings`. For many prompts make a `Session` instead."""
    names = {"draft": pair.draft_name, "target": pair.target_name}
    return Session(pair, settings_of(names | settings)).generate(prompt)
