"""A draft that reads the target's hidden states, trained as it will be used: unrolled.

The draft (dynasurge/models/feature_draft.py) continues x_0 .. x_{t+1}, of which the target has
scored all but x_{t+1}. It predicts what follows x_{t+1}, and then, without any further feature, what
follows x_{t+2}, x_{t+3}, ...: *depths* 1, 2, 3, ... Depth 1 reads x_{t+1} with fc(f_t); depth j reads
x_{t+j} with what depth j - 1 carried. Every depth attends to what is known of x_0 .. x_t, and to
depths 1 .. j of its own t.

A sequence of T tokens trains all t at once: depth j is one pass over T positions, in which position
t holds x_{t+j}. Keys of the past are causal in t; keys of a depth are seen from their own t only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dynasurge.errors import UsageError
from dynasurge.models.feature_draft import FeatureDraft, FeatureDraftConfig
from tools.train_draft.llama import (
    EAGER,
    Kernels,
    KeyValue,
    Llama,
    attention_outputs,
    heads_of,
    rms_norm,
    rotary_tables,
    rotate,
    rotated,
)
from tools.train_draft.loss import LEAST, law_terms, log_law
from tools.train_draft.pair import load_draft
from tools.train_draft.settings import FeatureSettings

FLAGS = {  # what a flag says of a draft's config
    "num_hidden_layers": "--layers",
    "intermediate_size": "--mlp",
    "taps": "--taps",
    "draft_vocab_size": "--draft-vocab",
    "inject": "--inject",
    "residual_embedding": "--residual",
    "carry": "--carry",
}

__all__ = ["DepthLoss", "FeatureKernels", "aligned", "depth_weights", "new_features", "unroll"]


def shape_of(target: Any, settings: FeatureSettings) -> dict[str, Any]:
    """The config of a draft of a LLaMA. Its width, heads, embedding and head are the target's."""
    theirs = target.config
    return {
        "vocab_size": theirs.vocab_size,
        "hidden_size": theirs.hidden_size,
        "num_hidden_layers": settings.layers,
        "num_attention_heads": theirs.num_attention_heads,
        "num_key_value_heads": theirs.num_key_value_heads,
        "intermediate_size": settings.mlp,
        "max_position_embeddings": theirs.max_position_embeddings,
        "rms_norm_eps": theirs.rms_norm_eps,
        "rope_parameters": dict(theirs.rope_parameters),
        "taps": list(settings.taps),
        "draft_vocab_size": settings.draft_vocab or None,
        "own_head": False,
        "inject": settings.inject,
        "residual_embedding": settings.residual == "both",
        "norm_taps": True,
        "carry": settings.carry,
    }


def new_features(target: Any, settings: FeatureSettings, sequences: np.ndarray) -> FeatureDraft:
    """A draft to train, float32 on the CPU: that of ``settings.init``, else an untrained one. If
    its vocabulary is reduced, an untrained one knows what is most frequent in ``sequences``. Raises
    UsageError if the draft to start from has another shape than the settings say."""
    shape = shape_of(target, settings)
    if settings.init:
        return started(settings.init, target, shape)
    draft = FeatureDraft(FeatureDraftConfig(**shape))
    generator = torch.Generator().manual_seed(settings.seed)
    with torch.no_grad():
        for name, parameter in draft.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):  # into the residual stream
                parameter.zero_()
            elif parameter.ndim == 2:
                parameter.normal_(0, parameter.shape[1] ** -0.5 / 2, generator=generator)
        draft.norm.weight.copy_(target.model.norm.weight)
        if draft.ids is not None:
            known = frequent(sequences, draft.config.vocab_size, settings.draft_vocab)
            draft.d2t = known - torch.arange(len(known))
    trained: FeatureDraft = draft.train()
    return trained


def started(folder: str, target: Any, shape: Mapping[str, Any]) -> FeatureDraft:
    """The draft of a folder, to be trained further. Raises UsageError if it has another shape."""
    draft = load_draft(folder, target, flag="--init")
    if not isinstance(draft, FeatureDraft) or draft.config.own_head or not draft.config.norm_taps:
        remedy = "give a folder that train-features wrote"
        raise UsageError("--init", folder, "is no draft of this kind", remedy)
    for name, wanted in shape.items():
        own = getattr(draft.config, name)
        near = isinstance(wanted, float) and math.isclose(own, wanted, rel_tol=1e-6)
        if own != wanted and not near:
            remedy = (
                f"give the {FLAGS[name]} of its training" if name in FLAGS else "give its target"
            )
            reason = f"its {name} is {own}, this run's {wanted}"
            raise UsageError("--init", folder, reason, remedy)
    further: FeatureDraft = draft.requires_grad_(True).train()
    return further


