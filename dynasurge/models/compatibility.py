"""Which models can decode with trees, by their class and config.

A tree needs three things of a model. First, the model can read several continuations of one text in
one pass: it takes a mask and a position for every token, so siblings share a position and do not
see each other. Second, it can go back: all that it knows of a text is in keys and values, one row a
token. (A recurrent state cannot forget a branch.) Third, the keys and values of a token do not
depend on later tokens. `check_model` refuses a model that lacks one of these, in one line.
models/self_test.py finds models whose class or config is wrong about it.

LongRoPE breaks the third at one point. transformers rotates by one set of factors while all
positions are below a switch, and by another set from then on; where a text crosses the switch, it
reads the text again. So a text must stay on one side (`readable`).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from dynasurge.errors import UsageError
from dynasurge.models.attention_masks import KINDS, layer_kinds

MODELS = "use a decoder such as LLaMA, Qwen, Gemma or Mistral"
NEEDED = {
    "attention_mask": "takes no attention mask",
    "position_ids": "takes no position_ids: it counts positions by cache row, and siblings of a tree share one position",
}  # arguments that forward needs, and the reason to refuse a model without one
# forward's name for its cache: until transformers 5.23, from 5.24 on
CACHES = ("past_key_values", "cache")
NO_LIMIT = 1 << 60


def check_model(flag: str, name: str, model: PreTrainedModel) -> None:
    """Raise UsageError unless the model can read a tree. flag, name: as the user gave them."""
    reason = _reason(model)
    if reason is not None:
        raise UsageError(flag, name, reason, MODELS)
    attention = model.config.get_text_config()._attn_implementation
    if attention not in ("sdpa", "eager"):
        raise UsageError(
            flag,
            name,
            f"{attention} attention takes no tree mask",
            'use attn_implementation="sdpa"',
        )


def _reason(model: PreTrainedModel) -> str | None:
    """Why a model cannot read a tree; None if its class and config show no reason."""
    config = model.config.get_text_config()
    if config.is_encoder_decoder or model.config.is_encoder_decoder:
        return "is an encoder-decoder"
    others = [kind for kind in layer_kinds(config) if kind not in KINDS]
    recurrent = [kind for kind in others if "linear" in kind or "hybrid" in kind or kind == "conv"]
    if getattr(model, "_is_stateful", False) or recurrent:
        return "keeps a recurrent state, which cannot go back to another branch of a tree"
    if others:
        return f"has {others[0]} layers, for which there is no tree mask"
    arguments = inspect.signature(type(model).forward).parameters
    for argument, lack in NEEDED.items():
        if argument not in arguments:
            return lack
    if not cache_arguments(type(model), None):
        return "takes no cache of keys and values"
    if getattr(config, "alibi", False):
        return (
            "has ALiBi: it biases attention by cache row, and siblings of a tree share one position"
        )
    for kind, size in layer_kinds(config).items():
        if size is not None and (not isinstance(size, int) or size < 2):
            return f"has {kind} layers of {size!r} positions"
    if "local" in (getattr(config, "attention_layers", None) or []):
        return "has local layers whose window is counted by cache row, not by position"
    return None


def cache_arguments(module: type[torch.nn.Module], cache: object) -> dict[str, object]:
    """The keyword arguments that give a model or block of this class its cache; empty if it takes
    none."""
    arguments = inspect.signature(module.forward).parameters
    return {name: cache for name in CACHES if name in arguments}


def readable(config: PreTrainedConfig, prompt: int) -> int:
    """How many positions a text may have, if its prompt has `prompt` tokens."""
    config = config.get_text_config()
    limit: int = getattr(config, "max_position_embeddings", None) or NO_LIMIT
    switch = rope_switch(config)
    if (
        switch is None or prompt - 1 > switch
    ):  # one pass reads the prompt without its last token, past the switch
        return limit
    return min(limit, switch)


def rope_switch(config: PreTrainedConfig) -> int | None:
    """The number of positions up to which LongRoPE uses its short factors; None without
    LongRoPE."""
    for rope in _rope_dicts(config.get_text_config()):
        if rope.get("rope_type", rope.get("type")) in ("longrope", "su"):
            own = rope.get("original_max_position_embeddings")
            switch: int | None = own or getattr(config, "original_max_position_embeddings", None)
            return switch
    return None


def _rope_dicts(config: PreTrainedConfig) -> Iterator[dict[str, Any]]:
    """Rotary parameters: one dict, or one for each kind of layer."""
    for name in ("rope_parameters", "rope_scaling"):
        rope = getattr(config, name, None)
        if isinstance(rope, dict):
            yield rope
            yield from (value for value in rope.values() if isinstance(value, dict))
