"""The library in three lines: load a pair, generate, look at the tree of any step.

    pair = dynasurge.load_pair()
    result = dynasurge.generate(pair, "The harbour council met on Tuesday", mode="dTree", B=16, T=0.6)
    result.steps[3].tree

`generate` builds a `Session` (engines with their caches, a drafter, a rule) for one prompt; a Session serves many.
"""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dynasurge.acceptance import Acceptance, make_acceptance
from dynasurge.captured import CapturedDecoder
from dynasurge.config import Settings
from dynasurge.costs import Costs
from dynasurge.decoding import Decoder, StepRecord, Verify
from dynasurge.drafting import Drafter
from dynasurge.engine import Engine
from dynasurge.errors import UsageError, at_least
from dynasurge.faults import shrinking
from dynasurge.latency import load_costs
from dynasurge.lookup import Lookup
from dynasurge.models import Pair
from dynasurge.parts import (
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
from dynasurge.policies import Policy
from dynasurge.shapes import Shape


@dataclass(frozen=True, kw_only=True)
class Generation:
    """One prompt's result. Token ids; `text` is the decoded output; prefill_seconds: reading the prompt, both models;
    seconds: everything, prefill included."""

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


def make_engines(pair: Pair, plan: Sequence[Settings]) -> Engines:
    """Engines large enough for any of these settings."""
    rooms = [(0, 0, 0)]
    for settings in plan:
        text, shape = settings.prompt_len + settings.new_tokens, make_shape(settings)
        if shape is None:
            rooms.append((text, 0, 0))
        else:
            nodes = captured_size(shape) if can_capture(pair) else shape.max_nodes
            rooms.append((text + nodes, text + shape.max_read, text + make_layout(settings, shape).row_count))
    target_room, draft_room, static_room = map(max, zip(*rooms, strict=True))
    how: dict[str, Any] = {
        "vocab": pair.target.config.get_text_config().vocab_size,
        "compiled": any(settings.compile for settings in plan),
    }
    target = Engine(pair.target, target_room, **how)
    target.captures = can_capture(pair)
    draft = Engine(pair.draft, draft_room, static_length=static_room, **how) if draft_room else None
    return Engines(target=target, draft=draft)


class Session:
    """A pair ready to decode under fixed settings. Models are shared, caches are its own."""

    def __init__(
        self,
        pair: Pair,
        settings: Settings,
        *,
        engines: Engines | None = None,
        costs: Costs | None = None,
        acceptance: Acceptance | None = None,
        shape: Shape | None = None,
        policy: Policy | None = None,
        verify: Verify | None = None,
    ) -> None:
        """engines: made for a plan that has these settings (see `make_engines`), to share them with other sessions; two
        sessions that share engines take turns prompt by prompt. costs, acceptance, shape, policy, verify: replace this
        machine's latency curves, the estimate of acceptance, the tree's shape, the child policy, the rule: to compare, or
        to look on."""
        self.pair, self.settings = pair, settings
        usual = shape is None and policy is None and verify is None
        known, shape = shape is not None, shape or make_shape(settings)
        check_fits(pair, settings, shape.max_nodes if shape else 0)
        self.engines = engines if engines is not None else make_engines(pair, [settings])
        self.capture_seconds = 0.0
        if settings.pays and not known:
            assert self.engines.draft is not None
            costs = costs or load_costs(self.engines.target, self.engines.draft)
            shape = make_shape(settings, costs)
        if shape is not None:
            acceptance = acceptance or make_acceptance(settings.values, settings.rule, settings.T, settings.priors)
        captures = usual and settings.rule in CAPTURED_RULES and self.engines.target.captures
        if captures and (shape is None or can_hold(settings, shape)):
            decoder = self._captured(shape, acceptance, costs)
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
                policy or make_policy(settings),
                acceptance,
                Lookup() if settings.mode == "dTree" and settings.lookup else None,
                T=settings.T,
                P=settings.P,
            )
        verify = verify or make_verify(settings)
        self._decoder = Decoder(self.engines.target, drafter, verify, T=settings.T, P=settings.P)

    def _captured(
        self, shape: Shape | None, acceptance: Acceptance | None, costs: Costs | None
    ) -> CapturedDecoder | None:
        """The decoder whose steps are captured; None, with a warning, where a model cannot be."""
        settings, target, draft = self.settings, self.engines.target, self.engines.draft
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
        except RuntimeError as error:  # what a capture raises if the model looks at values on the host
            if isinstance(error, torch.OutOfMemoryError):
                raise
            if target.device.type == "cuda":
                torch.cuda.synchronize(target.device)
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            target.captures = False
            lacks = "torch.compile and CUDA graphs" if target.compiled else "CUDA graphs"
            names = f"{self.pair.target_name}, {self.pair.draft_name}"
            warnings.warn(f"{names}: decoding without {lacks}, which is slower: {reason}", stacklevel=4)
            return None
        self.capture_seconds = decoder.capture_seconds
        return decoder

    def encode(self, text: str) -> list[int]:
        """A prompt's first `prompt_len` tokens. Raises UsageError if it has none."""
        return encode(self.pair, self.settings, text)

    def generate(
        self,
        prompt: str | list[int],
        *,
        index: int = 0,
        new_tokens: int | None = None,
        on_step: Callable[[StepRecord], None] | None = None,
    ) -> Generation:
        """Generate after `prompt` (text, or token ids that are not cut).

        index: the prompt's number in its dataset; (seed, index) names the random stream, so that a prompt's text does
        not depend on which prompts came before it. on_step is called with each record as it is made.
        """
        ids = self.encode(prompt) if isinstance(prompt, str) else prompt
        steps: list[StepRecord] = []
        start = time.perf_counter()
        self._prefill(ids)
        prefilled = time.perf_counter()
        for step in self._steps(ids, index, new_tokens, self.pair.eos):
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
        self, ids: list[int], *, index: int = 0, new_tokens: int | None = None, eos: frozenset[int] | None = None
    ) -> Iterator[StepRecord]:
        """The records of `generate`, each decoded when it is asked for: to look on, or to stop anywhere.

        eos: the tokens that end the text, the pair's own if None. Another text of this session, or of one that shares its
        engines, ends this one: the next step raises UsageError.
        """
        self._prefill(ids)
        yield from self._steps(ids, index, new_tokens, self.pair.eos if eos is None else eos)

    def _prefill(self, ids: list[int]) -> None:
        self._check(ids)
        self.engines.reset()
        self._decoder.prefill(ids)
        if self.pair.target.device.type == "cuda":
            torch.cuda.synchronize(self.pair.target.device)

    def _check(self, ids: list[int]) -> None:
        if not 0 < len(ids) <= self.settings.prompt_len:
            reason = f"this session reads 1 to {self.settings.prompt_len} tokens"
            raise UsageError("prompt", f"of {len(ids)} tokens", reason, "cut it, or set prompt_len")

    def _steps(self, ids: list[int], index: int, new_tokens: int | None, eos: frozenset[int]) -> Iterator[StepRecord]:
        if new_tokens is not None and not 0 < new_tokens <= self.settings.new_tokens:
            reason = f"this session generates 1 to {self.settings.new_tokens} tokens"
            raise UsageError("new_tokens", new_tokens, reason, "make a session with a larger new_tokens")
        target = self.engines.target
        text = target.texts
        for step in self._decoder.steps(
            ids, new_tokens or self.settings.new_tokens, _stream(self.settings.seed, index), eos
        ):
            yield step
            if target.texts != text:
                reason = "was left for another one that uses the same engines"
                raise UsageError(
                    "prompt", index, reason, "finish a text first, or give each session engines of its own"
                )


