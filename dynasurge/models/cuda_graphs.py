"""Captured functions: on a GPU a CUDA graph, whose kernels are all launched at once; elsewhere just
the call.

A graph replays the very same memory addresses and shapes, so what it reads and writes must be
tensors that stay where they are. Graphs of one `Graphs` share their scratch memory: of one graph's
results only those that somebody still holds when the next is captured survive its replay.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Generic, TypeVar

import torch
import torch._dynamo.config

# calls before a capture: libraries allocate their workspaces, and kernels are compiled, in the
# first ones
WARM_UPS = 3
SHAPES = 200  # of passes: each is compiled by itself
R = TypeVar("R")


def fused(function: Callable[..., R], compiled: bool) -> Callable[..., R]:
    """A function of tensors, its small kernels made few by torch.compile if `compiled`."""
    return _compiled(function) if compiled else function


@functools.cache
def _compiled(function: Callable[..., R]) -> Callable[..., R]:
    return torch.compile(
        function
    )  # not dynamic=False: from the second size on, sizes are variables, one code for all


class Captured(Generic[R]):
    """A function that was captured. `result` is what its last replay returned."""

    def __init__(
        self, function: Callable[[], R], graph: torch.cuda.CUDAGraph | None, result: R
    ) -> None:
        self._function, self._graph, self.result = function, graph, result

    def replay(self) -> None:
        """Run it, without waiting for it."""
        if self._graph is not None:
            self._graph.replay()
            return
        with torch.inference_mode():
            self.result = self._function()


class Graphs:
    """Captures functions on one device. seconds: how long that took so far."""

    def __init__(self, device: torch.device) -> None:
        self._device, self.seconds = device, 0.0
        self._pool: Any = None

    @torch.inference_mode()
    def capture(
        self, function: Callable[[], R], ready: Callable[[], object] = lambda: None
    ) -> Captured[R]:
        """Call it some times, capture it, and replay it once, so that its results mean something
        from now on. It must not wait for the device: raises RuntimeError if it does. ready: called
        before each of these calls."""
        if self._device.type != "cuda":
            ready()
            return Captured(function, None, function())
        with torch.cuda.device(self._device):
            return self._capture(function, ready)

    def _capture(self, function: Callable[[], R], ready: Callable[[], object]) -> Captured[R]:
        start = time.perf_counter()
        stream = torch.cuda.Stream(self._device)
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream), torch._dynamo.config.patch(recompile_limit=SHAPES):
            for _ in range(WARM_UPS):
                ready()
                function()
        torch.cuda.current_stream(self._device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        torch._C._cuda_clearCublasWorkspaces()  # those of the warm-ups are not the graph's to keep
        with torch.cuda.graph(graph, pool=self._pool, stream=stream):
            result = function()
        torch._C._cuda_clearCublasWorkspaces()  # nor is its own others' to use
        self._pool = self._pool or graph.pool()
        ready()
        graph.replay()
        self.seconds += time.perf_counter() - start
        return Captured(function, graph, result)


class Signal:
    """Something that a device will have done."""

    def __init__(self, device: torch.device) -> None:
        self._event = torch.cuda.Event() if device.type == "cuda" else None

    def set(self) -> None:
        """What was launched so far is it."""
        if self._event is not None:
            self._event.record()

    def wait(self) -> None:
        """Until it is done."""
        if self._event is not None:
            self._event.synchronize()


class Stopwatch:
    """Marks points in the work of a device and tells the seconds between them, once that is
    done."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[Any] = []
        self._spare: list[Any] = []

    def restart(self) -> None:
        """Forget the marks there are; the first lap begins here."""
        self._marks.clear()
        self.mark()

    def mark(self) -> None:
        """Here."""
        if self._device.type == "cuda":
            self._marks.append(
                self._spare.pop() if self._spare else torch.cuda.Event(enable_timing=True)
            )
            self._marks[-1].record()
        else:
            self._marks.append(time.perf_counter())

    def wait(self, laps: int) -> None:
        """Until so many laps are over."""
        if self._device.type == "cuda":
            self._marks[laps].synchronize()

    def laps(self, count: int) -> list[float]:
        """Seconds of the first so many laps; forgets them."""
        marks, self._marks = self._marks[: count + 1], self._marks[count:]
        if self._device.type == "cuda":
            self._spare += marks[:-1]
            return [a.elapsed_time(b) / 1e3 for a, b in pairwise(marks)]
        return [b - a for a, b in pairwise(marks)]
