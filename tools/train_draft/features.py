"""A draft that reads the target's hidden states, trained as it will be used: unrolled.

At the time of a step, the target has scored the tokens x_0 .. x_t, and left its residual stream at
some layers, the *taps*, at each of them: the feature f_0 .. f_t. The next token x_{t+1}, the root of
the tree, is known, its feature is not. The draft predicts what follows x_{t+1}, and then, without
any further feature, what follows x_{t+2}, x_{t+3}, ...: *depths* 1, 2, 3, ...

    depth 1   reads x_{t+1} with fc(f_t)
    depth j   reads x_{t+j} with its own output at depth j - 1 in the feature's place (EAGLE-3)

and every depth attends to what is known of x_0 .. x_t, and to depths 1 .. j of its own t. A sequence
of T tokens trains all t at once: depth j is one pass over T positions, in which position t holds
x_{t+j}. Keys of the past are causal in t; keys of a depth are seen from their own t only.

What is known of the past is either the draft's own keys and values of depth 1 (EAGLE-3), or
(``inject``) keys and values made straight from f_0 .. f_t, which costs no pass of the draft.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tools.train_draft.llama import (
    EAGER,
    Kernels,
    Llama,
    attention_outputs,
    rms_norm,
    rotary_tables,
    rotate,
)
from tools.train_draft.settings import FeatureSettings

__all__ = ["DepthLoss", "FeatureDraft", "unroll"]


class FeatureLayer(nn.Module):
    """Weights of one layer. ``wide``: queries, keys and values read [embedding; feature]."""

    def __init__(self, target: Llama, settings: FeatureSettings, wide: bool) -> None:
        super().__init__()
        hidden = target.embedding.shape[1]
        queries, keys = target.heads * target.head_dim, target.kv_heads * target.head_dim
        mlp = settings.mlp
        self.norm1 = nn.Parameter(torch.ones(hidden * (2 if wide else 1)))
        self.qkv = nn.Parameter(torch.empty(queries + 2 * keys, len(self.norm1)))
        self.out = nn.Parameter(torch.zeros(hidden, queries))
        self.norm2 = nn.Parameter(torch.ones(hidden))
        self.gate_up = nn.Parameter(torch.empty(2 * mlp, hidden))
        self.down = nn.Parameter(torch.zeros(hidden, mlp))
        if settings.inject:
            self.past = nn.Parameter(torch.empty(2 * keys, hidden * len(settings.taps)))


class FeatureDraft(nn.Module):
    """A draft's weights, float32. Embedding and head are the target's, and stay as they are."""

    def __init__(self, target: Llama, settings: FeatureSettings) -> None:
        super().__init__()
        hidden = target.embedding.shape[1]
        self.settings = settings
        self.fc = nn.Parameter(torch.empty(hidden, hidden * len(settings.taps)))
        if settings.residual == "both":
            self.embed = nn.Parameter(torch.empty(hidden, hidden))
        self.layers = nn.ModuleList(
            FeatureLayer(target, settings, wide=place == 0) for place in range(settings.layers)
        )
        self.norm = nn.Parameter(torch.full((hidden,), 1.0))
        generator = torch.Generator().manual_seed(settings.seed)
        for parameter in self.parameters():
            if parameter.ndim == 2 and parameter.count_nonzero():
                nn.init.normal_(parameter, 0, parameter.shape[1] ** -0.5 / 2, generator=generator)
        with torch.no_grad():
            self.norm.copy_(target.norm.float())


def tap_norm(taps: Tensor, width: int, eps: float) -> Tensor:
    """Each tap over its root mean square: the residual streams of layers differ by far in size."""
    wide = taps.float().unflatten(-1, (-1, width))
    scaled: Tensor = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return scaled.flatten(-2).to(taps.dtype)


def heads_of(x: Tensor, weight: Tensor, heads: int) -> Tensor:
    """x [batch, positions, width] @ weight.T -> [batch, heads, positions, head_dim]."""
    projected: Tensor = F.linear(x, weight).unflatten(-1, (heads, -1)).transpose(1, 2)
    return projected


def wide_inputs(
    embedded: Tensor,
    x: Tensor,
    norm: Tensor,
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    heads: int,
    kv_heads: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The first layer's rotated q and k, and v, from [embedding; feature], each half normed."""
    half = embedded.shape[-1]
    joint = torch.cat([rms_norm(embedded, norm[:half], eps), rms_norm(x, norm[half:], eps)], dim=-1)
    stacked = heads_of(joint, qkv, heads + 2 * kv_heads)
    q, k, v = stacked.split((heads, kv_heads, kv_heads), dim=1)
    return rotate(q, cos, sin), rotate(k, cos, sin), v


