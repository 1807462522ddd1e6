"""Attention of a tree: few queries, the keys and values of the whole cache, a mask that says who sees whom.

Library kernels give a head to one program, which then reads all its keys alone: 32 programs for 132 multiprocessors. Here a
program takes 16 queries of one head, so that a tree of 64 nodes makes 160, and heads that share keys and values read them
from the GPU's cache, unrepeated. It is flash attention (arXiv 2205.14135): one walk along the cache, a running maximum
and sum of the softmax, both in float32.

`NAME` is what transformers' models call it by, in place of `sdpa`.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

try:
    import triton
    import triton.language as tl
except ImportError:  # pragma: no cover - a build of torch without it
    triton = None

NAME = "dynasurge_tree"
QUERIES, KEYS = 16, 64
SIZES = (16, 32, 64, 128)  # of heads
AMPERE = (8, 0)


def usable(device: torch.device) -> bool:
    """Whether the kernel runs there, and is worth it."""
    return triton is not None and device.type == "cuda" and torch.cuda.get_device_capability(device) >= AMPERE


def tree_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """As transformers' attention functions: query [1, heads, n, size], key and value [1, heads or fewer, rows, size],
    attention_mask [1, 1, n, rows], additive. Returns [1, n, heads, size]. What else there is to attention, `sdpa` does."""
    size = query.shape[-1]
    special = dropout or any(kwargs.get(name) is not None for name in ("softcap", "position_bias", "s_aux"))
    if attention_mask is None or special or size not in SIZES or len(query) > 1 or attention_mask.shape[1] > 1:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    scale = size**-0.5 if scaling is None else scaling
    return torch.ops.dynasurge.attended(query, key, value, attention_mask, scale), None


AttentionInterface.register(NAME, tree_attention)


@torch.library.custom_op("dynasurge::attended", mutates_args=())
def attended(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, scale: float
) -> torch.Tensor:
    """See `tree_attention`."""
    _, heads, n, size = query.shape
    rows = key.shape[2]
    query, key, value, mask = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value, mask))
    out = query.new_empty(1, n, heads, size)
    _attend[(triton.cdiv(n, QUERIES), heads)](
        query,
        key,
        value,
        mask,
        out,
        n,
        rows,
        scale,
        *query.stride()[1:3],
        *key.stride()[1:3],
        *value.stride()[1:3],
        mask.stride(2),
        heads // key.shape[1],
        heads,
        SIZE=size,
        QUERIES=QUERIES,
        KEYS=KEYS,
        num_stages=2,
        num_warps=4,
    )
    return out


@attended.register_fake
def _(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, scale: float) -> torch.Tensor:
    return query.new_empty(1, query.shape[2], query.shape[1], query.shape[3])


if triton is not None:

    @triton.jit(do_not_specialize=["n", "rows"])
    def _attend(
        query,
        key,
        value,
        mask,
        out,
        n,
        rows,
        scale,
        query_head,
        query_row,
        key_head,
        key_row,
        value_head,
        value_row,
        mask_row,
        sharing,
        heads,
        SIZE: tl.constexpr,
        QUERIES: tl.constexpr,
        KEYS: tl.constexpr,
    ):
        head, places = tl.program_id(1), tl.arange(0, SIZE)
        mine, columns = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES), tl.arange(0, KEYS)
        here = mine[:, None] < n
        q = tl.load(query + head * query_head + mine[:, None] * query_row + places[None, :], mask=here, other=0.0)
        keys, values = key + (head // sharing) * key_head, value + (head // sharing) * value_head
        most = tl.full((QUERIES,), -float("inf"), tl.float32)
        total = tl.zeros((QUERIES,), tl.float32)
        made = tl.zeros((QUERIES, SIZE), tl.float32)
        for start in range(0, rows, KEYS):
            at = start + columns
            inside = at[:, None] < rows
            k = tl.load(keys + at[:, None] * key_row + places[None, :], mask=inside, other=0.0)
            v = tl.load(values + at[:, None] * value_row + places[None, :], mask=inside, other=0.0)
            bias = tl.load(mask + mine[:, None] * mask_row + at[None, :], mask=here & (at[None, :] < rows), other=0.0)
            score = tl.dot(q, tl.trans(k), input_precision="ieee") * scale + bias.to(tl.float32)
            score = tl.where(at[None, :] < rows, score, -float("inf"))
            higher = tl.maximum(most, tl.max(score, 1))
            weights, shrunk = tl.exp(score - higher[:, None]), tl.exp(most - higher)
            total = total * shrunk + tl.sum(weights, 1)
            made = made * shrunk[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
            most = higher
        made = made / total[:, None]
        at = (mine[:, None] * heads + head) * SIZE + places[None, :]
        tl.store(out + at, made.to(out.dtype.element_ty), mask=here)
