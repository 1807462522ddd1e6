"""Two Triton kernels for work that a GPU would otherwise do in hundreds of small launches.

`draw` draws k tokens without replacement from each row of a table of probabilities. A program
handles a row; a draw takes two inverse-CDF steps (a block by its mass, then a token inside it),
exactly as in `probabilities.draw_by`. `share` handles one level of a token tree, as
`verification.rules.share_level` does: a program a row, one pass over the vocabulary for each
sampled child. Both read float32 tables and compute the sums that decide in float64. Without Triton, or on a
CPU, `usable` is False and torch code does the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from dynasurge.probabilities import LEAST

try:
    import triton
    import triton.language as tl
except ImportError:  # pragma: no cover - a build of torch without it
    triton = None

INTERPRETED = False  # tests set it: Triton then interprets kernels on a CPU
MOST = 1e37  # the largest t: it takes all mass, and does not overflow
CHUNK = 16  # how many blocks one program sums


@dataclass(frozen=True, kw_only=True)
class Shares:
    """What a rule reads and writes, for R families of k children and n nodes (number n: no node).

    node, place int64 [R]: each family's node, and its row of p (None: family r has row r). child, token int64, point bool
    [R, k]. p float [rows, V], q float [R + 1, V]; drawn, from_q float [R, k]: p and q of the
    children's tokens, 0 for none. Results: accept float64 [n + 1], the weight with which a node is
    entered, bottom up then the rest of it after its children; kept float64 [R, k], what is left of
    R at the children's tokens; p, what is left of R elsewhere.
    """

    p: torch.Tensor
    q: torch.Tensor
    node: torch.Tensor
    place: torch.Tensor | None
    child: torch.Tensor
    token: torch.Tensor
    point: torch.Tensor
    drawn: torch.Tensor
    from_q: torch.Tensor
    accept: torch.Tensor
    kept: torch.Tensor

    def p_of(self, rows: slice) -> torch.Tensor:
        """p of some families' nodes."""
        return self.p[rows] if self.place is None else self.p[self.place[rows]]

    def leave(self, rows: slice, left: torch.Tensor) -> None:
        """Write what is left of R to p."""
        self.p[rows if self.place is None else self.place[rows]] = left


def usable(table: torch.Tensor) -> bool:
    """Whether the kernels can work on this table: float32, on a GPU or interpreted."""
    return triton is not None and (table.is_cuda or INTERPRETED) and table.dtype == torch.float32


