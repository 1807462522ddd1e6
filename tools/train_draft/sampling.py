"""Sequences written by the target, in shards: the training text of a self-distilled draft.

All rows of a shard advance together, one token a step. While a row is inside its *opener* (a
written beginning, see ``prompts.py``), it takes the opener's next token; afterwards it draws a
token. When the target ends a text, the row goes on with another opener. So every row is full, there
is no padding and no mask, and on CUDA each position is one captured graph.

Shard i depends only on (seed, i): its openers come from ``random.Random``, its draws from one
``torch.Generator``, read before the first step. A killed run loses at most one shard, and a resumed
run writes the same files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dynasurge.errors import UsageError
from dynasurge.files import write_whole
from tools.train_draft.llama import EAGER, Kernels, Llama, decode_step, new_cache
from tools.train_draft.settings import DistillSettings

__all__ = [
    "Sampler",
    "draw_tokens",
    "load_shards",
    "missing_shards",
    "shard_generator",
    "shard_path",
    "write_shard",
]


def draw_tokens(logits: Tensor, temperature: Tensor, uniform: Tensor, block: int = 256) -> Tensor:
    """Draw one token a row by inverting the distribution function in two levels. logits [rows,
    vocab]; returns int64 [rows].

    The first level finds the block of ``block`` tokens in which the cumulative mass passes
    ``uniform``, the second the token inside it. This needs one random number a row, and no noise of
    the vocabulary's size.
    """
    rows, vocab = logits.shape
    if vocab % block:
        logits = F.pad(logits, (0, block - vocab % block), value=float("-inf"))
    peak = logits.amax(-1, keepdim=True).float()
    blocked = logits.view(rows, -1, block)
    weights = ((blocked.float() - peak[:, :, None]) / temperature[:, None, None]).exp()
    mass = weights.sum(-1)
    below = mass.cumsum(-1)
    goal = uniform[:, None] * below[:, -1:]
    index = (below <= goal).sum(-1, keepdim=True).clamp(max=mass.shape[1] - 1)
    goal = goal - (below.gather(1, index) - mass.gather(1, index))
    chosen = blocked.gather(1, index[:, :, None].expand(rows, 1, block))[:, 0]
    inside = ((chosen.float() - peak) / temperature[:, None]).exp().cumsum(-1)
    offset = (inside <= goal.clamp(min=0)).sum(-1).clamp(max=block - 1)
    return (index[:, 0] * block + offset).clamp(max=vocab - 1)


class Sampler:
    """Samples from one target in fixed shapes: ``rows`` sequences of ``length`` tokens a call.

    ``graphs=True`` (CUDA only) captures one graph per position at construction. Results are those
    of the eager steps.
    """

    def __init__(
        self,
        model: Llama,
        *,
        rows: int,
        length: int,
        openers: int,
        opener_length: int,
        end_tokens: Sequence[int],
        kernels: Kernels = EAGER,
        draw: Callable[[Tensor, Tensor, Tensor], Tensor] = draw_tokens,
        graphs: bool = False,
    ) -> None:
        device = model.device
        self.model, self.rows, self.length, self.kernels, self.draw = (
            model,
            rows,
            length,
            kernels,
            draw,
        )
        self.cache = new_cache(model, rows, length)
        self.tokens = torch.zeros(rows, length, dtype=torch.int64, device=device)
        self.uniform = torch.zeros(length, rows, device=device)
        self.temperature = torch.ones(rows, device=device)
        self.table = torch.zeros(openers, opener_length, dtype=torch.int64, device=device)
        self.table_length = torch.ones(openers, dtype=torch.int64, device=device)
        self.opener = (
            torch.arange(rows, device=device) % openers
        )  # the opener that each row is in, or has finished
        self.offset = torch.zeros(
            rows, dtype=torch.int64, device=device
        )  # how many of its tokens were taken
        self.end_tokens = torch.tensor(list(end_tokens), dtype=torch.int64, device=device)
        self.graphs: list[torch.cuda.CUDAGraph] = []
        if graphs:
            self._capture()

    @torch.no_grad()
    def _step(self, position: int) -> None:
        """Read the token at ``position`` and write the one at ``position + 1``, in tensors of fixed
        shape, without a decision on the host."""
        hidden = decode_step(
            self.model, self.tokens[:, position], position, self.cache, self.kernels
        )
        drawn = self.draw(hidden @ self.model.head.T, self.temperature, self.uniform[position])
        forced = self.offset < self.table_length[self.opener]
        written = self.table[self.opener, self.offset.clamp(max=self.table.shape[1] - 1)]
        self.tokens[:, position + 1] = torch.where(forced, written, drawn)
        ended = ~forced & (drawn[:, None] == self.end_tokens).any(-1)
        self.opener.copy_(
            torch.where(ended, (self.opener + self.rows) % self.table.shape[0], self.opener)
        )
        self.offset.copy_(torch.where(ended, 0, self.offset + forced.long()))

    def _capture(self) -> None:
        """Capture one CUDA graph per position. They share one memory pool."""
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for position in range(
                0, self.length - 1, 8
            ):  # load and compile every kernel before the capture
                self._step(position)
        torch.cuda.synchronize()
        pool = torch.cuda.graph_pool_handle()
        for position in range(self.length - 1):
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                self._step(position)
            self.graphs.append(graph)

    def launch(
        self, openers: Sequence[Sequence[int]], temperature: Tensor, uniform: Tensor
    ) -> Tensor:
        """Sample one shard. Returns the tokens [rows, length] on the device (CUDA may still be
        computing them).

        Row r starts from opener r. Each time its text ends, it goes on with the next of openers r +
        rows, r + 2 rows, ... Raises ValueError for a wrong number of openers or an empty one.
        """
        width = self.table.shape[1]
        if len(openers) != self.table.shape[0]:
            raise ValueError(
                f"{len(openers)} openers given: this sampler was built for {self.table.shape[0]}"
            )
        filled = np.zeros((len(openers), width), dtype=np.int64)
        lengths = np.array([min(len(opener), width) for opener in openers], dtype=np.int64)
        if lengths.min() < 1:
            raise ValueError("an opener is empty: give each at least one token")
        for index, opener in enumerate(openers):
            filled[index, : lengths[index]] = opener[:width]
        self.table.copy_(torch.from_numpy(filled))
        self.table_length.copy_(torch.from_numpy(lengths))
        self.temperature.copy_(temperature)
        self.uniform.copy_(uniform)
        self.opener.copy_(torch.arange(self.rows) % len(openers))
        self.offset.fill_(1)
        self.tokens[:, 0] = self.table[self.opener, 0]
        if self.graphs:
            for graph in self.graphs:
                graph.replay()
        else:
            for position in range(self.length - 1):
                self._step(position)
        return self.tokens


def shard_generator(seed: int, shard: int) -> torch.Generator:
    """The CPU generator of one shard, the only source of its temperatures and draws."""
    return torch.Generator().manual_seed((seed * 1_000_003 + shard) % 2**63)


def shard_draws(settings: DistillSettings, shard: int) -> tuple[Tensor, Tensor]:
    """Row temperatures [rows] and uniform numbers [length, rows] of a shard."""
    generator = shard_generator(settings.seed, shard)
    choices = torch.tensor(settings.sample_temperatures)
    temperature = choices[torch.randint(len(choices), (settings.rows,), generator=generator)]
    return temperature, torch.rand(settings.length, settings.rows, generator=generator)


def shard_path(folder: Path, shard: int) -> Path:
    """The file of one shard: tokens [rows, length] as uint16 (uint32 for vocabularies above
    65,536)."""
    return folder / f"shard-{shard:05d}.npy"


def missing_shards(folder: Path, settings: DistillSettings) -> Iterator[int]:
    """Shards that are not on disk, in order."""
    return (shard for shard in range(settings.shards) if not shard_path(folder, shard).exists())


def write_shard(folder: Path, shard: int, tokens: Tensor) -> None:
    """Write a shard, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    array = tokens.cpu().numpy()
    kind = np.uint16 if int(array.max()) < 2**16 else np.uint32
    with write_whole(shard_path(folder, shard)) as partial, partial.open("wb") as file:
        np.save(file, array.astype(kind))


def load_shards(folder: Path) -> np.ndarray:
    """All shards of a folder as one array [sequences, length], in shard order. Raises UsageError
    without shards."""
    paths = sorted(folder.glob("shard-*.npy"))
    if not paths:
        raise UsageError(
            "--samples", folder, "holds no shard-*.npy", "run the sample command first"
        )
    return np.concatenate([np.load(path, allow_pickle=False) for path in paths])
