"""Real text at the cost of a large model, without a download: a small LLaMA's weights in a large
one's shape.

`demo-7b` and its like in SHAPES are the demo models so made. The function does not change, so
prompts, drafts and acceptance stay real. The cost is that of the
large model. With h, d the small and H, D the large hidden and head size:

- the residual stream is padded with zeros. An RMSNorm then sees the mean square times h / H, so its
  weight is multiplied by sqrt(h / H) and its epsilon by h / H;
- the pair of dimensions that rotary embedding turns with frequency theta^(-2i/d) moves to the pair
  of frequency theta^(-2j/D), j = i D / d, with the same theta;
- attention divides by sqrt(D) instead of sqrt(d), so queries are multiplied by sqrt(D / d);
- grouped keys and values are repeated, one copy for each query head of the group;
- new heads, neurons and layers have output projections of zero;
- a matrix of a feature draft that reads several streams reads each of them padded.

Weights that cannot reach the output keep their random initial values, so no kernel gains speed from
zeros.
"""

from __future__ import annotations

import copy
import math
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from dynasurge.models.failures import check_memory
from dynasurge.models.feature_draft import FeatureDraft, FeatureDraftConfig

Model = TypeVar("Model", LlamaForCausalLM, FeatureDraft)

SHAPES: dict[str, dict[str, int]] = {
    "demo-7b": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
    "demo-13b": {
        "hidden_size": 5120,
        "intermediate_size": 13824,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
    },
    "demo-1b": {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 30,
        "num_attention_heads": 16,
    },
}


@torch.no_grad()
def widen(
    small: Model,
    shape: dict[str, int],
    *,
    device: torch.device,
    dtype: torch.dtype,
    device_map: str | None = None,
) -> Model:
    """`small`, a LLaMA or a feature draft, in the same class of `shape` (names of LlamaConfig; as
    many key heads as query heads; a draft keeps its layers), in a dtype, made on a device, which has
    to hold all of it. device_map: how transformers then spreads a LLaMA; None leaves it there.

    Raises UsageError if a CPU has no memory for it, and ValueError if something in `shape` is too
    small, or if its head size is no multiple of the small one's.
    """
    old: Any = small.config
    config: Any = wide_config(old, shape)
    with torch.device("meta"):
        size = sum(weight.numel() for weight in type(small)(config).parameters()) * dtype.itemsize
    check_memory(device, size)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            wide: Any = type(small)(config)
    finally:
        torch.set_default_dtype(before)
    given: dict[str, Tensor] = dict(small.state_dict())
    if isinstance(small, FeatureDraft):
        given |= _by_input(small, config)
    given = {name: tensor.to(device, torch.float32) for name, tensor in given.items()}
    norm = math.sqrt(old.hidden_size / config.hidden_size)
    for name, tensor in wide.state_dict().items():
        source = given.get(name)
        if name == "d2t":
            tensor.copy_(small.d2t)
        elif name.endswith("norm.weight"):
            tensor.fill_(1.0)
            if source is not None:
                tensor[: len(source)] = (source * norm).to(dtype)
        elif source is None:  # a new layer adds nothing to the residual stream
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                tensor.zero_()
        elif name.endswith("_proj.weight") and ".self_attn." in name:
            _attention(name.split(".")[-2], tensor, source, old, config)
        elif ".past_" in name:
            _attention(name.split(".")[-2][-1] + "_proj", tensor, source, old, config)
        elif name.endswith(("down_proj.weight", "embed_tokens.weight", "fc.weight")):
            tensor.zero_()
            _place(tensor, source)
        else:  # gate, up, the head: padding multiplies zeros
            _place(tensor, source)
    if device_map is not None:
        weights: dict[str, Any] = {"config": config, "state_dict": wide.state_dict()}
        wide = LlamaForCausalLM.from_pretrained(None, **weights, dtype=dtype, device_map=device_map)
    if isinstance(small, LlamaForCausalLM):
        wide.generation_config = copy.deepcopy(small.generation_config)
    wide.eval()
    return wide  # type: ignore[no-any-return]


def _by_input(small: FeatureDraft, wide: FeatureDraftConfig) -> dict[str, Tensor]:
    """The draft's matrices that read several streams side by side, as wide as those that read the
    same streams padded. A tap over its root mean square is larger the more zeros it has."""
    old, found = small.config, {}
    scale = math.sqrt(old.tap_width / wide.tap_width) if old.norm_taps else 1.0
    for name, value in small.state_dict().items():
        of_taps = name == "fc.weight" or ".past_" in name
        width = old.tap_width if of_taps else old.hidden_size
        to = wide.tap_width if of_taps else wide.hidden_size
        if of_taps or (value.ndim == 2 and value.shape[1] == 2 * width):
            streams = value.float() * (scale if of_taps else 1.0)
            padded = F.pad(streams.unflatten(1, (-1, width)), (0, to - width))
            found[name] = padded.flatten(1)
    return found


def wide_config(old: LlamaConfig, shape: dict[str, int]) -> LlamaConfig:
    """The configuration of the large model."""
    heads = shape["num_attention_heads"]
    sizes: dict[str, Any] = dict(shape)
    eps = old.rms_norm_eps * old.hidden_size / shape["hidden_size"]
    sizes |= {"num_key_value_heads": heads, "rms_norm_eps": eps}
    if isinstance(old, FeatureDraftConfig):
        sizes |= {"num_hidden_layers": old.num_hidden_layers, "target_hidden_size": None}
        config: LlamaConfig = FeatureDraftConfig(**old.to_dict() | sizes)
    else:
        config = LlamaConfig(
            **sizes,
            vocab_size=old.vocab_size,
            max_position_embeddings=old.max_position_embeddings,
            rope_parameters=old.rope_parameters,
            tie_word_embeddings=False,
            bos_token_id=old.bos_token_id,
            eos_token_id=old.eos_token_id,
            pad_token_id=old.pad_token_id,
        )
    for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
        if shape[name] < getattr(old, name):
            raise ValueError(
                f"{name} {shape[name]} is below the small model's {getattr(old, name)}"
            )
    if _head_size(config) % _head_size(old):
        raise ValueError(
            f"head size {_head_size(config)} is no multiple of the small model's {_head_size(old)}"
        )
    return config


def _attention(kind: str, wide: Tensor, source: Tensor, old: Any, new: Any) -> None:
    """Fill one projection of a layer. wide: [heads * D, H] (o_proj: [H, heads * D])."""
    d, D, heads = _head_size(old), _head_size(new), old.num_attention_heads
    group = heads // old.num_key_value_heads
    step = D // d
    # Where each dimension of a small head goes: its rotary pair (i, i + d/2) to the pair (i step, i
    # step + D/2).
    low = torch.arange(d // 2, device=wide.device) * step
    turned = torch.cat([low, low + D // 2])
    plain = torch.arange(d, device=wide.device)
    if kind == "o_proj":
        source, wide = source.T, wide.T
        wide.zero_()
    for head in range(heads):
        rows = wide[head * D : (head + 1) * D]
        number = head if kind in ("q_proj", "o_proj") else head // group
        part = source[number * d : (number + 1) * d]
        if kind == "q_proj":
            rows.zero_()  # a key's other dimensions then multiply zeros
            part = part * math.sqrt(D / d)
        where = turned if kind in ("q_proj", "k_proj") else plain
        rows[where, : part.shape[1]] = part.to(wide.dtype)


def _place(wide: Tensor, source: Tensor) -> None:
    wide[: source.shape[0], : source.shape[1]] = source.to(wide.dtype)


def _head_size(config: Any) -> int:
    size: int = (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    return size
