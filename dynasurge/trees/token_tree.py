"""The token tree of one step: drafted tokens, who continues whom, and how each was proposed.

Node 0 is the root, the last accepted token; it is not drafted and costs no budget. Nodes are
numbered in drawing order, so a parent's number is below its children's, and siblings stand in the
order in which they were drawn. That order is part of the tree's meaning: a child's proposal is the
node's draft distribution *without its earlier siblings*, so re-sorting siblings, or dropping one
for the token it turned out to have, would make verification biased (docs: "properly drawn").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch


@dataclass(frozen=True, kw_only=True)
class TokenTree:
    """tokens, parents, proposal, point: one entry a node, root included (parent -1, proposal 1).

    `point[u]`: u's token was chosen outright (a point mass) rather than sampled. `proposal[u]`: the
    probability u's token had when it was drawn; 1 for a point mass. `value[u]`: what u's slot was
    thought to be worth before its token was drawn (drafting/acceptance_estimates.py); () if nobody
    asked. Among siblings, sampled ones come before points; ValueError otherwise.
    """

    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    proposal: tuple[float, ...]
    point: tuple[bool, ...]
    value: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        # Not a law of nature, but every policy's order, and verification counts on it.
        last: dict[int, bool] = {}
        for node, parent in enumerate(self.parents):
            if last.get(parent, False) and not self.point[node]:
                raise ValueError(
                    f"node {node} is sampled but follows a point child; sampled children come first"
                )
            last[parent] = self.point[node]

    @classmethod
    def root(cls, token: int) -> TokenTree:
        """The tree that drafts nothing: autoregressive decoding."""
        return cls(tokens=(token,), parents=(-1,), proposal=(1.0,), point=(True,))

    @property
    def size(self) -> int:
        """Drafted nodes; the root is not counted, so size <= B."""
        return len(self.tokens) - 1

    @cached_property
    def children(self) -> tuple[tuple[int, ...], ...]:
        """`children[u]` in drawing order."""
        return children_of(self.parents)

    @cached_property
    def depths(self) -> tuple[int, ...]:
        """Edges from the root to each node."""
        return depths_of(self.parents)

    @property
    def depth(self) -> int:
        """Depth of the deepest node; 0 for a bare root."""
        return max(self.depths)

    @property
    def width(self) -> int:
        """Nodes on the widest level below the root; 0 for a bare root."""
        return max((self.depths.count(d) for d in range(1, self.depth + 1)), default=0)

    def mask(self) -> torch.Tensor:
        """bool [n, n]: True where the column is the row's ancestor, or the row itself (what the row
        may attend to)."""
        return ancestor_mask(self.parents)


def children_of(parents: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Children by node, in increasing order of their numbers."""
    out: list[list[int]] = [[] for _ in parents]
    for node, parent in enumerate(parents):
        if parent >= 0:
            out[parent].append(node)
    return tuple(tuple(c) for c in out)


def depths_of(parents: Sequence[int]) -> tuple[int, ...]:
    """Edges from the outermost ancestor to each node; parents[u] < u, -1 for none."""
    out: list[int] = []
    for parent in parents:
        out.append(out[parent] + 1 if parent >= 0 else 0)
    return tuple(out)


def ancestor_mask(parents: Sequence[int]) -> torch.Tensor:
    """bool [n, n], True for ancestor-or-self. parents[u] < u; a parent of -1 or less lies
    outside."""
    mask = torch.eye(len(parents), dtype=torch.bool)
    for node, parent in enumerate(parents):
        if parent >= 0:
            mask[node] |= mask[parent]
    return mask
