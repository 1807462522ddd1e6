"""The Triton kernel of models/tree_attention.py.

A pass over a tree, or over one token, has few queries, and a mask over the whole cache. Kernels for
long texts have tiles of 64 or more queries, and want grouped keys repeated, so they take several
times as long as it takes to read the cache. Here a program has one head of keys and a few queries
of its whole group, and goes over the cache once (online softmax, as in FlashAttention, arXiv
2205.14135):

    for each block of rows:    s = q k / sqrt(d) + mask
                               m' = max(m, s)      shrink what there is by exp(m - m')
                               sum += exp(s - m')  mixed += exp(s - m') v
    result                     mixed / sum

A long cache is shared among several programs, if there are few; each writes its own m, sum and
mixed, and a second kernel adds these up (Flash-Decoding).
"""

from __future__ import annotations

import math
from typing import Any

import torch

from dynasurge import triton_kernels

try:
    import triton
    import triton.language as tl
except ImportError:  # pragma: no cover - a build of torch without it
    triton = None

# Tiles, queries and rows of the cache, as measured for 128 numbers of two bytes a head: small ones
# while there are few programs; over a long cache, only if one holds all queries of a head of keys.
SMALL, LARGE = (16, 128), (64, 64)
FEW = 64  # programs
LONG = 2048  # rows
BYTES = 256  # of a head's numbers in these tiles; a wider head has fewer rows in its tile
PROGRAMS = 132  # processors of a large GPU: its shared memory holds such tiles of one program
LEAST_ROWS, MOST_PARTS = 256, 64  # of a cache that programs share
STAGES = 3  # the most tiles of keys and values that are on their way at once
RESERVED = 4096  # bytes of shared memory for weights and sums
WIDEST = 256  # the largest head size
TYPES = (torch.bfloat16, torch.float16, torch.float32)
NEVER = -1e30  # added for hidden rows: finite, so that a query which sees nothing is no NaN


def usable(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor) -> bool:
    """Whether the kernel can compute the attention of these, see `tree_attention`."""
    there = triton is not None and (query.is_cuda or triton_kernels.INTERPRETED)
    alike = query.dtype == key.dtype == value.dtype and query.dtype in TYPES
    return (
        there
        and alike
        and max(query.shape[-1], value.shape[-1]) <= WIDEST
        and query.stride(-1) == key.stride(-1) == value.stride(-1) == 1
        and mask.device == query.device
        and mask.is_floating_point()
        and mask.shape[:3] == (1, 1, query.shape[2])
        and mask.shape[3] >= key.shape[2]
        and query.shape[0] == 1 == mask.stride(-1)
    )


def attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, scale: float
) -> torch.Tensor:
    """Attention of n nodes over the rows of a cache, see above. query [heads, n, d]; key [key heads,
    rows, d]; value the same with a size of its own; mask [n, rows], additive. Returns [n, heads,
    value's size]."""
    heads, n, size = query.shape
    own, rows, out_size = value.shape
    out = query.new_empty(n, heads, out_size)
    lines = n * heads // own
    blocks = triton.cdiv(lines, SMALL[0])
    few = own * blocks <= FEW and (rows < LONG or blocks == 1)
    queries, tile = SMALL if few else LARGE
    blocks = triton.cdiv(lines, queries)
    width, out_width = (max(16, triton.next_power_of_2(one)) for one in (size, out_size))
    wide = max(width, out_width) * query.element_size()
    parts = PROGRAMS * BYTES // (min(wide, BYTES) * own * blocks)
    parts = max(1, min(parts, rows // LEAST_ROWS, MOST_PARTS))
    room = _room(query.device) - queries * wide
    tile = tile * BYTES // max(BYTES, wide)
    while tile > 16 and 2 * tile * wide > room:
        tile //= 2
    share = triton.cdiv(rows, parts * tile) * tile
    parts = triton.cdiv(rows, share)  # none without rows
    alone = parts == 1
    mixed = out if alone else out.new_empty(parts, n, heads, out_size, dtype=torch.float32)
    state = out if alone else mixed.new_empty(2, parts, n, heads)
    with torch.cuda.device_of(query):  # Triton launches on the current device
        _attend[(blocks, own, parts)](
            query,
            key,
            value,
            mask,
            mixed,
            state,
            *query.stride()[:2],
            *key.stride()[:2],
            *value.stride()[:2],
            mask.stride(0),
            n,
            rows,
            share,
            size,
            out_size,
            scale * math.log2(math.e),
            heads,
            GROUP=heads // own,
            ALONE=alone,
            M=queries,
            N=tile,
            D=width,
            OUT=out_width,
            NEVER=NEVER,
            LOG2E=math.log2(math.e),
            PRECISION="ieee" if query.dtype == torch.float32 else "tf32",
            num_warps=4,
            num_stages=min(STAGES, max(1, room // (2 * tile * wide))),
        )
        if not alone:
            rounded = triton.next_power_of_2(parts)
            _add_up[(n * heads,)](mixed, state, out, parts, out_size, PARTS=rounded, OUT=out_width)
    return out


def _room(device: torch.device) -> int:
    """The bytes of shared memory that a program may have; as on a large GPU if it is interpreted."""
    if device.type != "cuda":
        return 1 << 17
    properties: Any = torch.cuda.get_device_properties(device)
    least = properties.shared_memory_per_block  # ROCm knows only this
    room: int = getattr(properties, "shared_memory_per_block_optin", least)
    return room - RESERVED


if triton is not None:

    @triton.jit
    def _attend(
        query,
        key,
        value,
        mask,
        out,
        state,
        query_head,
        query_row,
        key_head,
        key_row,
        value_head,
        value_row,
        mask_row,
        n,
        rows,
        share,
        size,
        out_size,
        scale,
        heads,
        GROUP: tl.constexpr,
        ALONE: tl.constexpr,
        M: tl.constexpr,
        N: tl.constexpr,
        D: tl.constexpr,
        OUT: tl.constexpr,
        NEVER: tl.constexpr,
        LOG2E: tl.constexpr,
        PRECISION: tl.constexpr,
    ):
        own = tl.program_id(1).to(tl.int64)
        line = tl.program_id(0) * M + tl.arange(0, M)  # a node's heads of this group, side by side
        node, head = (line // GROUP).to(tl.int64), own * GROUP + line % GROUP
        there = node < n
        d, e = tl.arange(0, D), tl.arange(0, OUT)
        at_q = head * query_head + node * query_row
        q = tl.load(
            query + at_q[:, None] + d[None, :], mask=there[:, None] & (d < size)[None, :], other=0.0
        )
        best = tl.full((M,), -float("inf"), tl.float32)
        total = tl.zeros((M,), tl.float32)
        mixed = tl.zeros((M, OUT), tl.float32)
        part = tl.program_id(2)
        end = tl.minimum(rows, (part + 1) * share)
        for start in range(part * share, end, N):
            row = start + tl.arange(0, N)
            inside = row < end
            at_k = own * key_head + row * key_row
            at_v = own * value_head + row * value_row
            k = tl.load(
                key + at_k[None, :] + d[:, None],
                mask=inside[None, :] & (d < size)[:, None],
                other=0.0,
            )
            bias = tl.load(
                mask + node[:, None] * mask_row + row[None, :],
                mask=there[:, None] & inside[None, :],
                other=0.0,
            ).to(tl.float32)
            v = tl.load(
                value + at_v[:, None] + e[None, :],
                mask=inside[:, None] & (e < out_size)[None, :],
                other=0.0,
            )
            score = (
                tl.dot(q, k, input_precision=PRECISION) * scale + tl.maximum(bias, NEVER) * LOG2E
            )
            score = tl.where(inside[None, :], score, -float("inf"))
            higher = tl.maximum(best, tl.max(score, 1))
            shrink = tl.exp2(best - higher)
            weight = tl.exp2(score - higher[:, None])
            total = total * shrink + tl.sum(weight, 1)
            mixed = mixed * shrink[:, None] + tl.dot(
                weight.to(v.dtype), v, input_precision=PRECISION
            )
            best = higher
        line = (part.to(tl.int64) * n + node) * heads + head
        at_out = out + line[:, None] * out_size + e[None, :]
        seen = there[:, None] & (e < out_size)[None, :]
        if ALONE:
            tl.store(at_out, (mixed / total[:, None]).to(q.dtype), mask=seen)
        else:
            tl.store(at_out, mixed, mask=seen)
            tl.store(state + line, best, mask=there)
            all_lines = tl.num_programs(2).to(tl.int64) * n * heads
            tl.store(state + all_lines + line, total, mask=there)

    @triton.jit
    def _add_up(mixed, state, out, parts, out_size, PARTS: tl.constexpr, OUT: tl.constexpr):
        line, lines = tl.program_id(0), tl.num_programs(0)
        part, e = tl.arange(0, PARTS), tl.arange(0, OUT)
        at = part.to(tl.int64) * lines + line
        there, seen = part < parts, e < out_size
        best = tl.load(state + at, mask=there, other=-float("inf"))
        total = tl.load(state + parts.to(tl.int64) * lines + at, mask=there, other=0.0)
        shrink = tl.exp2(best - tl.max(best, 0))
        each = tl.load(
            mixed + at[:, None] * out_size + e[None, :],
            mask=there[:, None] & seen[None, :],
            other=0.0,
        )
        result = tl.sum(each * shrink[:, None], 0) / tl.sum(total * shrink, 0)
        at_out = out + line.to(tl.int64) * out_size + e
        tl.store(at_out, result.to(out.dtype.element_ty), mask=seen)
