"""What a level of nodes proposes, and what that is worth, in tensors of fixed shape (see forest.py).

The policies are those of policies.py: `sampled`, `topk`, `hybrid`, each with copies from the text. The values are those of
drafting.py: a child's slot is worth what could be said of it before its token was drawn, never more than its parent's or
its elder sibling's. Estimates of acceptance come as a table, so that looking one up is a single gather.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from dynasurge import kernels, sampling
from dynasurge.acceptance import CELLS
from dynasurge.forest import CONTEXT, ECHO, FIRST, LATER, LOOKUP, POINT, TAIL, Forest
from dynasurge.lookup import LENGTHS
from dynasurge.policies import AGREES, LONG


@dataclass(frozen=True, kw_only=True)
class Proposer:
    """How the rows of a level get children.

    policy: see policies.py. table: float64 [2, kinds, CELLS], estimates by depth class, kind and feature; None takes the
    draft's own word. growmap: int64 [size + 1, k], the number of each node's children, -1 for none: then shape decides, not
    value. copies: whether the text proposes, too. cut: float64 [1], for `hybrid`, what a slot must be worth to be proposed.
    """

    policy: str
    table: torch.Tensor | None = None
    growmap: torch.Tensor | None = None
    copies: bool = False
    cut: torch.Tensor | None = None

    def frontier(self, forest: Forest) -> torch.Tensor:
        """By what the draft's next rows are chosen."""
        return forest.slot_value if self.growmap is None else forest.node_value

    def fill(
        self,
        forest: Forest,
        level: int,
        q: torch.Tensor,
        uniforms: torch.Tensor,
        text: torch.Tensor,
        known: torch.Tensor,
    ) -> None:
        """Propose the children that make up a level, of rows whose distributions are q [w, V], and settle their values.
        uniforms: float64 [w, k, 2]; text, known: see `find_copies`."""
        rows, slots = forest.layout.rows(level), forest.layout.slots(level)
        above = forest.row_slot[rows]
        slot_value, node_value = forest.slot_value[above], forest.node_value[above]
        copies = find_copies(text, known, forest.context[rows]) if self.copies else None
        limits = None
        if self.policy == "hybrid" and self.cut is not None:
            worth = node_value[:, None].clamp(min=1e-9)
            limits = (worth / self.cut.clamp(min=1e-9)).floor(), (self.cut / worth).to(q.dtype)
        made = propose(self.policy, q, uniforms, copies, limits)
        x = made.x
        if self.growmap is not None:
            number = self.growmap[forest.x[above].long()]
            exists = made.exists & (number >= 0) & (slot_value > 0)[:, None]
            x = number.double()
            slot_value = torch.where(exists, 1.0 / (2.0 + x), 0.0)  # breadth first
            node_value = torch.where(exists & (self.growmap[number, 0] >= 0), slot_value, 0.0)
        else:
            before, after = estimates(self.table, made, below=level > 1)
            if self.policy != "sampled":
                made = made.ordered(torch.where(made.kind == TAIL, 2.0, torch.where(made.exists, after, -1.0)))
                before, after = estimates(self.table, made, below=level > 1)
                x = made.x
            if limits is not None and self.cut is not None:
                pays = (made.kind != TAIL) | (node_value[:, None] * before >= self.cut)
                made = replace(made, exists=made.exists & pays)
            slot_value, node_value = values(made, before, after, slot_value, node_value)
        forest.token[slots].copy_(made.tokens.clamp(min=0).flatten())
        for mine, theirs in (
            (forest.kind, made.kind),
            (forest.proposal, made.proposal),
            (forest.x, x),
            (forest.slot_value, slot_value),
            (forest.node_value, node_value),
        ):
            mine[slots].copy_(theirs.flatten())
        if made.base is not None:
            forest.base[rows].copy_(made.base)


@dataclass(frozen=True, kw_only=True)
class Proposed:
    """The children of w rows in drawing order, [w, k] each: exists bool; tokens, kind int64; proposal, x, own float64 and
    what can be said of x and own before the token is drawn; base [w, V], None where nothing was sampled."""

    exists: torch.Tensor
    tokens: torch.Tensor
    kind: torch.Tensor
    proposal: torch.Tensor
    x: torch.Tensor
    x_before: torch.Tensor
    own: torch.Tensor
    own_before: torch.Tensor
    base: torch.Tensor | None

    def ordered(self, by: torch.Tensor) -> Proposed:
        """Each row's children by falling `by` [w, k]."""
        order = by.sort(dim=1, descending=True, stable=True).indices
        moved = {
            name: getattr(self, name).gather(1, order)
            for name in ("exists", "tokens", "kind", "proposal", "x", "x_before", "own", "own_before")
        }
        return Proposed(base=self.base, **moved)


