"""Child policies: how the children of one node are proposed.

A policy reads the draft's distributions at the nodes of one level. It proposes children for each
node, in drawing order. It does not value them (drafting/acceptance_estimates.py does).

- `sampled`: k tokens without replacement from q (Sequoia, arXiv 2402.12374; DySpec, arXiv
  2410.11744);
- `topk`: the k likeliest tokens, each a point mass (EAGLE-2, arXiv 2406.16858; OPT-Tree, arXiv
  2406.17276);
- `hybrid`: one token sampled outside the top k - 1, verified first, then those k - 1 as point
  masses. At a single node topdown verification then accepts as much as any lossless rule can
  (verification/single_node_bound.py).

k may differ from node to node. It is chosen before anything is drawn at the node, from the draft's
distribution and what is known of the node. A `Wish` holds it: at most `k` children, and no points
below `floor`, which no budget would pay for.

A wish may also name a token that followed here earlier in the text (drafting/prompt_lookup.py).
That token becomes a point child after one child sampled from the rest, as in `hybrid`. With
`sampled` this happens only if the draft is unlikely to propose the token. If the draft agrees with
the copy, a sampled first child is accepted more often, and needs no node before it. (Measured at
one node, T = 0.6, 195 copies: a sampled child 0.82 of the time, a copy after one from the rest
0.77. Two children of either kind differ less: 0.89 and 0.92.) Every policy reads the device once a
level.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from dynasurge.drafting.child_kinds import Kind
from dynasurge.probabilities import Chance


@dataclass(frozen=True, kw_only=True, slots=True)
class Wish:
    """What one node may have: at most k children, and points only of tokens with draft probability
    of at least `floor`. copy: a token to propose in addition, because it followed the last `match`
    tokens earlier in the text."""

    k: int
    floor: float = 0.0
    copy: int | None = None
    match: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Child:
    """One proposed child. proposal: the probability of its draw (1 for a point). kind, x: see
    drafting/child_kinds.py. own: the draft's own estimate of it. `*_before`: the same value as
    known before the draw; equal for points."""

    token: int
    proposal: float
    kind: Kind
    x: float
    x_before: float
    own: float
    own_before: float

    @property
    def point(self) -> bool:
        """Whether the token was chosen without a draw."""
        return self.kind.point


@dataclass(frozen=True, kw_only=True)
class Children:
    """The proposed children of one node in drawing order, sampled ones first. base [V]: what those
    were drawn from, each without its earlier siblings (proportional to a distribution)."""

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


AGREES = 0.1  # a copy with at least this draft probability is an `echo`, otherwise a `lookup`
LONG = 8  # tokens that must match before a copy is proposed although the draft disagrees
Policy = Callable[[torch.Tensor, Sequence[Wish], Chance], list[Children]]


def sampled(q: torch.Tensor, wishes: Sequence[Wish], chance: Chance) -> list[Children]:
    """Sample wishes[i].k tokens without replacement from row i of q [m, V]; only one if the row has
    a copy. Floors do not apply."""
    k = max(wish.k for wish in wishes)
    base, packed = _sampled(q, _notes(q, wishes), chance, _any_copy(wishes), k)
    out = []
    for row, wish, (left, squares, copied_mass, *drawn) in zip(
        base, wishes, packed.tolist(), strict=True
    ):
        children, half = Children(base=row), len(drawn) // 2
        tokens, masses = drawn[:half], drawn[half:]
        if wish.copy is not None and copied_mass >= 0:
            if tokens[0] >= 0:
                children.members.append(
                    _foreseen(int(tokens[0]), min(1.0, masses[0] / left), Kind.TAIL, left)
                )
            _add_copy(children, wish, copied_mass)
            out.append(children)
            continue
        for rank, (token, mass) in enumerate(zip(tokens[: wish.k], masses, strict=False)):
            if token < 0:
                break
            drawn_with = min(1.0, mass / left) if left > 0 else 1.0
            mean = (
                min(max(squares / (left * left), 0.0), 1.0) if left > 0 else 1.0
            )  # what is known before the draw
            children.members.append(
                Child(
                    token=int(token),
                    proposal=drawn_with,
                    kind=Kind.sampled(rank),
                    x=drawn_with,
                    x_before=mean,
                    own=drawn_with,
                    own_before=mean
                    if rank == 0
                    else 1.0,  # DySpec's rule: a later slot is valued by what elder ones leave
                )
            )
            left, squares = left - mass, squares - mass * mass
        out.append(children)
    return out


def _sampled(
    q: torch.Tensor, notes: torch.Tensor, chance: Chance, copies: bool, k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    base, held = _set_apart(q, notes, copies, echoes=False)
    tokens = chance.draw(base, k)
    exact = base.double()  # little mass may be left after likely siblings
    total, squares = exact.sum(-1, keepdim=True), exact.square().sum(-1, keepdim=True)
    return base, _pack(total, squares, held, tokens, base.gather(1, tokens.clamp(min=0)))


def topk(q: torch.Tensor, wishes: Sequence[Wish], chance: Chance) -> list[Children]:
    """Take the wishes[i].k likeliest tokens of row i of q [m, V], as points. Nothing is random;
    `chance` is not used."""
    packed = _topk(q, _notes(q, wishes), _any_copy(wishes), max(wish.k for wish in wishes))
    out = []
    for row, wish, (copied_mass, *best) in zip(q, wishes, packed.tolist(), strict=True):
        children, half = Children(base=row), len(best) // 2
        _add_points(children, best[: min(half, wish.k)], best[half:], wish.floor)
        _add_copy(children, wish, copied_mass)
        out.append(children)
    return out


def _topk(q: torch.Tensor, notes: torch.Tensor, copies: bool, k: int) -> torch.Tensor:
    base, held = _set_apart(q, notes, copies)
    best = base.topk(min(k, q.shape[-1]), dim=-1)
    return _pack(held, best.indices, best.values)


def hybrid(q: torch.Tensor, wishes: Sequence[Wish], chance: Chance) -> list[Children]:
    """Sample one token from the rest of row i of q [m, V], then take as points the top wishes[i].k
    - 1 tokens that reach the floor."""
    k = max(wish.k for wish in wishes)
    base, packed = _hybrid(q, _notes(q, wishes), chance, _any_copy(wishes), k)
    out = []
    for row, wish, (copied_mass, head, mass, rest, *best) in zip(
        base, wishes, packed.tolist(), strict=True
    ):
        children, half = Children(base=row), len(best) // 2
        if head >= 0:
            children.members.append(_foreseen(int(head), min(1.0, mass / rest), Kind.TAIL, rest))
        _add_points(children, best[:half], best[half:])
        _add_copy(children, wish, copied_mass)
        out.append(children)
    return out


def _hybrid(
    q: torch.Tensor, notes: torch.Tensor, chance: Chance, copies: bool, k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    base, held = _set_apart(q, notes, copies)
    best = base.topk(min(k - 1, q.shape[-1]), dim=-1)
    places, floors = notes[:, :1] - 1, notes[:, 1:2]
    outside = (torch.arange(best.indices.shape[1], device=q.device) >= places) | (
        best.values < floors
    )
    base = base.scatter(1, best.indices, best.values * outside)  # set the points of each row to 0
    drawn = chance.draw(base, 1)
    mass = base.gather(1, drawn.clamp(min=0))
    return base, _pack(
        held,
        drawn,
        mass,
        base.sum(-1, keepdim=True),
        best.indices,
        best.values.masked_fill(outside, 0.0),
    )


POLICIES: dict[str, Policy] = {"sampled": sampled, "topk": topk, "hybrid": hybrid}


def _add_points(
    children: Children, tokens: Sequence[float], values: Sequence[float], floor: float = 0.0
) -> None:
    for token, value in zip(tokens, values, strict=False):
        if value > 0 and value >= floor:
            children.members.append(_foreseen(int(token), 1.0, Kind.POINT, value))


def _add_copy(children: Children, wish: Wish, own: float) -> None:
    """Add the wish's copy if it is worth proposing (`_set_apart` gives own = -1 if not)."""
    if wish.copy is not None and own >= 0:
        children.members.append(copied(wish.copy, wish.match, own))


