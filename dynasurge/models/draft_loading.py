"""Loads a draft: another language model, or one that reads the target's hidden states. Which of the
two a checkpoint is, its config.json says."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from dynasurge.models.failures import shrinking
from dynasurge.models.feature_draft import KEYS, FeatureDraft, published_config
from dynasurge.models.loading import (
    Quiet,
    Source,
    check_report,
    find_source,
    load_model,
    unloadable,
)
from dynasurge.models.widened import SHAPES, widen


def load_draft(
    name: str,
    target: PreTrainedModel,
    dtype: torch.dtype,
    *,
    device: torch.device | None = None,
    trust_remote_code: bool = False,
    flag: str = "--draft",
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    """Load the draft for a target and, if it has one, its tokenizer. Arguments: see `load_model`.
    Raises UsageError, of `flag`."""
    source = find_source(flag, name, trust_remote_code)
    own = target.config.get_text_config()
    try:
        with Quiet():
            entries, _ = PreTrainedConfig.get_config_dict(source.path, **source.options)
    except Exception:  # the loader of models says what is wrong
        entries = {}
    try:
        config = published_config(entries, own.num_hidden_layers)
    except ValueError as error:
        reason, _, remedy = str(error).partition(", ")
        raise source.wrong(reason, remedy) from error
    if config is None:
        how: dict[str, Any] = {"device": device, "trust_remote_code": trust_remote_code}
        return load_model(flag, name, dtype, **how)
    _check_config(source, config, own)
    with Quiet(), shrinking("model"):
        try:
            loaded: Any = FeatureDraft.from_pretrained(
                source.path,
                config=config,
                dtype=dtype,
                key_mapping=KEYS,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # the check below names them
                attn_implementation="sdpa",
                **source.options,
            )
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # readers of weights may raise anything
            raise unloadable(source, error) from error
    draft: FeatureDraft = loaded[0]
    check_report(source, loaded[1])
    ids = draft.ids
    if ids is not None and (int(ids.min()) < 0 or int(ids.max()) >= config.vocab_size):
        raise source.wrong("its d2t names tokens outside the vocabulary", "fetch it again")
    if name in SHAPES:
        with Quiet(), shrinking("model"):
            where = device or draft.device
            draft = widen(draft, SHAPES[name], device=where, dtype=dtype)
        _check_config(source, draft.config, own)
    return draft, None


def _check_config(source: Source, config: Any, own: PreTrainedConfig) -> None:
    """Raise UsageError unless a feature draft fits a target with the config `own`."""
    remedy = "give the target that this draft was trained for"
    if config.vocab_size != own.vocab_size:
        reason = f"was made for a vocabulary of {config.vocab_size}, the target's is"
        raise source.wrong(f"{reason} {own.vocab_size}", remedy)
    if own.hidden_size < config.tap_width:
        reason = f"reads hidden states of {config.tap_width} numbers, the target's have"
        raise source.wrong(f"{reason} {own.hidden_size}", remedy)
    if config.taps and not 1 <= min(config.taps) <= max(config.taps) <= own.num_hidden_layers:
        reason = f"reads the target after layers {[*config.taps]}, it has {own.num_hidden_layers}"
        raise source.wrong(reason, remedy)


def seat(draft: PreTrainedModel, target: PreTrainedModel) -> bool:
    """Move a draft to its target, in evaluation mode. A feature draft takes the target's embedding
    and head. Returns whether it is one."""
    torch.nn.Module.to(draft, target.device).eval()
    if not isinstance(draft, FeatureDraft):
        return False
    draft.attach(target)
    return True