def frequent(sequences: np.ndarray, vocabulary: int, count: int) -> Tensor:
    """The ``count`` most frequent tokens, in order of their ids; equals by id."""
    often = np.bincount(sequences.ravel(), minlength=vocabulary)
    return torch.from_numpy(np.sort(np.argsort(-often, kind="stable")[:count]))


class Weights(NamedTuple):
    """One layer in the compute dtype. q, k, v are stacked in one matrix, gate and up, and the past's
    k and v. norm1 of the first layer has two halves: for the embedding, and for what is carried."""

    norm1: Tensor
    qkv: Tensor
    out: Tensor
    norm2: Tensor
    gate_up: Tensor
    down: Tensor
    past: Tensor | None


def weights_of(layer: Any, dtype: torch.dtype) -> Weights:
    """A layer as tensors, differentiable with respect to its parameters."""
    own, mlp, norm1 = layer.self_attn, layer.mlp, layer.input_layernorm.weight
    if layer.hidden_norm is not None:
        norm1 = torch.cat([norm1, layer.hidden_norm.weight])
    past = [layer.past_k.weight, layer.past_v.weight] if hasattr(layer, "past_k") else []
    return Weights(
        norm1=norm1.to(dtype),
        qkv=torch.cat([own.q_proj.weight, own.k_proj.weight, own.v_proj.weight]).to(dtype),
        out=own.o_proj.weight.to(dtype),
        norm2=layer.post_attention_layernorm.weight.to(dtype),
        gate_up=torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]).to(dtype),
        down=mlp.down_proj.weight.to(dtype),
        past=torch.cat(past).to(dtype) if past else None,
    )


def tap_norm(taps: Tensor, width: int, eps: float) -> Tensor:
    """Each tap over its root mean square: the residual streams of layers differ by far in size."""
    wide = taps.float().unflatten(-1, (-1, width))
    scaled: Tensor = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return scaled.flatten(-2).to(taps.dtype)


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
    return rotated(joint, qkv, cos, sin, heads, kv_heads)


def attend(q: Tensor, past: KeyValue, own_k: list[Tensor], own_v: list[Tensor]) -> Tensor:
    """Attention of one depth: q [batch, heads, T, head_dim] sees the past's keys causally, and of
    each depth so far the key of its own position. Keys and values are [batch, kv_heads, T, ...]."""
    keys, values = past
    batch, heads, length, size = q.shape
    q = q.view(batch, keys.shape[1], -1, length, size) * size**-0.5  # a key's queries side by side
    scores = (q.flatten(2, 3) @ keys.transpose(2, 3)).view(*q.shape[:4], length)
    unseen = torch.ones(length, length, dtype=torch.bool, device=q.device).triu(1)
    own = [(q * k[:, :, None]).sum(-1, keepdim=True) for k in own_k]
    scores = torch.cat([scores.masked_fill(unseen, -torch.inf), *own], dim=-1)
    shares = torch.softmax(scores.float(), dim=-1).to(q.dtype)
    read = shares[..., :length].flatten(2, 3) @ values
    read = read.view(q.shape)
    for number, v in enumerate(own_v):
        read = read + shares[..., length + number, None] * v[:, :, None]
    return read.view(batch, heads, length, size)


