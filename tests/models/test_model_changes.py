"""What is done to a user's models changes how long a product takes and nothing else, and is undone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from conftest import tiny_model, tiny_tokenizer
from torch import nn
from transformers import PreTrainedModel

from dynasurge import Pair, Session, Settings
from dynasurge.models import model_changes
from dynasurge.models.engine import Engine
from dynasurge.models.model_changes import PackedLinear, pack, restore

packs = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this processor packs no bfloat16"
)


@pytest.fixture
def model() -> nn.Module:
    return tiny_model("llama").to(torch.bfloat16)


def linears(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, nn.Linear)]


@packs
@pytest.mark.parametrize("rows", [1, 3, 17])
@torch.inference_mode()
def test_products_are_those_of_the_plain_weights(rows: int) -> None:
    layer = nn.Sequential(nn.Linear(256, 640, bias=rows == 3, dtype=torch.bfloat16))
    plain = copy.deepcopy(layer)
    pack(layer)  # type: ignore[arg-type]
    assert isinstance(layer[0], PackedLinear)
    inputs = torch.randn(1, rows, 256, generator=torch.Generator().manual_seed(rows)).bfloat16()
    torch.testing.assert_close(layer(inputs), plain(inputs), rtol=0.01, atol=0.01)


@packs
def test_a_packed_model_keeps_its_weights_and_can_be_copied(model: nn.Module) -> None:
    names = list(model.state_dict())
    pack(model)  # type: ignore[arg-type]
    assert all(isinstance(layer, PackedLinear) for layer in linears(model))
    assert list(copy.deepcopy(model).state_dict()) == names


def test_what_would_not_gain_stays_plain(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_changes, "LARGEST", 10)
    pack(model)  # type: ignore[arg-type]
    monkeypatch.undo()
    pack(model.float())  # type: ignore[arg-type]
    assert not any(isinstance(layer, PackedLinear) for layer in linears(model))


@packs
def test_a_layer_that_moves_on_computes_with_its_own_weight(model: nn.Module) -> None:
    pack(model)  # type: ignore[arg-type]
    layer = linears(model.float())[0]
    inputs = torch.ones(1, layer.in_features)
    assert torch.equal(layer(inputs), inputs @ layer.weight.T)


def state(model: PreTrainedModel) -> list[Any]:
    """All that a user could see of a model: classes, what modules keep, values, whose storage."""
    weights = list(model.parameters())
    return [
        [(type(module), vars(module).keys() - KEPT) for module in model.modules()],
        [getattr(module, "layer_idx", None) for module in model.modules()],
        [weight.detach().clone() for weight in weights],
        len({weight.untyped_storage().data_ptr() for weight in weights}),
        model.config.to_dict(),
        model.training,
    ]


# torch's own notes, which come and go with hooks
KEPT = {"_is_full_backward_hook", "_non_persistent_buffers_set"}


@pytest.mark.parametrize("how", ["packed", "captured"])
def test_a_pair_is_restored_to_what_it_was(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    target, draft = tiny_model("llama"), tiny_model("llama", layers=1)
    if how == "packed":
        target, draft = target.bfloat16(), draft.bfloat16()
    before = [state(model) for model in (target, draft)]
    pair = Pair(
        draft=draft, target=target, tokenizer=tiny_tokenizer(), draft_name="d", target_name="t"
    )
    if how == "packed":
        pack(target)
        pack(draft)
    monkeypatch.setattr("dynasurge.decoding.engines.can_capture", lambda pair: how != "packed")
    settings = Settings(T=0.6, B=3, fill=True, max_depth=2, new_tokens=6)
    text = Session(pair, settings).generate([3, 5, 7]).output_ids
    assert state(target)[3] != before[0][3] or how == "packed", "matrices lie together"
    pair.restore()
    for model, was in zip((target, draft), before, strict=True):
        *now, values = [*state(model)[:2], *state(model)[3:], state(model)[2]]
        assert now == [*was[:2], *was[3:]]
        assert all(map(torch.equal, values, was[2]))
    assert Session(pair, settings).generate([3, 5, 7]).output_ids == text


@pytest.mark.slow
def test_compiling_a_pass_leaves_a_model_that_can_be_restored() -> None:
    torch._dynamo.reset()
    model = tiny_model("llama")
    before, engine = state(model), Engine(model, 16, compiled=True)
    engine.prepare()
    row = torch.tensor([3])
    engine.score(row, row, row, torch.arange(16)[None] > row, captured=True)
    restore(model)
    after = state(model)
    assert after[:2] + after[3:] == before[:2] + before[3:]
    assert all(map(torch.equal, after[2], before[2]))
