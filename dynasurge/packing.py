"""Weights in the order in which a CPU's matrix products read them.

oneDNN multiplies bfloat16 matrices in blocks. Given a plain weight it sorts it into blocks in every single pass, which for
the few rows of a token tree takes about as long as the product itself. `pack` sorts once, when a pair is loaded; products
are bit by bit the same.
"""

from __future__ import annotations

import os

import torch
from torch import nn
from transformers import PreTrainedModel

ROWS = 1  # that weights are sorted for; the order is good for a few dozen


class PackedLinear(nn.Linear):
    """A linear layer that knows its weight in blocks, too. It is for inference: a weight changed afterwards is not seen."""

    packed: torch.Tensor

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if input.dtype != torch.bfloat16 or input.device.type != "cpu" or torch.is_grad_enabled():
            return super().forward(input)
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(input, self.packed, self.bias, "none", [], "")
        return product


def pack(model: PreTrainedModel) -> None:
    """Pack a model's linear layers, if it computes in bfloat16 on a CPU and memory has room for twice their weights."""
    layers = [
        module
        for module in model.modules()
        if type(module) is nn.Linear and module.weight.dtype == torch.bfloat16 and module.weight.device.type == "cpu"
    ]
    size = sum(layer.weight.numel() * layer.weight.element_size() for layer in layers)
    if not torch.backends.mkldnn.is_available() or 2 * size > _free_memory():
        return
    for layer in layers:
        packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), ROWS)
        layer.__class__ = PackedLinear
        layer.packed = packed


def _free_memory() -> int:
    """Bytes that nobody uses."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # not every system tells
        return 0
