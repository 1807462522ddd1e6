"""The table of architectures: at T = 0 in float32 a model's text is the one of its own `generate`,
or it is refused with the line that the table states."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from architectures import REFUSED, SAME, blurred, build
from conftest import DEVICES, VOCAB
from transformers import (
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    PreTrainedModel,
)

from dynasurge import UsageError, custom_generate

PROMPT = torch.tensor([[3 + (i * 35 + i * i) % (VOCAB - 3) for i in range(20)]])
NEW = 30
MODES: list[dict[str, Any]] = [
    {"B": 12, "fill": True},
    {"mode": "sTree", "growmap": "growmaps/2ary4.pt", "use_bfs": True},
    {"mode": "auto"},
]


def text(model: PreTrainedModel, **options: Any) -> list[int]:
    output = model.generate(PROMPT.to(model.device), do_sample=False, max_new_tokens=NEW, **options)
    return output[0, PROMPT.shape[1] :].tolist()  # type: ignore[no-any-return]


# One each of: rotary and learned positions, experts, compressed keys, small windows.
EACH_SORT = ("llama", "gpt2", "qwen3_moe", "deepseek_v3", "phi3, window 8", "gemma3, window 30")
OTHERS = [name for name in SAME if name not in EACH_SORT]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "name", [*EACH_SORT, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)]
)
def test_greedy_text_is_the_models_own(name: str, device: str) -> None:
    kind, config = SAME[name]
    plain: list[int] = []
    for std in (0.4, 0.8, 0.2):  # a text that repeats one token shows nothing
        target = build(kind, config, std=std).to(device)
        plain = text(target)
        if len(set(plain)) >= 8:
            break
    draft = blurred(target, kind, config, std=std).to(device)
    for mode in MODES:
        assert text(target, custom_generate=custom_generate(draft, **mode)) == plain, mode


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_exact_is_refused(name: str) -> None:
    kind, config, message = REFUSED[name]
    target = build(kind, config)
    for mode in MODES[1:]:
        with pytest.raises(UsageError, match=message) as error:
            text(target, custom_generate=custom_generate(build(kind, config), **mode))
        assert "\n" not in str(error.value)


def test_a_vision_language_model_continues_text_and_refuses_pictures() -> None:
    words: dict[str, Any] = {
        "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8,
        "num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 8, "query_pre_attn_scalar": 8,
    }  # fmt: skip
    sight = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    config = Gemma3Config(text_config=words, vision_config=sight | {"image_size": 28, "patch_size": 14},
                          mm_tokens_per_image=4, image_token_index=95, boi_token_index=94, eoi_token_index=93)  # fmt: skip
    model = Gemma3ForConditionalGeneration(config).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.4)
    assert model.generation_config is not None
    model.generation_config.eos_token_id = None
    loop = custom_generate(Gemma3ForCausalLM(Gemma3TextConfig(**words)).eval(), B=6, fill=True)
    kinds = torch.zeros_like(PROMPT)
    assert text(model, custom_generate=loop, token_type_ids=kinds) == text(model)
    with pytest.raises(UsageError, match=r"(image|pixel_values) given: trees continue text only"):
        text(model, custom_generate=loop, pixel_values=torch.zeros(1, 3, 28, 28))
