"""Distillation losses on full distributions, and the two numbers that judge a draft.

For one position with target p and draft q, both softmaxes at the same temperature, in float32:

    KL      = sum_x p(x) (log p(x) - log q(x))         forward KL: cover every token that the target may choose
    overlap = sum_x min(p(x), q(x)) = 1 - TV(p, q)     the probability that one sampled draft token is accepted

With u = draft logits / temperature, m(x) = [q(x) < p(x)] and M = sum_x q(x) m(x):

    dKL/du = q - p          d overlap/du = q (m - M)

With a vocabulary of 49,152, logits are by far the largest tensors. So ``DistillLoss`` never keeps
them. It works through the positions in chunks, computes loss *and* gradient for each chunk at once,
and keeps only hidden-sized gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["DistillLoss", "kl_divergence", "law_terms", "log_law", "overlap", "token_terms"]

LEAST = 0.02  # overlaps below count as this much where they divide


def overlap(p: Tensor, q: Tensor) -> Tensor:
    """sum_x min(p(x), q(x)) over the last dimension: the probability that a token drawn from q is
    accepted."""
    return torch.minimum(p, q).sum(-1)


def kl_divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) over the last dimension; terms with p = 0 count as 0."""
    return torch.where(p > 0, p * (p.clamp_min(1e-38).log() - q.clamp_min(1e-38).log()), 0.0).sum(
        -1
    )


def token_terms(
    target_logits: Tensor, draft_logits: Tensor, temperature: Tensor, *how: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Per position: KL [n], overlap [n], and the slope of kl_weight * KL + tv_weight * TV by draft
    logits [n, vocab]. lk: of minus the logarithm of the overlap in place of TV.

    Logits are [n, vocab], temperature is [n, 1], the weights are scalars. All arithmetic is in
    float32. The gradient has the logits' own dtype, because matrix products use it next. how:
    kl_weight, tv_weight, lk (False).
    """
    return law_terms(log_law(target_logits, temperature), draft_logits, temperature, *how)


def log_law(logits: Tensor, temperature: Tensor, ids: Tensor | None = None) -> Tensor:
    """log p [n, vocab] in float32; of ``ids`` only [n, count], whose sum then lacks the others."""
    log_p = torch.log_softmax(logits.float() / temperature, dim=-1)
    return log_p if ids is None else log_p[:, ids]


def law_terms(
    log_p: Tensor,
    draft_logits: Tensor,
    temperature: Tensor,
    kl_weight: Tensor,
    tv_weight: Tensor,
    lk: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """``token_terms`` from log p, of all tokens or of those that the draft knows. Of these, KL is
    the sum over the tokens that are known: only its slope has a meaning."""
    log_q = torch.log_softmax(draft_logits.float() / temperature, dim=-1)
    p, q = log_p.exp(), log_q.exp()
    kl = (p * (log_p - log_q)).sum(-1)
    below = q < p
    shared = torch.where(below, q, p).sum(-1)
    mass_below = torch.where(below, q, 0.0).sum(-1, keepdim=True)
    if lk:
        tv_weight = tv_weight / shared[:, None].clamp_min(LEAST)
    slope = kl_weight * (p.sum(-1, keepdim=True) * q - p) - tv_weight * q * (
        below.float() - mass_below
    )
    return kl, shared, (slope / temperature).to(draft_logits.dtype)


class DistillLoss(torch.autograd.Function):
    """kl_weight * mean KL + tv_weight * mean TV from hidden states, with logits in chunks.

    ``apply(draft_hidden [n, d], draft_head [vocab, d], target_hidden [n, D], target_head [vocab,
    D], temperature [n, 1], kl_weight, tv_weight, chunk, terms)`` returns (loss, mean KL, mean
    overlap). Only the loss carries a gradient, to the draft's hidden states and head. ``terms`` is
    ``token_terms`` or a compiled version of it.
    """

    @staticmethod
    def forward(
        ctx: Any,
        draft_hidden: Tensor,
        draft_head: Tensor,
        target_hidden: Tensor,
        target_head: Tensor,
        temperature: Tensor,
        kl_weight: Tensor,
        tv_weight: Tensor,
        chunk: int,
        terms: Callable[..., tuple[Tensor, Tensor, Tensor]],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute loss and gradients together, chunk by chunk."""
        count = draft_hidden.shape[0]
        head = draft_head.to(draft_hidden.dtype)
        hidden_grad = torch.empty_like(draft_hidden)
        head_grad = torch.zeros_like(draft_head, dtype=torch.float32)
        kl_sum = torch.zeros((), dtype=torch.float32, device=draft_hidden.device)
        overlap_sum = torch.zeros_like(kl_sum)
        for start in range(0, count, chunk):
            part = slice(start, min(start + chunk, count))
            kl, shared, slope = terms(
                target_hidden[part] @ target_head.T,
                draft_hidden[part] @ head.T,
                temperature[part],
                kl_weight,
                tv_weight,
            )
            hidden_grad[part] = slope @ head
            head_grad += (slope.T @ draft_hidden[part]).float()
            kl_sum += kl.sum()
            overlap_sum += shared.sum()
        ctx.save_for_backward(hidden_grad, head_grad)
        ctx.count, ctx.head_dtype = count, draft_head.dtype
        mean_kl, mean_overlap = kl_sum / count, overlap_sum / count
        ctx.mark_non_differentiable(mean_kl, mean_overlap)
        return kl_weight * mean_kl + tv_weight * (1 - mean_overlap), mean_kl, mean_overlap

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """Scale the gradients that ``forward`` computed."""
        hidden_grad, head_grad = ctx.saved_tensors
        scale = grads[0] / ctx.count
        return (
            (hidden_grad * scale).to(hidden_grad.dtype),
            (head_grad * scale).to(ctx.head_dtype),
        ) + (None,) * 7
