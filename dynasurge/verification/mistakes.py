"""Real mistakes: ways of drafting and verifying that look right, and change what is emitted.

Each occurs in public code. They are written here as somebody would write them, one change away from
a lossless step, so that the audit (verification/audit.py) can show what each does. `MISTAKES` lists
them; `seen` says in what kind of code each was found.

A drawing (q, chance) draws a tree for our rules, a rule (tree, p, q, chance) verifies our trees, a
step (p, q, chance) does both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dynasurge.trees.token_tree import TokenTree
from dynasurge.verification.enumeration import Script
from dynasurge.verification.others import hierarchical
from dynasurge.verification.prototype import bfs, proposals

Model = Callable[..., torch.Tensor]
Path = tuple[tuple[int, ...], int]


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """what: a drawing, rule or step with the mistake. seen: in what kind of public code."""

    what: Callable[..., Any]
    seen: str


def children(tokens: Sequence[int], q: torch.Tensor) -> TokenTree:
    """A root with these children, as if they had been drawn in this order without replacement."""
    proposal, left = [1.0], 1.0
    for token in tokens:
        proposal.append(float(q[token]) / left if left > 0 else 1.0)
        left -= float(q[token])
    n = len(tokens)
    return TokenTree(
        tokens=(-1, *tokens),
        parents=(-1, *[0] * n),
        proposal=tuple(proposal),
        point=(True, *[False] * n),
    )


def two_draws(q: Model, chance: Script) -> list[int]:
    """Two tokens without replacement; fewer if the draft has only one."""
    return [token for token in chance.draw(q()[None], 2)[0].tolist() if token >= 0]


# --- drawings


def properly_drawn(q: Model, chance: Script) -> TokenTree:
    """No mistake: two children without replacement, in the order in which they were drawn."""
    return children(two_draws(q, chance), q())


def siblings_sorted(q: Model, chance: Script) -> TokenTree:
    """Children are drawn, then sorted by probability."""
    tokens = sorted(two_draws(q, chance), key=lambda token: -float(q()[token]))
    return children(tokens, q())


def children_in_a_set(q: Model, chance: Script) -> TokenTree:
    """Two draws with replacement; a set merges equal ones."""
    return children(sorted({chance.token(q()), chance.token(q())}), q())


def the_unlikely_pruned(q: Model, chance: Script) -> TokenTree:
    """Of the drawn children the least likely is dropped, to save room."""
    tokens = two_draws(q, chance)
    return children(sorted(tokens, key=lambda token: -float(q()[token]))[:1], q())


def top_k_as_if_sampled(q: Model, chance: Script) -> TokenTree:
    """The likeliest tokens are taken without a draw, and verified as if they had been drawn."""
    return children(q().topk(2).indices.tolist(), q())


def argmax_as_if_drawn(q: Model, chance: Script) -> TokenTree:
    """A greedy draft token is verified by min(1, p / q), as if it had been drawn from q."""
    return children([int(q().argmax())], q())


# --- rules


def bonus_of_the_last_dead_end(
    tree: TokenTree, p: torch.Tensor, q: Sequence[torch.Tensor], chance: Script
) -> Path:
    """Several children are kept, the longest path wins, and the bonus token follows the node that
    was refused last."""
    verdict = bfs(tree, p, q, chance)
    return verdict.path, verdict.bonus


def walk(
    tree: TokenTree,
    p: torch.Tensor,
    q: Sequence[torch.Tensor],
    accepts: Callable[[float, float], bool],
    bonus: Callable[[torch.Tensor], int],
    normalised: bool = True,
) -> Path:
    """The lossless top-down walk, with parts to be filled in: whether a child with target mass p and
    proposal q is accepted, how the bonus token is drawn from what is left, and whether what a
    refused child leaves is divided by its sum."""
    node, path = 0, []
    left = p[0]
    while True:
        for child, proposal in proposals(tree, q[node], node) if tree.children[node] else ():
            token = tree.tokens[child]
            if accepts(float(left[token]), float(proposal[token])):
                node, left = child, p[child]
                path.append(child)
                break
            left = torch.relu(left - proposal)
            if normalised:
                left = left / left.sum() if left.sum() > 0 else p[node]
        else:
            return tuple(path), bonus(left)


def zero_accepted(
    tree: TokenTree, p: torch.Tensor, q: Sequence[torch.Tensor], chance: Script
) -> Path:
    """`u <= p / q`: a generator that returns exactly 0 accepts a token of probability 0."""
    return walk(tree, p, q, lambda own, drawn: chance.uniform() <= own / drawn, chance.token)


def one_number_for_all(
    tree: TokenTree, p: torch.Tensor, q: Sequence[torch.Tensor], chance: Script
) -> Path:
    """One random number is made before the walk, and compared at every node."""
    u = chance.uniform()
    return walk(tree, p, q, lambda own, drawn: u < own / drawn, chance.token)


def half_precision(
    tree: TokenTree, p: torch.Tensor, q: Sequence[torch.Tensor], chance: Script
) -> Path:
    """The draft's distribution is rounded to float16 before it divides: a token that was drawn with
    a probability that rounds to 0 is always accepted."""
    own = [row.half().double() for row in q]
    return walk(
        tree, p, own, lambda mass, drawn: chance.coin(mass / max(drawn, 1e-9)), chance.token
    )


def temperature_of_the_draft(
    tree: TokenTree, p: torch.Tensor, q: Sequence[torch.Tensor], chance: Script
) -> Path:
    """Tokens are drawn at one temperature; verification divides by the draft at another."""
    sharp = [(row**2 / (row**2).sum()) if row.numel() else row for row in q]
    return walk(
        tree, p, sharp, lambda own, drawn: chance.coin(own / max(drawn, 1e-9)), chance.token
    )


def residual_not_normalised(
    tree: TokenTree, p: torch.Tensor, q: Sequence[torch.Tensor], chance: Script
) -> Path:
    """What a refused child leaves, relu(p - q), is used without a division by its sum: the next
    child is accepted too rarely, and the bonus token falls off the end of the cumulative sum."""

    def bonus(left: torch.Tensor) -> int:
        u, sums = chance.uniform(), left.cumsum(0).tolist()
        return min([*(token for token, most in enumerate(sums) if u < most), len(sums) - 1])

    return walk(tree, p, q, lambda own, drawn: chance.coin(own / drawn), bonus, normalised=False)


# --- steps


def greedy_bonus(p: Model, q: Model, chance: Script) -> list[int]:
    """After a refusal the likeliest token of what is left is taken, not a drawn one."""
    token = chance.token(q())
    if chance.coin(float(p()[token] / q()[token])):
        return [token, chance.token(p([token]))]
    return [int(torch.relu(p() - q()).argmax())]


def tokens_compared(p: Model, q: Model, chance: Script) -> list[int]:
    """The draft's token is accepted if the target's own draw is the same, at T > 0; if not, the
    target draws again."""
    token, own = chance.token(q()), chance.token(p())
    return [token, chance.token(p([token]))] if own == token else [chance.token(p())]


def ratio_not_capped(p: Model, q: Model, chance: Script) -> list[int]:
    """A chain of two tokens is accepted as a whole by the product of p / q, which may have been above
    1 on the way (see `hierarchical` in verification/others.py)."""
    tokens = [chance.token(q())]
    tokens.append(chance.token(q(tokens)))
    tree = TokenTree(
        tokens=(-1, *tokens),
        parents=(-1, 0, 1),
        proposal=(1.0, float(q()[tokens[0]]), float(q(tokens[:1])[tokens[1]])),
        point=(True, False, False),
    )
    heads = [tokens[:depth] for depth in range(3)]
    rows = torch.stack([p(head) for head in heads])
    path, bonus = hierarchical(tree, rows, [q(head) for head in heads], chance, capped=False)
    return [*tokens[: len(path)], bonus]


MISTAKES: dict[str, Mistake] = {
    "siblings sorted after drawing": Mistake(
        what=siblings_sorted, seen="tree drafters that keep children in a heap or a sorted list"
    ),
    "children merged by a set": Mistake(
        what=children_in_a_set, seen="tree drafters that merge repeated draws"
    ),
    "unlikely children pruned": Mistake(
        what=the_unlikely_pruned, seen="trees re-ranked by the drawn tokens' scores"
    ),
    "top-k verified as if sampled": Mistake(
        what=top_k_as_if_sampled, seen="sampling added to a drafter of likeliest tokens"
    ),
    "argmax taken for a draw": Mistake(
        what=argmax_as_if_drawn, seen="a greedy draft beside a sampling target"
    ),
    "a coin of exactly 0": Mistake(what=zero_accepted, seen="`torch.rand(1) <= p / q`"),
    "one random number for all nodes": Mistake(
        what=one_number_for_all, seen="random numbers made once and used at each step"
    ),
    "half-precision softmax": Mistake(what=half_precision, seen="softmax in the model's own dtype"),
    "two temperatures": Mistake(
        what=temperature_of_the_draft,
        seen="temperature applied to the draft's logits twice, or not",
    ),
    "residual not renormalised": Mistake(
        what=residual_not_normalised, seen="relu(p - q) used as if it were a distribution"
    ),
    "bonus from the last dead end": Mistake(
        what=bonus_of_the_last_dead_end, seen="a public prototype (verification/prototype.py)"
    ),
    "greedy bonus": Mistake(what=greedy_bonus, seen="argmax of the residual"),
    "draw and compare, then draw again": Mistake(
        what=tokens_compared, seen="acceptance by equality with the target's own sample"
    ),
    "joint ratio not capped": Mistake(
        what=ratio_not_capped, seen="an implementation of hierarchical verification"
    ),
}
