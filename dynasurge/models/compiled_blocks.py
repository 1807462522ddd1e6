"""Compiles a model for captured passes: torch.compile fuses the many small kernels between the matrix
products.

Large models are compiled block by block. The blocks are alike, so one compilation can serve them
all: seconds, not minutes. A block differs from others by its number, which attention uses to find
its place in the cache. torch.compile would treat the number as a constant and compile every block
again. So while a pass is captured, every block has number 0 and sees a cache with one layer, its
own. After the capture the model is as before; only the captured graph remains. The norms beside the
blocks are compiled, too.

Some matrices multiply the same rows (queries, keys and values; gate and up). They are moved next to
each other, values unchanged, and multiply the rows in one product, because on a GPU every product
takes some microseconds to start and to end. A pass shows which matrices these are. Each module
still computes its own part of the common product; the compiled pass computes the product once
(`Once`).

A pass over one token multiplies matrices by a vector. There a generated kernel is faster than the
library's: it reads the matrix once, and norms and activations are fused into it
(`coordinate_descent_tuning` finds its block sizes by trial). But an activation that is fused into
the next product would be computed once for every few rows of the matrix. `apart` prevents this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch._inductor.config
from torch import fx, nn
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
from transformers import PreTrainedModel

from dynasurge.models.compatibility import cache_arguments
from dynasurge.models.cuda_graphs import fused
from dynasurge.models.kv_cache import TreeCache
from dynasurge.models.model_changes import changed, join

SMALL = 8  # a model with at most so many blocks is compiled as a whole


class OneLayer:
    """The part of the cache that a block sees."""

    def __init__(self, cache: TreeCache, number: int) -> None:
        self._layer: Any = cache.layers[number]

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, number: int, *_: object, **__: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write this layer's rows and return the rows that attention may see."""
        return self._layer.update(keys, values)  # type: ignore[no-any-return]


class Once(CustomGraphPass):  # type: ignore[misc]
    """Computes equal products of the same rows only once."""

    KINDS = frozenset(
        getattr(torch.ops.aten, name).default
        for name in ("view", "reshape", "t", "permute", "mm", "addmm")
    )

    def __call__(self, graph: fx.Graph) -> None:
        first: dict[Any, fx.Node] = {}
        for node in list(graph.nodes):
            if node.target not in self.KINDS:
                continue
            key = repr((node.target, node.args, sorted(node.kwargs.items())))
            if key in first:
                node.replace_all_uses_with(first[key])
                graph.erase_node(node)
            else:
                first[key] = node

    def uuid(self) -> bytes:
        """The key of compiled code: it depends on this file."""
        return get_hash_for_files((__file__,))  # type: ignore[no-any-return]


class CompiledBlocks:
    """The compiled parts of a model that decodes with a cache."""

    def __init__(
        self, model: PreTrainedModel, cache: TreeCache, groups: list[list[nn.Linear]]
    ) -> None:
        """groups: see `model_changes.join_matrices`. Raises RuntimeError if the model's blocks are
        not alike."""
        self._model, self._cache, self._groups = model, cache, groups
        self._blocks = blocks_of(model)
        self._called = next(iter(cache_arguments(type(model), cache)))
        small = len(self._blocks) <= SMALL
        self._whole = torch.compile(type(model).forward, dynamic=False) if small else None
        self._block = None if small else torch.compile(run_block, dynamic=False)
        self._ends = [] if small else ends_of(model, self._blocks)

    @contextmanager
    def installed(self, tokens: int) -> Iterator[None]:
        """Inside, the model's forward runs compiled, for a pass over `tokens` tokens."""
        for group in self._groups:
            join(group)  # again, in case the caller gave the model new weights
        forwards: dict[nn.Module, Callable[..., Any]] = {}
        if self._whole is not None:
            forwards[self._model] = partial(self._whole, self._model)
        if self._block is not None:
            for number, block in enumerate(self._blocks):
                layer = OneLayer(self._cache, number)
                forwards[block] = partial(self._block, block, self._called, layer)
            for module in self._ends:
                forwards[module] = partial(fused(type(module).forward, True), module)
        several = tokens > 1
        narrowing = [
            module
            for block in self._blocks
            for module in block.modules()
            if isinstance(module, nn.Linear) and module.in_features > module.out_features
        ]
        how: dict[str, Any] = {
            "coordinate_descent_tuning": not several,
            "post_grad_custom_pre_pass": Once() if several else None,
        }
        if several:  # rows padded for each product are other rows to `Once`: nothing would be equal
            how["shape_padding"] = False
        changes = changed(
            parts=[module for group in self._groups for module in group] if several else [],
            forwards=forwards,
            first=self._blocks if self._block is not None else [],
            before={} if several else dict.fromkeys(narrowing, _keep_apart),
        )
        with changes, torch._inductor.config.patch(how):
            yield


def run_block(block: nn.Module, name: str, layer: OneLayer, /, *args: Any, **kwargs: Any) -> Any:
    """One block on its own layer of the cache, which its forward takes as `name`. This function is
    compiled."""
    return type(block).forward(block, *args, **kwargs | {name: layer})


def blocks_of(model: PreTrainedModel) -> list[nn.Module]:
    """The model's blocks in order. Raises RuntimeError if it has no list of blocks of one class."""
    layers = model.config.get_text_config().num_hidden_layers
    for module in model.modules():
        if (
            isinstance(module, nn.ModuleList)
            and len(module) == layers
            and len({type(block) for block in module}) == 1
        ):
            return list(module)
    raise RuntimeError("its blocks are not alike")


def ends_of(model: PreTrainedModel, blocks: list[nn.Module]) -> list[nn.Module]:
    """The norms beside a model's blocks, which run before or after all of them."""
    inside = {module for block in blocks for module in block.modules()}
    kinds = {type(module) for module in inside if type(module).__name__.endswith("Norm")}
    return [module for module in model.modules() if type(module) in kinds and module not in inside]


@torch.library.custom_op("dynasurge::apart", mutates_args=())
def apart(x: torch.Tensor) -> torch.Tensor:
    """A copy that torch.compile cannot fuse."""
    return x.clone()


@apart.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


def _keep_apart(module: nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
    return (apart(inputs[0]),)
