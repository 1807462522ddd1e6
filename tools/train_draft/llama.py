"""A small functional LLaMA: the same weights as a ``LlamaForCausalLM``, without the module
machinery.

One layer is two pure functions with attention between them:

    q, k, v = attention_inputs(x, ...)      # RMSNorm, fused projection, rotary embedding
    x       = attention_outputs(x, o, ...)  # output projection, residual, RMSNorm, gated MLP, residual

The functions are pure, so ``torch.compile`` builds each once and every layer reuses it. ``view_of``
only casts and concatenates, so gradients flow back through it to the module's own parameters: the
draft is *trained* through this file too. ``forward`` reads whole sequences. ``decode_step`` extends
a cache by one token and reads exactly the cached positions so far. So neither needs an attention
mask.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from dynasurge.errors import UsageError

__all__ = [
    "EAGER",
    "Kernels",
    "Llama",
    "compiled_kernels",
    "decode_step",
    "forward",
    "new_cache",
    "view_of",
]

KeyValue = tuple[Tensor, Tensor]


class Layer(NamedTuple):
    """Weights of one decoder layer; q, k, v are stacked in one matrix, gate and up in another."""

    norm1: Tensor
    qkv: Tensor
    out: Tensor
    norm2: Tensor
    gate_up: Tensor
    down: Tensor


@dataclass(frozen=True, kw_only=True)
class Llama:
    """A LLaMA as tensors. ``embedding`` keeps the module's own dtype; everything else has the
    compute dtype."""

    layers: list[Layer]
    embedding: Tensor  # [vocab, hidden]
    head: Tensor  # [vocab, hidden], compute dtype
    norm: Tensor  # [hidden]
    inv_freq: Tensor  # [head_dim / 2], float32
    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    dtype: torch.dtype

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.embedding.device


def view_of(module: Any, dtype: torch.dtype) -> Llama:
    """A ``LlamaForCausalLM`` as tensors for the functions below, differentiable with respect to its
    parameters. Raises UsageError for other models and for biases."""
    config = module.config
    if config.model_type != "llama":
        reason = "distillation reads LLaMA-shaped models only"
        raise UsageError("model_type", config.model_type, reason, "choose another --target")
    if getattr(config, "attention_bias", False) or getattr(config, "mlp_bias", False):
        reason = "distillation reads LLaMA models without biases only"
        raise UsageError("attention_bias or mlp_bias", True, reason, "choose another --target")
    layers = []
    for block in module.model.layers:
        attention, mlp = block.self_attn, block.mlp
        qkv = torch.cat(
            [attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]
        ).to(dtype)
        gate_up = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]).to(dtype)
        layers.append(
            Layer(
                norm1=block.input_layernorm.weight.to(dtype),
                qkv=qkv,
                out=attention.o_proj.weight.to(dtype),
                norm2=block.post_attention_layernorm.weight.to(dtype),
                gate_up=gate_up,
                down=mlp.down_proj.weight.to(dtype),
            )
        )
    return Llama(
        layers=layers,
        embedding=module.model.embed_tokens.weight,
        head=module.lm_head.weight.to(dtype),
        norm=module.model.norm.weight.to(dtype),
        inv_freq=module.model.rotary_emb.inv_freq.float(),
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=getattr(config, "head_dim", None)
        or config.hidden_size // config.num_attention_heads,
        eps=config.rms_norm_eps,
        dtype=dtype,
    )


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) * weight, the mean square in float32."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype) * weight


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x [batch, heads, positions, head_dim]; pair i is (i, i + head_dim /
    2)."""
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-right, left), dim=-1) * sin


def heads_of(x: Tensor, weight: Tensor, heads: int) -> Tensor:
    """x [batch, positions, width] @ weight.T -> [batch, heads, positions, head_dim]."""
    projected: Tensor = F.linear(x, weight).unflatten(-1, (heads, -1)).transpose(1, 2)
    return projected


