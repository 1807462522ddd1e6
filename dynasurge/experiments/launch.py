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

    cpu = device == "cpu" or torch.cuda.device_count() == 0  # counts without starting CUDA
    if not cpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = own_gpu(torch.cuda.device_count())
    # Not accelerate's PartialState: it waits on the GPU of its process's number, which is hidden.
    torch.distributed.init_process_group("gloo", timeout=PATIENCE)
    return Processes(
        rank=torch.distributed.get_rank(), count=count, wait=torch.distributed.barrier
    ), "cpu" if cpu else "cuda"


def own_gpu(gpus: int) -> str:
    """The one GPU of the machine's `gpus` that this process shall see. Then it is `cuda:0` in every
    process, and what one has compiled the others find in the cache. Raises UsageError if there are
    fewer GPUs than processes."""
    place, seen = int(os.environ.get("LOCAL_RANK", "0")), os.environ.get("CUDA_VISIBLE_DEVICES")
    if place >= gpus:
        reason = f"{gpus} GPUs cannot serve process {place + 1} of this machine"
        raise UsageError("--num_processes", place + 1, reason, f"launch {gpus} a machine")
    return seen.split(",")[place] if seen else str(place)
