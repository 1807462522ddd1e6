"""Several processes, one job: who does which prompt, and when they wait for each other.

    accelerate launch --num_processes 2 -m dynasurge sweep ...

starts as many processes as there are GPUs, perhaps on several machines; accelerate's `PartialState` tells each its number
and its device. Decoding needs no word between them: prompts are dealt out like cards, every process appends to a file of
its own, and at the end one of them puts the files together (experiments/records.py). They meet only to wait, over gloo, which works
with and without GPUs. Without a launcher there is one process and nobody to wait for.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from dynasurge.errors import UsageError

PATIENCE = datetime.timedelta(days=30)  # the others may have a slow prompt, or a whole night of them
Item = TypeVar("Item")


def _nobody() -> None:
    """Wait for nobody."""


@dataclass(frozen=True, kw_only=True)
class Processes:
    """rank: this process's number, from 0; count: how many there are; wait: returns once all have called it."""

    rank: int = 0
    count: int = 1
    wait: Callable[[], None] = _nobody

    @property
    def main(self) -> bool:
        """Whether this is the one that reports."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """This process's part; the parts of all are every item once, of any count of either."""
        return items[self.rank :: self.count]


ALONE = Processes()


def join(device: str, device_map: str | None = None) -> tuple[Processes, str]:
    """Meet the other processes of this launch. Returns them and the device for this one.

    device: what `--device` asks for; auto is a GPU for each process. Raises UsageError for one device to be shared, and
    for a `device_map`, which spreads one model over all GPUs of a machine, in more than one process a machine.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return ALONE, device
    if device not in ("auto", "cpu", "cuda"):
        raise UsageError("--device", device, f"{count} processes cannot share it", "leave it out: each takes its own")
    if device_map is not None and int(os.environ.get("LOCAL_WORLD_SIZE", count)) > 1:
        reason = "spreads one model over all GPUs, but there is more than one process on this machine"
        raise UsageError("--device-map", device_map, reason, "launch one process a machine")
    import torch
    from accelerate import PartialState

    cpu = device == "cpu" or not torch.cuda.is_available()
    state = PartialState(cpu=cpu, backend="gloo", timeout=PATIENCE)
    return Processes(
        rank=state.process_index, count=state.num_processes, wait=state.wait_for_everyone
    ), "cpu" if cpu else str(state.device)
