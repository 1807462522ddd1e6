"""A draft that reads the target's hidden states: the EAGLE-3 form, and this project's.

When the target scores a token, it leaves its residual stream after some layers, the *taps*. Side by
side they are the token's feature f. A feature draft continues a text x_0 .. x_s, of which the target
has scored all but x_s:

    carried = fc(f_{s-1})                                      at the text's last token, the root
    carried = the output at the token's parent                 at the nodes of a tree below it
    layer 1: attention reads [norm(embedding of x); norm(carried)], and adds to carried; then an MLP
    logits  = head(norm(carried after the last layer))

Earlier tokens of the text are known by keys and values. In the EAGLE-3 form (arXiv 2503.01840, one
layer) these are the draft's own: it reads each token x_i of the text with f_{i-1}. With `inject`
they are made from f_i directly, at all layers, which costs no pass of the draft, and sees the
token's own feature.

The embedding is the target's. The head is the checkpoint's own, perhaps over a reduced vocabulary
(`d2t`: target id = draft id + d2t[draft id]; other tokens are never proposed), or the target's.

Published checkpoints hold `fc`, `midlayer.*`, `norm`, `lm_head`, `d2t`, `t2d`; names and formulas as
in the authors' code (github.com/SafeAILab/EAGLE, eagle/model/cnets.py), configs also as SpecForge
writes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import LlamaConfig, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaMLP,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
    rotate_half,
)

KEYS = {r"^midlayer\.": "layers.0."}  # published names, and ours
IGNORED = (r"embed_tokens\.weight", r"t2d")  # the target's own; the inverse of d2t


class FeatureDraftConfig(LlamaConfig):  # type: ignore[misc]
    """Sizes of a feature draft. taps: after how many of the target's layers its residual stream is
    read. target_hidden_size: the stream's width; None: the draft's own. draft_vocab_size: how many
    tokens the head knows; None: all. own_head: whether the checkpoint has a head. inject, see above.
    residual_embedding: whether the embedding is added to `carried`. norm_taps: whether each tap is
    divided by its root mean square. carry: whether nodes read what their parents carried; else they
    read zeros. norm_before_residual: whether attention adds to norm(carried)
    instead."""

    model_type = "feature_draft"
    taps: list[int] | tuple[int, ...] = ()
    target_hidden_size: int | None = None
    draft_vocab_size: int | None = None
    own_head: bool = True
    inject: bool = False
    residual_embedding: bool = False
    norm_taps: bool = False
    carry: bool = True
    norm_before_residual: bool = False

    @property
    def tap_width(self) -> int:
        """The width of one tap."""
        return self.target_hidden_size or int(self.hidden_size)


def published_config(entries: Mapping[str, Any], target_layers: int) -> FeatureDraftConfig | None:
    """The config of a checkpoint's config.json; None if it is no feature draft. Raises ValueError
    for one of a form that is not read here.

    Without layer numbers the taps are those of the EAGLE-3 authors: after 2 layers, half of them,
    and all but 3. `eagle_aux_hidden_state_layer_ids` numbers layers from 0, whose outputs are read.
    """
    names = " ".join(entries.get("architectures") or [])
    if entries.get("model_type") == FeatureDraftConfig.model_type:
        return FeatureDraftConfig(**entries)
    if "speculators" in str(entries.get("speculators_model_type", names)).lower() or (
        "Speculator" in names
    ):
        raise ValueError("is in the format of speculators, give the checkpoint it was made from")
    if "eagle3" not in names.lower() and "draft_vocab_size" not in entries:
        return None
    own = dict(entries)
    ids = (own.get("eagle_config") or {}).get("eagle_aux_hidden_state_layer_ids")
    taps = [number + 1 for number in ids] if ids else [2, target_layers // 2, target_layers - 3]
    for name in ("model_type", "architectures", "auto_map", "eagle_config", "dtype", "torch_dtype"):
        own.pop(name, None)
    if own.get("num_hidden_layers", 1) != 1:
        raise ValueError(f"has {own['num_hidden_layers']} layers, an EAGLE-3 draft has one")
    return FeatureDraftConfig(**own, taps=taps)


class FeatureLayer(nn.Module):
    """One layer. The first reads [embedding; carried], the others read what they add to."""

    def __init__(self, config: FeatureDraftConfig, number: int) -> None:
        super().__init__()
        hidden, first = config.hidden_size, number == 0
        self.self_attn = LlamaAttention(config, number)
        self.input_layernorm = LlamaRMSNorm(hidden, eps=config.rms_norm_eps)
        self.post_attention_layernorm = LlamaRMSNorm(hidden, eps=config.rms_norm_eps)
        self.mlp = LlamaMLP(config)
        self.hidden_norm = LlamaRMSNorm(hidden, eps=config.rms_norm_eps) if first else None
        self._before = config.norm_before_residual
        attention, bias = self.self_attn, config.attention_bias
        if first:
            for name in ("q_proj", "k_proj", "v_proj"):
                rows = getattr(attention, name).out_features
                setattr(attention, name, nn.Linear(2 * hidden, rows, bias=bias))
        if config.inject:
            width = len(config.taps) * config.tap_width
            keys = attention.k_proj.out_features
            self.past_k = nn.Linear(width, keys, bias=False)
            self.past_v = nn.Linear(width, keys, bias=False)

    def forward(self, carried: torch.Tensor, embedded: torch.Tensor, **how: Any) -> torch.Tensor:
        """carried, embedded: [1, n, hidden]. Returns `carried` after this layer."""
        residual = carried
        if self.hidden_norm is not None:
            normed = self.hidden_norm(carried)
            residual = normed if self._before else carried
            read = torch.cat([self.input_layernorm(embedded), normed], dim=-1)
        else:
            read = self.input_layernorm(carried)
        carried = residual + self.self_attn(read, **how)[0]
        out: torch.Tensor = carried + self.mlp(self.post_attention_layernorm(carried))
        return out


@dataclass
class Drafted:
    """logits [1, n, V] over the target's vocabulary, and `carried` [1, n, hidden]."""

    logits: torch.Tensor
    carried: torch.Tensor


