"""Compiling a model for static passes: torch.compile fuses the many small kernels between the
matrix products.

Large models are compiled block by block. The blocks are alike, so one compilation can serve them
all: seconds, not minutes. What tells blocks apart is their number, by which attention finds its
place in the cache; torch.compile would take that for a constant and compile every block anew. So
for as long as a pass is being captured, every block is number 0 and is shown a cache of one layer,
its own. Afterwards the model is as it was: only the captured graph remains.

Matrices that multiply the same rows (queries, keys and values; gate and up) are moved to lie one
behind another, values unchanged, and multiply them in one go: on a GPU every product takes some
microseconds to start and to end. Which ones these are shows while a pass runs. Each module still
computes its own part out of the common product, which the compiled pass makes once (`Once`).

A pass over one token multiplies matrices by a vector. There a generated kernel that streams the
matrix once, norms and activations fused, beats the library's (`coordinate_descent_tuning`, which
finds its block sizes by trying). But an activation fused into the product behind it would be
evaluated once for every few rows of the matrix: `apart` keeps them so.
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
from dynasurge.models.kv_cache import TreeCache
from dynasurge.models.model_changes import changed, join

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


class Once(CustomGraphPass):  # type: ignore[misc]
    """Of equal products of the same rows, makes one."""

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
        """What compiled code depends on."""
        return get_hash_for_files((__file__,))  # type: ignore[no-any-return]


class CompiledBlocks:
    """The compiled parts of a model that decodes by a cache."""

    def __init__(
        self, model: PreTrainedModel, cache: TreeCache, groups: list[list[nn.Linear]]
    ) -> None:
        """groups: see `model_changes.join_matrices`."""
        self._model, self._cache, self._groups = model, cache, groups
        self._blocks = blocks_of(model)
        self._called = next(iter(cache_arguments(type(model), cache)))
        small = len(self._blocks) <= SMALL
        self._whole = torch.compile(type(model).forward, dynamic=False) if small else None
        self._block = None if small else torch.compile(run_block, dynamic=False)

    @contextmanager
    def installed(self, tokens: int) -> Iterator[None]:
        """Inside, the model's forward runs compiled, for a pass over so many tokens."""
        for group in self._groups:
            join(group)  # again, if somebody has given the model other weights
        forwards: dict[nn.Module, Callable[..., Any]] = {}
        if self._whole is not None:
            forwards[self._model] = partial(self._whole, self._model)
        if self._block is not None:
            for number, block in enumerate(self._blocks):
                layer = OneLayer(self._cache, number)
                forwards[block] = partial(self._block, block, self._called, layer)
        several = tokens > 1
        narrowing = [
            module
            for block in self._blocks
            for module in block.modules()
            if isinstance(module, nn.Linear) and module.in_features > module.out_features
        ]
        how = torch._inductor.config.patch(
            coordinate_descent_tuning=not several,
            post_grad_custom_pre_pass=Once() if several else None,
        )
        changes = changed(
            parts=[module for group in self._groups for module in group] if several else [],
            forwards=forwards,
            first=self._blocks if self._block is not None else [],
            before={} if several else dict.fromkeys(narrowing, _keep_apart),
        )
        with changes, how:
            yield


def run_block(block: nn.Module, name: str, layer: OneLayer, /, *args: Any, **kwargs: Any) -> Any:
    """One block on its own layer of the cache, which its forward knows by `name`: what gets
    compiled."""
    return type(block).forward(block, *args, **kwargs | {name: layer})


def blocks_of(model: PreTrainedModel) -> list[nn.Module]:
    """The model's blocks in order. Raises RuntimeError if there is no list of blocks of one
    class."""
    layers = model.config.get_text_config().num_hidden_layers
    for module in model.modules():
        if (
            isinstance(module, nn.ModuleList)
            and len(module) == layers
            and len({type(block) for block in module}) == 1
        ):
            return list(module)
    raise RuntimeError("its blocks are not alike")


@torch.library.custom_op("dynasurge::apart", mutates_args=())
def apart(x: torch.Tensor) -> torch.Tensor:
    """A copy that torch.compile cannot see through."""
    return x.clone()


@apart.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


def _keep_apart(module: nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
    return (apart(inputs[0]),)
