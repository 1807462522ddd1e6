"""From settings to the parts of a decoder: policy, rule, tree shape; and what a captured decoder
grows.

A captured step (decoding/captured_loop.py) has room for fixed numbers of nodes; how many stay is
settled beforehand, how deep meanwhile (drafting/captured_budget.py); a step made node by node
(decoding/loop.py) lets a shape decide while the tree grows (drafting/tree_budget.py).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from dynasurge.decoding.captured_exchange import Trees
from dynasurge.decoding.loop import Verify
from dynasurge.drafting.acceptance_estimates import Acceptance
from dynasurge.drafting.captured_budget import SizePlanner
from dynasurge.drafting.captured_tree import FRONTIER, TreeBounds, growmap_bounds
from dynasurge.drafting.cost_model import Costs
from dynasurge.drafting.proposals import POLICIES, Policy
from dynasurge.drafting.tree_budget import BestFirst, Shape, StaticShape, Thrifty
from dynasurge.errors import UsageError
from dynasurge.settings import Settings
from dynasurge.trees.growmap import load_growmap
from dynasurge.verification import rules
from dynasurge.verification.prototype import bfs
from dynasurge.verification.rules import RULES

CAPTURED_RULES = ("topdown", "traversal")
LARGEST = (
    1 << 14
)  # slots of a level, and entries of all nodes' paths; larger trees are made node by node
SIZES = (16, 32, 64, 128)  # nodes that a captured pass has room for, then multiples of the last


def make_policy(settings: Settings) -> Policy:
    """How children are proposed; greedy text needs no chance."""
    return POLICIES[settings.policy if settings.T > 0 else "topk"]


def make_verify(settings: Settings) -> Verify:
    """The settings' rule, and the draws that follow it."""
    return bfs if settings.rule == "bfs" else partial(rules.verify, RULES[settings.rule])


def make_shape(settings: Settings, costs: Costs | None = None) -> Shape | None:
    """The shape that the mode grows; None in auto mode. A growmap bounds a dynamic depth; costs:
    what it pays for."""
    growmap = load_growmap(settings.growmap) if settings.growmap is not None else None
    if settings.mode == "auto":
        return None
    if settings.mode == "sTree":
        assert growmap is not None, "Settings requires a growmap in sTree mode"
        return StaticShape(growmap)
    depth = growmap.depth if growmap is not None else settings.depth_bound
    if depth < 1:
        raise UsageError(
            "--growmap",
            settings.growmap,
            "is a root alone",
            "name a deeper one, or use --mode auto",
        )
    bounds: dict[str, Any] = {
        "budget": settings.budget,
        "max_depth": depth,
        "max_children": settings.max_children,
    }
    if settings.T == 0 or settings.policy != "sampled":
        bounds["later_child"] = 1.0
    return BestFirst(**bounds) if settings.fill or costs is None else Thrifty(**bounds, costs=costs)


def make_bounds(settings: Settings, shape: Shape) -> TreeBounds:
    """How large a captured tree of this shape can get."""
    if settings.mode == "sTree" and settings.growmap is not None:
        growmap = load_growmap(settings.growmap)
        return growmap_bounds(growmap.children, growmap.depths)
    children = max(
        2, min(settings.max_children, shape.max_nodes)
    )  # one may be a copy, or the one behind a point
    return TreeBounds(depth=shape.max_depth, width=FRONTIER, children=children)


def can_hold(settings: Settings, shape: Shape) -> bool:
    """Whether a captured step can hold trees of this shape: all that they might be has room in
    fixed tensors, which very wide or deep ones would make too large."""
    bounds = make_bounds(settings, shape)
    wide = max(bounds.level_widths) * bounds.children
    return wide <= LARGEST and (captured_size(shape) + 1) * (bounds.depth + 1) <= LARGEST


def captured_size(shape: Shape) -> int:
    """Nodes that a captured pass over the largest tree of this shape has room for: few sizes make
    few graphs."""
    return next(
        (size for size in SIZES if size >= shape.max_nodes),
        -(-shape.max_nodes // SIZES[-1]) * SIZES[-1],
    )


def make_trees(
    settings: Settings,
    shape: Shape,
    acceptance: Acceptance | None,
    costs: Costs | None,
    device: torch.device,
) -> Trees:
    """What a captured decoder grows under these settings."""
    assert acceptance is not None
    dynamic, bounds = settings.mode == "dTree", make_bounds(settings, shape)
    growmap = None
    if not dynamic:
        assert settings.growmap is not None
        children = load_growmap(settings.growmap).children
        growmap = torch.full((len(children) + 1, bounds.children), -1)
        for node, own in enumerate(children):
            growmap[node, : len(own)] = torch.tensor(own, dtype=torch.int64)
        growmap = growmap.to(device)
    paid = costs if dynamic and settings.pays else None
    largest = captured_size(shape)
    sizes = [size for size in SIZES if size < largest] if paid is not None else []
    return Trees(
        bounds=bounds,
        policy=settings.policy if settings.T > 0 else "topk",
        budget=shape.max_nodes,
        planner=SizePlanner(
            sizes=(*sizes, largest),
            budget=shape.max_nodes,
            max_depth=bounds.depth,
            costs=paid,
            fixed=not dynamic,
        ),
        acceptance=acceptance,
        growmap=growmap,
        copies=dynamic and settings.lookup,
        own=settings.values == "own",
        most=settings.max_children if dynamic else bounds.children,
    )
