"""Meets the other processes of a launch, and finds a device for this one (workers.py)."""

from __future__ import annotations

import datetime
import os

from dynasurge.errors import UsageError
from dynasurge.experiments.workers import ALONE, Processes

PATIENCE = datetime.timedelta(days=30)  # other processes may need a whole night for their prompts


def join(device: str, device_map: str | None = None) -> tuple[Processes, str]:
    """Meet the other processes of this launch. Returns them and the device for this one.

    device: the value of `--device`; auto gives each process a GPU. Raises UsageError if processes
    would share one device. A `device_map` spreads one model over all GPUs of a machine, so it
    raises UsageError with more than one process a machine.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return ALONE, device
    if device not in ("auto", "cpu", "cuda"):
        raise UsageError(
            "--device",
            device,
            f"{count} processes cannot share it",
            "leave it out: each takes its own",
        )
    if device_map is not None and int(os.environ.get("LOCAL_WORLD_SIZE", count)) > 1:
        reason = (
            "spreads one model over all GPUs, but there is more than one process on this machine"
        )
        raise UsageError("--device-map", device_map, reason, "launch one process a machine")
    import torch
    from accelerate import PartialState

    cpu = device == "cpu" or not torch.cuda.is_available()
    state = PartialState(cpu=cpu, backend="gloo", timeout=PATIENCE)
    return Processes(
        rank=state.process_index, count=state.num_processes, wait=state.wait_for_everyone
    ), "cpu" if cpu else str(state.device)
