"""Packed weights change how long a product takes, and nothing else."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import tiny_model
from torch import nn

from dynasurge.models import packed_weights
from dynasurge.models.packed_weights import PackedLinear, pack


@pytest.fixture
def model() -> nn.Module:
    return tiny_model("llama").to(torch.bfloat16)


def linears(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, nn.Linear)]


@pytest.mark.parametrize("rows", [1, 3, 17])
@torch.inference_mode()
def test_products_are_those_of_the_plain_weights(rows: int) -> None:
    layer = nn.Sequential(nn.Linear(256, 640, bias=rows == 3, dtype=torch.bfloat16))
    plain = copy.deepcopy(layer)
    pack(layer)  # type: ignore[arg-type]
    assert isinstance(layer[0], PackedLinear)
    inputs = torch.randn(1, rows, 256, generator=torch.Generator().manual_seed(rows)).bfloat16()
    torch.testing.assert_close(layer(inputs), plain(inputs), rtol=0.01, atol=0.01)


def test_a_packed_model_keeps_its_weights_and_can_be_copied(model: nn.Module) -> None:
    names = list(model.state_dict())
    pack(model)  # type: ignore[arg-type]
    assert all(isinstance(layer, PackedLinear) for layer in linears(model))
    assert list(copy.deepcopy(model).state_dict()) == names


def test_what_would_not_gain_stays_plain(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_weights, "LARGEST", 10)
    pack(model)  # type: ignore[arg-type]
    monkeypatch.undo()
    pack(model.float())  # type: ignore[arg-type]
    assert not any(isinstance(layer, PackedLinear) for layer in linears(model))


def test_a_layer_that_moves_on_computes_with_its_own_weight(model: nn.Module) -> None:
    pack(model)  # type: ignore[arg-type]
    layer = linears(model.float())[0]
    inputs = torch.ones(1, layer.in_features)
    assert torch.equal(layer(inputs), inputs @ layer.weight.T)
