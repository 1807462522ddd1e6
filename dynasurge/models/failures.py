"""Failures of a model or a GPU, reported in one line: logits that are no numbers, memory that runs
out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import psutil
import torch

from dynasurge.errors import UsageError

Part = Literal["model", "cache", "prompt", "tree"]
SHRINK: dict[Part, tuple[str, str]] = {
    "model": (
        "while a model loaded",
        "use a smaller model, --dtype bfloat16, or --device-map auto over several GPUs",
    ),
    "cache": (
        "making room for the cache",
        "shrink the cache: use smaller --new-tokens, --prompt-len or tree",
    ),
    "prompt": ("reading the prompt", "shrink the prompt: use a smaller --prompt-len"),
    "tree": ("drafting or scoring a tree", "shrink the tree: use a smaller --B or --growmap"),
}
REMEDY = "try --dtype float32, or another copy of the model"


@contextmanager
def shrinking(part: Part) -> Iterator[None]:
    """Raises UsageError if the block runs out of GPU memory. It names the part to shrink: model,
    cache, prompt or tree."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        doing, remedy = SHRINK[part]
        raise UsageError("--device", _memory(), f"ran out of memory {doing}", remedy) from error


def check_memory(device: torch.device, size: int) -> None:
    """Raise UsageError if a model of `size` bytes is to be made in the host's memory and does not fit:
    the system would end the process without a word."""
    free = psutil.virtual_memory().available
    if device.type == "cpu" and size > free:
        have = f"cpu with {free / 2**30:.1f} GiB free"
        reason = f"the model needs {size / 2**30:.1f} GiB"
        raise UsageError("--device", have, reason, "use a smaller model, or a machine with more")


def no_numbers(field: str, value: object) -> UsageError:
    """The error for a model whose logits are NaN or infinite: its text would be noise."""
    return UsageError(field, value, "gives logits that are NaN or infinite", REMEDY)


def _memory() -> str:
    if not torch.cuda.is_available():
        return "cuda"
    free, total = torch.cuda.mem_get_info()
    return f"cuda with {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
