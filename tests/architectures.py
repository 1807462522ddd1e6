"""Tiny random models of the architectures that people decode with, and what must become of each."""

from __future__ import annotations

from typing import Any

import torch
from conftest import VOCAB
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

K = dict
BASE = K(
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=2,
)
HEAD = K(head_dim=8)
GPT = K(n_embd=32, n_layer=2, n_head=4, n_positions=256)
MOE = K(num_local_experts=4, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)
MLA = MOE | K(
    num_key_value_heads=4,
    kv_lora_rank=8,
    q_lora_rank=8,
    qk_rope_head_dim=4,
    qk_nope_head_dim=4,
    v_head_dim=6,
    n_routed_experts=4,
    first_k_dense_replace=1,
    n_group=1,
    topk_group=1,
)
LONG = K(
    rope_type="longrope",
    rope_theta=1e4,
    short_factor=[1.0] * 4,
    long_factor=[2.0] * 4,
    original_max_position_embeddings=32,
)
PHI = K(sliding_window=None, original_max_position_embeddings=32, rope_parameters=LONG)
MIXED = K(layer_types=["sliding_attention", "full_attention"])
GEMMA = HEAD | K(query_pre_attn_scalar=8)
LLAMA4 = (
    HEAD
    | MOE
    | K(
        attention_chunk_size=12,
        intermediate_size_mlp=48,
        layer_types=["chunked_attention", "full_attention"],
        no_rope_layers=[1, 0],
        attn_temperature_tuning=True,
        floor_scale=8,
    )
)
GEMMA_3N = HEAD | K(
    num_hidden_layers=4,
    hidden_size_per_layer_input=8,
    vocab_size_per_layer_input=VOCAB,
    num_kv_shared_layers=2,
    altup_num_inputs=2,
    laurel_rank=4,
    layer_types=["sliding_attention", "full_attention"] * 2,
    activation_sparsity_pattern=[0.0] * 4,
)

# Prompts of the test have 20 tokens, texts 50. A window of 8 is behind the prompt, 30 in the text,
# 200 beyond it.
SAME: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", K()),
    "llama to its last position": ("llama", K(max_position_embeddings=50)),
    "llama, yarn": (
        "llama",
        K(
            rope_parameters=K(
                rope_type="yarn", rope_theta=1e4, factor=4.0, original_max_position_embeddings=16
            )
        ),
    ),
    "qwen3": ("qwen3", HEAD),
    "qwen3_moe": ("qwen3_moe", HEAD | MOE),
    "mixtral": ("mixtral", MOE | K(sliding_window=None)),
    "gpt2": ("gpt2", GPT),
    "gpt_bigcode": ("gpt_bigcode", GPT),
    "gpt_neox": ("gpt_neox", K()),
    "gpt_neo, global": ("gpt_neo", K(num_layers=2, num_heads=4, attention_types=[[["global"], 2]])),
    "gptj": ("gptj", GPT | K(rotary_dim=4)),
    "codegen": ("codegen", GPT | K(rotary_dim=4)),
    "xglm": ("xglm", K(d_model=32, ffn_dim=48, num_layers=2, attention_heads=4)),
    "opt": ("opt", K(ffn_dim=48, word_embed_proj_dim=32)),
    "falcon, rotary": ("falcon", K(new_decoder_architecture=False, alibi=False)),
    "phi3": ("phi3", K(sliding_window=None)),
    "phi3, LongRoPE, short": (
        "phi3",
        PHI
        | K(
            original_max_position_embeddings=50,
            rope_parameters=LONG | K(original_max_position_embeddings=50),
        ),
    ),
    "phi3, LongRoPE, long": (
        "phi3",
        PHI
        | K(
            original_max_position_embeddings=18,
            rope_parameters=LONG | K(original_max_position_embeddings=18),
        ),
    ),
    "phi3, window 8": ("phi3", K(sliding_window=8)),
    "deepseek_v2": ("deepseek_v2", MLA),
    "deepseek_v3": ("deepseek_v3", MLA | K(qk_head_dim=8)),
    "minicpm3": ("minicpm3", MLA),
    "mistral, window 8": ("mistral", K(sliding_window=8)),
    "mistral, window 30": ("mistral", K(sliding_window=30)),
    "mistral, window 200": ("mistral", K(sliding_window=200)),
    "qwen2, window 8": ("qwen2", K(use_sliding_window=True, sliding_window=8, max_window_layers=0)),
    "qwen2, window 30 above": (
        "qwen2",
        K(use_sliding_window=True, sliding_window=30, max_window_layers=1),
    ),
    "starcoder2, window 8": ("starcoder2", K(sliding_window=8)),
    "ministral, window 30": ("ministral", HEAD | K(sliding_window=30)),
    "gemma2, window 8": ("gemma2", GEMMA | K(sliding_window=8)),
    "gemma3, window 8": ("gemma3_text", GEMMA | K(sliding_window=8)),
    "gemma3, window 30": ("gemma3_text", GEMMA | K(sliding_window=30)),
    "gemma3, window 200": ("gemma3_text", GEMMA | K(sliding_window=200)),
    "gemma3n, shared caches": ("gemma3n_text", GEMMA_3N | K(sliding_window=8)),
    "gemma4, two head sizes": (
        "gemma4_text",
        HEAD | K(sliding_window=8, hidden_size_per_layer_input=0, vocab_size_per_layer_input=VOCAB),
    ),
    "cohere2, window 8": ("cohere2", MIXED | K(sliding_window=8)),
    "olmo3, window 30": ("olmo3", MIXED | K(sliding_window=30)),
    "exaone4, window 8": ("exaone4", MIXED | K(sliding_window=8)),
    "gpt_oss, window 8": ("gpt_oss", HEAD | MOE | MIXED | K(sliding_window=8)),
    "llama4, chunks of 12": ("llama4_text", LLAMA4),
}

