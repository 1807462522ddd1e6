"""The memory floor: which weights a pass reads, and how fast this machine reads."""

from __future__ import annotations

import torch
from conftest import VOCAB, tiny_model

from dynasurge.models.memory_floor import bandwidth, floor_seconds, weight_bytes


def test_a_pass_reads_all_weights_but_rows_of_an_embedding() -> None:
    model = tiny_model("llama")
    every = sum(4 * weight.numel() for weight in model.parameters())
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert weight_bytes(model) == every - (0 if tied else 4 * VOCAB * model.config.hidden_size)
    model.tie_weights()
    model.lm_head.weight = model.model.embed_tokens.weight
    assert weight_bytes(model) == sum(4 * weight.numel() for weight in model.parameters())


def test_the_floor_is_bytes_over_bandwidth() -> None:
    model, speed = tiny_model("llama"), bandwidth(torch.device("cpu"))
    assert 1e8 < speed < 1e14
    assert floor_seconds(model) == weight_bytes(model) / speed