def seen(length: int, depths: int, device: torch.device) -> Tensor:
    """bool [length, (1 + depths) * length], True = may attend: the past causally, each depth's keys
    only from their own position."""
    past = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    own = torch.eye(length, dtype=torch.bool, device=device)
    return torch.cat([past, *(own,) * depths], dim=1)


def attend(q: Tensor, keys: list[Tensor], values: list[Tensor]) -> Tensor:
    """Attention of one depth. The first of ``keys`` are the past's, the others depths' own."""
    length, groups = q.shape[2], q.shape[1] // keys[0].shape[1]
    if len(keys) == 1:
        return F.scaled_dot_product_attention(
            q, keys[0], values[0], is_causal=True, enable_gqa=groups > 1
        )
    k = torch.cat(keys, dim=2).repeat_interleave(groups, dim=1)
    v = torch.cat(values, dim=2).repeat_interleave(groups, dim=1)
    mask = seen(length, len(keys) - 1, q.device)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


class FeatureKernels:
    """The functions of a pass, eager or compiled."""

    def __init__(self, kernels: Kernels = EAGER, compile: bool = False) -> None:
        build: Callable[[Any], Any] = (
            (lambda f: torch.compile(f, dynamic=False)) if compile else (lambda f: f)
        )
        self.base = kernels
        self.wide, self.tap_norm, self.rotate = build(wide_inputs), build(tap_norm), build(rotate)
        self.outputs = build(attention_outputs)


def unroll(
    draft: FeatureDraft,
    target: Llama,
    tokens: Tensor,
    taps: Tensor,
    depths: int,
    kernels: FeatureKernels | None = None,
) -> list[Tensor]:
    """Outputs of depths 1 .. ``depths``, normed for the target's head, each [batch, T, hidden].

    tokens [batch, T], taps [batch, T, taps * hidden]. Position t of depth j reads x_{t+j}; from
    t + j >= T on there is no such token, and the caller ignores what stands there.
    """
    kernels = kernels or FeatureKernels()
    settings, dtype, eps = draft.settings, target.dtype, target.eps
    length = tokens.shape[1]
    cast = {name: value.to(dtype) for name, value in draft.named_parameters()}
    layers = [
        {name: cast[f"layers.{place}.{name}"] for name, _ in layer.named_parameters()}
        for place, layer in enumerate(draft.layers)
    ]
    width = target.embedding.shape[1]
    features = kernels.tap_norm(taps, width, eps)
    positions = torch.arange(length, device=tokens.device)
    keys: list[list[Tensor]] = [[] for _ in layers]
    values: list[list[Tensor]] = [[] for _ in layers]
    if settings.inject:
        cos, sin = rotary_tables(target, positions)
        for place, layer in enumerate(layers):
            k, v = heads_of(features, layer["past"], 2 * target.kv_heads).chunk(2, dim=1)
            keys[place].append(kernels.rotate(k, cos, sin))
            values[place].append(v)
    carried = F.linear(features, cast["fc"])
    outputs = []
    for depth in range(1, depths + 1):
        cos, sin = rotary_tables(target, positions + depth)
        read = F.pad(tokens[:, depth:], (0, min(depth, length)))
        embedded = F.embedding(read, target.embedding).to(dtype)
        x = carried
        if settings.residual == "both":
            x = x + F.linear(embedded, cast["embed"])
        for place, layer in enumerate(layers):
            how = (cos, sin, target.heads, target.kv_heads, eps)
            if place == 0:
                q, k, v = kernels.wide(embedded, x, layer["norm1"], layer["qkv"], *how)
            else:
                q, k, v = kernels.base.inputs(x, layer["norm1"], layer["qkv"], *how)
            keys[place].append(k)
            values[place].append(v)
            attended = attend(q, keys[place], values[place])
            x = kernels.outputs(
                x, attended, layer["out"], layer["norm2"], layer["gate_up"], layer["down"], eps
            )
        carried = x
        outputs.append(kernels.base.norm(x, cast["norm"], eps))
    return outputs


