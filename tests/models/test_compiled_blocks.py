"""Compiled passes, where matrices that multiply the same rows lie together and multiply them
once."""

from __future__ import annotations

import pytest
import torch
from conftest import ARCHITECTURES, DEVICES, tiny_model
from torch import nn
from torch._inductor.utils import run_and_get_code

from dynasurge.models import compiled_blocks, model_changes
from dynasurge.models.engine import Engine

JOINT = {
    "llama": [2, 3],
    "qwen2": [2, 3],
    "gpt2": [],
}  # of a block: gate and up; queries, keys and values
# of a block, once those are joint; GPT-2's modules are not nn.Linear, and have it so from the start
PRODUCTS = 4


@pytest.mark.slow
@pytest.mark.parametrize("whole", [True, False], ids=["whole", "by block"])
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_multiplies_the_same_rows_does_it_once(
    architecture: str, device: str, whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled_blocks, "SMALL", 99 if whole else 0)
    torch._dynamo.reset()
    model = tiny_model(architecture).to(device)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    engine = Engine(model, 64, compiled=True)
    engine.prepare()
    engine.extend([5, 17, 8, 40])
    expected = engine.forward([11, 12, 13, 14], [-1, 0, 1, 2]).clone()
    engine.commit([])
    rows = torch.arange(4, 8, device=device)
    hidden, tokens = (
        torch.arange(64, device=device) > rows[:, None],
        torch.tensor([11, 12, 13, 14], device=device),
    )
    found, codes = run_and_get_code(lambda: engine.score(tokens, rows, rows, hidden, captured=True))
    torch.testing.assert_close(found, expected, atol=1e-5 if device == "cpu" else 1e-4, rtol=0)
    if device == "cpu":
        products = ("_kernels.mm(", "_kernels.addmm(", "mkl_linear(")
        blocks = sum(code.count(product) for code in codes for product in products)
        assert blocks == (2 * PRODUCTS + 1 if whole else PRODUCTS)
    torch.testing.assert_close(
        engine.score(tokens, rows, rows, hidden, captured=True), expected, atol=1e-4, rtol=0
    )
    for name, weight in model.named_parameters():
        assert torch.equal(weight, before[name])
    assert not any(isinstance(module, model_changes.Part) for module in model.modules())
    torch._dynamo.reset()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_who_multiplies_the_same_rows_shows(architecture: str) -> None:
    model = tiny_model(architecture)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    groups = model_changes.fed_alike(model, lambda: model(torch.tensor([[5, 17, 8]])))
    assert sorted(len(group) for group in groups if len(group) > 1) == sorted(
        2 * JOINT[architecture]
    )
    tied = model.get_input_embeddings().weight  # of GPT-2's head
    linear = {
        module
        for module in model.modules()
        if type(module) is nn.Linear and module.weight is not tied
    }
    assert linear == {module for group in groups for module in group}
    for group in groups:
        model_changes.join(group)
        place = group[0].weight.data_ptr()
        model_changes.join(
            group
        )  # as another engine of the same model would, when graphs of the first know the place
        assert {module.weight.untyped_storage().data_ptr() for module in group} == {place}
    for name, weight in model.named_parameters():
        assert torch.equal(weight, before[name])
    with torch.no_grad():
        model.double()  # moves every matrix away
    for group in groups:
        model_changes.join(group)
        assert {module.weight.dtype for module in group} == {torch.float64}
        assert len({module.weight.untyped_storage().data_ptr() for module in group}) == 1


@pytest.mark.slow
def test_a_compiled_engine_leaves_matrices_where_captured_passes_know_them() -> None:
    torch._dynamo.reset()
    model = tiny_model("llama")
    rows = torch.arange(4, 8)
    hidden, tokens = torch.arange(64) > rows[:, None], torch.tensor([11, 12, 13, 14])
    places, engines = [], (Engine(model, 64), Engine(model, 64, compiled=True))
    for engine in engines:
        engine.prepare()
        engine.extend([5, 17, 8, 40])
        engine.score(tokens, rows, rows, hidden, captured=True)
        places.append([weight.data_ptr() for weight in model.parameters()])
    assert places[0] == places[1]
    plain, compiled = engines
    with torch.no_grad():
        for module in model.modules():
            if type(module) is nn.Linear:
                module.weight.data = module.weight * 0.5  # other weights, at other places
    plain.reset()
    compiled.reset()
    for engine in engines:
        engine.prepare()
        engine.extend([5, 17, 8, 40])
    expected = plain.score(tokens, rows, rows, hidden, captured=True)
    torch.testing.assert_close(
        compiled.score(tokens, rows, rows, hidden, captured=True), expected, atol=1e-5, rtol=0
    )
    torch._dynamo.reset()


class Odd(nn.Module):
    """Modules that get the same rows, of which one is called twice, two share a matrix, and one
    gets them by name."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.one, self.other, self.named, self.a, self.b = (
            nn.Linear(4, 4) for _ in range(6)
        )
        self.other.weight = self.one.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = (
            self.twice(x)
            + self.one(x)
            + self.other(x)
            + self.named(input=x)
            + self.a(x)
            + self.b(x)
        )
        return self.twice(y)


def test_what_cannot_be_one_product_is_left_alone() -> None:
    model = Odd()
    groups = model_changes.join_matrices(model, lambda: model(torch.zeros(2, 4)))  # type: ignore[arg-type]
    assert [set(group) for group in groups] == [{model.a, model.b}]
