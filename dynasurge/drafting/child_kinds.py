"""The kinds of children that a node can get, and the feature that each kind's acceptance depends
on.

| kind | how the child is chosen | its feature x |
|---|---|---|
| first | sampled | its token's probability (before the draw: the mean over the draw) |
| second | sampled without the first, which was refused | the same, among what is left |
| third | the same after two refusals | the same |
| later | the same after three or more | the same |
| tail | sampled outside its sibling points | the draft's mass outside them |
| point | chosen without a draw | the draft's probability of its token |
| echo | copied from earlier text; the draft agrees | how many tokens before it match |
| lookup | the same; the draft disagrees | the same |
| blind | the same; the draft has not read the parent | the same |

A new kind needs a member here, a curve in `assets/acceptance.json`, and a policy that proposes it.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple, TypeVar

if TYPE_CHECKING:
    import torch

Level = TypeVar("Level", int, "torch.Tensor")
DEPTHS = ("", "+", "++")  # suffix of a kind's name for each depth class
LEVELS = (2, 4)  # the first level of each class after the first


class Kind(IntEnum):
    """A kind's number, which stands for it in tensors: sampled kinds first, then points, then
    copies. (torch.compile does not compare tensors with members of an enum: code that it reads takes
    their `value`.)"""

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
        """The kind of a sampled child with `rank` elder siblings."""
        return cls(min(rank, cls.LATER))

    @property
    def sequential(self) -> bool:
        """Whether verification tries it only after it refused the elder siblings."""
        return self <= Kind.LATER

    @property
    def point(self) -> bool:
        """Whether its token was chosen without a draw."""
        return self >= Kind.POINT

    @property
    def counted(self) -> bool:
        """Whether its feature counts tokens; otherwise the feature is a probability."""
        return self >= Kind.ECHO

    @property
    def bins(self) -> tuple[float, ...]:
        """Edges between the bins of its feature. Each bin learns on its own."""
        if self.counted:
            return 2.5, 4.5
        return BINS.get(self, (0.2,))


BINS: dict[Kind, tuple[float, ...]] = {
    Kind.POINT: (0.1, 0.4, 0.8),
    Kind.TAIL: (0.2, 0.5),
    Kind.FIRST: (0.2, 0.6),
    Kind.SECOND: (0.2, 0.6),
}


class Class(NamedTuple):
    """Children that share a curve: a kind and a depth class. The classes are the first level, the
    next two levels, and all below. They differ for two reasons: accepted text is easy text, and
    bottom-up verification makes up for unlucky tokens above."""

    kind: Kind
    depth: int = 0

    @classmethod
    def at(cls, kind: Kind, level: int) -> Class:
        """The class of a child of this kind on a level (the root's children: level 1)."""
        return cls(kind, depth_class(level))

    @classmethod
    def named(cls, name: str) -> Class:
        """The class of this name. Raises ValueError if there is none."""
        kind = name.rstrip("+")
        depth = name[len(kind) :]
        if kind.upper() not in Kind.__members__ or kind != kind.lower() or depth not in DEPTHS:
            raise ValueError(f"{name!r} is no kind of child")
        return cls(Kind[kind.upper()], DEPTHS.index(depth))

    @property
    def name(self) -> str:
        """The name in files of curves, for example `tail++`."""
        return self.kind.name.lower() + DEPTHS[self.depth]


CLASSES = tuple(Class(kind, depth) for kind in Kind for depth in range(len(DEPTHS)))


def depth_class(level: Level) -> Level:
    """The index in DEPTHS of a level's class, or of each level's (the root's children: level 1)."""
    second, third = LEVELS
    return (level >= second) * 1 + (level >= third) * 1
