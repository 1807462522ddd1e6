"""Compiling one transformer block instead of the whole model.

The blocks of a model are alike, so one compilation can serve them all: seconds, not minutes. What tells blocks apart is
their number, by which attention finds its place in the cache; torch.compile would take that for a constant and compile
every block anew. So for as long as a pass is being captured, every block is number 0 and is shown a cache of one layer, its
own. Afterwards the model is as it was: only the captured graph remains.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from dynasurge.cache import TreeCache


class OneLayer:
    """What a block sees of the cache."""

    def __init__(self, cache: TreeCache, number: int) -> None:
        self._layer: Any = cache.layers[number]

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, number: int, *_: object, **__: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write this layer's rows and return what attention may look at."""
        return self._layer.update(keys, values)  # type: ignore[no-any-return]


def run_block(block: nn.Module, cache: OneLayer, *args: Any, **kwargs: Any) -> Any:
    """One block on its own layer of the cache: what gets compiled."""
    return type(block).forward(block, *args, **kwargs | {"past_key_values": cache})


def blocks_of(model: PreTrainedModel) -> list[nn.Module]:
    """The model's blocks in order. Raises RuntimeError if there is no list of blocks of one class."""
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len({type(block) for block in module}) == 1:
            return list(module)
    raise RuntimeError("its blocks are not alike")


@contextmanager
def compiled_blocks(model: PreTrainedModel, cache: TreeCache, run: Callable[..., Any]) -> Iterator[None]:
    """Inside, every block of `model` runs by `run`, a compiled `run_block`."""
    blocks = blocks_of(model)
    numbered: list[tuple[Any, int]] = []
    for number, block in enumerate(blocks):
        for module in block.modules():
            if hasattr(module, "layer_idx"):
                numbered.append((module, int(module.layer_idx)))  # type: ignore[arg-type]
                module.layer_idx = 0  # type: ignore[assignment]
        vars(block)["forward"] = partial(run, block, OneLayer(cache, number))
    try:
        yield
    finally:
        for module, number in numbered:
            module.layer_idx = number
        for block in blocks:
            del vars(block)["forward"]
