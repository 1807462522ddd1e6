"""Child policies: how the children of one node are proposed.

A policy looks at the draft's distributions at the nodes of one level and proposes children for each, in drawing order.
What they are worth is not its business (acceptance.py), only what they are:

- `sampled`: k tokens without replacement from q (Sequoia, arXiv 2402.12374; DySpec, arXiv 2410.11744);
- `topk`: the k likeliest tokens, each a point mass (EAGLE-2, arXiv 2406.16858; OPT-Tree, arXiv 2406.17276);
- `hybrid`: one token sampled outside the top k - 1, verified first, then those k - 1 as point masses. At a single node
  topdown verification then accepts as much as any lossless rule can (bound.py).

k may differ from node to node, but is settled before anything is drawn there: from the draft's distribution and what is
known of the node. A `Wish` says how: at most `k` children, and no points below `floor`, which no budget would pay for.
It may also name a token that followed here earlier in the text (lookup.py). That token becomes a point child behind one
sampled from the rest, as in `hybrid`, whatever the policy. Every policy reads the device once a level.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from dynasurge import sampling

POINTS = ("point", "echo", "lookup", "blind")


@dataclass(frozen=True, kw_only=True, slots=True)
class Wish:
    """What one node may have: at most k children, points only of tokens that the draft gives at least `floor`; `copy`:
    a token to propose besides, because it followed the last `match` tokens before."""

    k: int
    floor: float = 0.0
    copy: int | None = None
    match: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Child:
    """token; proposal: the probability it was drawn with (1 for a point); kind, x: see acceptance.py; own: what the
    draft says of it. `*_before` is what could be said before it was drawn, the same for points."""

    token: int
    proposal: float
    kind: str
    x: float
    x_before: float
    own: float
    own_before: float

    @property
    def point(self) -> bool:
        """Whether the token was chosen outright."""
        return self.kind in POINTS


@dataclass(frozen=True, kw_only=True)
class Children:
    """The proposed children of one node in drawing order, sampled ones first, and `base` [V], what those were drawn
    from, each without its earlier siblings (proportional to a distribution)."""

    base: torch.Tensor
    members: list[Child] = field(default_factory=list)

    @property
    def tokens(self) -> list[int]:
        return [child.token for child in self.members]

    @property
    def proposal(self) -> list[float]:
        return [child.proposal for child in self.members]

    @property
    def point(self) -> list[bool]:
        return [child.point for child in self.members]


AGREES = 0.1  # a copied token that the draft gives at least this is an `echo`, else a `lookup`
LONG = 8  # tokens that must match before a copy is proposed that the draft disagrees with
Policy = Callable[[torch.Tensor, Sequence[Wish], torch.Generator], list[Children]]


def sampled(q: torch.Tensor, wishes: Sequence[Wish], generator: torch.Generator) -> list[Children]:
    """wishes[i].k tokens without replacement from row i of q [m, V], only one where there is a copy. Floors do not
    apply."""
    base, held = _copies(q, wishes)
    tokens = sampling.draw_distinct(base, max(wish.k for wish in wishes), generator)
    # The first token's mean probability: all that may be known of it before the draw.
    expected = (base * base).sum(-1, keepdim=True)
    columns = _read(tokens, base.gather(1, tokens.clamp(min=0)), expected, held)
    out = []
    for row, wish, row_tokens, row_masses, (mean,), (copied_mass,) in zip(base, wishes, *columns, strict=True):
        children, left = Children(base=row), 1.0 - max(0.0, copied_mass)
        if wish.copy is not None and copied_mass >= 0:
            if row_tokens[0] >= 0:
                rest = max(
                    left, row_masses[0]
                )  # where the copy has nearly all mass, rounding may leave less than there is
                children.members.append(_settled(int(row_tokens[0]), row_masses[0] / rest, "tail", rest))
            _add_copy(children, wish, copied_mass)
            out.append(children)
            continue
        for rank, (token, mass) in enumerate(zip(row_tokens[: wish.k], row_masses, strict=False)):
            if token < 0:
                break
            proposal = min(1.0, mass / left) if left > 0 else 1.0
            if rank == 0:
                known: dict[str, Any] = {"kind": "first", "x": proposal, "x_before": mean, "own_before": mean}
            else:
                known = {"kind": "later", "x": float(rank), "x_before": float(rank), "own_before": 1.0}
            children.members.append(Child(token=int(token), proposal=proposal, own=proposal, **known))
            left -= mass
        out.append(children)
    return out


def topk(q: torch.Tensor, wishes: Sequence[Wish], generator: torch.Generator) -> list[Children]:
    """The wishes[i].k likeliest tokens of row i of q [m, V], as points. Nothing is random; `generator` is not used."""
    base, held = _copies(q, wishes)
    best = base.topk(min(max(wish.k for wish in wishes), q.shape[-1]), dim=-1)
    out = []
    columns = _read(best.indices, best.values, held)
    for row, wish, row_tokens, row_values, (copied_mass,) in zip(q, wishes, *columns, strict=True):
        children = Children(base=row)
        _add_points(children, row_tokens[: wish.k], row_values, wish.floor)
        _add_copy(children, wish, copied_mass)
        out.append(children)
    return out


def hybrid(q: torch.Tensor, wishes: Sequence[Wish], generator: torch.Generator) -> list[Children]:
    """Row i of q [m, V]: the top wishes[i].k - 1 tokens that reach the floor, as points, behind one from the rest."""
    base, held = _copies(q, wishes)
    best = base.topk(min(max(wish.k for wish in wishes) - 1, q.shape[-1]), dim=-1)
    limits = torch.tensor([[wish.k - 1, wish.floor] for wish in wishes], dtype=torch.float64)
    limits = limits.to(q.device, non_blocking=True)
    outside = (torch.arange(best.indices.shape[1], device=q.device) >= limits[:, :1]) | (best.values < limits[:, 1:])
    base = base.scatter(1, best.indices, best.values * outside)  # without the points of each row
    drawn = sampling.draw_distinct(base, 1, generator)
    columns = _read(
        best.indices,
        best.values.masked_fill(outside, 0.0),
        drawn,
        base.gather(1, drawn.clamp(min=0)),
        base.sum(-1, keepdim=True),
        held,
    )
    out = []
    for row, wish, row_tokens, row_values, (head,), (mass,), (rest,), (copied_mass,) in zip(
        base, wishes, *columns, strict=True
    ):
        children = Children(base=row)
        if head >= 0:
            children.members.append(_settled(int(head), min(1.0, mass / rest), "tail", rest))
        _add_points(children, row_tokens, row_values)
        _add_copy(children, wish, copied_mass)
        out.append(children)
    return out


POLICIES: dict[str, Policy] = {"sampled": sampled, "topk": topk, "hybrid": hybrid}


def _add_points(children: Children, tokens: Sequence[float], values: Sequence[float], floor: float = 0.0) -> None:
    for token, value in zip(tokens, values, strict=False):
        if value > 0 and value >= floor:
            children.members.append(_settled(int(token), 1.0, "point", value))


def _add_copy(children: Children, wish: Wish, own: float) -> None:
    """The wish's copy, if it has one that is worth proposing (see `_copies`: own is -1 where not)."""
    if wish.copy is not None and own >= 0:
        children.members.append(copied(wish.copy, wish.match, own))