@dataclass(frozen=True, kw_only=True)
class Copies:
    """For w rows, the token that followed the longest match earlier in the text, and its length (0 for none), [w]."""

    token: torch.Tensor
    match: torch.Tensor


def draw(q: torch.Tensor, uniforms: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """k tokens without replacement from each row of q [w, V] by uniforms [w, k, 2], -1 where there are no more; their
    masses [w, k]; the row's sum and sum of squares [w]. float64."""
    if kernels.usable(q):
        return kernels.draw(q, uniforms)
    tokens = sampling.draw_by(q, uniforms)
    masses = torch.where(tokens >= 0, q.gather(1, tokens.clamp(min=0)), 0.0).double()
    return tokens, masses, q.sum(-1, dtype=torch.float64), q.double().square().sum(-1)


def find_copies(text: torch.Tensor, length: torch.Tensor, context: torch.Tensor) -> Copies:
    """What lookup.py finds, for contexts [w, CONTEXT] at once. text: int64 [CONTEXT + T], behind as many -1; length: [1],
    how many of its tokens are known."""
    windows = text.unfold(0, CONTEXT, 1)[:-1]  # what stands before each token
    equal = (windows[None] == context[:, None]) & (context[:, None] >= 0)
    match = equal.flip(-1).long().cumprod(-1).sum(-1)
    allowed = torch.zeros(CONTEXT + 1, dtype=torch.int64, device=text.device)
    for n in range(min(LENGTHS), CONTEXT + 1):
        allowed[n : n + 1].fill_(max(m for m in LENGTHS if m <= n))
    places = torch.arange(len(windows), device=text.device)
    match = allowed[match] * (places < length)
    best = (match * len(windows) + places).amax(-1)  # the longest, and of those the latest
    return Copies(token=text[CONTEXT + best % len(windows)], match=best // len(windows))


def propose(
    policy: str,
    q: torch.Tensor,
    uniforms: torch.Tensor,
    copies: Copies | None,
    limits: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> Proposed:
    """The children of w nodes by a policy (policies.py), q [w, V]. uniforms: float64 [w, k, 2] in [0, 1).

    limits: for `hybrid`, how many points each node may have and the least probability of one, [w, 1] each.
    """
    k = uniforms.shape[1]
    base, held = q, None
    if copies is not None:
        token = copies.token.clamp(min=0)[:, None]
        held = q.gather(1, token).double()[:, 0]
        good = ((held >= AGREES) & (copies.match > 0)) | (copies.match >= LONG)
        base = q.scatter(1, token, torch.where(good[:, None], 0.0, q.gather(1, token)))
    made = {"sampled": _sampled, "topk": _topk, "hybrid": _hybrid}[policy](base, uniforms, k, limits)
    if copies is None or held is None:
        return made
    last = 1 if policy == "sampled" else k - 1  # the copy's column
    column = torch.arange(k, device=q.device)
    at = good[:, None] & (column == last)
    kind = (ECHO + (LOOKUP - ECHO) * (held < AGREES).long())[:, None]
    match, own = copies.match.double()[:, None], held[:, None]
    fields = {
        "exists": made.exists | at,
        "tokens": torch.where(at, copies.token[:, None], made.tokens),
        "kind": torch.where(at, kind, made.kind),
        "proposal": torch.where(at, 1.0, made.proposal),
        "x": torch.where(at, match, made.x),
        "x_before": torch.where(at, match, made.x_before),
        "own": torch.where(at, own, made.own),
        "own_before": torch.where(at, own, made.own_before),
    }
    if policy == "sampled":  # one child sampled from the rest, then the copy
        head, rest = good[:, None] & (column == 0), made.base.sum(-1, dtype=torch.float64)[:, None]  # type: ignore[union-attr]
        fields["exists"] = fields["exists"] & (~good[:, None] | (column < 2))
        fields["kind"] = torch.where(head, TAIL, fields["kind"])
        for name in ("x", "x_before", "own", "own_before"):
            fields[name] = torch.where(head, rest, fields[name])
    return Proposed(base=made.base, **fields)


def _sampled(base: torch.Tensor, uniforms: torch.Tensor, k: int, _: object) -> Proposed:
    tokens, masses, total, mean = draw(base, uniforms)
    left = total[:, None] - masses.cumsum(1) + masses
    proposal = torch.where(left > 0, masses / left, 1.0).clamp_(max=1.0)
    rank = torch.arange(k, dtype=torch.float64, device=base.device).expand_as(proposal)
    first = rank == 0
    return Proposed(
        exists=tokens >= 0,
        tokens=tokens,
        kind=FIRST + (LATER - FIRST) * (~first).long(),  # numbers of the host would be waited for
        proposal=proposal,
        x=torch.where(first, proposal, rank),
        x_before=torch.where(first, mean[:, None], rank),
        own=proposal,
        own_before=torch.where(first, mean[:, None], 1.0),
        base=base,
    )


def _topk(base: torch.Tensor, uniforms: torch.Tensor, k: int, _: object) -> Proposed:
    best = base.topk(min(k, base.shape[1]), dim=1)
    return _points(best.values.double(), best.indices, k, None)


def _points(values: torch.Tensor, tokens: torch.Tensor, k: int, base: torch.Tensor | None) -> Proposed:
    """Point children by their probabilities [w, <= k]; zeros do not exist."""
    missing = k - values.shape[1]
    values, tokens = torch.nn.functional.pad(values, (0, missing)), torch.nn.functional.pad(tokens, (0, missing))
    ones = torch.ones_like(values)
    kind = torch.full_like(tokens, POINT)
    same = {"x": values, "x_before": values, "own": values, "own_before": values}
    return Proposed(exists=values > 0, tokens=tokens, kind=kind, proposal=ones, base=base, **same)


def _hybrid(
    base: torch.Tensor,
    uniforms: torch.Tensor,
    k: int,
    limits: tuple[torch.Tensor, torch.Tensor] | None,
) -> Proposed:
    best = base.topk(min(k - 1, base.shape[1]), dim=1)
    values = best.values
    if limits is not None:
        places, floors = limits
        outside = (torch.arange(values.shape[1], device=base.device) >= places) | (values < floors)
        values = values.masked_fill(outside, 0.0)
    base = base.scatter(1, best.indices, best.values - values)  # without the points
    tokens, masses, rest, _ = draw(base, uniforms[:, :1])
    points = _points(values.double(), best.indices, k - 1, base)
    proposal = torch.where(rest > 0, masses[:, 0] / rest, 1.0).clamp_(max=1.0)
    head = {
        "exists": tokens[:, 0] >= 0,
        "tokens": tokens[:, 0],
        "kind": torch.full_like(tokens[:, 0], TAIL),
        "proposal": proposal,
        "x": rest,
        "x_before": rest,
        "own": rest,
        "own_before": rest,
    }
    return Proposed(
        base=base, **{name: torch.cat([column[:, None], getattr(points, name)], 1) for name, column in head.items()}
    )


def estimates(table: torch.Tensor | None, made: Proposed, *, below: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """How likely each child is to be accepted, before and after its token is known, [w, k]. table: float64
    [2, kinds, CELLS] of acceptance by depth class, kind and feature; None takes the draft's own word."""
    if table is None:
        return made.own_before, made.own
    counted = (made.kind == LATER) | (made.kind >= ECHO)
    curves = table[int(below)].flatten()

    def look(x: torch.Tensor) -> torch.Tensor:
        cell = torch.where(counted, x, x.sqrt() * (CELLS - 1)).clamp(0, CELLS - 1).long()
        return curves[made.kind * CELLS + cell]

    return look(made.x_before), look(made.x)


def values(
    made: Proposed, before: torch.Tensor, after: torch.Tensor, slot_value: torch.Tensor, node_value: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Slot and node values [w, k] of children whose parents have the values [w]: never above parent or elder sibling."""
    sequential = (made.kind == FIRST) | (made.kind == LATER)  # these are tried given that elder ones were refused
    rejected = torch.where(sequential & made.exists, 1.0 - after, 1.0).cumprod(1)
    refused = torch.cat([torch.ones_like(rejected[:, :1]), rejected[:, :-1]], 1)
    point = made.kind >= POINT
    best_point = torch.where(point & made.exists, after, 0.0).amax(1, keepdim=True)
    before = torch.where(made.kind == TAIL, torch.maximum(before, best_point), refused * before)
    worth = torch.where(made.exists, node_value[:, None] * before, torch.inf)
    slot = torch.minimum(worth.cummin(1).values, slot_value[:, None])
    node = node_value[:, None] * torch.where(sequential, refused, 1.0) * after
    return torch.where(made.exists, slot, 0.0), torch.where(made.exists, node, 0.0)
