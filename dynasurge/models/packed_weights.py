"""Weights in the order in which a CPU's matrix products read them.

oneDNN multiplies bfloat16 matrices in blocks. Given a plain weight it sorts it into blocks in every
single pass, which for the few rows of a token tree takes about as long as the product itself.
`pack` sorts once, when a pair is loaded; products are bit by bit the same.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

LARGEST = 4 << 30  # bytes
ROWS = 1  # that weights are sorted for; the order is good for a few dozen


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
        return self.__dict__ | {
            "packed": None
        }  # blocks can be neither copied nor stored: a copy is a plain layer


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
