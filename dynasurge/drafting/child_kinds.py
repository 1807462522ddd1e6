"""The kinds of children that a node can get, and what each kind's acceptance depends on.

| kind | how the child is chosen | its feature x |
|---|---|---|
| first | sampled | the probability its token had (before the draw: the mean over the draw) |
| second | sampled without the first, which was refused | the same, among what is left |
| third | the same behind two | the same |
| later | the same behind three or more | the same |
| tail | sampled outside its sibling points | the draft's mass outside them |
| point | chosen outright | the draft's probability of its token |
| echo | copied from earlier text, and the draft agrees | how many tokens before it match |
| lookup | the same where the draft disagrees | the same |
| blind | the same where the draft was not asked | the same |

A new kind is a member here, a curve in `assets/acceptance.json`, and a policy that proposes it.
"""

from __future__ import annotations

import bisect
from enum import IntEnum
from typing import NamedTuple

DEPTHS = ("", "+", "++")  # behind a kind's name: the class of depth that a child is in,
LEVELS = (2, 4)  # the first level of each but the first


class Kind(IntEnum):
    """Numbers are those that captured steps keep in tensors; sampled kinds come first, then points,
    then copies."""

    FIRST = 0
    SECOND = 1
    THIRD = 2
    LATER = 3
    TAIL = 4
    POINT = 5
    ECHO = 6
    LOOKUP = 7
    BLIND = 8

    @classmethod
    def sampled(cls, rank: int) -> Kind:
        """The kind of a sampled child with so many elder siblings."""
        return cls(min(rank, cls.LATER))

    @property
    def sequential(self) -> bool:
        """Whether it is tried only where its elder siblings were refused."""
        return self <= Kind.LATER

    @property
    def point(self) -> bool:
        """Whether its token was chosen outright."""
        return self >= Kind.POINT

    @property
    def counted(self) -> bool:
        """Whether its feature counts tokens; of the others it is a probability."""
        return self >= Kind.ECHO

    @property
    def bins(self) -> tuple[float, ...]:
        """Edges between bins of its feature, each of which learns on its own."""
        if self.counted:
            return 2.5, 4.5
        return BINS.get(self, (0.2,))


BINS: dict[Kind, tuple[float, ...]] = {
    Kind.POINT: (0.1, 0.4, 0.8),
    Kind.TAIL: (0.2, 0.5),
    Kind.FIRST: (0.2, 0.6),
    Kind.SECOND: (0.2, 0.6),
}
# Kinds that captured steps propose.
TABLED: tuple[Kind, ...] = tuple(Kind)[: Kind.BLIND]


class Class(NamedTuple):
    """Children that share a curve: a kind, and a class of depth. The first level, the next two and
    those below are apart: text that was accepted so far is easy text, and bottom-up verification
    makes up for unlucky tokens above."""

    kind: Kind
    depth: int = 0

    @classmethod
    def at(cls, kind: Kind, level: int) -> Class:
        """That of a child of this kind on a level (the root's children: 1)."""
        return cls(kind, depth_class(level))

    @classmethod
    def named(cls, name: str) -> Class:
        """Raises ValueError if there is none of this name."""
        kind = name.rstrip("+")
        depth = name[len(kind) :]
        if kind.upper() not in Kind.__members__ or kind != kind.lower() or depth not in DEPTHS:
            raise ValueError(f"{name!r} is no kind of child")
        return cls(Kind[kind.upper()], DEPTHS.index(depth))

    @property
    def name(self) -> str:
        """As files of curves have it: `tail++`."""
        return self.kind.name.lower() + DEPTHS[self.depth]


CLASSES = tuple(Class(kind, depth) for kind in Kind for depth in range(len(DEPTHS)))


def depth_class(level: int) -> int:
    """Which of DEPTHS the nodes of a level (the root's children: 1) are in."""
    return bisect.bisect(LEVELS, level)
