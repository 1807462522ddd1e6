"""Seven-billion cost, real text, no download: a small LLaMA's weights inside a large LLaMA's shape.

    python benchmarks/widen.py --shape 7b --output runs/widened-7b

The function does not change, so prompts, drafts and acceptance stay real; the cost is that of the
large model. With h, d the small and H, D the large hidden and head size:

- the residual stream is padded with zeros. An RMSNorm then sees the mean square times h / H, so its
  weight is multiplied by sqrt(h / H) and its epsilon by h / H;
- the pair of dimensions that rotary embedding turns with frequency theta^(-2i/d) moves to the pair
  of frequency theta^(-2j/D), j = i D / d, with the same theta;
- attention divides by sqrt(D) instead of sqrt(d), so queries are multiplied by sqrt(D / d);
- grouped keys and values are repeated, a copy for each query head of the group;
- what is new in heads, neurons and layers has output projections of zero.

Whatever then cannot reach the output is left at its random initial values, so that no kernel
profits from zeros.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from pathlib import Path
from typing import Any

import torch
from shards import guard
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from dynasurge import load_pair
from dynasurge.errors import UsageError
from dynasurge.models.pair import Pair, load_target

SHAPES: dict[str, dict[str, int]] = {
    "7b": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
    "13b": {
        "hidden_size": 5120,
        "intermediate_size": 13824,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
    },
    "1b": {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 30,
        "num_attention_heads": 16,
    },
}


def load_wide(draft: str, target: str, shape: str | None) -> Pair:
    """A pair, its target widened into one of SHAPES unless None, in bfloat16 on the GPU if there is
    one."""
    pair = load_pair(draft, target)
    if shape is None:
        return pair
    if not isinstance(pair.target, LlamaForCausalLM):
        raise UsageError(
            "--target", target, "is no LLaMA", "name one that is, or leave --shape out"
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return dataclasses.replace(
        pair, target=widen(pair.target, SHAPES[shape], device=device, dtype=torch.bfloat16)
    )


@torch.no_grad()
def widen(
    small: LlamaForCausalLM, shape: dict[str, int], *, device: torch.device, dtype: torch.dtype
) -> LlamaForCausalLM:
    """`small` in a LLaMA of `shape` (names of LlamaConfig; as many key as query heads), on a
    device, in a dtype.

    Raises ValueError if something of `shape` is not large enough, or if its head size is no
    multiple of the small one's.
    """
    config = wide_config(small.config, shape)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            wide = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    given = {name: tensor.to(device, torch.float32) for name, tensor in small.state_dict().items()}
    old = small.config
    norm = math.sqrt(old.hidden_size / config.hidden_size)
    for name, tensor in wide.state_dict().items():
        source = given.get(name)
        if name.endswith("norm.weight"):
            tensor.fill_(1.0)
            if source is not None:
                tensor[: len(source)] = (source * norm).to(dtype)
        elif source is None:  # a layer more: it adds nothing to the residual stream
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                tensor.zero_()
        elif name.endswith("_proj.weight") and ".self_attn." in name:
            _attention(name.split(".")[-2], tensor, source, old, config)
        elif name.endswith(("down_proj.weight", "embed_tokens.weight")):
            tensor.zero_()
            _place(tensor, source)
        else:  # gate, up, the head: what meets padding meets zeros
            _place(tensor, source)
    return wide.eval()


def wide_config(old: LlamaConfig, shape: dict[str, int]) -> LlamaConfig:
    """The configuration of the large model."""
    heads = shape["num_attention_heads"]
    config = LlamaConfig(
        **shape,
        num_key_value_heads=heads,
        vocab_size=old.vocab_size,
        max_position_embeddings=old.max_position_embeddings,
        rms_norm_eps=old.rms_norm_eps * old.hidden_size / shape["hidden_size"],
        rope_parameters=old.rope_parameters,
        tie_word_embeddings=False,
        bos_token_id=old.bos_token_id,
        eos_token_id=old.eos_token_id,
        pad_token_id=old.pad_token_id,
    )
    for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
        if shape[name] < getattr(old, name):
            raise ValueError(
                f"{name} {shape[name]} is below the small model's {getattr(old, name)}"
            )
    if _head_size(config) % _head_size(old):
        raise ValueError(
            f"head size {_head_size(config)} is no multiple of the small model's {_head_size(old)}"
        )
    return config


def _attention(kind: str, wide: Tensor, source: Tensor, old: Any, new: Any) -> None:
    """Fill one projection of a layer; wide: [heads * D, H] (o_proj: [H, heads * D])."""
    d, D, heads = _head_size(old), _head_size(new), old.num_attention_heads
    group = heads // old.num_key_value_heads
    step = D // d
    # Where each dimension of a small head goes: its rotary pair (i, i + d/2) to the pair (i step, i
    # step + D/2).
    low = torch.arange(d // 2, device=wide.device) * step
    turned = torch.cat([low, low + D // 2])
    plain = torch.arange(d, device=wide.device)
    if kind == "o_proj":
        source, wide = source.T, wide.T
        wide.zero_()
    for head in range(heads):
        rows = wide[head * D : (head + 1) * D]
        number = head if kind in ("q_proj", "o_proj") else head // group
        part = source[number * d : (number + 1) * d]
        if kind == "q_proj":
            rows.zero_()  # so a key's other dimensions meet zeros
            part = part * math.sqrt(D / d)
        where = turned if kind in ("q_proj", "k_proj") else plain
        rows[where, : part.shape[1]] = part.to(wide.dtype)


def _place(wide: Tensor, source: Tensor) -> None:
    wide[: source.shape[0], : source.shape[1]] = source.to(wide.dtype)


def _head_size(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--target", default="demo")
    parser.add_argument("--shape", choices=SHAPES, default="7b")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--output", type=Path, help="a folder to save the model and its tokenizer in"
    )
    args = parser.parse_args()
    small, tokenizer = load_target(args.target, torch.float32)
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    wide = widen(small, SHAPES[args.shape], device=device, dtype=dtype)
    ids = torch.tensor([tokenizer("The harbour council met on Tuesday to hear").input_ids])
    with torch.inference_mode():
        expected = small(ids).logits.float()
        found = wide(ids.to(device)).logits.float().cpu()
    print(
        f"{sum(p.numel() for p in wide.parameters()) / 1e9:.2f} billion parameters in {args.dtype}"
    )
    print(
        f"logits: largest {expected.abs().max():.1f}, largest difference {(found - expected).abs().max():.2g}"
    )
    print(
        f"same argmax at {(found.argmax(-1) == expected.argmax(-1)).float().mean():.0%} of {ids.shape[1]} positions"
    )
    if args.output is not None:
        wide.save_pretrained(args.output)
        tokenizer.save_pretrained(args.output)


if __name__ == "__main__":
    guard(main)
