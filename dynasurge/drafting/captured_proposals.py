"""What a level of nodes proposes, in tensors of fixed shape (see drafting/captured_tree.py): the
policies of drafting/proposals.py, each with copies.

Only `draw_children` reads whole distributions. `propose` makes children of what it found.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from dynasurge import triton_kernels
from dynasurge.drafting.captured_tree import CONTEXT
from dynasurge.drafting.child_kinds import Kind
from dynasurge.drafting.prompt_lookup import LENGTHS
from dynasurge.drafting.proposals import AGREES, worth_copying
from dynasurge.probabilities import Chance, Uniforms

pad = torch.nn.functional.pad
GAINS = [0] + [  # how much one more equal token adds to a match
    n - max((m for m in LENGTHS if m < n), default=0) if n in LENGTHS else 0
    for n in range(1, CONTEXT + 1)
]


class Copies(NamedTuple):
    """For w rows: the token that followed the longest match earlier in the text, and the match's
    length (0 for none). held: the draft's probability of the token. good: whether it is worth
    proposing. [w] each."""

    token: torch.Tensor
    match: torch.Tensor
    held: torch.Tensor
    good: torch.Tensor


class Drawn(NamedTuple):
    """What was taken from the distributions of w rows.

    Sampled tokens (-1 for none) and their masses [w, k], the sum and the sum of squares [w] of what
    they were sampled from; or the likeliest tokens and their probabilities; or both. k: the most
    children of a row.
    """

    tokens: torch.Tensor | None
    masses: torch.Tensor | None
    total: torch.Tensor | None
    squares: torch.Tensor | None
    best: torch.Tensor | None
    values: torch.Tensor | None
    copies: Copies | None
    k: int


class Proposed(NamedTuple):
    """The children of w rows in drawing order, [w, k] each: exists bool; tokens, kind int64;
    proposal, x, own float64, and x and own as far as they are known before the draw."""

    exists: torch.Tensor
    tokens: torch.Tensor
    kind: torch.Tensor
    proposal: torch.Tensor
    x: torch.Tensor
    x_before: torch.Tensor
    own: torch.Tensor
    own_before: torch.Tensor


def draw(
    q: torch.Tensor, chance: Chance, k: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """k tokens without replacement from each row of q [w, V], -1 if no token is left; their masses
    [w, k]; the row's sum and sum of squares [w]. Masses and sums are float64."""
    if isinstance(chance, Uniforms) and triton_kernels.usable(q):
        return triton_kernels.draw(q, chance.numbers[:, :k])
    tokens = chance.draw(q, k)
    masses = torch.where(tokens >= 0, q.gather(1, tokens.clamp(min=0)), 0.0).double()
    return tokens, masses, q.sum(-1, dtype=torch.float64), q.double().square().sum(-1)