def rotated(
    x: Tensor, qkv: Tensor, cos: Tensor, sin: Tensor, heads: int, kv_heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The fused projection of a normed x, split: rotated q, rotated k, v."""
    stacked = heads_of(x, qkv, heads + 2 * kv_heads)
    q, k, v = stacked.split((heads, kv_heads, kv_heads), dim=1)
    return rotate(q, cos, sin), rotate(k, cos, sin), v


def attention_inputs(
    x: Tensor,
    norm: Tensor,
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    heads: int,
    kv_heads: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """x [batch, positions, hidden] -> rotated q, rotated k, v, each [batch, its heads, positions,
    head_dim]."""
    return rotated(rms_norm(x, norm, eps), qkv, cos, sin, heads, kv_heads)


def attention_outputs(
    x: Tensor,
    attended: Tensor,
    out: Tensor,
    norm: Tensor,
    gate_up: Tensor,
    down: Tensor,
    eps: float,
) -> Tensor:
    """Residual stream x after attention [batch, heads, positions, head_dim] and the gated MLP."""
    x = x + F.linear(attended.transpose(1, 2).flatten(2), out)
    gate, up = F.linear(rms_norm(x, norm, eps), gate_up).chunk(2, dim=-1)
    return x + F.linear(F.silu(gate) * up, down)


class Kernels(NamedTuple):
    """The two halves of a layer and the final norm, eager or compiled."""

    inputs: Callable[..., tuple[Tensor, Tensor, Tensor]]
    outputs: Callable[..., Tensor]
    norm: Callable[..., Tensor]


EAGER = Kernels(attention_inputs, attention_outputs, rms_norm)


def compiled_kernels() -> Kernels:
    """The same functions through ``torch.compile``. Shapes are static, so each new shape is
    compiled once."""
    return Kernels(
        torch.compile(attention_inputs, dynamic=False),
        torch.compile(attention_outputs, dynamic=False),
        torch.compile(rms_norm, dynamic=False),
    )


def rotary_tables(model: Llama, positions: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin [positions, head_dim] in the compute dtype, angles in float32."""
    angles = positions.to(model.inv_freq)[:, None] * model.inv_freq
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(model.dtype), angles.sin().to(model.dtype)


def forward(
    model: Llama, tokens: Tensor, kernels: Kernels = EAGER, taps: Sequence[int] = ()
) -> Any:
    """Causal pass over tokens [batch, positions]. Returns the normed hidden states [batch,
    positions, hidden].

    With ``taps``, it returns them and the residual stream after that many layers, side by side
    [batch, positions, taps * hidden]. Logits are ``hidden @ model.head.T``. The caller computes
    them, because they are the large part.
    """
    cos, sin = rotary_tables(model, torch.arange(tokens.shape[1], device=tokens.device))
    x = F.embedding(tokens, model.embedding).to(model.dtype)
    grouped = model.heads != model.kv_heads
    streams = []
    for depth, layer in enumerate(model.layers, start=1):
        q, k, v = kernels.inputs(
            x, layer.norm1, layer.qkv, cos, sin, model.heads, model.kv_heads, model.eps
        )
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
        x = kernels.outputs(
            x, attended, layer.out, layer.norm2, layer.gate_up, layer.down, model.eps
        )
        if depth in taps:
            streams.append(x)
    normed = kernels.norm(x, model.norm, model.eps)
    return (normed, torch.cat(streams, dim=-1)) if taps else normed


def new_cache(model: Llama, rows: int, length: int) -> list[KeyValue]:
    """Uninitialised keys and values [rows, kv_heads, length, head_dim] for each layer."""
    shape = (rows, model.kv_heads, length, model.head_dim)
    return [
        (
            torch.empty(shape, dtype=model.dtype, device=model.device),
            torch.empty(shape, dtype=model.dtype, device=model.device),
        )
        for _ in model.layers
    ]


def decode_step(
    model: Llama, tokens: Tensor, position: int, cache: list[KeyValue], kernels: Kernels = EAGER
) -> Tensor:
    """Read one token per row: tokens [rows] at ``position``; the cache holds all earlier ones.
    Returns the normed hidden states [rows, hidden].

    Every row has the same length. So the cache is sliced to exactly ``position + 1``, and attention
    needs no mask. Grouped keys and values are then not copied, which is several times faster than a
    masked static cache.
    """
    cos, sin = rotary_tables(model, torch.full((1,), position, device=tokens.device))
    x = F.embedding(tokens[:, None], model.embedding).to(model.dtype)
    grouped = model.heads != model.kv_heads
    for layer, (keys, values) in zip(model.layers, cache, strict=True):
        q, k, v = kernels.inputs(
            x, layer.norm1, layer.qkv, cos, sin, model.heads, model.kv_heads, model.eps
        )
        keys[:, :, position] = k[:, :, 0]
        values[:, :, position] = v[:, :, 0]
        seen = position + 1
        attended = F.scaled_dot_product_attention(
            q, keys[:, :, :seen], values[:, :, :seen], enable_gqa=grouped
        )
        x = kernels.outputs(
            x, attended, layer.out, layer.norm2, layer.gate_up, layer.down, model.eps
        )
    return kernels.norm(x, model.norm, model.eps)[:, 0]
