"""Attention over a static cache: the kernel says what scaled_dot_product_attention says."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from conftest import ARCHITECTURES, tiny_model
from transformers import FalconConfig, FalconForCausalLM

from dynasurge import triton_kernels
from dynasurge.models.engine import Engine
from dynasurge.models.tree_attention import NAME, attend, grouped, reading_trees, tree_attention

pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = {  # heads, key heads, nodes, rows, size, value's size
    "as many key heads": (4, 4, 5, 70, 64, 64),
    "grouped": (9, 3, 20, 128, 64, 64),
    "odd sizes": (4, 2, 17, 130, 80, 48),
    "one node": (4, 1, 1, 64, 16, 16),
    "many programs": (36, 36, 20, 70, 64, 64),
    "wide heads": (2, 1, 9, 40, 256, 128),
    "a long cache, which programs share": (6, 2, 3, 1700, 32, 48),
    "one node over a long cache": (4, 2, 1, 600, 32, 32),
    "many nodes over a long cache": (4, 1, 20, 2100, 16, 16),
}
TOLERANCES = {torch.float32: 1e-5, torch.float16: 5e-3}
if DEVICE == "cuda":
    TOLERANCES[torch.bfloat16] = 3e-2  # Triton's interpreter has none


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU, or as Triton interprets the kernel."""
    monkeypatch.setattr(triton_kernels, "INTERPRETED", True)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_kernel_computes_attention(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    heads, own, n, rows, size, out = shape
    generator = torch.Generator().manual_seed(1)
    query, key, value = (
        torch.randn(1, count, length, width, generator=generator).to(DEVICE)
        for count, length, width in ((heads, n, size), (own, rows + 9, size), (own, rows + 9, out))
    )
    key, value = key[:, :, :rows], value[:, :, :rows]  # as a cache shows them
    hidden = torch.rand(n, rows, generator=generator) < 0.4
    hidden[:, 0], hidden[-1, 1:] = False, True
    lowest = torch.finfo(torch.float32).min
    mask = torch.zeros(1, 1, n, rows).masked_fill(hidden, lowest).to(DEVICE)
    mask[..., 1] += 0.5  # any number is added
    found = attend(*(part.to(dtype) for part in (query, key, value, mask)), 0.3).float()
    repeated = (part.repeat_interleave(heads // own, 1) for part in (key, value))
    plain = F.scaled_dot_product_attention(query, *repeated, attn_mask=mask, scale=0.3)
    near = TOLERANCES[dtype]
    torch.testing.assert_close(found, plain.transpose(1, 2), atol=near, rtol=near)


def test_a_node_that_sees_nothing_is_a_number() -> None:
    one = torch.ones(1, 1, 1, 16, device=DEVICE)
    rows = torch.ones(1, 1, 32, 16, device=DEVICE)
    mask = torch.full((1, 1, 1, 32), torch.finfo(torch.float32).min, device=DEVICE)
    assert attend(one, rows, rows, mask, 1.0).isfinite().all()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_captured_pass_uses_it_and_says_the_same(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(architecture).to(DEVICE)
    engine = Engine(model, 64)
    engine.prepare()
    engine.extend([5, 17, 8, 40])
    rows = torch.arange(4, 8, device=DEVICE)
    tokens = torch.tensor([11, 12, 13, 14], device=DEVICE)
    hidden = torch.arange(64, device=DEVICE) > rows[:, None]
    calls: list[int] = []
    inner = torch.ops.dynasurge.attend
    monkeypatch.setattr(
        "dynasurge.models.tree_attention.attend",
        lambda *given: (calls.append(1), inner(*given))[1],
    )
    found = engine.score(tokens, rows, rows, hidden, captured=True).clone()
    assert len(calls) == model.config.num_hidden_layers
    monkeypatch.setattr("dynasurge.models.tree_attention.usable", lambda *given: False)
    plain = engine.score(tokens, rows, rows, hidden, captured=True)
    assert len(calls) == model.config.num_hidden_layers
    torch.testing.assert_close(found, plain, atol=1e-5 if DEVICE == "cpu" else 1e-4, rtol=0)


def test_only_passes_over_trees_have_it() -> None:
    model = tiny_model("llama")
    for captured in (False, True):
        with reading_trees(model, captured=captured):
            assert model.config._attn_implementation == NAME
        assert model.config._attn_implementation == "sdpa"
    model.set_attn_implementation("eager")  # a model that has reasons for it keeps it
    with reading_trees(model, captured=True):
        assert model.config._attn_implementation == "eager"


def test_meanwhile_another_thread_reads_as_always() -> None:
    model, ids = tiny_model("llama"), torch.tensor([[5, 17, 8, 40], [0, 0, 9, 21]])
    padding = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
    with torch.inference_mode():
        plain = model(ids, attention_mask=padding).logits
        with reading_trees(model, captured=False):
            found = model(ids, attention_mask=padding).logits
    torch.testing.assert_close(found[0], plain[0])
    torch.testing.assert_close(found[1, 2:], plain[1, 2:])


@pytest.mark.parametrize("n", [1, 5])
def test_grouped_queries_need_no_repeated_keys(n: int) -> None:
    generator = torch.Generator().manual_seed(4)
    query = torch.randn(1, n, 6, 16, generator=generator).transpose(1, 2)
    key, value = (torch.randn(1, 2, 30, 16, generator=generator) for _ in range(2))
    mask = torch.randn(1, 1, n, 30, generator=generator)
    repeated = (part.repeat_interleave(3, 1) for part in (key, value))
    plain = F.scaled_dot_product_attention(query, *repeated, attn_mask=mask, scale=0.3)
    torch.testing.assert_close(grouped(query, key, value, mask, 0.3), plain.transpose(1, 2))


def test_a_model_that_compares_names_keeps_its_own() -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 96}
    model = FalconForCausalLM(FalconConfig(**sizes, attn_implementation="sdpa"))
    with reading_trees(model, captured=True):
        assert model.config._attn_implementation == "sdpa"


def test_what_the_kernel_cannot_do_is_done_as_always() -> None:
    model = tiny_model("llama")
    module = model.model.layers[0].self_attn
    query = torch.randn(1, 4, 3, 16, generator=torch.Generator().manual_seed(2)).double()
    key, mask = query[:, :2], torch.zeros(1, 1, 3, 3).double()
    exact, _ = tree_attention(module, query, key, key, mask)  # the kernel has no float64
    repeated = key.repeat_interleave(2, 1)
    plain = F.scaled_dot_product_attention(query, repeated, repeated, attn_mask=mask)
    torch.testing.assert_close(exact, plain.transpose(1, 2))
