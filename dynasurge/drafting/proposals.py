"""Child policies: what the nodes of one level propose.

A policy reads the draft's distributions at w nodes and proposes at most k children for each, in
drawing order. It does not value them (drafting/slot_values.py does).

- `sampled`: k tokens without replacement from q (Sequoia, arXiv 2402.12374; DySpec, arXiv
  2410.11744);
- `topk`: the k likeliest tokens, each a point mass (EAGLE-2, arXiv 2406.16858; OPT-Tree, arXiv
  2406.17276);
- `hybrid`: one token sampled outside the likeliest ones, verified first, then those as point
  masses. At a single node topdown verification then accepts as much as any lossless rule can
  (verification/single_node_bound.py).

A node may also have a *copy*: a token that followed here earlier in the text
(drafting/prompt_lookup.py). It becomes a point child after one child sampled from the rest, as in
`hybrid`. With `sampled` this happens only if the draft is unlikely to propose the token. If the
draft agrees with the copy, a sampled first child is accepted more often, and needs no node before
it. (Measured at one node, T = 0.6, 195 copies: a sampled child 0.82 of the time, a copy after one
from the rest 0.77. Two children of either kind differ less: 0.89 and 0.92.)

A policy has two parts. `draw` alone reads whole distributions; `propose` is arithmetic on few
numbers, which torch.compile can fuse. Neither waits for the device, so both can be captured.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from dynasurge import triton_kernels
from dynasurge.drafting.child_kinds import Kind
from dynasurge.probabilities import Chance, Uniforms

pad = torch.nn.functional.pad
AGREES = 0.1  # a copy with at least this draft probability is an `echo`, otherwise a `lookup`
LONG = 8  # tokens that must match before a copy is proposed although the draft disagrees


class Limits(NamedTuple):
    """What is known of w nodes before the draw. places [w, 1]: the most children of each, without
    copies. floor [w, 1]: the least draft probability of a point. None: no limit."""

    places: torch.Tensor | None = None
    floor: torch.Tensor | None = None


class Drawn(NamedTuple):
    """What was taken from the distributions of w nodes; k is the most children of one.

    tokens int64, masses float64 [w, k or 1]: sampled tokens (-1 for none) and their draft
    probabilities; total, squares float64 [w]: the sum of what they were sampled from, and of its
    squares. best int64, values float64: point tokens and their draft probabilities (0 for none).
    """

    k: int
    tokens: torch.Tensor | None = None
    masses: torch.Tensor | None = None
    total: torch.Tensor | None = None
    squares: torch.Tensor | None = None
    best: torch.Tensor | None = None
    values: torch.Tensor | None = None


class Proposed(NamedTuple):
    """The children of w nodes in drawing order, [w, k] each: exists bool; token, kind int64 (see
    drafting/child_kinds.py). float64: proposal, the probability of the draw (1 for points); q, the
    draft's probability of the token; x, the kind's feature, and own, the draft's own estimate of
    acceptance, each also as known before the draw."""

    exists: torch.Tensor
    token: torch.Tensor
    kind: torch.Tensor
    proposal: torch.Tensor
    q: torch.Tensor
    x: torch.Tensor
    x_before: torch.Tensor
    own: torch.Tensor
    own_before: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class Policy:
    """draw: (q [w, V], chance, k, limits) -> what sampled children were drawn from [w, V] (None
    without sampled children), and the draws. propose: the draws -> the children.

    tails: whether each node has one sampled child, which comes before its points (`hybrid`).
    points: whether it proposes points of its own, sorted by value after the proposal. capturable:
    whether both functions never wait for the device and keep no state, so that a GPU may replay
    them.
    """

    draw: Callable[[torch.Tensor, Chance, int, Limits], tuple[torch.Tensor | None, Drawn]]
    propose: Callable[[Drawn], Proposed]
    points: bool
    tails: bool = False
    capturable: bool = False


class Copies(NamedTuple):
    """The copies of w nodes, [w] each: token, match float64 (see drafting/prompt_lookup.py), the
    draft's probability of it, and whether it is worth proposing."""

    token: torch.Tensor
    match: torch.Tensor
    held: torch.Tensor
    good: torch.Tensor


