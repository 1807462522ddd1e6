"""Compiling a model for static passes: torch.compile fuses the many small kernels between the matrix products.

Large models are compiled block by block. The blocks are alike, so one compilation can serve them all: seconds, not minutes.
What tells blocks apart is their number, by which attention finds its place in the cache; torch.compile would take that for
a constant and compile every block anew. So for as long as a pass is being captured, every block is number 0 and is shown a
cache of one layer, its own. Afterwards the model is as it was: only the captured graph remains.

A pass over one token multiplies matrices by a vector. There a generated kernel that streams the matrix once, norms and
activations fused, beats the library's (`coordinate_descent_tuning`, which finds its block sizes by trying). But an
activation fused into the product behind it would be evaluated once for every few rows of the matrix: `settled` keeps them
apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch._inductor.config
from torch import nn
from transformers import PreTrainedModel

from dynasurge.cache import TreeCache

SMALL = 8  # a model of at most so many blocks is compiled as a whole


class OneLayer:
    """What a block sees of the cache."""

    def __init__(self, cache: TreeCache, number: int) -> None:
        self._layer: Any = cache.layers[number]

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, number: int, *_: object, **__: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write this layer's rows and return what attention may look at."""
        return self._layer.update(keys, values)  # type: ignore[no-any-return]


class Regions:
    """The compiled parts of a model that decodes by a cache."""

    def __init__(self, model: PreTrainedModel, cache: TreeCache) -> None:
        self._model, self._cache, self._blocks = model, cache, blocks_of(model)
        small = len(self._blocks) <= SMALL
        self._whole = torch.compile(type(model).forward, dynamic=False) if small else None
        self._block = None if small else torch.compile(run_block, dynamic=False)

    @contextmanager
    def installed(self, tokens: int) -> Iterator[None]:
        """Inside, the model's forward runs compiled, for a pass over so many tokens."""
        hooks, numbered = [], []
        before = [(changed, vars(changed).get("forward")) for changed in (self._model, *self._blocks)]
        if self._whole is not None:
            vars(self._model)["forward"] = partial(self._whole, self._model)
        for number, block in enumerate(self._blocks):
            for module in block.modules():
                if tokens == 1 and isinstance(module, nn.Linear) and module.in_features > module.out_features:
                    hooks.append(module.register_forward_pre_hook(_settle))
                if self._block is not None and hasattr(module, "layer_idx"):
                    numbered.append((module, module.layer_idx))
                    module.layer_idx = 0  # type: ignore[assignment]
            if self._block is not None:
                vars(block)["forward"] = partial(self._block, block, OneLayer(self._cache, number))
        try:
            with torch._inductor.config.patch(coordinate_descent_tuning=tokens == 1):
                yield
        finally:
            for hook in hooks:
                hook.remove()
            for module, own in numbered:
                module.layer_idx = own
            for changed, forward in before:
                vars(changed).pop("forward", None)
                if forward is not None:
                    vars(changed)["forward"] = forward


def run_block(block: nn.Module, cache: OneLayer, *args: Any, **kwargs: Any) -> Any:
    """One block on its own layer of the cache: what gets compiled."""
    return type(block).forward(block, *args, **kwargs | {"past_key_values": cache})


def blocks_of(model: PreTrainedModel) -> list[nn.Module]:
    """The model's blocks in order. Raises RuntimeError if there is no list of blocks of one class."""
    layers = model.config.get_text_config().num_hidden_layers
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == layers and len({type(block) for block in module}) == 1:
            return list(module)
    raise RuntimeError("its blocks are not alike")


@torch.library.custom_op("dynasurge::settled", mutates_args=())
def settled(x: torch.Tensor) -> torch.Tensor:
    """A copy that torch.compile cannot see through."""
    return x.clone()


@settled.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


def _settle(module: nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
    return (settled(inputs[0]),)
