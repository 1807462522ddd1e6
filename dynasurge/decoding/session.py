"""The library in three lines: load a pair, generate, look at the tree of any step.

    pair = dynasurge.load_pair()
    result = dynasurge.generate(pair, "The harbour council met on Tuesday", mode="dTree", B=16, T=0.6)
    result.steps[3].tree

`generate` builds a `Session` (engines with their caches, a drafter, a rule) for one prompt; a
Session serves many.
"""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from dynasurge.decoding.assembly import (
    CAPTURED_RULES,
    can_capture,
    can_hold,
    captured_size,
    make_layout,
    make_policy,
    make_shape,
    make_trees,
    make_verify,
)
from dynasurge.decoding.captured_loop import CapturedDecoder
from dynasurge.decoding.latency import load_costs
from dynasurge.decoding.loop import Decoder, StepRecord, Verify
from dynasurge.drafting.acceptance_estimates import Acceptance, make_acceptance
from dynasurge.drafting.cost_model import Costs
from dynasurge.drafting.growth import Drafter
from dynasurge.drafting.prompt_lookup import Lookup
from dynasurge.drafting.proposals import Policy
from dynasurge.drafting.tree_budget import Shape
from dynasurge.errors import UsageError, at_least
from dynasurge.models.compatibility import readable, rope_switch
from dynasurge.models.engine import Engine
from dynasurge.models.failures import shrinking
from dynasurge.models.pair import Pair
from dynasurge.models.prompts import Prompt
from dynasurge.settings import Settings

ROOM = 256  # tokens by which the room for prompts grows


@dataclass(frozen=True, kw_only=True)
class Generation:
    """One prompt's result. Token ids; `text` is the decoded output; prefill_seconds: reading the
    prompt, both models; seconds: everything, prefill included."""

    prompt_ids: list[int]
    output_ids: list[int]
    text: str
    steps: list[StepRecord]
    prefill_seconds: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Engines:
    """A target's engine and, unless no tree is ever drafted, a draft's."""

    target: Engine
    draft: Engine | None

    def reset(self) -> None:
        """Forget the text."""
        for engine in (self.target, self.draft):
            if engine is not None:
                engine.reset()

    def cut(self, length: int) -> None:
        """Forget the text behind its first `length` tokens."""
        for engine in (self.target, self.draft):
            if engine is not None:
                engine.cut(length)


