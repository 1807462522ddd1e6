"""What a pass reads: tokens of a tree, each with its position, its cache row, and the rows that it must
not see."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Reading(NamedTuple):
    """What a pass reads: tokens, their positions and cache rows [w]. hidden bool [w, columns]: True
    where a token must not see a cache row. parents: the cache rows of their parents [w], for the
    draft only."""

    tokens: torch.Tensor
    positions: torch.Tensor
    rows: torch.Tensor
    hidden: torch.Tensor
    parents: torch.Tensor | None = None


def read_level(
    token: torch.Tensor,
    slots: torch.Tensor,
    chain: torch.Tensor,
    numbers: torch.Tensor,
    length: torch.Tensor,
    depth: torch.Tensor,
    none: int,
    columns: int,
) -> Reading:
    """What the draft reads: the rows `numbers` [w] with slots [w] at a depth [1], after a text of
    `length` [1] tokens and a root. chain [w, d]: see `GrowingTree`; `none` stands for no row."""
    hidden = hidden_rows(length + 1, torch.where(chain < none, length + chain, columns), columns)
    # a row to spare has no parent; it reads the root's
    parent = chain.gather(1, (depth - 1).expand(len(chain), 1))[:, 0] % none
    own = (token[slots], (length + depth).expand(len(slots)), length + numbers, hidden)
    return Reading(*own, length + parent)


def read_nodes(
    token: torch.Tensor,
    slot: torch.Tensor,
    depth: torch.Tensor,
    path: torch.Tensor,
    length: torch.Tensor,
    columns: int,
) -> Reading:
    """What the target reads: the root and n nodes, as in `Nodes`, after a text of `length` [1]
    tokens."""
    seen = torch.where(path < len(slot), length + path, columns)
    hidden = hidden_rows(length + 1, seen, columns)  # all see the root
    return Reading(
        token[slot], length + depth, length + torch.arange(len(slot), device=slot.device), hidden
    )


def hidden_rows(known: torch.Tensor, seen: torch.Tensor, columns: int) -> torch.Tensor:
    """bool [w, columns]: True for cache rows that a token must not see: those from `known` [1] on,
    except its `seen` [w, d] (`columns` for none)."""
    places = torch.arange(columns + 1, device=seen.device)
    hidden = (places >= known).expand(len(seen), -1)
    return hidden.scatter(1, seen, torch.zeros_like(seen, dtype=torch.bool))[:, :-1]
