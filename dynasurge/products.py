"""Products with few rows: a static pass over a tree multiplies some 2 to 80 rows by every matrix of the model.

Such a product costs what it takes to read the matrix once. Library kernels, made for many rows, leave a sixth to a third of
a Hopper GPU's bandwidth unused there. This one turns the product round: the matrix [N, K] takes the place of the many rows
that tensor cores want (y' = W x'), a program reads BN of its rows in long steps of K, and all rows of x stay beside it.
They are padded to a power of two or to one and 16 more: a tree of 64 nodes and its root are 80, not 128. Where N gives less
than a program for each multiprocessor, K is split, and whoever uses the product adds up the parts, in float32 and always in
the same order.

`splits` says whether the kernel pays for a matrix, by measurements on that GPU (docs/performance.md); elsewhere the library
multiplies.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

try:
    import triton
    import triton.language as tl
except ImportError:  # pragma: no cover - a build of torch without it
    triton = None

MOST_ROWS = 80  # beyond, the library is as fast
LEAST = 1 << 22  # elements of a matrix: a smaller one stays in the GPU's cache
BN, BK = 64, 128
HOPPER = (9, 0)


def splits(weight: torch.Tensor, rows: int) -> int:
    """Into how many parts to split a product of so many rows with `weight` [N, K]; 0: leave it to the library."""
    if triton is None or not weight.is_cuda or torch.cuda.get_device_capability(weight.device) != HOPPER:
        return 0
    fits = weight.dtype == torch.bfloat16 and weight.is_contiguous()
    fits = fits and weight.shape[0] % BN == 0 and weight.shape[1] % BK == 0
    if not fits or not 1 < rows <= MOST_ROWS or weight.numel() < LEAST:
        return 0
    return 2 if weight.shape[0] // BN < _processors(weight.device) else 1


def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, parts: int) -> torch.Tensor:
    """`F.linear` by `splits(weight, rows of x)`."""
    if not parts:
        return F.linear(x, weight, bias)
    y: torch.Tensor = torch.ops.dynasurge.parts_of_product(x.reshape(-1, x.shape[-1]), weight, parts)
    y = (y[0] if parts == 1 else y.sum(0).to(x.dtype)).reshape(*x.shape[:-1], len(weight))
    return y if bias is None else y + bias


@torch.library.custom_op("dynasurge::parts_of_product", mutates_args=())
def parts_of_product(x: torch.Tensor, weight: torch.Tensor, parts: int) -> torch.Tensor:
    """x [rows, K] times the transpose of weight [N, K], K in parts: [parts, rows, N], float32 if they are several."""
    (rows, K), N = x.shape, len(weight)
    y = torch.empty(parts, rows, N, device=x.device, dtype=torch.float32 if parts > 1 else x.dtype)
    main, more = _padded(rows)
    tiles = N // BN
    twice = parts == 1 and main + more > 48 and tiles <= 2 * _processors(x.device)  # two programs a multiprocessor
    _multiply[(tiles, parts)](
        x.contiguous(),
        weight,
        y,
        rows,
        N,
        K,
        parts,
        MAIN=main,
        MORE=more,
        BN=BN,
        BK=BK,
        num_stages=3 if twice else 4,
        num_warps=4,
    )
    return y


@parts_of_product.register_fake
def _(x: torch.Tensor, weight: torch.Tensor, parts: int) -> torch.Tensor:
    return x.new_empty(parts, len(x), len(weight), dtype=torch.float32 if parts > 1 else x.dtype)


def _padded(rows: int) -> tuple[int, int]:
    """Rows in two tiles, of a power of two and of 16 or none."""
    whole = max(16, 1 << (rows - 1).bit_length())
    return (whole // 2, 16) if whole > 32 and rows <= whole // 2 + 16 else (whole, 0)


def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


if triton is not None:

    @triton.jit(do_not_specialize=["rows", "parts"])
    def _multiply(
        x,
        weight,
        y,
        rows,
        N,
        K,
        parts,
        MAIN: tl.constexpr,
        MORE: tl.constexpr,
        BN: tl.constexpr,
        BK: tl.constexpr,
    ):
        part, steps = tl.program_id(1), K // BK
        first, last = part * steps // parts, (part + 1) * steps // parts
        columns, main, inner = tl.program_id(0) * BN + tl.arange(0, BN), tl.arange(0, MAIN), tl.arange(0, BK)
        of_weight = weight + columns[:, None].to(tl.int64) * K + inner[None, :] + first * BK
        of_main = x + main[:, None] * K + inner[None, :] + first * BK
        made = tl.zeros((BN, MAIN), tl.float32)
        if MORE:
            more = MAIN + tl.arange(0, MORE)
            of_more = x + more[:, None] * K + inner[None, :] + first * BK
            besides = tl.zeros((BN, MORE), tl.float32)
        for _ in range(first, last):
            block = tl.load(of_weight)
            made = tl.dot(block, tl.trans(tl.load(of_main, mask=main[:, None] < rows, other=0.0)), made)
            if MORE:
                besides = tl.dot(block, tl.trans(tl.load(of_more, mask=more[:, None] < rows, other=0.0)), besides)
                of_more += BK
            of_weight += BK
            of_main += BK
        out = y + part.to(tl.int64) * rows * N
        at = main[:, None] * N + columns[None, :]
        tl.store(out + at, tl.trans(made).to(y.dtype.element_ty), mask=main[:, None] < rows)
        if MORE:
            at = more[:, None] * N + columns[None, :]
            tl.store(out + at, tl.trans(besides).to(y.dtype.element_ty), mask=more[:, None] < rows)