class DepthLoss(torch.autograd.Function):
    """Mean of kl_weight * KL + tv_weight * TV over positions and depths, with logits in chunks.

    ``apply(hidden [depths, n, d], target_hidden [n, d], head [vocab, d], weights [depths, n],
    temperature [n, 1], kl_weight, tv_weight, chunk, terms)``: ``weights`` sum to 1, and are 0 where
    a depth has no token. Returns (loss, KL by depth, overlap by depth); only the loss carries a
    gradient, to ``hidden``.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        target_hidden: Tensor,
        head: Tensor,
        weights: Tensor,
        temperature: Tensor,
        kl_weight: Tensor,
        tv_weight: Tensor,
        chunk: int,
        terms: Callable[..., tuple[Tensor, Tensor, Tensor]],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute loss and gradient together. The target's logits serve all depths of a chunk."""
        depths, count = weights.shape
        grad = torch.empty_like(hidden)
        kls = torch.zeros(depths, device=hidden.device)
        overlaps = torch.zeros_like(kls)
        shares = torch.zeros_like(kls)
        for start in range(0, count, chunk):
            part = slice(start, min(start + chunk, count))
            theirs = target_hidden[part] @ head.T
            for depth in range(depths):
                weight = weights[depth, part]
                kl, shared, slope = terms(
                    theirs, hidden[depth, part] @ head.T, temperature[part], kl_weight, tv_weight
                )
                grad[depth, part] = (slope @ head) * weight[:, None].to(grad.dtype)
                kls[depth] += (kl * weight).sum()
                overlaps[depth] += (shared * weight).sum()
                shares[depth] += weight.sum()
        ctx.save_for_backward(grad)
        loss = kl_weight * kls.sum() + tv_weight * (shares - overlaps).sum()
        kls, overlaps = kls / shares, overlaps / shares
        ctx.mark_non_differentiable(kls, overlaps)
        return loss, kls, overlaps

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """Scale the gradient that ``forward`` computed."""
        (grad,) = ctx.saved_tensors
        return ((grad * grads[0]).to(grad.dtype),) + (None,) * 8


def aligned(outputs: list[Tensor]) -> Tensor:
    """Outputs by the position whose distribution they predict: [depths, batch, T, hidden], depth j
    at position s from t = s - j; where s < j, zeros."""
    return torch.stack(
        [
            F.pad(one, (0, 0, depth, 0))[:, : one.shape[1]]
            for depth, one in enumerate(outputs, start=1)
        ]
    )


def depth_weights(batch: int, length: int, depths: int, decay: float) -> Tensor:
    """[depths, batch * length]: decay^(j-1) for depth j where it has a token; sums to 1."""
    place = torch.arange(length)
    rows = [torch.where(place >= j, decay ** (j - 1), 0.0) for j in range(1, depths + 1)]
    weights = torch.stack(rows)[:, None].expand(-1, batch, -1).flatten(1)
    return weights / weights.sum()
