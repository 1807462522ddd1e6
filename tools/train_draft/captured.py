"""Functions of device tensors, replayed as CUDA graphs.

A training step of a small draft launches some thousand kernels, and the host needs longer for that
than the GPU for the work. A graph launches them all at once. Its addresses are fixed: inputs are
copied to where the captured call had them, and results lie where it left them until the next call.

(models/cuda_graphs.py captures passes. It calls a function several times to warm up, which a training
step, that changes weights, does not bear, and it keeps no gradients.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import torch
from torch import Tensor

__all__ = ["Captured"]

R = TypeVar("R")
EAGER_CALLS = 3  # kernels are compiled, and libraries allocate what they need


class Captured(Generic[R]):
    """A function whose every call with inputs of one shape does the same work. The first calls of a
    shape run as they are; on CUDA the next one is captured, and replayed from then on."""

    def __init__(self, function: Callable[..., R], device: torch.device) -> None:
        self._function, self._cuda = function, device.type == "cuda"
        self._calls: dict[tuple[torch.Size, ...], int] = {}
        self._graphs: dict[
            tuple[torch.Size, ...], tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...], R]
        ] = {}

    def __call__(self, *inputs: Tensor) -> R:
        """The function's result. It reads all other tensors where they are: none may be replaced."""
        shapes = tuple(value.shape for value in inputs)
        calls = self._calls[shapes] = self._calls.get(shapes, 0) + 1
        if not self._cuda or calls <= EAGER_CALLS:
            return self._function(*inputs)
        if shapes not in self._graphs:
            graph, kept = torch.cuda.CUDAGraph(), tuple(value.clone() for value in inputs)
            stream = torch.cuda.current_stream()
            # threads of NCCL may look at their own events meanwhile
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                result = self._function(*kept)
            self._graphs[shapes] = graph, kept, result
        graph, kept, result = self._graphs[shapes]
        for own, value in zip(kept, inputs, strict=True):
            own.copy_(value)
        graph.replay()
        return result