def weighed(q: torch.Tensor, found: tuple[torch.Tensor, torch.Tensor], *, echoes: bool) -> Copies:
    """The copies of nodes with the draft distributions q [w, V]. found: tokens and match lengths
    [w]. echoes: whether a copy that the draft agrees with is worth proposing."""
    token = found[0].clamp(min=0)
    held = q.gather(1, token[:, None]).double()[:, 0]
    good = torch.where(held >= AGREES, (found[1] > 0) & echoes, found[1] >= LONG)
    return Copies(token, found[1].double(), held, good)


def without(q: torch.Tensor, copies: Copies) -> torch.Tensor:
    """q [w, V] without the copies that are worth proposing."""
    left = torch.where(copies.good, 0.0, copies.held).to(q.dtype)
    return q.scatter(1, copies.token[:, None], left[:, None])


def with_copies(made: Proposed, copies: Copies, drawn: Drawn, *, points: bool) -> Proposed:
    """Put each node's copy among its children: in the last place before points are sorted, or
    after one sampled child, the only other one then."""
    k = drawn.k
    column = torch.arange(k, device=made.token.device)
    good = copies.good[:, None]
    at = good & (column == (k - 1 if points else 1))
    kind = (
        Kind.ECHO.value + (Kind.LOOKUP.value - Kind.ECHO.value) * (copies.held < AGREES).long()
    )[:, None]
    match, held = copies.match[:, None], copies.held[:, None]
    one = torch.ones_like(match)
    copied = (at, copies.token[:, None], kind, one, held, match, match, held, held)
    made = Proposed(
        made.exists | at,
        *(torch.where(at, a, b) for a, b in zip(copied[1:], made[1:], strict=True)),
    )
    if points:
        return made
    assert drawn.total is not None
    head, rest = good & (column == 0), drawn.total[:, None]
    return made._replace(
        exists=made.exists & (~good | (column < 2)),
        kind=torch.where(head, Kind.TAIL.value, made.kind),
        x=torch.where(head, rest, made.x),
        x_before=torch.where(head, rest, made.x_before),
        own=torch.where(head, rest, made.own),
        own_before=torch.where(head, rest, made.own_before),
    )