class FeatureDraft(PreTrainedModel):  # type: ignore[misc]
    """The draft's weights. `attach` gives it the target's embedding, and head if it has none."""

    config_class = FeatureDraftConfig
    _supports_sdpa = True
    _keys_to_ignore_on_load_unexpected = [*IGNORED]  # type: ignore[misc]  # noqa: RUF012

    def __init__(self, config: FeatureDraftConfig) -> None:
        super().__init__(config)
        hidden, width = config.hidden_size, len(config.taps) * config.tap_width
        self.fc = nn.Linear(width, hidden, bias=False)
        self.embedding_fc = (
            nn.Linear(hidden, hidden, bias=False) if config.residual_embedding else None
        )
        count = config.num_hidden_layers
        self.layers = nn.ModuleList(FeatureLayer(config, number) for number in range(count))
        self.norm = LlamaRMSNorm(hidden, eps=config.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(config)
        reduced = config.draft_vocab_size not in (None, config.vocab_size)
        size = config.draft_vocab_size or config.vocab_size
        if reduced:
            self.register_buffer("d2t", torch.zeros(size, dtype=torch.int64))
        self.lm_head = nn.Linear(hidden, size, bias=False) if config.own_head else None
        # the target's parts, not this model's: a tuple is no submodule
        self._lent: tuple[nn.Module, nn.Module] | None = None
        self.post_init()  # type: ignore[no-untyped-call]

    @property
    def ids(self) -> torch.Tensor | None:
        """The target's ids of the head's tokens, int64 [draft vocabulary]; None: all tokens."""
        d2t: torch.Tensor | None = getattr(self, "d2t", None)
        return None if d2t is None else d2t + torch.arange(len(d2t), device=d2t.device)

    def attach(self, target: PreTrainedModel) -> None:
        """Take the target's embedding and, if this draft has none, its head; both models are where
        they stay. A widened demo target (models/widened.py) has them in the first columns."""
        embedding, head = target.get_input_embeddings(), target.get_output_embeddings()
        hidden, ids = self.config.hidden_size, self.ids
        if self.lm_head is not None:
            head = self.lm_head
        elif ids is not None or head.in_features != hidden or head.weight.device != self.device:
            rows = head.weight if ids is None else head.weight[ids.to(head.weight.device)]
            own = rows[:, :hidden].detach().to(self.device, copy=True)
            head = self.head_rows = nn.Linear(hidden, len(own), bias=False, device="meta")
            head.weight = nn.Parameter(own, requires_grad=False)
        self._lent = (embedding, head)

    def forward(
        self,
        input_ids: torch.Tensor,
        features: torch.Tensor | None = None,
        own: bool = False,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool = True,
        logits_to_keep: int = 0,
    ) -> Drafted:
        """input_ids, position_ids: int64 [1, n]. features: [1, n, taps * width] of the target, or,
        if `own`, [1, n, hidden] carried from parents; None: zeros. logits_to_keep: logits of the
        last tokens only; 0: all."""
        assert self._lent is not None, "attach the target first"
        embedding, head = self._lent
        embedded = embedding(input_ids)[..., : self.config.hidden_size].to(self.fc.weight.dtype)
        if features is None:
            features = embedded.new_zeros(*input_ids.shape, self.fc.in_features)
        carried = features if own else self.fc(self.normed(features))
        if own and not self.config.carry:
            carried = torch.zeros_like(features)
        if self.embedding_fc is not None:
            carried = carried + self.embedding_fc(embedded)
        how = {
            "position_embeddings": self.rotary_emb(carried, position_ids),
            "attention_mask": attention_mask,
            "past_key_values": past_key_values,
        }
        for layer in self.layers:
            carried = layer(carried, embedded, **how)
        logits, ids = head(self.norm(carried[:, -logits_to_keep:])), self.ids
        if ids is not None:
            wide = logits.new_full((*logits.shape[:-1], self.config.vocab_size), -torch.inf)
            logits = wide.index_copy(-1, ids, logits)
        return Drafted(logits=logits, carried=carried)

    def inject(
        self, features: torch.Tensor, position_ids: torch.Tensor, past_key_values: Cache
    ) -> None:
        """Write keys and values of tokens of the text, from their own features [1, n, taps *
        width]."""
        features = self.normed(features)
        cos, sin = self.rotary_emb(features, position_ids)
        layers: Any = self.layers
        for number, layer in enumerate(layers):
            shape = (*features.shape[:-1], -1, layer.self_attn.head_dim)
            k = layer.past_k(features).view(shape).transpose(1, 2)
            v = layer.past_v(features).view(shape).transpose(1, 2)
            k = k * cos[:, None] + rotate_half(k) * sin[:, None]
            past_key_values.update(k, v, number)

    def normed(self, features: torch.Tensor) -> torch.Tensor:
        """Features as `fc` reads them."""
        if not self.config.norm_taps:
            return features
        width = self.config.tap_width
        taps = features.unflatten(-1, (-1, width))
        return (
            F.rms_norm(taps.float(), (width,), eps=self.config.rms_norm_eps)
            .to(features.dtype)
            .flatten(-2)
        )
