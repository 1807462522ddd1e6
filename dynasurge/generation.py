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
from functools import partial
from typing import Any

import torch

from dynasurge import verification
from dynasurge.acceptance import Acceptance, make_acceptance
from dynasurge.captured import CapturedDecoder, Trees
from dynasurge.config import Settings
from dynasurge.decoding import Decoder, StepRecord, Verify
from dynasurge.drafting import Drafter
from dynasurge.engine import Engine
from dynasurge.errors import UsageError
from dynasurge.faults import shrinking
from dynasurge.forest import FRONTIER, Layout, growmap_layout
from dynasurge.growmap import load_growmap
from dynasurge.latency import Costs, load_costs
from dynasurge.lookup import Lookup
from dynasurge.models import Pair, places
from dynasurge.pace import Pace
from dynasurge.policies import POLICIES, Policy
from dynasurge.prototype import bfs
from dynasurge.shapes import BestFirst, Shape, StaticShape, Thrifty
from dynasurge.verification import RULES

CAPTURED_RULES = ("topdown", "traversal")
SIZES = (16, 32, 64, 128)  # nodes that a captured pass has room for, then multiples of the last


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
        self.target.reset()
        if self.draft is not None:
            self.draft.reset()


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
    draft = Engine(pair.draft, draft_room, static_length=static_room, **how) if draft_room else None
    return Engines(target=Engine(pair.target, target_room, **how), draft=draft)


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
        settings.check_room(shape.max_nodes if shape else 0)
        self._check_positions()
        self.engines = engines if engines is not None else make_engines(pair, [settings])
        self.capture_seconds = 0.0
        if settings.pays and not known:
            assert self.engines.draft is not None
            costs = costs or load_costs(self.engines.target, self.engines.draft)
            shape = make_shape(settings, costs)
        if shape is not None:
            acceptance = acceptance or make_acceptance(settings.values, settings.rule, settings.T, settings.priors)
        if usual and settings.rule in CAPTURED_RULES and can_capture(pair):
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
        trees = None if shape is None else make_trees(settings, shape, acceptance, costs, target.device)
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
            lacks = "torch.compile and CUDA graphs" if target.compiled else "CUDA graphs"
            names = f"{self.pair.target_name}, {self.pair.draft_name}"
            warnings.warn(f"{names}: decoding without {lacks}, which is slower: {reason}", stacklevel=4)
            return None
        self.capture_seconds = decoder.capture_seconds
        return decoder

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

        eos: the tokens that end the text, the pair's own if None.
        """
        self._prefill(ids)
        yield from self._steps(ids, index, new_tokens, self.pair.eos if eos is None else eos)

    def _prefill(self, ids: list[int]) -> None:
        self.engines.reset()
        self._decoder.prefill(ids)
        if self.pair.target.device.type == "cuda":
            torch.cuda.synchronize(self.pair.target.device)

    def _steps(self, ids: list[int], index: int, new_tokens: int | None, eos: frozenset[int]) -> Iterator[StepRecord]:
        return self._decoder.steps(ids, new_tokens or self.settings.new_tokens, _stream(self.settings.seed, index), eos)

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


def _stream(seed: int, index: int) -> torch.Generator:
    """The random stream of one prompt. torch's CPU generator reads 32 bits of a seed; a hash spreads ours over them."""
    digest = hashlib.sha256(f"{seed}:{index}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))


def make_policy(settings: Settings) -> Policy:
    """How children are proposed; greedy text needs no chance."""
    return POLICIES[settings.policy if settings.T > 0 else "topk"]


def make_verify(settings: Settings) -> Verify:
    """The settings' rule, and the draws that follow it."""
    return bfs if settings.rule == "bfs" else partial(verification.verify, RULES[settings.rule])


def make_shape(settings: Settings, costs: Costs | None = None) -> Shape | None:
    """The shape that the mode grows; None in auto mode. A growmap bounds a dynamic depth; costs: what it pays for."""
    growmap = load_growmap(settings.growmap) if settings.growmap is not None else None
    if settings.mode == "auto":
        return None
    if settings.mode == "sTree":
        assert growmap is not None, "Settings requires a growmap in sTree mode"
        return StaticShape(growmap)
    depth = growmap.depth if growmap is not None else settings.depth_bound
    bounds: dict[str, Any] = {"budget": settings.budget, "max_depth": depth, "max_children": settings.max_children}
    if settings.T == 0 or settings.policy != "sampled":
        bounds["later_child"] = 1.0
    return BestFirst(**bounds) if settings.fill or costs is None else Thrifty(**bounds, costs=costs)


def can_capture(pair: Pair) -> bool:
    """Whether steps of this pair can be captured: on a GPU, unless a model is spread over several."""
    return pair.target.device.type == "cuda" and all(len(places(model)) < 2 for model in (pair.target, pair.draft))


def make_layout(settings: Settings, shape: Shape) -> Layout:
    """How large a captured tree of this shape can get."""
    if settings.mode == "sTree" and settings.growmap is not None:
        growmap = load_growmap(settings.growmap)
        return growmap_layout(growmap.children, growmap.depths)
    children = max(1 if settings.policy == "sampled" else 2, min(settings.max_children, shape.max_nodes))
    return Layout(depth=shape.max_depth, width=FRONTIER, children=max(2, children))


def captured_size(shape: Shape) -> int:
    """Nodes that a captured pass over the largest tree of this shape has room for: few sizes make few graphs."""
    return next((size for size in SIZES if size >= shape.max_nodes), -(-shape.max_nodes // SIZES[-1]) * SIZES[-1])


def make_trees(
    settings: Settings, shape: Shape, acceptance: Acceptance | None, costs: Costs | None, device: torch.device
) -> Trees:
    """What a captured decoder grows under these settings."""
    assert acceptance is not None
    dynamic, layout = settings.mode == "dTree", make_layout(settings, shape)
    growmap = None
    if not dynamic:
        assert settings.growmap is not None
        children = load_growmap(settings.growmap).children
        growmap = torch.full((len(children) + 1, layout.children), -1)
        for node, own in enumerate(children):
            growmap[node, : len(own)] = torch.tensor(own, dtype=torch.int64)
        growmap = growmap.to(device)
    paid = costs if dynamic and settings.pays else None
    largest = captured_size(shape)
    sizes = [size for size in SIZES if size < largest] if paid is not None else []
    return Trees(
        layout=layout,
        policy=settings.policy if settings.T > 0 else "topk",
        budget=shape.max_nodes,
        pace=Pace(sizes=(*sizes, largest), max_depth=layout.depth, costs=paid, fixed=not dynamic),
        acceptance=acceptance,
        growmap=growmap,
        copies=dynamic and settings.lookup,
        own=settings.values == "own",
    )


def generate(pair: Pair, prompt: str | list[int], **settings: Any) -> Generation:
    """Generate once. Keyword arguments are the fields of `Settings`; for many prompts make a `Session` instead."""
    names = {"draft": pair.draft_name, "target": pair.target_name}
    if not isinstance(prompt, str):
        settings.setdefault("prompt_len", len(prompt))
    return Session(pair, Settings(**(names | settings))).generate(prompt)
