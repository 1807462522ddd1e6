"""The self-test passes models that read trees, and names what differs in those that do not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from architectures import SAME, build
from conftest import ARCHITECTURES, tiny_model
from transformers import PreTrainedModel

import dynasurge.models.attention_masks
from dynasurge import UsageError
from dynasurge.models.kv_cache import TreeCache
from dynasurge.models.self_test import self_test

WINDOWED = [name for name in SAME if "window" in name or "chunks" in name]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sound_models_pass_in_every_dtype(architecture: str, dtype: torch.dtype) -> None:
    for seed in range(4):
        self_test("--target", "x", tiny_model(architecture, seed=seed).to(dtype))


@pytest.mark.parametrize(
    "name", ["mixtral", "deepseek_v3", "llama4, chunks of 12", "gpt_oss, window 8"]
)
def test_experts_that_round_to_others_are_no_fault(name: str) -> None:
    kind, config = SAME[name]
    for seed in range(6):
        self_test("--target", "x", build(kind, config, seed=seed).to(torch.bfloat16))


def forgets(argument: str, model: PreTrainedModel) -> None:
    """The model's forward swallows an argument, as one that has it in `**kwargs` does."""
    forward = model.forward
    model.forward = lambda *args, **kwargs: forward(*args, **kwargs | {argument: None})  # type: ignore[method-assign]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("argument", "node"),
    [("attention_mask", "its younger sibling"), ("position_ids", "its younger sibling")],
)
def test_a_model_that_swallows_what_makes_a_tree_is_refused(
    argument: str, node: str, dtype: torch.dtype
) -> None:
    model = tiny_model("llama").to(dtype)
    forgets(argument, model)
    with pytest.raises(
        UsageError,
        match=r"--draft mine: reads a tree differently from text: the logits of .* differ by",
    ):
        self_test("--draft", "mine", model)


def off_by(one: int) -> Callable[..., torch.Tensor]:
    right = dynasurge.models.attention_masks.hidden_in
    return lambda kind, size, hidden: right(kind, size + one if size is not None else None, hidden)


@pytest.mark.parametrize("one", [-1, 1])
@pytest.mark.parametrize("name", WINDOWED)
def test_a_window_that_is_off_by_one_is_noticed(
    name: str, one: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, config = SAME[name]
    model = build(kind, config)
    self_test("--target", "x", model)
    monkeypatch.setattr(dynasurge.models.attention_masks, "hidden_in", off_by(one))
    with pytest.raises(UsageError, match="reads a tree differently from text"):
        self_test("--target", "x", model)
    assert (
        model.config.get_text_config().to_dict()
        == build(kind, config).config.get_text_config().to_dict()
    )


def test_rows_that_a_commit_loses_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def commit(self: TreeCache, nodes: Any) -> None:
        self.length = self.filled = self.length + len(nodes)  # and moves nothing

    monkeypatch.setattr(TreeCache, "commit", commit)
    with pytest.raises(UsageError, match="the logits of a token after a committed path differ by"):
        self_test("--target", "x", tiny_model("llama"))


UNSTEADY: dict[str, tuple[str, dict[str, Any]]] = {
    "looks ahead": ("bert", {}),
    "a window that its class ignores": ("llama", {"sliding_window": 8}),
    "a chunk that its class ignores": ("llama", {"attention_chunk_size": 8}),
}


@pytest.mark.parametrize("name", UNSTEADY)
def test_a_model_that_reads_text_in_two_ways_is_refused(name: str) -> None:
    kind, config = UNSTEADY[name]
    with pytest.raises(
        UsageError,
        match=r"reads (text in more than one way|a tree differently from text): the logits of",
    ):
        self_test("--target", "x", build(kind, config))


def test_a_model_of_few_positions_is_refused() -> None:
    with pytest.raises(UsageError, match="reads 8 positions only"):
        self_test("--target", "x", build("gpt2", {"max_position_embeddings": 8}))


def test_what_a_model_raises_is_one_line() -> None:
    model = tiny_model("llama")

    def forward(*_: Any, **__: Any) -> Any:
        raise RuntimeError("a shape\ndoes not fit")

    model.forward = forward  # type: ignore[method-assign]
    with pytest.raises(
        UsageError, match=r"--target x: cannot read a tree .RuntimeError: a shape does not fit.; "
    ) as error:
        self_test("--target", "x", model)
    assert "\n" not in str(error.value)
