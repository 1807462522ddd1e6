"""Several processes, one job: who does which prompt, and when they wait for each other.

    accelerate launch --num_processes 2 -m dynasurge sweep ...

starts several processes, usually one a GPU, on one machine or more. Its launcher
gives each its number. Decoding needs no messages between them. Prompts are dealt out
in turn, every process appends to its own file, and at the end one of them puts the files together
(experiments/records.py). They meet only to wait, over gloo, which works with and without GPUs.
Without a launcher there is one process and no wait.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

Item = TypeVar("Item")


def _nobody() -> None:
    """Return at once: there is no other process."""


@dataclass(frozen=True, kw_only=True)
class Processes:
    """rank: this process's number, from 0. count: how many there are. wait: returns after all have
    called it."""

    rank: int = 0
    count: int = 1
    wait: Callable[[], None] = _nobody

    @property
    def main(self) -> bool:
        """Whether this process reports."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """This process's part of the items. Together the parts have every item once."""
        return items[self.rank :: self.count]


ALONE = Processes()
