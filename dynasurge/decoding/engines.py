"""The two engines that decode together, and how much room they need."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from dynasurge.decoding.tree_room import bounds_of, most_nodes, room_for
from dynasurge.errors import UsageError
from dynasurge.models.compatibility import readable, rope_switch
from dynasurge.models.engine import Engine, places
from dynasurge.models.feature_draft import FeatureDraft
from dynasurge.models.feature_engine import FeatureEngine
from dynasurge.models.pair import Pair
from dynasurge.settings import Settings


class Engines:
    """A target's engine, and a draft's unless no tree is ever drafted. Both hold the same text."""

    def __init__(self, target: Engine, draft: Engine | None, *, captures: bool = False) -> None:
        """captures: whether their steps are captured, see decoding/executors.py."""
        self.target, self.draft, self._captures = target, draft, captures

    def __iter__(self) -> Iterator[Engine]:
        return iter([self.target] if self.draft is None else [self.target, self.draft])

    @property
    def captures(self) -> bool:
        """Whether their steps are captured."""
        return self._captures

    def decode_uncaptured(self) -> None:
        """Stop capturing steps: the passes of a model cannot be captured."""
        self._captures = False

    def check_room(self, text: int, nodes: int, rows: int) -> None:
        """Raise UsageError unless there is room for such a text and tree, of which the draft reads
        `rows` nodes."""
        need, room = text + nodes, self.target.max_length
        if self.draft is not None and text + rows > self.draft.max_length:
            need, room = text + rows, self.draft.max_length
        if need > room or (nodes and self.draft is None):
            reason = f"have room for {room} tokens{'' if self.draft else ' and no draft'}, not for {need}"
            remedy = "make them for a plan that has these settings (make_engines)"
            raise UsageError("engines", "of another plan", reason, remedy)

    def reset(self) -> None:
        """Forget the text."""
        for engine in self:
            engine.reset()

    def cut(self, length: int) -> None:
        """Forget the text after its first `length` tokens."""
        for engine in self:
            engine.cut(length)


def make_engines(pair: Pair, plan: Sequence[Settings], prompt: int | None = None) -> Engines:
    """Engines large enough for prompts of up to `prompt` tokens under any of these settings. None:
    the largest prompt_len of the plan. Raises UsageError if a setting has no prompt_len then."""
    if prompt is None:
        if any(settings.prompt_len is None for settings in plan):
            reason = "engines that several sessions share have room for prompts of a known length"
            raise UsageError("prompt_len", None, reason, "set prompt_len")
        prompt = max(settings.prompt_len or 1 for settings in plan)
    rooms = [(0, 0)]
    for settings in plan:
        text, nodes, bounds = (
            prompt + settings.new_tokens,
            most_nodes(settings),
            bounds_of(settings),
        )
        nodes = room_for(nodes)[-1] if nodes and can_capture(pair) else nodes
        rooms.append((text + nodes, text + bounds.row_count if bounds is not None else 0))
    target_room, draft_room = map(max, zip(*rooms, strict=True))
    how: dict[str, Any] = {
        "vocab": pair.vocab,
        "compiled": any(settings.compile for settings in plan),
    }
    captures = can_capture(pair) and all(reads_all(pair, settings, prompt) for settings in plan)
    return Engines(*engines_of(pair, target_room, draft_room, **how), captures=captures)


def engines_of(
    pair: Pair, target_room: int, draft_room: int, **how: Any
) -> tuple[Engine, Engine | None]:
    """A pair's engines with room for so many tokens; no draft's for 0. how: arguments of both, see
    `Engine`."""
    draft = pair.draft
    if not draft_room:
        return Engine(pair.target, target_room, **how), None
    if not isinstance(draft, FeatureDraft):
        own = Engine(draft, draft_room, shared=pair.shared, **how)
        return Engine(pair.target, target_room, **how), own
    taps = {"taps": draft.config.taps, "tap_width": draft.config.tap_width}
    target = Engine(pair.target, target_room, **taps, **how)
    return target, FeatureEngine(draft, draft_room, target, **how)


def can_capture(pair: Pair) -> bool:
    """Whether steps of this pair can be captured: on a GPU, if the draft is on one device and the
    target on GPUs. (Of a target that is spread over them, all but its passes are captured.)"""
    offloaded = {"cpu", "disk"} & places(pair.target)
    return pair.target.device.type == "cuda" and not offloaded and len(places(pair.draft)) < 2


def reads_all(pair: Pair, settings: Settings, prompt: int) -> bool:
    """Whether both models can read whole texts of these settings and the levels drafted after them.
    Only then may steps be captured."""
    text, bounds = prompt + settings.new_tokens, bounds_of(settings)
    if bounds is not None and readable(pair.draft.config, prompt) < text:
        return False
    # A prompt may be shorter than `prompt`, so no text may come near LongRoPE's switch. A captured
    # pass has nodes after the text's end; one of them past the switch would change all rotations.
    switch, levels = rope_switch(pair.target.config), bounds.depth if bounds is not None else 0
    return switch is None or text + levels <= switch


def check_positions(pair: Pair, prompt: int, new_tokens: int) -> None:
    """Raise UsageError if the target cannot read a text of `prompt` and `new_tokens` tokens."""
    config, need = pair.target.config, prompt + new_tokens
    limit = readable(config, prompt)
    if need <= limit:
        return
    remedy = "use smaller --prompt-len or --new-tokens"
    reason = f"reads {limit} positions, {need} are needed"
    if limit == rope_switch(config):
        reason = f"changes its rotary factors (LongRoPE) after {limit} positions"
        reason += f", and {need} are needed"
        remedy += f", or a prompt of more than {limit + 1} tokens"
    raise UsageError("--target", pair.target_name, reason, remedy)
