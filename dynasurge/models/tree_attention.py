"""Attention of a tree, or of one token: few queries, and a mask over all rows of the cache that a
pass sees.

transformers' models call it by the name of an attention implementation, which the config has only
during a pass over a tree (and while one is captured). Grouped queries share a head of keys;
transformers' `sdpa` repeats keys and values for them if there is a mask. Here they become rows of
one head, on a CPU for `scaled_dot_product_attention`, in a captured pass on a GPU for the kernel of
models/attention_kernel.py. What these cannot do, `sdpa` does; on a CPU also passes over one token,
during which the config stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

from dynasurge.models.attention_kernel import attention, usable

NAME = "dynasurge_tree"
# In captured passes, where our kernel does not serve; the fastest first for a mask over a whole cache.
OTHERS = [SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


@contextmanager
def reading_trees(model: PreTrainedModel, *, captured: bool) -> Iterator[None]:
    """Inside, the model's passes use the fastest attention for trees. A model that has its own
    attention, or compares the implementation's name, keeps what it has."""
    config = model.config.get_text_config()
    changes = config._attn_implementation == "sdpa" and model._can_set_attn_implementation()
    changes = changes and (captured or model.device.type == "cpu")
    try:
        if changes:  # the public setter would change the configs below, too
            config._attn_implementation_internal = NAME
        with sdpa_kernel(OTHERS, set_priority=True) if captured else nullcontext():
            yield
    finally:
        if changes:
            config._attn_implementation_internal = "sdpa"


def tree_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **more: Any,
) -> tuple[torch.Tensor, None]:
    """An attention function of transformers: query [1, heads, n, d], key and value [1, key heads,
    rows, d], an additive mask [1, 1, n, rows]. Returns [1, n, heads, d]."""
    special = any(more.get(name) is not None for name in ("position_bias", "softcap", "cache"))
    if attention_mask is not None and not special:
        if usable(query, key, value, attention_mask):
            scale = query.shape[-1] ** -0.5 if scaling is None else scaling
            return attend(query, key, value, attention_mask, scale), None
        alone = len(query) == 1 and attention_mask.shape[:2] == (1, 1)
        if alone and query.device.type == "cpu" and key.shape[1] < query.shape[1]:
            return grouped(query, key, value, attention_mask, scaling), None
    done: tuple[torch.Tensor, None] = sdpa_attention_forward(
        module, query, key, value, attention_mask, scaling=scaling, **more
    )
    return done


def grouped(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    scaling: float | None,
) -> torch.Tensor:
    """Attention of grouped queries, see `tree_attention`: a group's heads one below the other."""
    _, heads, n, size = query.shape
    own = key.shape[1]
    lines = query.reshape(1, own, heads // own * n, size)
    mask = mask.repeat(1, 1, heads // own, 1)
    out = F.scaled_dot_product_attention(lines, key, value, attn_mask=mask, scale=scaling)
    return out.reshape(1, heads, n, -1).transpose(1, 2).contiguous()


AttentionInterface.register(NAME, tree_attention)
# for whoever calls the model from another thread meanwhile
AttentionMaskInterface.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])


@torch.library.custom_op("dynasurge::attend", mutates_args=())
def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, scale: float
) -> torch.Tensor:
    """The kernel's result, see `tree_attention`."""
    return attention(query[0], key[0], value[0], mask[0, 0], scale)[None]


@attend.register_fake
def _(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, scale: float
) -> torch.Tensor:
    _, heads, n, _ = query.shape
    return query.new_empty(1, n, heads, value.shape[-1])
