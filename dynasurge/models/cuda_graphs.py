"""Captured functions: on a GPU a CUDA graph, which launches all kernels at once; elsewhere a plain
call.

A graph replays the same memory addresses and shapes. So it must read and write tensors that stay in
place. Graphs of one `Graphs` share scratch memory. A graph's result survives the replay of a later
graph only if its tensors are still referenced when that graph is captured.
"""

from __future__ import annotations

import functools
import gc
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Generic, TypeVar

import torch
import torch._dynamo.config

# Calls before a capture: in the first ones libraries allocate their workspaces, and kernels are
# compiled.
WARM_UPS = 3
SHAPES = 200  # shapes of passes: each is compiled on its own
R = TypeVar("R")


def fused(function: Callable[..., R], compiled: bool) -> Callable[..., R]:
    """A function of tensors. If `compiled`, torch.compile fuses its small kernels."""
    return _compiled(function) if compiled else function


@functools.cache
def _compiled(function: Callable[..., R]) -> Callable[..., R]:
    return torch.compile(
        function
    )  # not dynamic=False: after the second size, one code serves all sizes


class Captured(Generic[R]):
    """A captured function. `result` is what its last replay returned."""

    def __init__(
        self, function: Callable[[], R], graph: torch.cuda.CUDAGraph | None, result: R
    ) -> None:
        self._function, self._graph, self.result = function, graph, result

    def replay(self) -> None:
        """Run it. Does not wait for the device."""
        if self._graph is not None:
            self._graph.replay()
            return
        with torch.inference_mode():
            self.result = self._function()


class Graphs:
    """Captures functions on one device. seconds: the time that captures took so far."""

    def __init__(self, device: torch.device) -> None:
        self._device, self.seconds = device, 0.0
        self._pool: Any = None
        if device.type == "cuda":
            gc.collect()  # graphs that nobody uses any more

    @torch.inference_mode()
    def capture(
        self, function: Callable[[], R], ready: Callable[[], object] = lambda: None
    ) -> Captured[R]:
        """Call a function a few times, capture it, and replay it once, so that its result is valid.
        `ready` is called before each of these calls. Raises RuntimeError if the function waits for
        the device."""
        if self._device.type != "cuda":
            ready()
            return Captured(function, None, function())
        collects = gc.isenabled()
        gc.disable()  # a graph that dies during a capture would break it
        try:
            with torch.cuda.device(self._device):
                return self._capture(function, ready)
        finally:
            if collects:
                gc.enable()

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
        torch._C._cuda_clearCublasWorkspaces()  # the graph must not keep the warm-ups' workspace
        with torch.cuda.graph(graph, pool=self._pool, stream=stream):
            result = function()
        torch._C._cuda_clearCublasWorkspaces()  # and no other work may use the graph's
        self._pool = self._pool or graph.pool()
        ready()
        graph.replay()
        self.seconds += time.perf_counter() - start
        return Captured(function, graph, result)


class Signal:
    """Tells the host when the device has reached a point in its work."""

    def __init__(self, device: torch.device) -> None:
        self._event = torch.cuda.Event() if device.type == "cuda" else None

    def set(self) -> None:
        """Put the point after all work launched so far."""
        if self._event is not None:
            self._event.record()

    def wait(self) -> None:
        """Wait until the device has reached the point."""
        if self._event is not None:
            self._event.synchronize()


class Stopwatch:
    """Marks points in a device's work. When the work is done, it gives the seconds between them."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[Any] = []
        self._spare: list[Any] = []

    def restart(self) -> None:
        """Forget all marks; the first lap begins here."""
        self._marks.clear()
        self.mark()

    def mark(self) -> None:
        """Put a mark after all work launched so far."""
        if self._device.type == "cuda":
            self._marks.append(
                self._spare.pop() if self._spare else torch.cuda.Event(enable_timing=True)
            )
            self._marks[-1].record()
        else:
            self._marks.append(time.perf_counter())

    def wait(self, laps: int) -> None:
        """Wait until the first `laps` laps are over."""
        if self._device.type == "cuda":
            self._marks[laps].synchronize()

    def laps(self, count: int) -> list[float]:
        """The seconds of the first `count` laps, which are then forgotten."""
        marks, self._marks = self._marks[: count + 1], self._marks[count:]
        if self._device.type == "cuda":
            self._spare += marks[:-1]
            return [a.elapsed_time(b) / 1e3 for a, b in pairwise(marks)]
        return [b - a for a, b in pairwise(marks)]
