"""Attention of captured passes: few queries, and a mask over all rows of a static cache.

transformers' models call it by the name of an attention implementation, which the config has only
during a pass of a captured step (and while it is captured). On a GPU the kernel of
models/attention_kernel.py does the work. What it cannot do, and passes over one token, which other
kernels divide among more programs, transformers' `sdpa` does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from dynasurge.models.attention_kernel import attention, usable

NAME = "dynasurge_tree"
# Where the kernel below does not serve; the fastest first for a mask that covers the whole cache.
OTHERS = [SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


@contextmanager
def static_attention(model: PreTrainedModel) -> Iterator[None]:
    """Inside, passes of the model use the fastest attention over a static cache. A model that has its
    own attention, or compares the implementation's name, keeps what it has."""
    config = model.config.get_text_config()
    changes = config._attn_implementation == "sdpa" and model._can_set_attn_implementation()
    try:
        if changes:  # the public setter would change the configs below, too
            config._attn_implementation_internal = NAME
        with sdpa_kernel(OTHERS, set_priority=True):
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
    if special or not usable(query, key, value, attention_mask):
        done: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **more
        )
        return done
    assert attention_mask is not None
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return attend(query, key, value, attention_mask, scale), None


AttentionInterface.register(NAME, tree_attention)


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