class FeatureKernels:
    """The functions of a pass, eager or compiled."""

    def __init__(self, kernels: Kernels = EAGER, compile: bool = False) -> None:
        build: Callable[[Any], Any] = (
            (lambda f: torch.compile(f, dynamic=False)) if compile else (lambda f: f)
        )
        if compile:  # each depth and each length of a batch is a shape of its own
            torch._dynamo.config.recompile_limit = 64
        self.base = kernels
        self.wide, self.tap_norm, self.rotate = build(wide_inputs), build(tap_norm), build(rotate)
        self.outputs, self.attend = build(attention_outputs), build(attend)
        self.log_law, self.terms = build(log_law), build(law_terms)


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
    dtype, eps, length = target.dtype, target.eps, tokens.shape[1]
    layers = [weights_of(layer, dtype) for layer in draft.layers]
    embedding_fc = draft.embedding_fc.weight.to(dtype) if draft.embedding_fc is not None else None
    features = kernels.tap_norm(taps, target.embedding.shape[1], eps)
    positions = torch.arange(length, device=tokens.device)
    past: list[KeyValue | None] = [None] * len(layers)
    own_k: list[list[Tensor]] = [[] for _ in layers]
    own_v: list[list[Tensor]] = [[] for _ in layers]
    cos, sin = rotary_tables(target, positions)
    for place, layer in enumerate(layers):
        if layer.past is not None:
            k, v = heads_of(features, layer.past, 2 * target.kv_heads).chunk(2, dim=1)
            past[place] = (kernels.rotate(k, cos, sin), v)
    carried = F.linear(features, draft.fc.weight.to(dtype))
    outputs = []
    for depth in range(1, depths + 1):
        cos, sin = rotary_tables(target, positions + depth)
        read = F.pad(tokens[:, depth:], (0, min(depth, length)))
        embedded = F.embedding(read, target.embedding).to(dtype)
        x = carried
        if embedding_fc is not None:
            x = x + F.linear(embedded, embedding_fc)
        how = (cos, sin, target.heads, target.kv_heads, eps)
        for place, layer in enumerate(layers):
            if place == 0:
                q, k, v = kernels.wide(embedded, x, layer.norm1, layer.qkv, *how)
            else:
                q, k, v = kernels.base.inputs(x, layer.norm1, layer.qkv, *how)
            known = past[place]
            if known is None:  # depth 1 of the form that reads the past itself
                attended = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
                past[place] = (k, v)
            else:
                own_k[place].append(k)
                own_v[place].append(v)
                attended = kernels.attend(q, known, own_k[place], own_v[place])
            own = (layer.out, layer.norm2, layer.gate_up, layer.down)
            x = kernels.outputs(x, attended, *own, eps)
        carried = x if draft.config.carry else torch.zeros_like(x)
        outputs.append(kernels.base.norm(x, draft.norm.weight.to(dtype), eps))
    return outputs


class DepthLoss(torch.autograd.Function):
    """Mean of kl_weight * KL + tv_weight * TV over positions and depths, with logits in chunks.

    ``apply(hidden [depths, n, d], target_hidden [n, d], head [vocab, d], ids, weights [depths, n],
    temperature [n, 1], kl_weight, tv_weight, chunk, kernels, lk)``: ``ids`` are the tokens that the
    draft knows, None: all. ``weights`` sum to 1, and are 0 where a depth has no token. ``lk``: -log
    overlap in place of TV = 1 - overlap, whose slope is larger where little is accepted (LK losses,
    arXiv 2602.23881). Returns (loss, KL by depth, overlap by depth); only the loss carries a
    gradient, to ``hidden``.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        target_hidden: Tensor,
        head: Tensor,
        ids: Tensor | None,
        weights: Tensor,
        temperature: Tensor,
        kl_weight: Tensor,
        tv_weight: Tensor,
        chunk: int,
        kernels: FeatureKernels,
        lk: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute loss and gradient together. The target's law serves all depths of a chunk."""
        own_head = head if ids is None else head[ids]
        depths, count = weights.shape
        grad = torch.empty_like(hidden)
        kls = torch.zeros(depths, device=hidden.device)
        overlaps = torch.zeros_like(kls)
        losses = torch.zeros_like(kls)
        shares = torch.zeros_like(kls)
        for start in range(0, count, chunk):
            part = slice(start, min(start + chunk, count))
            log_p = kernels.log_law(target_hidden[part] @ head.T, temperature[part], ids)
            for depth in range(depths):
                weight = weights[depth, part]
                mine = hidden[depth, part] @ own_head.T
                how = (temperature[part], kl_weight, tv_weight, lk)
                kl, shared, slope = kernels.terms(log_p, mine, *how)
                refused = -shared.clamp_min(LEAST).log() if lk else 1 - shared
                losses[depth] += ((kl_weight * kl + tv_weight * refused) * weight).sum()
                grad[depth, part] = (slope @ own_head) * weight[:, None].to(grad.dtype)
                kls[depth] += (kl * weight).sum()
                overlaps[depth] += (shared * weight).sum()
                shares[depth] += weight.sum()
        ctx.save_for_backward(grad)
        loss = losses.sum()
        kls, overlaps = kls / shares, overlaps / shares
        ctx.mark_non_differentiable(kls, overlaps)
        return loss, kls, overlaps

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """Scale the gradient that ``forward`` computed."""
        (grad,) = ctx.saved_tensors
        return ((grad * grads[0]).to(grad.dtype),) + (None,) * 10


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
