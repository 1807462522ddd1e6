"""The nodes of a tree that have children, in rows: what rules work on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from dynasurge.trees.token_tree import TokenTree


class Level(NamedTuple):
    """Families of one level: their rows; how many columns have children, and how many of these,
    from the first on, may have sampled ones."""

    rows: slice
    columns: int
    sampled: int


class Families(NamedTuple):
    """R nodes with children, level by level, each with its children in k columns; number n: no
    node.

    node int64 [R]. child, token int64 and point bool [R, k]. place int64 [R]: the row of p of each
    node; None: family r has row r. levels: the levels, from the root down.
    """

    node: torch.Tensor
    child: torch.Tensor
    token: torch.Tensor
    point: torch.Tensor
    place: torch.Tensor | None
    levels: Sequence[Level]


def families_of(
    tree: TokenTree, p: torch.Tensor, q: Sequence[torch.Tensor]
) -> tuple[Families, torch.Tensor]:
    """A tree's families, and what their sampled children were drawn from [R + 1, V]."""
    inner = sorted((u for u, own in enumerate(tree.children) if own), key=tree.depths.__getitem__)
    n, k = tree.size + 1, max((len(tree.children[u]) for u in inner), default=1)
    child = [[*tree.children[u], *[n] * (k - len(tree.children[u]))] for u in inner]
    levels, start = [], 0
    for depth in range(tree.depth):
        own = [tree.children[u] for u in inner if tree.depths[u] == depth]
        count, sampled = max(map(len, own)), max(_sampled(tree, family) for family in own)
        levels.append(Level(slice(start, start + len(own)), count, sampled))
        start += len(own)
    numbers = torch.tensor(child, dtype=torch.int64).view(len(inner), k).to(p.device)
    tokens, point = torch.tensor([*tree.tokens, 0]), torch.tensor([*tree.point, True])
    node = torch.tensor(inner, dtype=torch.int64).to(p.device)
    base = p.new_zeros(len(inner) + 1, p.shape[1])
    for row, u in enumerate(inner):
        if not all(tree.point[c] for c in tree.children[u]):
            base[row] = q[u]
    own_tokens, own_point = (part.to(p.device)[numbers] for part in (tokens, point))
    return Families(node, numbers, own_tokens, own_point, node, levels), base


def _sampled(tree: TokenTree, family: Sequence[int]) -> int:
    """How many children of a family there are up to the last sampled one."""
    return max((at for at, child in enumerate(family, 1) if not tree.point[child]), default=0)


def relations_of(
    tree: TokenTree, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """parent, exists, seen of a tree's nodes, as in `Nodes` of drafting/kept_nodes.py."""
    parent = torch.tensor(tree.parents, device=device)
    return parent, torch.ones_like(parent, dtype=torch.bool), tree.mask().to(device)
