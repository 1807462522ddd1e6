"""The memory floor: how fast a model could decode token by token if it did nothing but read its
weights.

A pass must read its weights at least once. (An embedding table that is not also the head does not
count: a pass only looks up rows of it.) The floor of a token is the bytes of the weights over the
bandwidth at which this machine reads or copies a large tensor, which is measured, not taken from a
data sheet. Speed over the floor compares results of different machines.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable

import torch
from transformers import PreTrainedModel

REPEATS = 10


def floor_seconds(model: PreTrainedModel) -> float:
    """Seconds that a token of this model takes at least."""
    return weight_bytes(model) / bandwidth(model.device)


def weight_bytes(model: PreTrainedModel) -> int:
    """The bytes of weights that each pass reads."""
    count = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    embedding: torch.Tensor = model.get_input_embeddings().weight  # type: ignore[assignment]
    if embedding is not getattr(model.get_output_embeddings(), "weight", None):
        count -= embedding.numel() * embedding.element_size()
    return count


@functools.cache
def bandwidth(device: torch.device) -> float:
    """Bytes a second at which a large tensor is read or copied, by the fastest of three kernels."""
    width = 2**22 if device.type == "cuda" else 2**20  # far more than a cache holds
    large = torch.ones(64, width, device=device, dtype=torch.bfloat16)
    size, other = large.numel() * large.element_size(), torch.empty_like(large)
    vector = torch.ones(large.shape[1], device=device, dtype=torch.bfloat16)
    return max(
        size / timed(lambda: large.view(torch.int32).amax(dim=1), device),
        size / timed(lambda: large @ vector, device),
        2 * size / timed(lambda: other.copy_(large), device),
    )


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call and a wait for its end, as in decoding: the median of REPEATS."""
    times = []
    for number in range(REPEATS + 3):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if number >= 3:
            times.append(time.perf_counter() - start)
    return statistics.median(times)
