"""Several processes, one job: who does which prompt, and when they wait for each other.

    accelerate launch --num_processes 2 -m dynasurge sweep ...

starts as many processes as there are GPUs, perhaps on several machines; accelerate's `PartialState`
tells each its number and its device. Decoding needs no word between them: prompts are dealt out
like cards, every process appends to a file of its own, and at the end one of them puts the files
together (experiments/records.py). They meet only to wait, over gloo, which works with and without
GPUs. Without a launcher there is one process and nobody to wait for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

Item = TypeVar("Item")


def _nobody() -> None:
    """Wait for nobody."""


@dataclass(frozen=True, kw_only=True)
class Processes:
    """rank: this process's number, from 0; count: how many there are; wait: returns once all have
    called it."""

    rank: int = 0
    count: int = 1
    wait: Callable[[], None] = _nobody

    @property
    def main(self) -> bool:
        """Whether this is the one that reports."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """This process's part; the parts of all are every item once, of any count of either."""
        return items[self.rank :: self.count]


ALONE = Processes()
