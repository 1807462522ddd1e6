"""The engine on a GPU: passes of fixed widths, captured once as CUDA graphs and replayed.

A small model's pass is hundreds of kernels of a few microseconds each; launched one by one from Python they take longer
than they run. A captured graph launches them all at once. It replays the very same memory addresses and shapes, so:

- a pass of n tokens runs in the next wider *bucket*; surplus tokens write to a spare row behind the cache and read row 0;
- token ids, positions, rows and mask are static tensors that are refilled before a replay;
- attention looks at the whole cache, and the mask hides what is not in use.

With `compiled`, torch.compile first fuses the many small kernels between the matrix products, which matters once the model
is large enough for its weights, not its launches, to set the pace. One compilation serves all widths but the first (a pass
of one token is compiled by itself).

Passes wider than the widest bucket (reading a prompt) run uncaptured on the same cache. Capturing costs some tenths of a
second a bucket: `capture` does it ahead of time, so that no measurement pays for it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from dynasurge.engine import Engine
from dynasurge.replay import WARM_UPS, bucket


@dataclass(frozen=True, kw_only=True)
class _Captured:
    """A graph and its static tensors. numbers: int64 [3, n], token ids, positions and rows; hidden: bool [n, length]."""

    graph: torch.cuda.CUDAGraph
    numbers: torch.Tensor
    hidden: torch.Tensor
    logits: torch.Tensor


class GraphEngine(Engine):
    """An `Engine` whose passes of up to `widest` tokens are replayed. The logits of a pass live until the next one."""

    def __init__(
        self,
        model: PreTrainedModel,
        max_length: int,
        *,
        widest: int,
        vocab: int | None = None,
        compiled: bool = False,
    ) -> None:
        super().__init__(model, max_length + 1, vocab=vocab)  # the spare row is the last
        self.compiled = compiled
        self._call = torch.compile(model, dynamic=True) if compiled else model
        self.widest = bucket(widest)
        self.capture_seconds = 0.0
        self._captured: dict[int, _Captured] = {}

    def capture(self) -> None:
        """Capture every bucket that is not captured yet, widest first, so that the others reuse its memory."""
        start = time.perf_counter()
        for n in sorted({bucket(n) for n in range(1, self.widest + 1)} - self._captured.keys(), reverse=True):
            self._captured[n] = self._capture(n)
        self.capture_seconds += time.perf_counter() - start

    def _score(self, tokens: list[int], positions: list[int], ancestors: torch.Tensor, keep: int) -> torch.Tensor:
        n = len(tokens)
        if n > self.widest:
            return super()._score(tokens, positions, ancestors, keep)
        if bucket(n) not in self._captured:
            self.capture()
        captured = self._captured[bucket(n)]
        spare = captured.numbers.shape[1] - n
        first = self._cache.filled
        numbers = [
            tokens + [0] * spare,
            positions + [0] * spare,
            [*range(first, first + n), *[self.max_length - 1] * spare],
        ]
        hidden = F.pad(~ancestors, (self.length, self.max_length - self.length - ancestors.shape[1]))
        hidden[:, self.length + ancestors.shape[1] :] = True
        captured.numbers.copy_(torch.tensor(numbers), non_blocking=True)
        captured.hidden[:n].copy_(hidden, non_blocking=True)
        captured.graph.replay()
        return captured.logits[:n]

    @torch.inference_mode()
    def _capture(self, n: int) -> _Captured:
        device = self.device
        numbers = torch.zeros(3, n, dtype=torch.int64, device=device)
        numbers[2] = self.max_length - 1
        hidden = torch.ones(n, self.max_length, dtype=torch.bool, device=device)
        hidden[:, 0] = False

        def run() -> torch.Tensor:
            self._cache.rows = numbers[2]
            try:
                return self._run(numbers[:1], numbers[1:2], hidden, call=self._call)
            finally:
                self._cache.rows = None

        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                run()
        torch.cuda.current_stream(device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=next(iter(self._captured.values())).graph.pool() if self._captured else None):
            logits = run()
        return _Captured(graph=graph, numbers=numbers, hidden=hidden, logits=logits)
