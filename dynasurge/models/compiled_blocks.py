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
evaluated once for every few rows of the matrix: `settled` keeps them apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch._inductor.config
import torch.nn.functional as F
from torch import fx, nn
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
from transformers import PreTrainedModel

from dynasurge.models.compatibility import cache_arguments
from dynasurge.models.kv_cache import TreeCache

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


class Part(nn.Linear):
    """A linear module whose matrix is rows `start` to `stop` of `joint`."""

    joint: torch.Tensor
    joint_bias: torch.Tensor | None
    start: int
    stop: int

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Its part of the common product."""
        return F.linear(x, self.joint, self.joint_bias)[..., self.start : self.stop]


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


class Regions:
    """The compiled parts of a model that decodes by a cache."""

    def __init__(
        self, model: PreTrainedModel, cache: TreeCache, groups: list[list[nn.Linear]]
    ) -> None:
        """groups: see `joined`."""
        self._model, self._cache, self._blocks, self._groups = (
            model,
            cache,
            blocks_of(model),
            groups,
        )
        self._called = next(iter(cache_arguments(type(model), cache)))
        small = len(self._blocks) <= SMALL
        self._whole = torch.compile(type(model).forward, dynamic=False) if small else None
        self._block = None if small else torch.compile(run_block, dynamic=False)

    @contextmanager
    def installed(self, tokens: int) -> Iterator[None]:
        """Inside, the model's forward runs compiled, for a pass over so many tokens."""
        for group in self._groups:
            join(group)  # again, if somebody has given the model other weights
        hooks, numbered = [], []
        parts: list[Any] = (
            [module for group in self._groups for module in group] if tokens > 1 else []
        )
        before = [
            (changed, vars(changed).get("forward")) for changed in (self._model, *self._blocks)
        ]
        try:
            for module in parts:
                module.__class__ = Part
            if self._whole is not None:
                vars(self._model)["forward"] = partial(self._whole, self._model)
            for number, block in enumerate(self._blocks):
                for module in block.modules():
                    if (
                        tokens == 1
                        and isinstance(module, nn.Linear)
                        and module.in_features > module.out_features
                    ):
                        hooks.append(module.register_forward_pre_hook(_settle))
                    if self._block is not None and hasattr(module, "layer_idx"):
                        numbered.append((module, module.layer_idx))
                        module.layer_idx = 0  # type: ignore[assignment]
                if self._block is not None:
                    vars(block)["forward"] = partial(
                        self._block, block, self._called, OneLayer(self._cache, number)
                    )
            with torch._inductor.config.patch(
                coordinate_descent_tuning=tokens == 1,
                post_grad_custom_pre_pass=Once() if tokens > 1 else None,
            ):
                yield
        finally:
            for module in parts:
                module.__class__ = nn.Linear
            for hook in hooks:
                hook.remove()
            for module, own in numbered:
                module.layer_idx = own
            for changed, forward in before:
                vars(changed).pop("forward", None)
                if forward is not None:
                    vars(changed)["forward"] = forward


def joined(model: PreTrainedModel, run: Callable[[], object]) -> list[list[nn.Linear]]:
    """Move the matrices that multiply the same rows together; `run` is a pass that shows which
    these are. Returns the modules, those with a common matrix together.

    Whoever captures passes does this before, whether it compiles them or not: captured passes know
    where matrices lie, and they should not be moved any more when somebody else compiles a pass of
    the same model."""
    groups = [group for group in fed_alike(model, run) if len(group) > 1]
    for group in groups:
        join(group)
    return groups


def fed_alike(model: PreTrainedModel, run: Callable[[], object]) -> list[list[nn.Linear]]:
    """The linear modules, those together that got the very same rows while a pass ran, and could be
    one. A module that is called several times, or shares its matrix with another, is left out."""
    seen: dict[
        object, tuple[torch.Tensor, list[nn.Linear]]
    ] = {}  # with the rows, so that their id stays theirs
    calls: Counter[nn.Module] = Counter()
    owners = Counter(
        id(weight) for module in model.modules() for weight in module.parameters(recurse=False)
    )

    def see(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        assert isinstance(module, nn.Linear)
        calls[module] += 1
        if inputs:  # else they came by name
            kind = (id(inputs[0]), module.bias is None, module.weight.dtype, module.weight.device)
            seen.setdefault(kind, (inputs[0], []))[1].append(module)

    hooks = [
        module.register_forward_pre_hook(see)
        for module in model.modules()
        if type(module) is nn.Linear
    ]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    groups = [
        [m for m in group if calls[m] == 1 == owners[id(m.weight)]] for _, group in seen.values()
    ]
    return [group for group in groups if group]


@torch.inference_mode(False)
@torch.no_grad()
def join(group: list[nn.Linear]) -> None:
    """Move the matrices of modules together and prepare each to be a `Part`. Those that are already
    stay where they are: captured graphs know their place."""
    if all(
        _joined(module) and vars(module)["joint"] is vars(group[0])["joint"] for module in group
    ):
        return
    joint, start = _together([module.weight for module in group]), 0
    joint_bias = None if group[0].bias is None else _together([module.bias for module in group])
    for module in group:
        stop = start + module.out_features
        vars(module).update(joint=joint, joint_bias=joint_bias, start=start, stop=stop)
        start = stop


def _joined(module: nn.Linear) -> bool:
    """Whether its matrix is part of a joint one, and has not been moved elsewhere since."""
    own = vars(module)
    return "joint" in own and module.weight.data_ptr() == own["joint"][own["start"] :].data_ptr()


def _together(weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """Parameters of one shape but for its first dimension, one behind another in a new tensor that
    they become parts of."""
    joint, end = torch.cat([weight.detach() for weight in weights]), 0
    for weight in weights:
        begin, end = end, end + len(weight)
        weight.data = joint[begin:end]
    return joint


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


@torch.library.custom_op("dynasurge::settled", mutates_args=())
def settled(x: torch.Tensor) -> torch.Tensor:
    """A copy that torch.compile cannot see through."""
    return x.clone()


@settled.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


def _settle(module: nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
    return (settled(inputs[0]),)
