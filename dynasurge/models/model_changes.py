"""All that this package changes in a user's own models, and how to undo it.

Until `restore`:

- Linear layers become `PackedLinear`, which keep a copy of their weights in blocks. oneDNN
  multiplies bfloat16 matrices in blocks. It reorders a plain weight in every pass, which takes
  about as long as the product for the few rows of a token tree. Only in bfloat16 on a CPU; products
  are equal bit by bit.
- Matrices that multiply the same rows (queries, keys and values; gate and up) are stored next to
  each other, values unchanged, so that a pass multiplies them in one product. Only if steps are
  captured.

While a pass is captured (models/compiled_blocks.py): the joined layers become `Part`s, forwards are
replaced, and all blocks have number 0 (`layer_idx`), so that one compilation serves them all. During
a pass over a tree the config names the attention of models/tree_attention.py. While
models/self_test.py runs: windows in the config are small.

Models are also set to `eval()` and moved to one device. This stays.

`restore(model)` undoes the lasting changes; `Pair.restore` does so for both models. Afterwards each
layer has its own class again and every weight its own storage, as if the model had just been
loaded. Do not use the pair's engines and sessions after this.
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

LARGEST = 4 << 30  # most bytes of packed copies
ROWS = 1  # rows that weights are packed for; this order is good for a few dozen rows
JOINT = ("joint", "joint_bias", "start", "stop")  # the attributes that `join` sets


def restore(model: PreTrainedModel) -> None:
    """Undo all lasting changes to a model."""
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
    """A linear layer with a copy of its weight in blocks, for inference. It does not see later
    changes of the weight."""

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
        # blocks can be neither copied nor stored, so a copy is a plain layer
        return self.__dict__ | {"packed": None}


def pack(model: PreTrainedModel) -> None:
    """Pack a model's linear layers if it computes in bfloat16 on a CPU and the copies need at most
    LARGEST bytes."""
    layers = [
        module
        for module in model.modules()
        if type(module) is nn.Linear
        and module.weight.dtype == torch.bfloat16
        and module.weight.device.type == "cpu"
    ]
    size = sum(layer.weight.numel() * layer.weight.element_size() for layer in layers)
    computes = torch.backends.mkldnn.is_available()
    computes = computes and torch.ops.mkldnn._is_mkldnn_bf16_supported()  # not without AVX-512
    if not computes or size > LARGEST:
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
        """This module's part of the common product."""
        return F.linear(x, self.joint, self.joint_bias)[..., self.start : self.stop]


def join_matrices(model: PreTrainedModel, run: Callable[[], object]) -> list[list[nn.Linear]]:
    """Move matrices that multiply the same rows next to each other. `run` is a pass that shows
    which these are. Returns the modules, in groups with a common matrix.

    Call this before passes are captured, compiled or not. Captured passes keep the addresses of the
    matrices, so a later compilation for the same model must not move them.
    """
    groups = [group for group in fed_alike(model, run) if len(group) > 1]
    for group in groups:
        join(group)
    return groups


def fed_alike(model: PreTrainedModel, run: Callable[[], object]) -> list[list[nn.Linear]]:
    """Groups of linear modules that got the same rows while a pass ran, and could be one module. A
    module that is called several times, or shares its matrix with another, is left out."""
    # this holds the rows too, so that no other tensor gets their id
    seen: dict[object, tuple[torch.Tensor, list[nn.Linear]]] = {}
    calls: Counter[nn.Module] = Counter()
    owners = Counter(
        id(weight) for module in model.modules() for weight in module.parameters(recurse=False)
    )

    def see(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        assert isinstance(module, nn.Linear)
        calls[module] += 1
        if inputs:  # otherwise they came by name
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
    """Move the matrices of modules next to each other and prepare each to be a `Part`. Joined
    matrices stay where they are: captured graphs know their addresses."""
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
    """Whether its matrix is part of a joint one and was not moved since."""
    own = vars(module)
    return "joint" in own and module.weight.data_ptr() == own["joint"][own["start"] :].data_ptr()


def _together(weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """A new tensor with the parameters one after another; the parameters become parts of it. Their
    shapes may differ in the first dimension only."""
    joint, end = torch.cat([weight.detach() for weight in weights]), 0
    for weight in weights:
        begin, end = end, end + len(weight)
        weight.data = joint[begin:end]
    return joint


# --- during a pass


@contextmanager
def changed(
    *,
    parts: Sequence[nn.Linear],
    forwards: Mapping[nn.Module, Callable[..., Any]],
    first: Iterable[nn.Module],
    before: Mapping[nn.Module, Callable[..., Any]],
) -> Iterator[None]:
    """Inside: `parts` are of class Part, modules have these `forwards`, all numbered modules of
    `first` have number 0, and the functions in `before` run before a module's forward."""
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
