"""The contract with transformers: a tree pass is one pass per path, and committing a path is having
read it."""

from __future__ import annotations

import gc
import tracemalloc

import pytest
import torch
from conftest import ARCHITECTURES, DEVICES, VOCAB, tiny_model
from transformers import PreTrainedModel

from dynasurge.models.cuda_graphs import Graphs
from dynasurge.models.engine import Engine

TEXT = [5, 17, 8, 40, 33, 9, 21]
# Two families under the root, grown in two passes; node 0 is the root.
TOKENS, PARENTS = [11, 12, 13, 14, 15, 16], [-1, 0, 0, 1, 1, 3]
MORE_TOKENS, MORE_PARENTS = [18, 19], [2, 5]


def path_to(node: int, parents: list[int]) -> list[int]:
    return [*(path_to(parents[node], parents) if parents[node] >= 0 else []), node]


@torch.inference_mode()
def plain_logits(model: PreTrainedModel, tokens: list[int]) -> torch.Tensor:
    return model(torch.tensor([tokens], device=model.device)).logits[0, -1]


def assert_same(logits: torch.Tensor, plain: torch.Tensor) -> None:
    """Equal to 1e-5; a GPU's float32 sums in another order for another shape, and gets 1e-4."""
    torch.testing.assert_close(
        logits, plain, atol=1e-5 if logits.device.type == "cpu" else 1e-4, rtol=0
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_tree_pass_equals_one_pass_per_path(
    architecture: str, attention: str, device: str
) -> None:
    model = tiny_model(architecture).to(device)
    model.set_attn_implementation(attention)
    engine = Engine(model, 64)
    assert_same(engine.extend(TEXT), plain_logits(model, TEXT))
    tokens, parents = TOKENS + MORE_TOKENS, PARENTS + MORE_PARENTS
    logits = engine.forward(tokens, parents)
    for node in range(len(tokens)):
        path = [tokens[n] for n in path_to(node, parents)]
        assert_same(logits[node], plain_logits(model, TEXT + path))


@pytest.mark.parametrize(
    "compiled", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["", "compiled"]
)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_static_pass_is_a_tree_pass(architecture: str, device: str, compiled: bool) -> None:
    """Captured on a GPU: rows, positions and mask are the device's numbers, and blocks may have
    been compiled as one."""
    model = tiny_model(architecture).to(device)
    if compiled:
        torch._dynamo.reset()
    engine = Engine(model, 64, compiled=compiled)
    engine.prepare()
    engine.extend(TEXT)
    expected = engine.forward(TOKENS, PARENTS).clone()
    engine.commit([])
    depth = [len(path_to(node, PARENTS)) - 1 for node in range(len(PARENTS))]
    rows = torch.arange(len(TEXT), len(TEXT) + len(TOKENS), device=device)
    hidden = torch.ones(len(TOKENS), 64, dtype=torch.bool)
    for node in range(len(TOKENS)):
        hidden[
            node, [*range(len(TEXT)), *(len(TEXT) + seen for seen in path_to(node, PARENTS))]
        ] = False
    positions = len(TEXT) + torch.tensor(depth, device=device)
    tokens, seen = torch.tensor(TOKENS, device=device), hidden.to(device)
    captured = Graphs(torch.device(device)).capture(
        lambda: engine.score(tokens, positions, rows, seen, captured=True)
    )
    for _ in range(2):
        captured.replay()
        assert_same(captured.result, expected)
    engine.move(rows[[0, 1, 4]], rows[:3])  # what committing that path does
    end = rows[3:4]
    unseen = torch.arange(64, device=device)[None] > end
    token = torch.tensor([30], device=device)
    after = engine.score(token, end, end, unseen, captured=True)
    assert_same(after, engine.score(token, end, end, unseen[:, : int(end) + 1]))
    assert_same(after[0], plain_logits(model, [*TEXT, 11, 12, 15, 30]))
    assert [module.layer_idx for module in model.modules() if hasattr(module, "layer_idx")] == [
        0,
        1,
    ]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_committing_a_path_then_continuing_equals_a_fresh_prefill(
    architecture: str, device: str
) -> None:
    model = tiny_model(architecture).to(device)
    engine = Engine(model, 64)
    engine.extend(TEXT)
    engine.forward(TOKENS, PARENTS)
    engine.commit([0, 1, 4])
    text = [*TEXT, 11, 12, 15]
    assert engine.length == len(text)
    assert_same(engine.extend([30, 31]), plain_logits(model, [*text, 30, 31]))
    engine.forward([40], [-1])
    engine.commit([])  # a step that keeps nothing leaves the text as it was
    text += [30, 31]
    assert_same(engine.extend([50]), plain_logits(model, [*text, 50]))


def test_a_full_cache_says_so() -> None:
    engine = Engine(tiny_model("llama"), len(TEXT) + 2)
    engine.extend(TEXT)
    with pytest.raises(AssertionError, match="cache of 9 rows asked to hold 10"):
        engine.forward([1, 2, 3], [-1, 0, 0])


@pytest.mark.parametrize("vocab", [VOCAB - 10, VOCAB + 10])
def test_logits_are_cut_or_padded_to_the_targets_vocabulary(vocab: int) -> None:
    model = tiny_model("llama")
    plain = Engine(model, 16).extend(TEXT)
    logits = Engine(model, 16, vocab=vocab).extend(TEXT)
    assert logits.shape == (vocab,)
    torch.testing.assert_close(logits[: min(vocab, VOCAB)], plain[: min(vocab, VOCAB)])
    assert bool((logits[VOCAB:] == -torch.inf).all())


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_memory_is_what_was_said_and_does_not_grow(architecture: str, device: str) -> None:
    model = tiny_model(architecture).to(device)
    engine = Engine(model, 64)
    weights, cache = engine.memory
    assert weights == sum(weight.nbytes for weight in model.parameters())
    heads = {"gpt2": 4}.get(architecture, 2)
    assert cache == 2 * 2 * heads * 64 * 8 * 4, "keys and values of two layers, 8 floats a head"
    held = []
    tracemalloc.start()
    for count in (20, 200):
        for number in range(count):
            if engine.length > 50:
                engine.reset()
            engine.forward(TOKENS, PARENTS)
            engine.commit([0, 1, 3][: number % 3 + 1])
        gc.collect()
        allocated = torch.cuda.memory_allocated() if device == "cuda" else 0
        held.append((engine.memory, allocated, tracemalloc.get_traced_memory()[0]))
    tracemalloc.stop()
    (said, device_some, some), (still, device_more, more) = held
    assert said == still
    assert device_more <= device_some
    assert more - some < 200 * 1000, "of the host's, too: no tree is kept"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_captured_product_keeps_its_workspace() -> None:
    """torch.compile's own CUDA graphs have all workspaces of the library for products given
    back."""
    a, b = (torch.randn(64, 1 << 14, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    captured = Graphs(a.device).capture(lambda: a @ b.T)
    expected = captured.result.clone()
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()
    captured.replay()
    assert torch.equal(captured.result, expected)
