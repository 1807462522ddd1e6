"""Child policies: how the children of one node are proposed.

A policy looks at the draft's distribution at a node and proposes up to k children in drawing order. It also says, for each
slot, the *value factors* that growth under a budget needs:

- `slot[j]`: the estimated probability, given that the path reaches the node, that child j ends up on it. It never looks at
  child j's own token when that token is random, which keeps choosing slots by value lossless (docs/verification.md).
- `node[j]`: the same once child j's token is known; it multiplies into the values below it.

For point masses the estimate is the draft's own probability (OPT-Tree, arXiv 2406.17276). For sampled children that
estimate (DySpec, arXiv 2410.11744) is far from what is measured: a first child is accepted much more often than the draft
draws its token, later siblings much less and almost regardless of it. Mean acceptance on the demo pair, bundled prompts,
T = 0.6, by the probability c that the token had, given that all earlier siblings were rejected:

    c        < .02   .02-.05   .05-.1   .1-.2   .2-.4   .4-.7   > .7    all
    first     .30      .40      .47      .46     .51     .58    .84    .657
    second    .18      .20      .21      .16     .18     .22    .25    .206
    third     .10      .11      .13      .12     .14     .18    .22    .144

`acceptance` rounds that table; at T = 1 it looks much the same (first child .35 to .89, then .195, .134, .095, .068, .053).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from dynasurge import sampling

LATER_ACCEPTANCE = (0.20, 0.14, 0.09, 0.06, 0.05)  # second, third, ... child; the last one for all that follow


def acceptance(rank: int, proposal: float) -> float:
    """Estimated probability that a sampled child is accepted once its earlier siblings are rejected (table above)."""
    return 0.35 + 0.55 * proposal if rank == 0 else LATER_ACCEPTANCE[min(rank, len(LATER_ACCEPTANCE)) - 1]


@dataclass(frozen=True, kw_only=True)
class Children:
    """The proposed children of one node in drawing order, at most k of them.

    tokens[j]; proposal[j]: the probability the token was drawn with (1 for a point mass); slot[j], node[j]: see above,
    both relative to the parent's value; point[j]: whether the child is a point mass; base: float [V], the distribution
    that sampled children were drawn from, each without its earlier siblings.
    """

    base: torch.Tensor
    tokens: list[int] = field(default_factory=list)
    proposal: list[float] = field(default_factory=list)
    slot: list[float] = field(default_factory=list)
    node: list[float] = field(default_factory=list)
    point: list[bool] = field(default_factory=list)

    def add(self, token: int, *, proposal: float = 1.0, slot: float, node: float, point: bool) -> None:
        """Append a child behind its siblings."""
        self.tokens.append(token)
        self.proposal.append(proposal)
        self.slot.append(slot)
        self.node.append(node)
        self.point.append(point)


Policy = Callable[[torch.Tensor, Sequence[int], torch.Generator], list[Children]]


def sampled(q: torch.Tensor, widths: Sequence[int], generator: torch.Generator) -> list[Children]:
    """widths[i] tokens without replacement from row i of q [m, V] (Sequoia, arXiv 2402.12374; DySpec)."""
    tokens = sampling.draw_distinct(q, max(widths), generator)
    # The first token's mean probability: all that may be known of it before the draw.
    expected = (q * q).sum(-1, keepdim=True)
    drawn, masses, means = _read(tokens, q.gather(1, tokens.clamp(min=0)), expected)
    out = []
    for row, width, row_tokens, row_masses, (first,) in zip(q, widths, drawn, masses, means, strict=True):
        children, left, reach = Children(base=row), 1.0, 1.0
        for rank, (token, mass) in enumerate(zip(row_tokens[:width], row_masses, strict=False)):
            if token < 0:
                break
            proposal = min(1.0, mass / left) if left > 0 else 1.0
            slot, node = reach * acceptance(rank, first), reach * acceptance(rank, proposal)
            children.add(int(token), proposal=proposal, slot=slot, node=node, point=False)
            left -= mass
            reach -= node
        out.append(children)
    return out


def topk(q: torch.Tensor, widths: Sequence[int], generator: torch.Generator) -> list[Children]:
    """The widths[i] likeliest tokens of row i of q [m, V], as point masses (EAGLE-2, arXiv 2406.16858; OPT-Tree).

    Nothing is random here, so a slot's value may look at its own token. `generator` is not used.
    """
    best = q.topk(min(max(widths), q.shape[-1]), dim=-1)
    tokens, values = _read(best.indices, best.values)
    out = []
    for row, width, row_tokens, row_values in zip(q, widths, tokens, values, strict=True):
        children = Children(base=row)
        _add_points(children, row_tokens[:width], row_values)
        out.append(children)
    return out


def hybrid(q: torch.Tensor, widths: Sequence[int], generator: torch.Generator) -> list[Children]:
    """One token sampled outside the top widths[i] - 1 of row i, verified first, then those as point masses.

    At a single node topdown verification then accepts as much as any lossless rule can (bound.py; "greedy" drafting).
    """
    best = q.topk(min(max(widths) - 1, q.shape[-1]), dim=-1)
    ranks = torch.arange(best.indices.shape[1])
    outside = (ranks >= torch.tensor(widths)[:, None] - 1).to(q.device, non_blocking=True)
    base = q.scatter(1, best.indices, best.values * outside)  # without the points of each row
    drawn = sampling.draw_distinct(base, 1, generator)
    tokens, values, heads, masses, rests = _read(
        best.indices, best.values, drawn, base.gather(1, drawn.clamp(min=0)), base.sum(-1, keepdim=True)
    )
    out = []
    for row, width, row_tokens, row_values, (head,), (mass,), (rest,) in zip(
        base, widths, tokens, values, heads, masses, rests, strict=True
    ):
        children = Children(base=row)
        if head >= 0:
            # Verified before its siblings, so it must be worth a place before them (see drafting.py).
            slot = max(rest, *row_values[:1]) if width > 1 else rest
            children.add(int(head), proposal=mass / rest, slot=slot, node=rest, point=False)
        _add_points(children, row_tokens[: width - 1], row_values)
        out.append(children)
    return out


def _add_points(children: Children, tokens: Sequence[float], values: Sequence[float]) -> None:
    for token, value in zip(tokens, values, strict=False):
        if value > 0:
            children.add(int(token), slot=value, node=value, point=True)


def _read(*columns: torch.Tensor) -> list[list[list[float]]]:
    """Tensors [m, k_i] as nested lists, in one wait for the device. float64 holds token ids exactly."""
    packed = torch.cat([column.double() for column in columns], dim=1).tolist()
    out, start = [], 0
    for column in columns:
        end = start + column.shape[1]
        out.append([row[start:end] for row in packed])
        start = end
    return out


POLICIES: dict[str, Policy] = {"sampled": sampled, "topk": topk, "hybrid": hybrid}