def _foreseen(token: int, proposal: float, kind: Kind, x: float) -> Child:
    """A child whose value does not depend on its token."""
    return Child(token=token, proposal=proposal, kind=kind, x=x, x_before=x, own=x, own_before=x)


def copied(token: int, match: float, own: float | None) -> Child:
    """A point child copied from the text. own: the draft's probability of it; None if the draft has
    not read the parent."""
    kind = Kind.BLIND if own is None else Kind.ECHO if own >= AGREES else Kind.LOOKUP
    own = own or 0.0
    return Child(
        token=token, proposal=1.0, kind=kind, x=match, x_before=match, own=own, own_before=own
    )


def _notes(q: torch.Tensor, wishes: Sequence[Wish]) -> torch.Tensor:
    """The wishes as float64 [m, 4] on q's device: k, floor, the copy's token and its match (0 for
    no copy)."""
    rows = [
        (wish.k, wish.floor, *((0, 0.0) if wish.copy is None else (wish.copy, int(wish.match))))
        for wish in wishes
    ]
    return torch.tensor(rows, dtype=torch.float64).to(q.device, non_blocking=True)


def _any_copy(wishes: Sequence[Wish]) -> bool:
    return any(wish.copy is not None for wish in wishes)


def _set_apart(
    q: torch.Tensor, notes: torch.Tensor, copies: bool, *, echoes: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """q [m, V] without the copies that are worth proposing, and the mass of each, [m, 1], -1 for
    none. echoes: whether copies that the draft agrees with are worth proposing."""
    none = q.new_full((len(q), 1), -1.0)
    if not copies:
        return q, none
    token, match = notes[:, 2:3].long(), notes[:, 3:]
    mass = q.gather(1, token)
    good = worth_copying(mass, match, echoes=echoes)
    return q.scatter(1, token, torch.where(good, 0.0, mass)), torch.where(good, mass, none)


def worth_copying(held: torch.Tensor, match: torch.Tensor, *, echoes: bool) -> torch.Tensor:
    """Which copies are worth proposing, by their draft probability `held` and the length of their
    match (0: none).

    If the draft finds a copy unlikely, only a long match is worth it: others are accepted 2-10% of
    the time.
    """
    return torch.where(held >= AGREES, (match > 0) & echoes, match >= LONG)


def _pack(*columns: torch.Tensor) -> torch.Tensor:
    """Put tensors [m, k_i] side by side, so that the host waits once for the device. float64 holds
    token ids exactly."""
    return torch.cat([column.double() for column in columns], dim=1)
