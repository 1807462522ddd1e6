"""How many threads a CPU decodes with, and whether the machine is quiet enough to time it.

PyTorch's threads meet at the end of every operation, hundreds of times in a pass. If another
process holds a core, all of them wait for the thread that lost its turn. Milliseconds a pass of the
demo target (two cores, medians of 3 to 5 runs, 2026-11-29):

    threads, OMP_WAIT_POLICY            quiet    beside one busy process
    2, libgomp's default                   42    130 to 220
    2, passive                             71     63
    1                                      54     54

So a pair gets as many threads as there are idle cores when it is loaded, and the wait policy stays:
passive threads cost a quiet machine more than they save a busy one. OMP_NUM_THREADS, if set, is
left alone.
"""

from __future__ import annotations

import functools
import os
import time
import warnings

import psutil
import torch

LOOK = 0.3  # seconds to watch the machine before models are loaded
BUSY = 0.1  # of our cores: from here on other processes show in times
NOT_WORK = {"idle", "iowait", "guest", "guest_nice"}  # guests are part of user and nice


class Watch:
    """How many cores other processes (and other virtual machines) have kept busy since it began."""

    def __init__(self) -> None:
        self._began, self._others = time.perf_counter(), _seconds_of_others()

    def others(self) -> float:
        """The mean number of cores so far."""
        passed = time.perf_counter() - self._began
        return max(0.0, (_seconds_of_others() - self._others) / max(passed, 1e-9))

    def warning(self) -> str | None:
        """A line for times that were taken since then, if they cannot be trusted."""
        others, cores = self.others(), len(_cores())
        if others < BUSY * cores or time.perf_counter() - self._began < 1:
            return None
        return (
            f"other processes kept {others:.1f} of {cores} cores busy meanwhile: "
            "measure again on a quiet machine"
        )


def _cores() -> list[int]:
    """The cores that this process may use."""
    process = psutil.Process()
    return (
        list(process.cpu_affinity())
        if hasattr(process, "cpu_affinity")
        else [*range(psutil.cpu_count() or 1)]
    )


def _seconds_of_others() -> float:
    own, every = os.times(), psutil.cpu_times(percpu=True)
    times = [item for core in _cores() for item in every[core]._asdict().items()]
    work = sum(seconds for name, seconds in times if name not in NOT_WORK)
    return float(work) - sum(own[:4])  # user and system, of this process and its finished children


@functools.cache
def choose_threads() -> None:
    """Use no more threads than there are idle cores, and warn if these are fewer than before. Once a
    process; never with OMP_NUM_THREADS."""
    threads, cores = torch.get_num_threads(), len(_cores())
    if "OMP_NUM_THREADS" in os.environ or threads == 1:
        return
    watch = Watch()
    time.sleep(LOOK)
    others = watch.others()
    busy = int(others + 0.25)  # a page that is being drawn takes less
    idle = max(1, cores - busy)
    if busy and idle < threads:
        torch.set_num_threads(idle)
        reason = f"other processes keep {others:.1f} of {cores} cores busy"
        remedy = "set OMP_NUM_THREADS to choose yourself"
        warnings.warn(f"{idle} of {threads} threads: {reason}; {remedy}", stacklevel=3)
