"""A feature draft read plainly: one token after the other, by the formulas of the paper, with lists
for a cache and loops for heads. It shares no code with the package."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.pow(2).mean() + eps).sqrt() * weight


def turned(x: Tensor, position: int, theta: float) -> Tensor:
    """One head's vector, each pair (i, i + half) turned by its angle."""
    half = len(x) // 2
    out = torch.empty_like(x)
    for i in range(half):
        angle = position * theta ** (-2 * i / len(x))
        cos, sin = math.cos(angle), math.sin(angle)
        out[i] = x[i] * cos - x[i + half] * sin
        out[i + half] = x[i + half] * cos + x[i] * sin
    return out


def features_of(target: Any, tokens: list[int], taps: list[int]) -> Tensor:
    """The residual stream after `taps` layers (fewer than all), side by side, by token."""
    states = target(torch.tensor([tokens]), output_hidden_states=True).hidden_states
    return torch.cat([states[tap][0] for tap in taps], dim=-1)


class PlainDraft:
    """Reads a text, then a path below its last token."""

    def __init__(self, draft: Any, target: Any) -> None:
        self.w = {name: value.detach() for name, value in draft.named_parameters()}
        self.config, self.target = draft.config, target
        self.ids = draft.ids
        self.size = draft.config.hidden_size // draft.config.num_attention_heads

    @torch.no_grad()
    def logits(self, text: list[int], path: list[int]) -> Tensor:
        """After the last token of text + path. The target has scored text[:-1]."""
        config = self.config
        known = features_of(self.target, text, list(config.taps))[: len(text) - 1]
        if config.norm_taps:
            taps = known.unflatten(-1, (-1, config.hidden_size))
            eps = config.rms_norm_eps
            known = (taps / (taps.pow(2).mean(-1, keepdim=True) + eps).sqrt()).flatten(-2)
        cache: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(config.num_hidden_layers)]
        if config.inject:
            for place, feature in enumerate(known):
                for number, rows in enumerate(cache):
                    rows.append(self._past(number, feature, place))
        zeros = torch.zeros_like(self.w["fc.weight"][0])  # the first token has no feature before it
        last = len(text) - 1
        for place in [last] if config.inject or not last else range(1, len(text)):
            before = known[place - 1] if place else zeros
            carried = self._read(text[place], self.w["fc.weight"] @ before, place, cache)
        for depth, token in enumerate(path):
            carried = carried if config.carry else torch.zeros_like(carried)
            carried = self._read(token, carried, len(text) + depth, cache)
        out = norm(carried, self.w["norm.weight"], config.rms_norm_eps)
        if "lm_head.weight" not in self.w:
            return self.target.get_output_embeddings().weight @ out
        logits = self.w["lm_head.weight"] @ out
        if self.ids is None:
            return logits
        return logits.new_full((config.vocab_size,), -torch.inf).scatter(0, self.ids, logits)

    def _past(self, number: int, feature: Tensor, place: int) -> tuple[Tensor, Tensor]:
        k, v = (self.w[f"layers.{number}.past_{name}.weight"] @ feature for name in "kv")
        theta = self.config.rope_parameters["rope_theta"]
        return torch.stack(
            [turned(part, place, theta) for part in k.split(self.size)]
        ), torch.stack(v.split(self.size))

    def _read(
        self, token: int, carried: Tensor, place: int, cache: list[list[tuple[Tensor, Tensor]]]
    ) -> Tensor:
        config, eps = self.config, self.config.rms_norm_eps
        embedded = self.target.get_input_embeddings().weight[token].detach()
        if config.residual_embedding:
            carried = carried + self.w["embedding_fc.weight"] @ embedded
        theta, heads = config.rope_parameters["rope_theta"], config.num_attention_heads
        group = heads // config.num_key_value_heads
        for number, rows in enumerate(cache):
            at = f"layers.{number}."
            read = norm(
                embedded if number == 0 else carried, self.w[at + "input_layernorm.weight"], eps
            )
            if number == 0:
                read = torch.cat([read, norm(carried, self.w[at + "hidden_norm.weight"], eps)])
            q, k, v = (self.w[f"{at}self_attn.{name}_proj.weight"] @ read for name in "qkv")
            k = torch.stack([turned(part, place, theta) for part in k.split(self.size)])
            rows.append((k, torch.stack(v.split(self.size))))
            out = []
            for head, part in enumerate(q.split(self.size)):
                own = turned(part, place, theta)
                scores = torch.stack([own @ k[head // group] for k, _ in rows])
                weights = torch.softmax(scores / math.sqrt(self.size), 0)
                out.append(
                    sum(w * v[head // group] for w, (_, v) in zip(weights, rows, strict=True))
                )
            carried = carried + self.w[at + "self_attn.o_proj.weight"] @ torch.cat(out)
            normed = norm(carried, self.w[at + "post_attention_layernorm.weight"], eps)
            gate, up = (self.w[f"{at}mlp.{name}_proj.weight"] @ normed for name in ("gate", "up"))
            carried = carried + self.w[at + "mlp.down_proj.weight"] @ (gate * gate.sigmoid() * up)
        return carried
