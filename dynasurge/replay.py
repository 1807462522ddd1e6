"""Small tensor functions whose kernels are launched all at once on a GPU.

Drawing children or sharing out a node's mass takes dozens of kernels of a few microseconds each; started one by one from
Python they take longer than they run. `@replayed` captures a function as a CUDA graph, once for every shape of its
arguments, and replays that. On a CPU it changes nothing.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

WARM_UPS = 3  # calls before a capture: libraries allocate their workspaces in the first ones
ROWS = 128  # calls with more rows than this are rare, and run uncaptured
_lock = threading.Lock()  # filling the static arguments, replaying and copying the results out belong together
_buffers: dict[Any, torch.Tensor] = {}
_pools: dict[torch.device, Any] = {}

Tensors = tuple[torch.Tensor, ...]
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, kw_only=True)
class _Captured:
    graph: torch.cuda.CUDAGraph
    arguments: Tensors
    results: Tensors


def bucket(n: int) -> int:
    """The size that n things run in: 0, 1, 2, 4, 8, then multiples of 8. Few sizes make few graphs."""
    return (1 << (n - 1).bit_length() if n else 0) if n <= 8 else -(-n // 8) * 8


def replayed(function: F) -> F:
    """Decorates `function(*tensors, *options)`, which must treat the m rows of its tensors (their first dimension) each by
    itself, must neither wait for the device nor call another replayed function, and returns a tensor or a tuple of tensors
    with m rows. Options are hashable."""
    captured: dict[Any, _Captured] = {}

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        tensors = tuple(argument for argument in arguments if isinstance(argument, torch.Tensor))
        if tensors[0].device.type != "cuda" or tensors[0].dim() < 2 or torch.cuda.is_current_stream_capturing():
            return function(*arguments)
        rows = len(tensors[0])
        if not 0 < rows <= ROWS:
            return function(*arguments)
        options = arguments[len(tensors) :]
        key = (bucket(rows), *((t.device, t.dtype, t.shape[1:]) for t in tensors), options)
        with _lock, torch.inference_mode(False), torch.no_grad():
            if key not in captured:
                captured[key] = _capture(function, tensors, options)
            entry = captured[key]
            for static, tensor in zip(entry.arguments, tensors, strict=True):
                static[:rows].copy_(tensor, non_blocking=True)
            entry.graph.replay()
            results = tuple(result[:rows].clone() for result in entry.results)
        return results if len(results) > 1 else results[0]

    return call  # type: ignore[return-value]


def _capture(function: Callable[..., Any], tensors: Tensors, options: tuple[Any, ...]) -> _Captured:
    """Rows beyond the call's own are whatever an earlier call left there: nobody looks at their results."""
    rows, device = bucket(len(tensors[0])), tensors[0].device
    static = []
    for number, tensor in enumerate(tensors):
        name = (
            number,
            device,
            tensor.dtype,
            tensor.shape[1:],
        )  # graphs run one at a time, so they share their arguments
        if name not in _buffers:
            _buffers[name] = tensor.new_zeros(ROWS, *tensor.shape[1:])
        static.append(_buffers[name][:rows])
        static[-1][: len(tensor)].copy_(tensor)
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            function(*static, *options)
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=_pools.get(device)):
        results = function(*static, *options)
    _pools.setdefault(device, graph.pool())
    return _Captured(
        graph=graph, arguments=tuple(static), results=results if isinstance(results, tuple) else (results,)
    )
