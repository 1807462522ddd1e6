"""transformers' assisted generation as an engine of which only tokens come out, for
`dynasurge.audit_samples`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from dynasurge.verification.enumeration import Table


def assisted_generation(
    target: PreTrainedModel, draft: PreTrainedModel, prompt: Sequence[int], length: int
) -> tuple[Callable[[int], list[int]], Table]:
    """(sample, law): what `target.generate` writes after a prompt with this draft and a seed, and
    the probabilities that the target gives the next token."""
    engine: Any = target
    given, how = torch.tensor([[*prompt]]), {"do_sample": True, "top_k": 0, "eos_token_id": None}

    def sample(seed: int) -> list[int]:
        torch.manual_seed(seed)  # generate takes no generator
        options: dict[str, Any] = how | {"assistant_model": draft, "max_new_tokens": length}
        out: Any = engine.generate(given, pad_token_id=0, **options)
        return [int(token) for token in out[0, len(prompt) :]]

    @torch.inference_mode()
    def law(tokens: tuple[int, ...]) -> list[float]:
        logits = engine(torch.tensor([[*prompt, *tokens]])).logits[0, -1]
        return [float(p) for p in torch.softmax(logits.double(), 0)]

    return sample, law


def tiny_model(seed: int, vocab: int = 6) -> LlamaForCausalLM:
    """A LLaMA of a few thousand random weights, whose distributions are far from uniform."""
    sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    config = LlamaConfig(vocab_size=vocab, num_attention_heads=2, **sizes)
    model: LlamaForCausalLM = LlamaForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.4, generator=generator)
    return model