def follow(
    sessions: Sequence[Session], prompt: list[int], text: list[int], *, index: int = 0, every: int = 4
) -> list[list[StepRecord]]:
    """By session, the steps it would make at every so many tokens of a `text` that goes on behind `prompt` as it is,
    whatever they emit: trees at the same places, learning on the way. Engines that sessions share read the text once."""
    at_least("every", every, 1, 4)
    places, walks = range(len(prompt), len(prompt) + len(text), every), []
    for session in sessions:
        session._check(prompt)
        if len(text) > session.settings.new_tokens:
            reason = f"this session generates 1 to {session.settings.new_tokens} tokens"
            raise UsageError("text", f"of {len(text)} tokens", reason, "cut it, or set new_tokens")
    for engines in {session.engines for session in sessions}:
        engines.reset()
    for session in sessions:
        session._decoder.prefill(prompt)
        walks.append(session._decoder.follow([*prompt, *text], places, _stream(session.settings.seed, index)))
    records: list[list[StepRecord]] = [[] for _ in sessions]
    for place in places:
        for session, walk, own in zip(sessions, walks, records, strict=True):
            session.engines.cut(place - 1)  # a step has read its root
            own.append(next(walk))
    return records


def encode(pair: Pair, settings: Settings, text: str) -> list[int]:
    """A prompt's first `prompt_len` tokens. Raises UsageError if it has none."""
    ids: list[int] = pair.tokenizer(text).input_ids[: settings.prompt_len]
    if not ids:
        raise UsageError("prompt", repr(text), "shorter than one token", "give at least one word")
    return ids


def check_fits(pair: Pair, settings: Settings, tree_nodes: int) -> None:
    """Raise UsageError if texts of these settings, and a tree, are more than M cache rows or the models can hold."""
    settings.check_room(tree_nodes)
    need = settings.prompt_len + settings.new_tokens
    for flag, model in (("--target", pair.target), ("--draft", pair.draft)):
        config = model.config.get_text_config()
        window = getattr(config, "sliding_window", None)
        if getattr(config, "use_sliding_window", True) and window is not None and window < need:
            reason = f"attends to {window} positions only, {need} are needed"
            raise UsageError(flag, config.name_or_path, reason, "use a model with full attention, or less text")
        limit = getattr(config, "max_position_embeddings", None)
        if limit is not None and need > limit:
            remedy = "use smaller --prompt-len or --new-tokens"
            raise UsageError(flag, config.name_or_path, f"reads {limit} positions, {need} are needed", remedy)


def _stream(seed: int, index: int) -> torch.Generator:
    """The random stream of one prompt. torch's CPU generator reads 32 bits of a seed; a hash spreads ours over them."""
    digest = hashlib.sha256(f"{seed}:{index}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))


def generate(pair: Pair, prompt: str | list[int], **settings: Any) -> Generation:
    """Generate once. Keyword arguments are the fields of `Settings`; for many prompts make a `Session` instead."""
    names = {"draft": pair.draft_name, "target": pair.target_name}
    if not isinstance(prompt, str):
        settings.setdefault("prompt_len", len(prompt))
    return Session(pair, Settings(**(names | settings))).generate(prompt)
