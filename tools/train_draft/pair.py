"""The draft of a distillation: made new, saved, read.

The draft shares the target's vocabulary. Its embedding (tied to its output) starts as the target's
embedding projected on that matrix's first principal directions. This keeps as much of the geometry
of words as its width allows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dynasurge.errors import UsageError
from dynasurge.files import write_whole
from dynasurge.models.draft_loading import load_draft as load_any
from dynasurge.models.feature_draft import FeatureDraft
from tools.train_draft.settings import DistillSettings

__all__ = [
    "load_draft",
    "new_draft",
    "principal_embedding",
    "save_draft",
    "save_features",
]


def load_draft(
    folder: str | Path, target: Any, dtype: torch.dtype = torch.float32, flag: str = "--draft"
) -> Any:
    """A saved draft of this target in evaluation mode. Raises UsageError, of `flag`."""
    model: Any = load_any(str(Path(folder).resolve()), target, dtype, flag=flag)[0]
    return model.eval().requires_grad_(False)


def principal_embedding(embedding: Tensor, width: int) -> Tensor:
    """embedding [vocab, hidden] in the basis of its first ``width`` principal directions, float32
    [vocab, width]."""
    wide = embedding.detach().double().cpu()
    _, directions = torch.linalg.eigh(wide.T @ wide)  # eigenvalues ascend
    projected: Tensor = wide @ directions.flip(-1)[:, :width]
    return projected.float()


def new_draft(target: Any, settings: DistillSettings) -> Any:
    """An untrained draft in float32 on the CPU. It has the target's vocabulary and rotary base, and
    an embedding made from the target's. Raises UsageError if it would be wider than the target."""
    from transformers import LlamaConfig, LlamaForCausalLM

    theirs = target.config
    if settings.hidden > theirs.hidden_size:
        reason = "is wider than the target"
        raise UsageError(
            "--hidden", settings.hidden, reason, f"use --hidden {theirs.hidden_size} or less"
        )
    config = LlamaConfig(
        vocab_size=theirs.vocab_size,
        hidden_size=settings.hidden,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.kv_heads,
        intermediate_size=settings.mlp,
        max_position_embeddings=theirs.max_position_embeddings,
        rms_norm_eps=theirs.rms_norm_eps,
        rope_parameters=dict(theirs.rope_parameters),
        tie_word_embeddings=True,
        bos_token_id=theirs.bos_token_id,
        eos_token_id=theirs.eos_token_id,
        pad_token_id=theirs.pad_token_id,
    )
    draft = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(settings.seed)
    with torch.no_grad():
        for parameter in draft.model.layers.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, config.hidden_size**-0.5 / 2, generator=generator)
        for block in draft.model.layers:  # both projections into the residual stream start at zero
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
        start = principal_embedding(target.model.embed_tokens.weight, settings.hidden)
        draft.model.embed_tokens.weight.copy_(start)
        draft.model.norm.weight.fill_(
            0.25
        )  # with more, each token would start by predicting itself with high confidence
    return draft.float().train()


def save_draft(draft: Any, folder: Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write config.json, generation_config.json and model.safetensors, weights in ``dtype``. The
    weights' file is written whole or not at all."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    draft.config.dtype = dtype
    draft.config.architectures = ["LlamaForCausalLM"]
    draft.config.save_pretrained(folder)
    draft.generation_config.save_pretrained(folder)
    weights = {
        name: value.detach().to("cpu", dtype).contiguous()
        for name, value in draft.state_dict().items()
        if name != "lm_head.weight"  # tied to the embedding
    }
    with write_whole(folder / "model.safetensors") as partial:
        save_file(weights, partial, metadata={"format": "pt"})


def save_features(draft: FeatureDraft, folder: Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write a feature draft as `load_pair` reads it, weights in ``dtype``."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    draft.config.dtype = dtype
    draft.config.architectures = ["FeatureDraft"]
    draft.config.save_pretrained(folder)
    weights = {
        name: value.detach().to("cpu", dtype if value.is_floating_point() else None).contiguous()
        for name, value in draft.state_dict().items()
    }
    with write_whole(folder / "model.safetensors") as partial:
        save_file(weights, partial, metadata={"format": "pt"})
