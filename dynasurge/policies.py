"""Child policies: how the children of one node are proposed.

A policy looks at the draft's distribution at a node and proposes up to k children in drawing order. It also says, for each
slot, the *value factors* that growth under a budget needs:

- `slot[j]`: the estimated probability that verification gets as far as testing child j. It uses earlier siblings only,
  never child j's own token when that token is random, which is what keeps choosing slots by value lossless (DESIGN 3).
- `node[j]`: the same times the estimated probability that child j is then accepted; it multiplies into the values below.

The estimate for sampled children is DySpec's (arXiv 2410.11744): a token is accepted about as often as the draft draws it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from dynasurge import sampling


@dataclass(frozen=True, kw_only=True)
class Children:
    """The proposed children of one node in drawing order, at most k of them.

    tokens[j]; proposal[j]: the probability the token was drawn with (1 for a point mass); slot[j], node[j]: see above,
    both relative to the parent's value; point: whether these children are point masses.
    """

    tokens: list[int]
    proposal: list[float]
    slot: list[float]
    node: list[float]
    point: bool


Policy = Callable[[torch.Tensor, int, torch.Generator], list[Children]]


def sampled(q: torch.Tensor, k: int, generator: torch.Generator) -> list[Children]:
    """k tokens without replacement from each row of q [m, V] (Sequoia, arXiv 2402.12374; DySpec)."""
    tokens = sampling.draw_distinct(q, k, generator)
    masses = q.gather(1, tokens.clamp(min=0)).tolist()
    out = []
    for row_tokens, row_masses in zip(tokens.tolist(), masses, strict=True):
        children = Children(tokens=[], proposal=[], slot=[], node=[], point=False)
        left, reach = 1.0, 1.0
        for token, mass in zip(row_tokens, row_masses, strict=True):
            if token < 0:
                break
            proposal = min(1.0, mass / left) if left > 0 else 1.0
            _append(children, token, proposal, slot=reach, node=reach * proposal)
            left -= mass
            reach *= 1.0 - proposal
        out.append(children)
    return out


def topk(q: torch.Tensor, k: int, generator: torch.Generator) -> list[Children]:
    """The k likeliest tokens of each row of q [m, V], as point masses (EAGLE-2, arXiv 2406.16858; OPT-Tree 2406.17276).

    Nothing is random here, so a slot's value may look at its own token. `generator` is not used.
    """
    values, tokens = q.topk(min(k, q.shape[-1]), dim=-1)
    out = []
    for row_tokens, row_values in zip(tokens.tolist(), values.tolist(), strict=True):
        children = Children(tokens=[], proposal=[], slot=[], node=[], point=True)
        for token, value in zip(row_tokens, row_values, strict=True):
            _append(children, token, 1.0, slot=value, node=value)
        out.append(children)
    return out


POLICIES: dict[str, Policy] = {"sampled": sampled, "topk": topk}


def _append(children: Children, token: int, proposal: float, *, slot: float, node: float) -> None:
    children.tokens.append(token)
    children.proposal.append(proposal)
    children.slot.append(slot)
    children.node.append(node)