def _settled(token: int, proposal: float, kind: str, x: float) -> Child:
    """A child whose worth does not depend on what its token turned out to be."""
    return Child(token=token, proposal=proposal, kind=kind, x=x, x_before=x, own=x, own_before=x)


def copied(token: int, match: float, own: float | None) -> Child:
    """A point child copied from the text. own: what the draft gives it, None if it was not asked."""
    kind = "blind" if own is None else "echo" if own >= AGREES else "lookup"
    own = own or 0.0
    return Child(token=token, proposal=1.0, kind=kind, x=match, x_before=match, own=own, own_before=own)


def _copies(q: torch.Tensor, wishes: Sequence[Wish]) -> tuple[torch.Tensor, torch.Tensor]:
    """q without the copies that are worth proposing, [m, V], and what each of those had, [m, 1], -1 for none.

    A copy that the draft hardly thinks of is worth it only after a long match: accepted 2-10% of the time otherwise.
    """
    none = q.new_full((len(q), 1), -1.0)
    if all(wish.copy is None for wish in wishes):
        return q, none
    numbers = torch.tensor([[wish.copy or 0, int(wish.match if wish.copy is not None else 0)] for wish in wishes])
    token, match = numbers.to(q.device, non_blocking=True).split(1, dim=1)
    mass = q.gather(1, token)
    good = ((mass >= AGREES) & (match > 0)) | (match >= LONG)
    return q.scatter(1, token, torch.where(good, 0.0, mass)), torch.where(good, mass, none)


def _read(*columns: torch.Tensor) -> list[list[list[float]]]:
    """Tensors [m, k_i] as nested lists, in one wait for the device. float64 holds token ids exactly."""
    packed = torch.cat([column.double() for column in columns], dim=1).tolist()
    out, start = [], 0
    for column in columns:
        end = start + column.shape[1]
        out.append([row[start:end] for row in packed])
        start = end
    return out