def find_copies(
    text: torch.Tensor, length: torch.Tensor, context: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The copies of drafting/prompt_lookup.py for contexts [w, CONTEXT] at once: tokens and match
    lengths [w], 0 for none. text: int64 [CONTEXT + T]; its first CONTEXT tokens are -1. length:
    [1], how many of the T tokens are known."""
    windows = text.unfold(0, CONTEXT, 1)[:-1]  # the tokens before each token
    same = torch.ones(len(context), len(windows), dtype=torch.bool, device=text.device)
    match = torch.zeros_like(same, dtype=torch.int64)
    for n in range(1, CONTEXT + 1):
        mine = context[:, -n, None]
        same = same & (windows[None, :, -n] == mine) & (mine >= 0)
        match = match + same * GAINS[n]
    places = torch.arange(len(windows), device=text.device)
    best = (match * (places < length) * len(windows) + places).amax(
        -1
    )  # the longest match; the latest among equals
    return text[CONTEXT + best % len(windows)], best // len(windows)


def draw_children(
    policy: str,
    q: torch.Tensor,
    chance: Chance,
    k: int,
    found: tuple[torch.Tensor, torch.Tensor] | None = None,
    places: torch.Tensor | None = None,
    floor: torch.Tensor | None = None,
) -> tuple[torch.Tensor | None, Drawn]:
    """Draw at most k children a row from q [w, V]. Returns what sampled children were drawn from
    [w, V] (None if nothing was sampled) and the draws.

    found: copies. places, floor [w, 1]: for `hybrid`, the most points of a node, and the least
    probability of one.
    """
    base, copies = q, None
    if found is not None:
        token = found[0].clamp(min=0)[:, None]
        mass = q.gather(1, token)
        held = mass.double()[:, 0]
        good = worth_copying(held, found[1], echoes=policy != "sampled")
        base = q.scatter(1, token, mass * ~good[:, None])
        copies = Copies(token=token[:, 0], match=found[1].double(), held=held, good=good)
    none: dict[str, Any] = dict.fromkeys(("tokens", "masses", "total", "squares", "best", "values"))
    none |= {"copies": copies, "k": k}
    if policy == "sampled":
        tokens, masses, total, squares = draw(base, chance, k)
        own = {"tokens": tokens, "masses": masses, "total": total, "squares": squares}
        return base, Drawn(**none | own)
    points = k if policy == "topk" else k - 1
    top = base.topk(min(points, base.shape[1]), dim=1)
    values = top.values
    if policy == "topk":
        return None, Drawn(**none | {"best": top.indices, "values": values.double()})
    if places is not None:
        values = values.masked_fill(torch.arange(values.shape[1], device=q.device) >= places, 0.0)
    if floor is not None:
        values = values.masked_fill(values < floor, 0.0)
    base = base.scatter(1, top.indices, top.values - values)  # without the points
    tokens, masses, total, squares = draw(base, chance, 1)
    own = {"tokens": tokens, "masses": masses, "total": total, "squares": squares}
    return base, Drawn(**none | own | {"best": top.indices, "values": values.double()})


def propose(policy: str, drawn: Drawn) -> Proposed:
    """The children of w nodes in drawing order."""
    k = drawn.k
    made = (
        _sampled(drawn) if policy == "sampled" else _points(drawn, k if policy == "topk" else k - 1)
    )
    if policy == "hybrid":
        made = Proposed(
            *(torch.cat([head, own], 1) for head, own in zip(_tail(drawn), made, strict=True))
        )
    copies = drawn.copies
    if copies is None:
        return made
    column = torch.arange(k, device=made.tokens.device)
    good = copies.good[:, None]
    at = good & (column == (1 if policy == "sampled" else k - 1))
    kind = (Kind.ECHO + (Kind.LOOKUP - Kind.ECHO) * (copies.held < AGREES).long())[:, None]
    match, held = copies.match[:, None], copies.held[:, None]
    one = torch.ones_like(match)
    copied = (at, copies.token[:, None], kind, one, match, match, held, held)
    made = Proposed(
        made.exists | at,
        *(torch.where(at, a, b) for a, b in zip(copied[1:], made[1:], strict=True)),
    )
    if policy != "sampled":
        return made
    assert drawn.total is not None
    head, rest = (
        good & (column == 0),
        drawn.total[:, None],
    )  # first one child from the rest, then the copy
    return made._replace(
        exists=made.exists & (~good | (column < 2)),
        kind=torch.where(head, Kind.TAIL, made.kind),
        x=torch.where(head, rest, made.x),
        x_before=torch.where(head, rest, made.x_before),
        own=torch.where(head, rest, made.own),
        own_before=torch.where(head, rest, made.own_before),
    )


def _sampled(drawn: Drawn) -> Proposed:
    assert drawn.tokens is not None
    assert drawn.masses is not None
    assert drawn.total is not None
    assert drawn.squares is not None
    left, squares = (
        _before(drawn.total, drawn.masses),
        _before(drawn.squares, drawn.masses.square()),
    )
    proposal = torch.where(left > 0, drawn.masses / left, 1.0).clamp(max=1.0)
    mean = torch.where(left > 0, squares / (left * left), 1.0).clamp(
        0.0, 1.0
    )  # only what is known before the draw
    rank = torch.arange(proposal.shape[1], device=proposal.device).expand_as(drawn.tokens)
    return Proposed(
        exists=drawn.tokens >= 0,
        tokens=drawn.tokens.clamp(min=0),
        kind=rank.clamp(max=Kind.LATER),
        proposal=proposal,
        x=proposal,
        x_before=mean,
        own=proposal,
        own_before=torch.where(rank == 0, mean, 1.0),
    )


def _before(total: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
    """What is left of a total [w] before each draw [w, k]. It does not depend on that draw, not
    even by rounding."""
    return total[:, None] - pad(drawn.cumsum(1)[:, :-1], (1, 0))


def _tail(drawn: Drawn) -> Proposed:
    """The first child of `hybrid`, sampled from the rest."""
    assert drawn.tokens is not None
    assert drawn.masses is not None
    assert drawn.total is not None
    rest = drawn.total[:, None]
    proposal = torch.where(rest > 0, drawn.masses / rest, 1.0).clamp(max=1.0)
    kind = torch.full_like(drawn.tokens, Kind.TAIL)
    return Proposed(
        drawn.tokens >= 0, drawn.tokens.clamp(min=0), kind, proposal, rest, rest, rest, rest
    )


def _points(drawn: Drawn, k: int) -> Proposed:
    """Point children by their probabilities; a probability of 0 means that there is no child."""
    assert drawn.values is not None
    assert drawn.best is not None
    missing = k - drawn.values.shape[1]
    values, tokens = pad(drawn.values, (0, missing)), pad(drawn.best, (0, missing))
    kind = torch.full_like(tokens, Kind.POINT)
    return Proposed(
        values > 0, tokens, kind, torch.ones_like(values), values, values, values, values
    )
