"""A small LLaMA in a large one's shape says exactly the same."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_feature_draft import EAGLE, OURS
from transformers import LlamaConfig, LlamaForCausalLM

from dynasurge.errors import UsageError
from dynasurge.models.engine import Engine
from dynasurge.models.feature_draft import FeatureDraft, FeatureDraftConfig
from dynasurge.models.feature_engine import FeatureEngine
from dynasurge.models.loading import load_model
from dynasurge.models.widened import SHAPES, widen
from dynasurge.settings import WIDE, pair_text

LARGE = {
    "hidden_size": 80,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 5,
}


def small_model(**more: int | bool) -> LlamaForCausalLM:
    """Grouped keys, tied embeddings, a large epsilon and weights that matter."""
    shape = {
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
    }
    config = LlamaConfig(
        **(shape | {"num_key_value_heads": 1, "tie_word_embeddings": True} | more),
        vocab_size=50,
        rms_norm_eps=1e-2,
        rope_parameters={"rope_type": "default", "rope_theta": 100.0},
    )
    model, generator = LlamaForCausalLM(config).eval(), torch.Generator().manual_seed(0)
    for weight in model.parameters():
        weight.data = torch.randn(weight.shape, generator=generator) * 0.3
    return model


@pytest.mark.parametrize("widened", [False, True], ids=["as it is", "padded"])
@pytest.mark.parametrize("form", [EAGLE, OURS], ids=["eagle", "ours"])
def test_a_feature_draft_reads_a_wide_target_as_the_small_one(
    form: dict[str, Any], widened: bool
) -> None:
    small = small_model()
    config = FeatureDraftConfig(
        vocab_size=50,
        hidden_size=24,
        intermediate_size=40,
        num_attention_heads=3,
        num_key_value_heads=1,
        rms_norm_eps=1e-2,
        rope_parameters=small.config.rope_parameters,
        taps=[1, 2, 2],
        **form,
    )
    draft, generator = FeatureDraft(config).eval(), torch.Generator().manual_seed(2)
    for weight in draft.parameters():
        weight.data = torch.randn(weight.shape, generator=generator) * 0.3
    where: dict[str, Any] = {"device": torch.device("cpu"), "dtype": torch.float32}
    wide, found = widen(small, LARGE, **where), []
    other = widen(draft, LARGE, **where) if widened else copy.deepcopy(draft)
    assert other.config.hidden_size == (80 if widened else 24)
    for target, one in ((small, draft), (wide, other)):
        one.attach(target)
        width = one.config.tap_width
        reader = Engine(target, 24, taps=one.config.taps, tap_width=width)
        engine = FeatureEngine(one, 24, reader)
        text = [3, 8, 2, 9, 30, 7]
        reader.extend(text)
        logits = [engine.extend(text), *engine.forward([5, 6], [-1, -1])]
        found.append(torch.stack(logits))
    torch.testing.assert_close(found[0], found[1], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("device_map", [None, "auto"])
@pytest.mark.parametrize("more", [{}, {"num_key_value_heads": 3, "tie_word_embeddings": False}])
def test_the_function_does_not_change(more: dict[str, int | bool], device_map: str | None) -> None:
    small = small_model(**more)
    small.generation_config.top_k = 7
    where: dict[str, Any] = {"device": torch.device("cpu"), "device_map": device_map}
    wide = widen(small, LARGE, **where, dtype=torch.float32)
    ids = torch.randint(50, (2, 30), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(wide(ids).logits, small(ids).logits, atol=1e-5, rtol=1e-4)
    assert wide.config.hidden_size == 80
    assert wide.generation_config.top_k == 7
    assert wide.model.layers[2].self_attn.q_proj.weight.abs().min() > 0, (
        "no zeros where nothing reaches the output"
    )


@pytest.mark.parametrize(
    ("shape", "message"),
    [({"hidden_size": 20}, "below the small"), ({"hidden_size": 60}, "no multiple")],
)
def test_a_shape_that_does_not_hold_the_model_is_refused(
    shape: dict[str, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        widen(small_model(), LARGE | shape, device=torch.device("cpu"), dtype=torch.float32)


def test_every_wide_name_is_known() -> None:
    assert set(WIDE) == set(SHAPES)
    with pytest.raises(UsageError, match="--draft demo-8b: is no demo model; choose among: demo"):
        load_model("--draft", "demo-8b", torch.float32)


@pytest.mark.parametrize(
    ("draft", "target", "text"),
    [
        ("demo", "demo", "demo pair"),
        ("demo", "demo-7b", "demo pair at the cost of LLaMA-7B"),
        ("demo-7b", "demo-7b", "demo pair at the cost of LLaMA-7B, the draft as wide"),
        ("org/a", "demo-7b", "org/a -> demo-7b"),
    ],
)
def test_captions_say_what_a_wide_pair_is(draft: str, target: str, text: str) -> None:
    assert pair_text(draft, target) == text


def test_a_model_too_large_for_the_host_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system would end the process without a word."""
    free = SimpleNamespace(available=1000)
    monkeypatch.setattr("psutil.virtual_memory", lambda: free)
    with pytest.raises(UsageError, match=r"--device cpu with 0\.0 GiB free: the model needs"):
        widen(small_model(), LARGE, device=torch.device("cpu"), dtype=torch.float32)
