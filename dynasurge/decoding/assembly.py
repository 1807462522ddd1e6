"""From settings to the parts of a decoder: policy, rule, tree shape; and the trees of a captured
decoder.

A captured step (decoding/captured_loop.py) has room for fixed numbers of nodes. How many nodes stay
is chosen before the step, how many levels during it (drafting/captured_budget.py). In a step made
node by node (decoding/loop.py) a shape decides while the tree grows (drafting/tree_budget.py).
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
)  # most slots of a level, most entries of all paths; larger trees are made node by node
SIZES = (16, 32, 64, 128)  # nodes of a captured pass; then multiples of the last


def make_policy(settings: Settings) -> Policy:
    """The policy that proposes children. Greedy text needs no draws, so it takes `topk`."""
    return POLICIES[settings.policy if settings.T > 0 else "topk"]


def make_verify(settings: Settings) -> Verify:
    """The settings' verification: the rule and its draws."""
    return bfs if settings.rule == "bfs" else partial(rules.verify, RULES[settings.rule])


def make_shape(settings: Settings, costs: Costs | None = None) -> Shape | None:
    """The shape that the mode grows; None in auto mode. With a growmap, a dynamic tree is as deep
    as it. costs: the prices by which a `Thrifty` tree stops. Raises UsageError for a growmap of a
    root alone."""
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
    """The largest captured tree of this shape."""
    if settings.mode == "sTree" and settings.growmap is not None:
        growmap = load_growmap(settings.growmap)
        return growmap_bounds(growmap.children, growmap.depths)
    children = max(
        2, min(settings.max_children, shape.max_nodes)
    )  # room for a copy and the child sampled before it
    return TreeBounds(depth=shape.max_depth, width=FRONTIER, children=children)


def can_hold(settings: Settings, shape: Shape) -> bool:
    """Whether a captured step can hold trees of this shape. Very wide or deep trees would need
    tensors that are too large."""
    bounds = make_bounds(settings, shape)
    wide = max(bounds.level_widths) * bounds.children
    return wide <= LARGEST and (captured_size(shape) + 1) * (bounds.depth + 1) <= LARGEST


def captured_size(shape: Shape) -> int:
    """How many nodes a captured pass over the largest tree of this shape has room for. Few sizes
    mean few graphs."""
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
    """The trees of a captured decoder under these settings."""
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