def draw(
    q: torch.Tensor, uniforms: torch.Tensor, places: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draw k tokens without replacement from each row on a GPU, for `proposals.draw`. q float32
    [w, V], uniforms float64 [w, k, 2]. places [w, 1]: how many to draw from each row, if fewer.
    Returns tokens int64 (-1 for none) and masses [w, k], sums and sums of squares [w], float64."""
    rows, vocab = q.shape
    k = uniforms.shape[1]
    width = triton.next_power_of_2(math.ceil(math.sqrt(vocab)))
    blocks = max(CHUNK, triton.next_power_of_2(triton.cdiv(vocab, width)))
    mass = torch.empty(rows, blocks, dtype=torch.float64, device=q.device)
    squares = torch.empty_like(mass)
    tokens = torch.empty(rows, k, dtype=torch.int64, device=q.device)
    masses = torch.empty(rows, k, dtype=torch.float64, device=q.device)
    sums = torch.empty(2, rows, dtype=torch.float64, device=q.device)
    q, uniforms = q.contiguous(), uniforms.contiguous()
    most = places.contiguous() if places is not None else sums
    _masses[(rows, blocks // CHUNK)](q, mass, squares, vocab, blocks, CHUNK=CHUNK, WIDTH=width)
    _draw[(rows,)](
        q,
        uniforms,
        mass,
        most,
        tokens,
        masses,
        squares,
        sums,
        vocab,
        k,
        BLOCKS=blocks,
        WIDTH=width,
        K=triton.next_power_of_2(k),
        LIMITED=places is not None,
    )
    return tokens, masses, sums[0], sums[1]


def share(shares: Shares, rows: slice, *, bottom_up: bool) -> None:
    """Let the children of some families take their shares on a GPU; results go into `shares`. The
    same as `verification.rules.share_level`."""
    k = shares.child.shape[1]
    _share[(rows.stop - rows.start,)](
        shares.p,
        shares.q,
        shares.node,
        shares.place
        if shares.place is not None
        else torch.arange(rows.stop, device=shares.p.device),
        shares.child,
        shares.point,
        shares.drawn,
        shares.from_q,
        shares.accept,
        shares.kept,
        shares.p.shape[1],
        rows.start,
        len(shares.accept) - 1,
        k,
        K=max(2, triton.next_power_of_2(k)),
        CHUNK=min(8192, triton.next_power_of_2(shares.p.shape[1])),
        BOTTOM_UP=bottom_up,
        TINY=torch.finfo(torch.float32).tiny,
        LEAST=LEAST,
        MOST=MOST,
        num_warps=16,
    )


if triton is not None:

    @triton.jit
    def _masses(q, mass, squares, vocab, blocks, CHUNK: tl.constexpr, WIDTH: tl.constexpr):
        """Compute each block's sum and sum of squares."""
        row = tl.program_id(0).to(tl.int64)
        block = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
        at = block[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
        weights = tl.load(q + row * vocab + at, mask=at < vocab, other=0.0).to(tl.float64)
        tl.store(mass + row * blocks + block, tl.sum(weights, 1))
        tl.store(squares + row * blocks + block, tl.sum(weights * weights, 1))

    @triton.jit
    def _invert(weights, uniform, places, SIZE: tl.constexpr):
        """The first column of positive weight whose cumulative weight exceeds uniform * total; SIZE
        if there is none."""
        running = tl.cumsum(weights, 0)
        threshold = uniform * tl.max(running, 0)
        positive = weights > 0
        first = tl.min(tl.where((running > threshold) & positive, places, SIZE), 0)
        last = tl.max(
            tl.where(positive, places, -1), 0
        )  # taken if rounding leaves no column above the threshold
        return tl.where(first < SIZE, first, tl.where(last >= 0, last, SIZE))

    @triton.jit
    def _draw(
        q,
        uniforms,
        mass,
        most,
        tokens,
        masses,
        squares,
        sums,
        vocab,
        k,
        BLOCKS: tl.constexpr,
        WIDTH: tl.constexpr,
        K: tl.constexpr,
        LIMITED: tl.constexpr,
    ):
        row = tl.program_id(0).to(tl.int64)
        blocks, inside, ranks = tl.arange(0, BLOCKS), tl.arange(0, WIDTH), tl.arange(0, K)
        left = tl.load(mass + row * BLOCKS + blocks)
        tl.store(sums + row, tl.sum(left, 0))
        rows = tl.num_programs(0)
        tl.store(sums + rows + row, tl.sum(tl.load(squares + row * BLOCKS + blocks), 0))
        drawn = tl.full((K,), -1, tl.int64)
        stop = k
        if LIMITED:
            stop = tl.minimum(tl.load(most + row).to(tl.int32), k)
            unused = (ranks >= stop) & (ranks < k)
            tl.store(tokens + row * k + ranks, drawn, mask=unused)
            tl.store(masses + row * k + ranks, tl.zeros((K,), tl.float64), mask=unused)
        for j in range(stop):
            first = tl.load(uniforms + (row * k + j) * 2)
            second = tl.load(uniforms + (row * k + j) * 2 + 1)
            block = _invert(left, first, blocks, BLOCKS)
            found = block < BLOCKS
            block = tl.minimum(block, BLOCKS - 1)
            at = (block * WIDTH + inside).to(tl.int64)
            weights = tl.load(q + row * vocab + at, mask=at < vocab, other=0.0).to(tl.float64)
            taken = tl.sum((at[:, None] == drawn[None, :]).to(tl.int32), 1) > 0
            weights = tl.where(taken, 0.0, weights)
            column = _invert(weights, second, inside, WIDTH)
            found = found & (column < WIDTH)
            token = tl.where(found, block * WIDTH + column, -1).to(tl.int64)
            chosen = inside == column
            tl.store(tokens + row * k + j, token)
            tl.store(masses + row * k + j, tl.sum(tl.where(chosen, weights, 0.0), 0))
            drawn = tl.where(ranks == j, token, drawn)
            left = tl.where(blocks == block, tl.sum(tl.where(chosen, 0.0, weights), 0), left)

    @triton.jit
    def _share(
        p,
        q,
        nodes,
        place,
        child,
        point,
        drawn,
        from_q,
        accept,
        kept_out,
        vocab,
        start,
        none,
        k,
        K: tl.constexpr,
        CHUNK: tl.constexpr,
        BOTTOM_UP: tl.constexpr,
        TINY: tl.constexpr,
        LEAST: tl.constexpr,
        MOST: tl.constexpr,
    ):
        row = (start + tl.program_id(0)).to(tl.int64)
        ranks, places = tl.arange(0, K), tl.arange(0, CHUNK)
        node, at_p = tl.load(nodes + row), tl.load(place + row)
        mine = row * k + ranks
        kids = tl.load(child + mine, mask=ranks < k, other=none)
        exists = kids < none
        if tl.sum(exists.to(tl.int32), 0) > 0:
            points = tl.load(point + mine, mask=ranks < k, other=1).to(tl.int1)
            sampled, points = exists & (points == 0), exists & (points != 0)
            from_p = tl.load(drawn + mine, mask=ranks < k, other=0.0).to(tl.float64)
            of_q = tl.load(from_q + mine, mask=ranks < k, other=0.0).to(tl.float64)
            a = tl.load(accept + node)
            if not BOTTOM_UP:
                a = a * 0.0 + 1.0
            scale, t = a, a * 0.0
            free = a * 0.0
            if tl.sum(sampled.to(tl.int32), 0) > 0:
                total = tl.zeros((CHUNK,), tl.float32)
                for begin in range(0, vocab, CHUNK):
                    at = begin + places
                    total += tl.load(q + row * vocab + at, mask=at < vocab, other=0.0)
                free = tl.sum(total.to(tl.float64), 0)
            weights = tl.zeros((K,), tl.float64)
            kept = tl.zeros((K,), tl.float64)
            waits = exists
            for rank in range(k):
                here = ranks == rank
                if tl.sum((here & sampled).to(tl.int32), 0) > 0:
                    total_q = tl.maximum(
                        free + tl.sum(tl.where(waits & sampled, of_q, 0.0), 0), TINY
                    )
                    own_p = tl.sum(tl.where(here, from_p, 0.0), 0)
                    own_q = tl.sum(tl.where(here, of_q, 0.0), 0)
                    left = tl.maximum(own_p - t * own_q, 0.0)
                    weight = tl.minimum(scale * left / tl.maximum(own_q / total_q, TINY), 1.0)
                    weights = tl.where(here, weight, weights)
                    t = tl.minimum(t + 1.0 / (total_q * tl.maximum(scale, LEAST)), MOST)
                    kept = tl.where(here, tl.maximum(own_p - t * own_q, 0.0), kept)
                    waits = waits & (ranks != rank)
                    rest = tl.zeros((CHUNK,), tl.float32)
                    t32 = t.to(tl.float32)
                    for begin in range(0, vocab, CHUNK):
                        at = begin + places
                        here_p = tl.load(p + at_p * vocab + at, mask=at < vocab, other=0.0)
                        here_q = tl.load(q + row * vocab + at, mask=at < vocab, other=0.0)
                        rest += tl.maximum(here_p - t32 * here_q, 0.0)
                    mass = tl.sum(rest.to(tl.float64), 0)
                    mass += tl.sum(tl.where(waits, tl.maximum(from_p - t * of_q, 0.0), 0.0), 0)
                    mass = scale * (mass + tl.sum(kept, 0))
                    refused = tl.maximum(1.0 - a + mass, TINY)
                    a = tl.minimum(mass / refused, 1.0)
                    scale = scale / refused
                    scale = tl.where(scale < 1.0 / LEAST, scale, 0.0)
            taken = tl.where(points, scale * tl.maximum(from_p - t * of_q, 0.0), 0.0)
            chance = tl.minimum(taken / tl.maximum(1.0 - tl.cumsum(taken, 0) + taken, TINY), 1.0)
            weights = tl.where(points, chance, weights)
            gone = tl.sum(taken, 0)
            a = tl.minimum(tl.maximum((a - gone) / tl.maximum(1.0 - gone, TINY), 0.0), 1.0)
            tl.store(accept + kids, weights, mask=exists)
            if BOTTOM_UP:
                tl.store(accept + node, tl.where(node == 0, 1.0, a))
            tl.store(kept_out + mine, kept, mask=ranks < k)
            if tl.sum(sampled.to(tl.int32), 0) > 0:
                t32 = t.to(tl.float32)
                for begin in range(0, vocab, CHUNK):
                    at = begin + places
                    here_p = tl.load(p + at_p * vocab + at, mask=at < vocab, other=0.0)
                    here_q = tl.load(q + row * vocab + at, mask=at < vocab, other=0.0)
                    left = tl.maximum(here_p - t32 * here_q, 0.0)
                    tl.store(p + at_p * vocab + at, left, mask=at < vocab)