def draw(
    q: torch.Tensor, chance: Chance, k: int, places: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """k tokens without replacement from each row of q [w, V], -1 if no token is left; their masses
    [w, k]; the row's sum and sum of squares [w]. Masses and sums are float64. places [w, 1]: how
    many tokens of each row matter; the others may be -1."""
    if (numbers := _for_kernel(q, chance, k)) is not None:
        return triton_kernels.draw(q, numbers, places)
    tokens = chance.draw(q, k)
    masses = torch.where(tokens >= 0, q.gather(1, tokens.clamp(min=0)), 0.0).double()
    exact = q.double()  # little mass may be left after likely siblings
    return tokens, masses, exact.sum(-1), torch.linalg.vecdot(exact, exact)


def draw_tokens(q: torch.Tensor, chance: Chance, k: int) -> torch.Tensor:
    """The tokens of `draw` alone."""
    numbers = _for_kernel(q, chance, k)
    return triton_kernels.draw(q, numbers)[0] if numbers is not None else chance.draw(q, k)


def _for_kernel(q: torch.Tensor, chance: Chance, k: int) -> torch.Tensor | None:
    """The numbers of k draws, if the kernel can make them."""
    if isinstance(chance, Uniforms) and triton_kernels.usable(q):
        return chance.numbers[:, :k]
    return None


def _draw_sampled(
    q: torch.Tensor, chance: Chance, k: int, limits: Limits
) -> tuple[torch.Tensor, Drawn]:
    return q, Drawn(k, *draw(q, chance, k, limits.places))


def _draw_topk(q: torch.Tensor, chance: Chance, k: int, limits: Limits) -> tuple[None, Drawn]:
    top = q.topk(min(k, q.shape[1]), dim=1)
    return None, Drawn(k, best=top.indices, values=top.values.double())


def _draw_hybrid(
    q: torch.Tensor, chance: Chance, k: int, limits: Limits
) -> tuple[torch.Tensor, Drawn]:
    top = q.topk(min(k - 1, q.shape[1]), dim=1)
    values = top.values
    if limits.places is not None:
        place = torch.arange(values.shape[1], device=q.device)
        values = values.masked_fill(place >= limits.places - 1, 0.0)
    if limits.floor is not None:
        values = values.masked_fill(values < limits.floor, 0.0)
    base = q.scatter(1, top.indices, top.values - values)  # without the points
    return base, Drawn(k, *draw(base, chance, 1), best=top.indices, values=values.double())


def _propose_sampled(drawn: Drawn) -> Proposed:
    assert drawn.tokens is not None
    assert drawn.masses is not None
    assert drawn.total is not None
    assert drawn.squares is not None
    left, squares = (
        _before(drawn.total, drawn.masses),
        _before(drawn.squares, drawn.masses.square()),
    )
    proposal = torch.where(left > 0, drawn.masses / left, 1.0).clamp(max=1.0)
    # only what is known before the draw
    mean = torch.where(left > 0, squares / (left * left), 1.0).clamp(0.0, 1.0)
    rank = torch.arange(proposal.shape[1], device=proposal.device).expand_as(drawn.tokens)
    return Proposed(
        exists=drawn.tokens >= 0,
        token=drawn.tokens.clamp(min=0),
        kind=rank.clamp(max=Kind.LATER.value),
        proposal=proposal,
        q=drawn.masses,
        x=proposal,
        x_before=mean,
        own=proposal,
        # DySpec's rule: a later slot is valued by what elder ones leave
        own_before=torch.where(rank == 0, mean, 1.0),
    )


def _before(total: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
    """What is left of a total [w] before each draw [w, k]. It does not depend on that draw, not
    even by rounding."""
    return total[:, None] - pad(drawn.cumsum(1)[:, :-1], (1, 0))


def _propose_topk(drawn: Drawn) -> Proposed:
    return _points(drawn, drawn.k)


def _propose_hybrid(drawn: Drawn) -> Proposed:
    assert drawn.tokens is not None
    assert drawn.masses is not None
    assert drawn.total is not None
    rest, tokens = drawn.total[:, None], drawn.tokens
    tail = Proposed(
        exists=tokens >= 0,
        token=tokens.clamp(min=0),
        kind=torch.full_like(tokens, Kind.TAIL.value),
        proposal=torch.where(rest > 0, drawn.masses / rest, 1.0).clamp(max=1.0),
        q=drawn.masses,
        x=rest,
        x_before=rest,
        own=rest,
        own_before=rest,
    )
    points = _points(drawn, drawn.k - 1)
    return Proposed(*(torch.cat(parts, 1) for parts in zip(tail, points, strict=True)))


def _points(drawn: Drawn, k: int) -> Proposed:
    """Point children by their probabilities; a probability of 0 means that there is no child."""
    assert drawn.values is not None
    assert drawn.best is not None
    missing = k - drawn.values.shape[1]
    values, tokens = pad(drawn.values, (0, missing)), pad(drawn.best, (0, missing))
    kind, one = torch.full_like(tokens, Kind.POINT.value), torch.ones_like(values)
    return Proposed(values > 0, tokens, kind, one, values, values, values, values, values)


POLICIES: dict[str, Policy] = {
    "sampled": Policy(draw=_draw_sampled, propose=_propose_sampled, points=False, capturable=True),
    "topk": Policy(draw=_draw_topk, propose=_propose_topk, points=True, capturable=True),
    "hybrid": Policy(
        draw=_draw_hybrid, propose=_propose_hybrid, points=True, tails=True, capturable=True
    ),
}