POSITIONS = "takes no position_ids"
STATE = "keeps a recurrent state, which cannot go back to another branch of a tree"
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "phi3, LongRoPE, across": ("phi3", PHI, r"changes its rotary factors \(LongRoPE\) after 32 positions, and 50 are"),
    "phimoe, LongRoPE, across": ("phimoe", MOE | PHI | K(rope_parameters=LONG | K(short_mscale=1.0, long_mscale=1.0)),
                                 r"changes its rotary factors \(LongRoPE\) after 32 positions"),
    "llama, dynamic rope": ("llama", K(max_position_embeddings=40, rope_parameters=K(rope_type="dynamic",
                            rope_theta=1e4, factor=4.0)), "reads 40 positions, 50 are needed"),
    "mpt": ("mpt", K(d_model=32, n_heads=4, n_layers=2, max_seq_len=256), POSITIONS),
    "bloom": ("bloom", K(n_layer=2, n_head=4), POSITIONS),
    "falcon, ALiBi": ("falcon", K(new_decoder_architecture=False, multi_query=False, alibi=True, parallel_attn=False),
                      "has ALiBi: it biases attention by cache row"),
    "gpt_neo, local": ("gpt_neo", K(num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]], window_size=8),
                       "has local layers whose window is counted by cache row"),
    "openai-gpt": ("openai-gpt", GPT, r"takes no cache of keys and values"),
    "mamba": ("mamba", K(state_size=4), STATE),
    "rwkv": ("rwkv", K(attention_hidden_size=32), STATE),
    "falcon_h1": ("falcon_h1", K(), STATE),
    "lfm2": ("lfm2", K(layer_types=["conv", "full_attention"]), STATE),
    "deepseek_v32": ("deepseek_v32", MLA | K(qk_head_dim=8), r"has \w+_attention layers, for which there is no tree mask"),
}  # fmt: skip


def build(kind: str, config: dict[str, Any], *, seed: int = 0, std: float = 0.4) -> PreTrainedModel:
    """A model in float32 whose weights are drawn by name, so that a seed is one model."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(kind, **(BASE | config))
        )
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=draws) * std)
    assert model.generation_config is not None
    model.generation_config.eos_token_id = None
    return model.float().eval()


def blurred(
    model: PreTrainedModel, kind: str, config: dict[str, Any], *, std: float
) -> PreTrainedModel:
    """A draft that is right now and then: the model, a little off."""
    draft, draws = build(kind, config), torch.Generator().manual_seed(5)
    with torch.no_grad():
        for mine, its in zip(draft.parameters(), model.parameters(), strict=True):
            mine.copy_(its.cpu() + 0.15 * std * torch.randn(its.shape, generator=draws))
    return draft
