"""All that is done to a user's own models, and the way back.

For good, until `restore`:

- Linear layers become `PackedLinear`, which keep a copy of their weights in blocks. oneDNN
  multiplies bfloat16 matrices in blocks; given a plain weight it sorts it in every pass, which for
  the few rows of a token tree takes about as long as the product. Only in bfloat16 on a CPU;
  products are the same bit by bit.
- Matrices that multiply the same rows (queries, keys and values; gate and up) lie one behind
  another, their values unchanged, so that a pass multiplies them in one go. Only where steps are
  captured.

While a pass is captured (models/compiled_blocks.py): the latter become `Part`s, forwards are
replaced, and all blocks are number 0 (`layer_idx`), so that one compilation serves them all. While
models/self_test.py runs: windows in the config are small.

Besides, models are set to `eval()` and moved to one device, which stays so.

`restore(model)` takes back what lasts, `Pair.restore` does so for both models: afterwards each layer
is of its own class again and every weight has its own storage, as if it had just been loaded.
Engines and sessions of the pair must not be used any more then.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

LARGEST = 4 << 30  # bytes of packed copies
ROWS = 1  # that weights are packed for; the order is good for a few dozen
JOINT = ("joint", "joint_bias", "start", "stop")  # what `join` tells a module


def restore(model: PreTrainedModel) -> None:
    """Take back all that was done to a model and lasts."""
    for module in model.modules():
        if type(module) in (PackedLinear, Part):
            module.__class__ = nn.Linear
        vars(module).pop("packed", None)
        if vars(module).keys() & set(JOINT):
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.clone()
            for name in JOINT:
                vars(module).pop(name, None)


# --- packed


class PackedLinear(nn.Linear):
    """A linear layer that knows its weight in blocks, too. It is for inference: a weight changed
    afterwards is not seen."""

    packed: torch.Tensor | None

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        here = (
            input.dtype == torch.bfloat16
            and input.device.type == "cpu"
            and not torch.is_grad_enabled()
        )
        if self.packed is None or not here:
            return super().forward(input)
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            input, self.packed, self.bias, "none", [], ""
        )
        return product

    def __getstate__(self) -> dict[str, Any]:
        # blocks can be neither copied nor stored: a copy is a plain layer
        return self.__dict__ | {"packed": None}


def pack(model: PreTrainedModel) -> None:
    """Pack a model's linear layers, if it computes in bfloat16 on a CPU. The blocks are a copy, so
    no more than LARGEST."""
    layers = [
        module
        for module in model.modules()
        if type(module) is nn.Linear
        and module.weight.dtype == torch.bfloat16
        and module.weight.device.type == "cpu"
    ]
    size = sum(layer.weight.numel() * layer.weight.element_size() for layer in layers)
    if not torch.backends.mkldnn.is_available() or size > LARGEST:
        return
    for layer in layers:
        packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), ROWS)
        layer.__class__ = PackedLinear
        layer.packed = packed


# --- joined


class Part(nn.Linear):
    """A linear module whose matrix is rows `start` to `stop` of `joint`."""

    joint: torch.Tensor
    joint_bias: torch.Tensor | None
    start: int
    stop: int

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Its part of the common product."""
        return F.linear(x, self.joint, self.joint_bias)[..., self.start : self.stop]


def join_matrices(model: PreTrainedModel, run: Callable[[], object]) -> list[list[nn.Linear]]:
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
    # with the rows, so that their id stays theirs
    seen: dict[object, tuple[torch.Tensor, list[nn.Linear]]] = {}
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


# --- for the length of a pass


@contextmanager
def changed(
    *,
    parts: Sequence[nn.Linear],
    forwards: Mapping[nn.Module, Callable[..., Any]],
    first: Iterable[nn.Module],
    before: Mapping[nn.Module, Callable[..., Any]],
) -> Iterator[None]:
    """Inside: `parts` are of class Part, modules have these `forwards`, all modules of `first` that
    are numbered are number 0, and `before` are called ahead of a forward."""
    hooks = [module.register_forward_pre_hook(hook) for module, hook in before.items()]
    own = {module: vars(module).get("forward") for module in forwards}
    numbers = [
        (m, m.layer_idx) for block in first for m in block.modules() if hasattr(m, "layer_idx")
    ]
    try:
        for part in parts:
            part.__class__ = Part
        for module, _ in numbers:
            module.layer_idx = 0  # type: ignore[assignment]
        for module, forward in forwards.items():
            vars(module)["forward"] = forward
        yield
    finally:
        for part in parts:
            part.__class__ = nn.Linear
        for hook in hooks:
            hook.remove()
        for module, number in numbers:
            module.layer_idx = number
        for module, mine in own.items():
            vars(module).pop("forward", None)
            if mine is not None:
                vars(module)["forward"] = mine
