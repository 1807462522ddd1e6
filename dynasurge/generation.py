"""The library in three lines: load a pair, generate, look at the tree of any step.

    pair = dynasurge.load_pair()
    result = dynasurge.generate(pair, "The harbour council met on Tuesday", mode="dTree", B=16, T=0.6)
    result.steps[3].tree

`generate` builds a `Session` (engines with their caches, a drafter, a rule) for one prompt; a Session serves many.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from dynasurge import verification
from dynasurge.config import Settings
from dynasurge.decoding import Decoder, StepRecord
from dynasurge.drafting import BestFirst, Drafter, Shape, StaticShape
from dynasurge.engine import Engine
from dynasurge.errors import UsageError
from dynasurge.growmap import load_growmap
from dynasurge.models import Pair
from dynasurge.policies import POLICIES
from dynasurge.prototype import bfs
from dynasurge.verification import RULES


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


class Session:
    """A pair ready to decode under fixed settings. Models are shared, caches are its own."""

    def __init__(self, pair: Pair, settings: Settings) -> None:
        self.pair, self.settings = pair, settings
        shape = make_shape(settings)
        nodes = shape.max_nodes if shape else 0
        settings.check_room(nodes)
        self._check_positions()
        self._engines = [Engine(pair.target, settings.prompt_len + settings.new_tokens + nodes)]
        drafter = None
        if shape is not None:
            # The draft also holds slots that lose their place to better ones deeper down.
            room = settings.prompt_len + settings.new_tokens + shape.max_nodes * shape.max_depth
            self._engines.append(Engine(pair.draft, room, vocab=pair.target.config.get_text_config().vocab_size))
            policy = POLICIES[settings.policy if settings.T > 0 else "topk"]  # greedy text needs no chance
            drafter = Drafter(self._engines[1], shape, policy, T=settings.T, P=settings.P)
        verify = bfs if settings.rule == "bfs" else partial(verification.verify, RULES[settings.rule])
        self._decoder = Decoder(self._engines[0], drafter, verify, T=settings.T, P=settings.P)

    def encode(self, text: str) -> list[int]:
        """A prompt's first `prompt_len` tokens. Raises UsageError if it has none."""
        ids: list[int] = self.pair.tokenizer(text).input_ids[: self.settings.prompt_len]
        if not ids:
            raise UsageError("prompt", repr(text), "shorter than one token", "give at least one word")
        return ids

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
        if not 0 < len(ids) <= self.settings.prompt_len:
            reason = f"this session reads 1 to {self.settings.prompt_len} tokens"
            raise UsageError("prompt", f"of {len(ids)} tokens", reason, "cut it, or set prompt_len")
        generator = _stream(self.settings.seed, index)
        steps: list[StepRecord] = []
        for engine in self._engines:
            engine.reset()
        start = time.perf_counter()
        self._decoder.prefill(ids)
        self._synchronize()
        prefilled = time.perf_counter()
        for step in self._decoder.steps(ids, new_tokens or self.settings.new_tokens, generator, self.pair.eos):
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

    def _check_positions(self) -> None:
        need = self.settings.prompt_len + self.settings.new_tokens
        for flag, model in (("--target", self.pair.target), ("--draft", self.pair.draft)):
            config = model.config.get_text_config()
            window = getattr(config, "sliding_window", None)
            if getattr(config, "use_sliding_window", True) and window is not None and window < need:
                reason = f"attends to {window} positions only, {need} are needed"
                raise UsageError(flag, config.name_or_path, reason, "use a model with full attention, or less text")
            limit = getattr(config, "max_position_embeddings", None)
            if limit is not None and need > limit:
                remedy = "use smaller --prompt-len or --new-tokens"
                raise UsageError(flag, config.name_or_path, f"reads {limit} positions, {need} are needed", remedy)

    def _synchronize(self) -> None:
        if self.pair.target.device.type == "cuda":
            torch.cuda.synchronize(self.pair.target.device)


def _stream(seed: int, index: int) -> torch.Generator:
    """The random stream of one prompt. torch's CPU generator reads 32 bits of a seed; a hash spreads ours over them."""
    digest = hashlib.sha256(f"{seed}:{index}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))


def make_shape(settings: Settings) -> Shape | None:
    """The shape that the mode grows; None in auto mode. A growmap bounds a dynamic tree's depth."""
    growmap = load_growmap(settings.growmap) if settings.growmap is not None else None
    if settings.mode == "auto":
        return None
    if settings.mode == "sTree":
        assert growmap is not None, "Settings requires a growmap in sTree mode"
        return StaticShape(growmap)
    depth = growmap.depth if growmap is not None else settings.depth_bound
    return BestFirst(budget=settings.B, max_depth=depth, max_children=settings.max_children)


def generate(pair: Pair, prompt: str | list[int], **settings: Any) -> Generation:
    """Generate once. Keyword arguments are the fields of `Settings`; for many prompts make a `Session` instead."""
    names = {"draft": pair.draft_name, "target": pair.target_name}
    if not isinstance(prompt, str):
        settings.setdefault("prompt_len", len(prompt))
    return Session(pair, Settings(**(names | settings))).generate(prompt)
