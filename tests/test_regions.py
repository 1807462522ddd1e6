"""Compiled passes: matrices that lie together, products with few rows, attention of a tree."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from conftest import ARCHITECTURES, DEVICES, tiny_model
from torch import nn

from dynasurge import attention, products, regions
from dynasurge.engine import Engine
from dynasurge.graphs import Graphs

pytestmark = pytest.mark.skipif(products.triton is None, reason="needs Triton")
TYPES = {"cpu": torch.float32, "cuda": torch.bfloat16}  # Triton's interpreter knows no bfloat16


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Within a few roundings of the type, on the scale of what is expected."""
    error = (found.float() - expected.float()).abs().max() / expected.float().abs().max()
    assert error < 20 * torch.finfo(found.dtype).eps


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("rows", [2, 16, 17, 33, 65, 80])
def test_a_product_with_few_rows_is_a_product(device: str, rows: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    x, weight = (torch.randn(n, 384, generator=generator).to(device, TYPES[device]) for n in (rows, 192))
    bias = torch.randn(192, generator=generator).to(device, TYPES[device])
    for parts in (1, 2, 3):
        close(products.product(x[None], weight, bias, parts), F.linear(x[None], weight, bias))


def test_the_library_multiplies_what_the_kernel_was_not_made_for() -> None:
    assert products.splits(torch.zeros(4096, 4096, dtype=torch.bfloat16), 17) == 0  # not on a GPU
    if torch.cuda.is_available() and torch.cuda.get_device_capability() == products.HOPPER:
        weight = torch.zeros(4096, 4096, dtype=torch.bfloat16, device="cuda")
        assert [products.splits(weight, rows) for rows in (1, 2, 80, 81)] == [0, 2, 2, 0]
        assert products.splits(weight.float(), 17) == products.splits(weight[:100], 17) == 0
        assert products.splits(torch.zeros(16384, 4096, dtype=torch.bfloat16, device="cuda"), 17) == 1


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("heads", "shared", "size", "n", "rows"), [(4, 4, 64, 17, 128), (6, 2, 32, 65, 100), (4, 1, 16, 2, 70)]
)
def test_attention_of_a_tree_is_attention(device: str, heads: int, shared: int, size: int, n: int, rows: int) -> None:
    generator = torch.Generator().manual_seed(n)
    query = torch.randn(1, n, heads, size, generator=generator).transpose(1, 2)  # as models hand it over
    key, value = (torch.randn(1, shared, 200, size, generator=generator)[:, :, :rows] for _ in range(2))
    hidden = torch.rand(1, 1, n, rows, generator=generator) < 0.5
    hidden[..., :64], hidden[..., 65] = True, False  # nothing to see in a whole block, at first
    query, key, value = (x.to(device, TYPES[device]) for x in (query, key, value))
    mask = torch.zeros(hidden.shape, dtype=query.dtype, device=device)
    mask.masked_fill_(hidden.to(device), torch.finfo(query.dtype).min)
    found, _ = attention.tree_attention(nn.Module(), query, key, value, mask)
    many = (x.repeat_interleave(heads // shared, 1).float() for x in (key, value))
    close(found, F.scaled_dot_product_attention(query.float(), *many, mask.float()).transpose(1, 2))


@pytest.mark.slow
@pytest.mark.parametrize("whole", [True, False], ids=["whole", "by block"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_pass_by_parts_is_a_pass(architecture: str, whole: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all that a large model on a GPU is given: joint matrices, the product in two parts, attention of our own."""
    calls = []
    monkeypatch.setattr(regions, "SMALL", 99 if whole else 0)
    monkeypatch.setattr(regions, "splits", lambda weight, rows: 2 if weight.shape[0] % 16 == 0 else 0)
    monkeypatch.setattr(products, "BN", 16)
    monkeypatch.setattr(products, "BK", 16)
    monkeypatch.setattr(attention, "usable", lambda device: True)
    padded = products._padded
    monkeypatch.setattr(products, "_padded", lambda rows: calls.append(rows) or padded(rows))
    torch._dynamo.reset()
    model = tiny_model(architecture)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    engine = Engine(model, 64, compiled=True)
    engine.extend([5, 17, 8, 40])
    expected = engine.forward([11, 12, 13, 14], [-1, 0, 1, 2]).clone()
    engine.commit([])
    rows = torch.arange(4, 8)
    hidden = torch.arange(64) > rows[:, None]
    captured = Graphs(torch.device("cpu")).capture(
        lambda: engine.score_at(torch.tensor([11, 12, 13, 14]), rows, rows, hidden)
    )
    torch.testing.assert_close(captured.result, expected, atol=1e-5, rtol=0)
    calls.clear()
    captured.replay()
    torch.testing.assert_close(captured.result, expected, atol=1e-5, rtol=0)
    linear = [module for module in model.modules() if type(module) is nn.Linear]
    alone = [module for module in linear if module.in_features == module.joint.shape[1] and module.start == 0]
    multiplied = [module for module in alone if module.joint.shape[0] % 16 == 0]
    assert len(calls) == len(multiplied)  # each joint matrix once
    if architecture == "llama":
        assert (len(linear), len(alone)) == (15, 9)
    for name, weight in model.named_parameters():
        assert torch.equal(weight, before[name])
    assert model.config._attn_implementation == "sdpa"
    torch._dynamo.reset()
