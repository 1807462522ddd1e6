"""The token tree of one step: drafted tokens, their parents, and how each was proposed.

Node 0 is the root, the last accepted token; it is not drafted and costs no budget. Nodes are
numbered in drawing order: a parent's number is below its children's, and siblings stand in the
order in which they were drawn. The order is part of the tree's meaning, because a child's proposal
is the node's draft distribution *without its earlier siblings*. Verification would be biased if
siblings were sorted again, or one were dropped because of its token (docs: "properly drawn").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch


@dataclass(frozen=True, kw_only=True, repr=False)
class TokenTree:
    """tokens, parents, proposal, point: one entry a node, root included (parent -1, proposal 1).

    `point[u]`: u's token was chosen without a draw (a point mass). `proposal[u]`: the probability
    of u's token when it was drawn; 1 for a point mass. `value[u]`: the value of u's slot before its
    token was drawn (drafting/acceptance_estimates.py); () without estimates. Among siblings,
    sampled ones come before points; raises ValueError otherwise.
    """

    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    proposal: tuple[float, ...]
    point: tuple[bool, ...]
    value: tuple[float, ...] = ()

    def __repr__(self) -> str:
        return f"<TokenTree: {self.size} nodes, {self.depth} levels>"

    def __post_init__(self) -> None:
        # Every policy draws in this order, and verification relies on it.
        last: dict[int, bool] = {}
        for node, parent in enumerate(self.parents):
            if last.get(parent, False) and not self.point[node]:
                raise ValueError(
                    f"node {node} is sampled but follows a point child; sampled children come first"
                )
            last[parent] = self.point[node]

    @classmethod
    def root(cls, token: int) -> TokenTree:
        """The tree without drafted nodes: autoregressive decoding."""
        return cls(tokens=(token,), parents=(-1,), proposal=(1.0,), point=(True,))

    @property
    def size(self) -> int:
        """How many nodes are drafted; the root is not counted, so size <= B."""
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
        """The depth of the deepest node; 0 for a root alone."""
        return max(self.depths)

    @property
    def width(self) -> int:
        """How many nodes the widest level below the root has; 0 for a root alone."""
        return max((self.depths.count(d) for d in range(1, self.depth + 1)), default=0)

    def mask(self) -> torch.Tensor:
        """bool [n, n]: True if the column's node is an ancestor of the row's, or the same node (the
        row may attend to it)."""
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
    """bool [n, n], True for ancestor-or-self. parents[u] < u; a parent of -1 or less is outside."""
    mask = torch.eye(len(parents), dtype=torch.bool)
    for node, parent in enumerate(parents):
        if parent >= 0:
            mask[node] |= mask[parent]
    return mask
