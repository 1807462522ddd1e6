"""Where a tree's nodes go on paper or screen: one layout for the widget, the static SVG and the
matplotlib drawing.

`tree_positions` places nodes across their levels. `Layout` turns that into boxes with text: the
root on the left, one column a level, siblings from top to bottom in drawing order, so that every
path reads as its words. All its numbers are pixels at a font size of FONT in a fixed-width font,
whose letters are CHAR wide. So nothing has to be measured, and the three outputs agree.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from dynasurge.trees.token_tree import children_of, depths_of

FONT, CHAR = 12.0, 7.25
BOX, ROW = 20.0, 27.0  # the height of a box, and the distance between the middles of two boxes
PAD, GAP, MARGIN = 7.0, 30.0, 12.0  # on each side of a label, between columns, around the drawing
LONGEST = 14  # letters of a token that are shown; hovering shows the whole token
VISIBLE = str.maketrans({" ": "·", "\n": "↵", "\t": "⇥", "\r": "␍"})


def visible(text: str, longest: int = LONGEST) -> str:
    """A token's text with its white space shown, cut to `longest` letters: ` the` is `·the`."""
    shown = (
        "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text.translate(VISIBLE))
        or "∅"
    )
    return shown if len(shown) <= longest else shown[: longest - 1] + "…"


def columns_of(text: str) -> int:
    """How many fixed-width columns a text takes: two for a wide letter, none for an accent."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A tree with a label in every node. parents: -1 for the root, parents[u] < u. labels: one a
    node.

    All results are in pixels, x to the right and y downwards from the drawing's top left corner.
    """

    parents: tuple[int, ...]
    labels: tuple[str, ...]

    @cached_property
    def widths(self) -> list[float]:
        """The widths of the boxes."""
        return [columns_of(label) * CHAR + 2 * PAD for label in self.labels]

    @cached_property
    def left(self) -> list[float]:
        """x of each box's left edge. A level's boxes begin in one column."""
        return [self._columns[depth] for depth in self._depths]

    @cached_property
    def y(self) -> list[float]:
        """y of each box's middle."""
        across = tree_positions(self.parents)
        return [MARGIN + BOX / 2 + ROW * (x - min(across)) for x in across]

    @property
    def width(self) -> float:
        """The width of the drawing."""
        return max(x + w for x, w in zip(self.left, self.widths, strict=True)) + MARGIN

    @property
    def height(self) -> float:
        """The height of the drawing."""
        return max(self.y) + BOX / 2 + MARGIN

    def edge(self, child: int) -> tuple[tuple[float, float], ...]:
        """The line from the parent's box to the child's: five points, a straight line to the
        second, then a cubic curve.

        The straight line goes to the end of the parent's column, so that no edge runs through the
        box of another node.
        """
        parent = self.parents[child]
        start, end = self.left[parent] + self.widths[parent], self.left[child]
        turn, middle = end - GAP, end - GAP / 2
        above, below = self.y[parent], self.y[child]
        return (start, above), (turn, above), (middle, above), (middle, below), (end, below)

    @cached_property
    def _depths(self) -> tuple[int, ...]:
        return depths_of(self.parents)

    @cached_property
    def _columns(self) -> list[float]:
        widest = [0.0] * (max(self._depths) + 1)
        for depth, width in zip(self._depths, self.widths, strict=True):
            widest[depth] = max(widest[depth], width)
        return [MARGIN + sum(widest[:depth]) + GAP * depth for depth in range(len(widest))]


def tree_positions(parents: Sequence[int]) -> list[float]:
    """x of every node, the root at 0. Nodes of one level are at least 1 apart, and no edges cross.

    From the leaves up, each subtree moves as close to its earlier siblings as both outlines allow.
    A parent stands over the middle of its children (Reingold and Tilford, 1981).
    """
    children = children_of(parents)
    shift = [0.0] * len(parents)  # from the parent
    # lefts[u], rights[u]: the outline of u's subtree, on its own level and each below, relative to
    # u
    lefts: list[list[float]] = [[0.0] for _ in parents]
    rights: list[list[float]] = [[0.0] for _ in parents]
    for u in reversed(range(len(parents))):
        left: list[float] = []
        right: list[float] = []
        for child in children[u]:
            move = max((r - c + 1 for r, c in zip(right, lefts[child], strict=False)), default=0.0)
            shift[child] = move
            left += [move + x for x in lefts[child][len(left) :]]
            right[: len(rights[child])] = [move + x for x in rights[child]]
            lefts[child] = rights[child] = []  # read once; a long chain would keep them all
        if children[u]:
            middle = shift[children[u][-1]] / 2
            for child in children[u]:
                shift[child] -= middle
            lefts[u] += [x - middle for x in left]
            rights[u] += [x - middle for x in right]
    for u, parent in enumerate(parents[1:], start=1):
        shift[u] += shift[parent]
    return shift
