"""How large the trees of some settings can get, and how much room they need."""

from __future__ import annotations

from dynasurge.drafting.growth import FRONTIER, TreeBounds, growmap_bounds
from dynasurge.errors import UsageError
from dynasurge.settings import Settings
from dynasurge.trees.growmap import Growmap, load_growmap

SIZES = (16, 32, 64, 128)  # nodes of a captured pass; then multiples of the last
# Most slots of a level, and most entries of all paths, of a captured tree. Larger ones are made
# with exact shapes.
LARGEST = 1 << 14


def most_nodes(settings: Settings) -> int:
    """The most drafted nodes of a tree; 0 if nothing is ever drafted. Raises UsageError for a
    growmap that cannot be read, and for a dynamic tree under one of a root alone."""
    growmap = _growmap(settings)
    if settings.mode == "auto":
        return 0
    if settings.mode == "sTree":
        assert growmap is not None, "Settings requires a growmap in sTree mode"
        return growmap.size - 1
    if growmap is not None and growmap.depth < 1:
        reason, remedy = "is a root alone", "name a deeper one, or use --mode auto"
        raise UsageError("--growmap", settings.growmap, reason, remedy)
    return settings.budget


def bounds_of(settings: Settings) -> TreeBounds | None:
    """The bounds of the trees; None if nothing is ever drafted. With a growmap, a dynamic tree is
    as deep as it. Raises UsageError, see `most_nodes`."""
    most, growmap = most_nodes(settings), _growmap(settings)
    if not most:
        return None
    if settings.mode == "sTree":
        assert growmap is not None
        return growmap_bounds(growmap.children, growmap.depths)
    depth = min(growmap.depth if growmap is not None else settings.depth_bound, most)
    # room for a copy and the child sampled before it
    children = max(2, min(settings.max_children, most))
    # a run starts below a node, and its values need estimates
    run = depth - 1 if settings.lookup and settings.values != "own" else 0
    return TreeBounds(depth=depth, width=FRONTIER, children=children, run=run)


def room_for(nodes: int) -> list[int]:
    """The numbers of nodes that captured passes have room for, if trees have up to `nodes`. Few
    sizes mean few graphs."""
    largest = next((size for size in SIZES if size >= nodes), -(-nodes // SIZES[-1]) * SIZES[-1])
    return [*(size for size in SIZES if size < largest), largest]


def can_hold(settings: Settings) -> bool:
    """Whether a captured step can hold these trees. Very wide or deep ones would need tensors that
    are too large."""
    bounds = bounds_of(settings)
    if bounds is None:
        return True
    wide = max(bounds.level_widths) * bounds.children
    entries = (room_for(most_nodes(settings))[-1] + 1) * (bounds.depth + 1)
    return max(wide, entries) <= LARGEST


def draft_rows(settings: Settings, *, padded: bool) -> int:
    """The most cache rows that the draft needs for the root and one tree. padded: whether all
    levels have fixed widths."""
    bounds, growmap = bounds_of(settings), _growmap(settings)
    if bounds is None:
        return 0
    if padded:
        return bounds.row_count
    if settings.mode == "sTree":
        assert growmap is not None
        return sum(bool(own) for own in growmap.children)
    return 1 + (bounds.depth - 1) * min(bounds.width, most_nodes(settings))


def _growmap(settings: Settings) -> Growmap | None:
    return load_growmap(settings.growmap) if settings.growmap is not None else None