def make_engines(pair: Pair, plan: Sequence[Settings], prompt: int | None = None) -> Engines:
    """Engines large enough for prompts of up to so many tokens (None: the largest prompt_len of the
    plan) under any of these settings."""
    if prompt is None:
        if any(settings.prompt_len is None for settings in plan):
            reason = "engines that several sessions share have room for prompts of a known length"
            raise UsageError("prompt_len", None, reason, "set prompt_len")
        prompt = max(settings.prompt_len or 1 for settings in plan)
    rooms = [(0, 0, 0)]
    for settings in plan:
        text, shape = prompt + settings.new_tokens, make_shape(settings)
        if shape is None:
            rooms.append((text, 0, 0))
        else:
            nodes = captured_size(shape) if can_capture(pair) else shape.max_nodes
            rooms.append(
                (text + nodes, text + shape.max_read, text + make_layout(settings, shape).row_count)
            )
    target_room, draft_room, static_room = map(max, zip(*rooms, strict=True))
    how: dict[str, Any] = {
        "vocab": pair.vocab,
        "compiled": any(settings.compile for settings in plan),
    }
    target = Engine(pair.target, target_room, **how)
    target.captures = can_capture(pair) and all(
        reads_all(pair, settings, prompt) for settings in plan
    )
    draft = None
    if draft_room:
        draft = Engine(pair.draft, draft_room, static_length=static_room, shared=pair.shared, **how)
    return Engines(target=target, draft=draft)


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a session takes instead of what its settings say; None for theirs."""

    costs: Costs | None
    acceptance: Acceptance | None
    shape: Shape | None
    policy: Policy | None
    verify: Verify | None


class Session:
    """A pair ready to decode under fixed settings. Models are shared, caches are its own."""

    def __init__(
        self,
        pair: Pair,
        settings: Settings,
        *,
        engines: Engines | None = None,
        longest: int | None = None,
        costs: Costs | None = None,
        acceptance: Acceptance | None = None,
        shape: Shape | None = None,
        policy: Policy | None = None,
        verify: Verify | None = None,
    ) -> None:
        """engines: made for a plan that has these settings (see `make_engines`), to share them with
        other sessions; two sessions that share engines take turns prompt by prompt. longest: how
        many tokens a prompt may have (None: `settings.prompt_len`; if that is None, too, there is
        room for the first prompt, and anew for a longer one). costs, acceptance, shape, policy,
        verify: replace this machine's latency curves, the estimate of acceptance, the tree's shape,
        the child policy, the rule: to compare, or to look on."""
        self.pair, self.settings = pair, settings
        self._shared = engines
        self._parts = Parts(
            costs=costs, acceptance=acceptance, shape=shape, policy=policy, verify=verify
        )
        self._longest = 0
        self.capture_seconds = 0.0
        longest = longest if longest is not None else settings.prompt_len
        self._grows = longest is None
        if longest is not None:
            check_positions(pair, longest, settings.new_tokens)
            self._make(longest)

    def _make(self, longest: int) -> None:
        """Engines and a decoder for prompts of up to so many tokens."""
        pair, settings = self.pair, replace(self.settings, prompt_len=longest)
        parts = self._parts
        shape, costs, acceptance = parts.shape, parts.costs, parts.acceptance
        usual = shape is None and parts.policy is None and parts.verify is None
        known, shape = shape is not None, shape or make_shape(settings)
        settings.check_room(longest, shape.max_nodes if shape else 0)
        self.engines = (
            self._shared if self._shared is not None else make_engines(pair, [settings], longest)
        )
        self._longest = longest
        if settings.pays and not known:
            assert self.engines.draft is not None
            costs = costs or load_costs(self.engines.target, self.engines.draft)
            shape = make_shape(settings, costs)
        if shape is not None:
            acceptance = acceptance or make_acceptance(
                settings.values, settings.rule, settings.T, settings.priors
            )
        captures = usual and settings.rule in CAPTURED_RULES and self.engines.target.captures
        captures = captures and reads_all(pair, settings, longest)
        limit = readable(pair.draft.config, longest)
        if shape is not None and limit < longest + settings.new_tokens:
            said = f"reads {limit} positions; behind these nothing is drafted"
            warnings.warn(f"--draft {pair.draft_name}: {said}", stacklevel=3)
        if captures and (shape is None or can_hold(settings, shape)):
            decoder = self._captured(settings, shape, acceptance, costs)
            if decoder is not None:
                self._decoder: Decoder | CapturedDecoder = decoder
                return
        drafter = None
        if shape is not None:
            assert self.engines.draft is not None
            assert acceptance is not None
            drafter = Drafter(
                self.engines.draft,
                shape,
                parts.policy or make_policy(settings),
                acceptance,
                Lookup() if settings.mode == "dTree" and settings.lookup else None,
                T=settings.T,
                P=settings.P,
                readable=partial(readable, pair.draft.config),
            )
        verify = parts.verify or make_verify(settings)
        self._decoder = Decoder(self.engines.target, drafter, verify, T=settings.T, P=settings.P)

    def _captured(
        self,
        settings: Settings,
        shape: Shape | None,
        acceptance: Acceptance | None,
        costs: Costs | None,
    ) -> CapturedDecoder | None:
        """The decoder whose steps are captured; None, with a warning, where a model cannot be."""
        target, draft = self.engines.target, self.engines.draft
        trees = (
            None
            if shape is None or not shape.max_nodes
            else make_trees(settings, shape, acceptance, costs, target.device)
        )
        rule = settings.rule if settings.T > 0 else "topdown"  # at T = 0 they are one
        try:
            with shrinking("tree"):
                decoder = CapturedDecoder(
                    target, draft if trees else None, trees, rule=rule, T=settings.T, P=settings.P
                )
        except RuntimeError as error:
            # what a capture raises if the model looks at values on the host
            if isinstance(error, torch.OutOfMemoryError):
                raise
            if target.device.type == "cuda":
                torch.cuda.synchronize(target.device)
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            target.captures = False
            lacks = "torch.compile and CUDA graphs" if target.compiled else "CUDA graphs"
            names = f"{self.pair.target_name}, {self.pair.draft_name}"
            warnings.warn(
                f"{names}: decoding without {lacks}, which is slower: {reason}", stacklevel=4
            )
            return None
        self.capture_seconds = decoder.capture_seconds
        return decoder

    def encode(self, prompt: Prompt) -> list[int]:
        """A prompt's token ids, of a text the first `prompt_len` where that is set. Raises
        UsageError if it has none."""
        return encode(self.pair, self.settings, prompt)

    def generate(
        self,
        prompt: Prompt,
        *,
        index: int = 0,
        new_tokens: int | None = None,
        on_step: Callable[[StepRecord], None] | None = None,
    ) -> Generation:
        """Generate after `prompt`: text, token ids (a list, tensor or array; they are not cut), or
        what a tokenizer returns.

        index: the prompt's number in its dataset; (seed, index) names the random stream, so that a
        prompt's text does not depend on which prompts came before it. on_step is called with each
        record as it is made.
        """
        ids, steps = self.encode(prompt), list[StepRecord]()
        count = self._make_room(ids, new_tokens)
        start = time.perf_counter()
        self._prefill(ids)
        prefilled = time.perf_counter()
        for step in self._steps(ids, index, count, self.pair.eos):
            steps.append(step)
            if on_step is not None:
                on_step(step)
        end = time.perf_counter()
        output = [token for step in steps for token in step.emitted]
        return Generation(
            prompt_ids=ids,
            output_ids=output,
            text=str(self.pair.tokenizer.decode(output)),
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
        """The records of `generate`, each decoded when it is asked for: to look on, or to stop
        anywhere.

        eos: the tokens that end the text, the pair's own if None. Another text of this session, or
        of one that shares its engines, ends this one: the next step raises UsageError.
        """
        ids = self.encode(prompt)
        count = self._make_room(ids, new_tokens)
        self._prefill(ids)
        yield from self._steps(ids, index, count, self.pair.eos if eos is None else eos)

    def _prefill(self, ids: list[int]) -> None:
        self.engines.reset()
        self._decoder.prefill(ids)
        if self.pair.target.device.type == "cuda":
            torch.cuda.synchronize(self.pair.target.device)

    def _make_room(self, ids: list[int], new_tokens: int | None) -> int:
        """Make room for a prompt and so many new tokens, the settings' if None, and return these.
        Raises UsageError if that can't be."""
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
            self._make(len(ids) if not self._longest else -(-len(ids) // ROOM) * ROOM)
        return new_tokens

    def _steps(
        self, ids: list[int], index: int, new_tokens: int, eos: frozenset[int]
    ) -> Iterator[StepRecord]:
        target = self.engines.target
        text = target.texts
        for step in self._decoder.steps(ids, new_tokens, _stream(self.settings.seed, index), eos):
            yield step
            if target.texts != text:
                reason = "was left for another one that uses the same engines"
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
    """By session, the steps it would make at every so many tokens of a `text` that goes on behind
    `prompt` as it is, whatever they emit: trees at the same places, learning on the way. Engines
    that sessions share read the text once."""
    at_least("every", every, 1, 4)
    places, walks = range(len(prompt), len(prompt) + len(text), every), []
    for session in sessions:
        session._make_room(prompt, len(text))
    for engines in {session.engines for session in sessions}:
        engines.reset()
    for session in sessions:
        session._decoder.prefill(prompt)
        walks.append(
            session._decoder.follow([*prompt, *text], places, _stream(session.settings.seed, index))
        )
    records: list[list[StepRecord]] = [[] for _ in sessions]
    for place in places:
        for session, walk, own in zip(sessions, walks, records, strict=True):
            session.engines.cut(place - 1)  # a step has read its root
            own.append(next(walk))
    return records


def encode(pair: Pair, settings: Settings, prompt: Prompt) -> list[int]:
    """A prompt's token ids, of a text the first `prompt_len` where that is set. Raises UsageError
    if it has none."""
    ids = pair.encode(prompt)
    return ids[: settings.prompt_len] if isinstance(prompt, str) else ids


def check_positions(pair: Pair, prompt: int, new_tokens: int) -> None:
    """Raise UsageError if the target cannot read a text of `prompt` and `new_tokens` tokens."""
    config, need = pair.target.config, prompt + new_tokens
    limit = readable(config, prompt)
    if need <= limit:
        return
    remedy = "use smaller --prompt-len or --new-tokens"
    reason = f"reads {limit} positions, {need} are needed"
    if limit == rope_switch(config):
        reason = (
            f"changes its rotary factors (LongRoPE) behind {limit} positions, and {need} are needed"
        )
        remedy += f", or a prompt of more than {limit + 1} tokens"
    raise UsageError("--target", pair.target_name, reason, remedy)


def reads_all(pair: Pair, settings: Settings, prompt: int) -> bool:
    """Whether both models can read texts of these settings from end to end, drafted levels behind
    it included, so that steps may be captured."""
    text, shape = prompt + settings.new_tokens, make_shape(settings)
    if shape is not None and readable(pair.draft.config, prompt) < text:
        return False
    # A prompt may be shorter than `prompt`, so no text may come near LongRoPE's switch: a captured
    # pass has nodes behind the text's end, and one beyond the switch would turn them all.
    switch, levels = rope_switch(pair.target.config), shape.max_depth if shape is not None else 0
    return switch is None or text + levels <= switch


def _stream(seed: int, index: int) -> torch.Generator:
    """The random stream of one prompt. torch's CPU generator reads 32 bits of a seed; a hash
    spreads ours over them."""
    digest = hashlib.sha256(f"{seed}:{index}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))


def generate(pair: Pair, prompt: Prompt, **settings: Any) -> Generation:
    """Generate once. prompt: as in `Session.generate`. Keyword arguments are the fields of
    `Settings`; for many prompts make a `Session` instead."""
    names = {"draft": pair.draft_name, "target": pair.target_name}
    return Session(pair, Settings(**(names | settings))).generate(prompt)
