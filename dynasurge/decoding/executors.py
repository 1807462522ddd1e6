"""Who runs the phases of a step (decoding/phases.py): they are called one by one, or replayed.

With small models on a GPU, Python needs longer to launch the kernels of a step than the GPU needs
to run them. There the phases are captured once, with tensors of fixed shape, as a few CUDA graphs:
one for each level, and one pass and one verification for each number of nodes. `Replayed` launches
levels without waiting for them: the host looks at one level while the device drafts the next (a lag
of 2). `Direct` calls the phases with exact shapes, and sees every level before the next (a lag of
1).
"""

from __future__ import annotations

from typing import Protocol

import torch

from dynasurge.decoding.phases import Gathered, Phases, Scored
from dynasurge.decoding.report import Likeliest, Verified, pinned, report_size
from dynasurge.models.cuda_graphs import Captured, Graphs, Signal


class Executor(Protocol):
    """Runs the phases of one step after the other."""

    phases: Phases
    lag: int
    capture_seconds: float

    def grow(self, level: int, budget: int) -> bool:
        """Draft one more level; level 0 starts a tree without levels. Returns False if there is
        certainly nothing to draft."""
        ...

    def standing(self, level: int) -> tuple[float, float]:
        """Wait for a level, and return its best slot value and how many slots of earlier levels are
        at least as valuable."""
        ...

    def score(self, n: int) -> None:
        """Launch the target's pass over the root and n nodes."""
        ...

    def verify(self, n: int) -> Verified:
        """Launch the verification of these nodes. Returns where the report will be, on the host;
        the second call from now may overwrite it."""
        ...

    def widths(self, levels: int) -> list[int]:
        """How many tokens each draft pass of the present tree has read."""
        ...


class Direct:
    """Calls the phases, with exact or padded shapes."""

    capture_seconds = 0.0

    def __init__(self, phases: Phases, lag: int = 1) -> None:
        self.phases, self.lag = phases, lag
        self._standing: dict[int, torch.Tensor] = {}
        self._scored: Scored | None = None

    def grow(self, level: int, budget: int) -> bool:
        """Draft one more level, see `Executor`."""
        with torch.inference_mode():
            found = self.phases.level(level, budget) if level else self.phases.bare()
        if found is not None:
            self._standing[level] = found
        return found is not None

    def standing(self, level: int) -> tuple[float, float]:
        """See `Executor`."""
        best, ahead = self._standing[level].tolist()
        return best, ahead

    def score(self, n: int) -> None:
        """See `Executor`."""
        with torch.inference_mode():
            self._scored = self.phases.score(n)

    def verify(self, n: int) -> Verified:
        """See `Executor`."""
        assert self._scored is not None
        with torch.inference_mode():
            done = self.phases.verify(self._scored)
            self.phases.end(done)
            return done._replace(report=done.report.cpu())

    def widths(self, levels: int) -> list[int]:
        """See `Executor`."""
        return self.phases.widths


class Between:
    """The pass of a target that is spread over devices, which no graph can hold, between the graphs
    of what is before and after it. `result` stays where it is."""

    def __init__(self, phases: Phases, gathered: Captured[Gathered]) -> None:
        self._phases, self._gathered = phases, gathered
        with torch.inference_mode():
            self.result = phases.passed(gathered.result)

    def replay(self) -> None:
        """Gather, and run the pass."""
        self._gathered.replay()
        with torch.inference_mode():
            scored = self._phases.passed(self._gathered.result)
            self.result.logits.copy_(scored.logits)
        self.result = Scored(scored.nodes, self.result.logits)


class Replayed:
    """Replays the phases, which must be padded."""

    def __init__(self, phases: Phases) -> None:
        """Captures all phases, verification only if it can be. Raises RuntimeError if another
        cannot be captured."""
        self.phases, self.lag = phases, 2
        trees, device = phases.trees, phases.device
        self._sizes = trees.planner.sizes if trees is not None else (0,)
        for engine in (phases.target, phases.draft):
            if engine is not None:
                engine.reset()
                engine.prepare()
        graphs = Graphs(device)
        self._grow: list[Captured[torch.Tensor | None]] = []
        if trees is not None:
            self._grow.append(graphs.capture(phases.bare))
        for level in range(1, phases.depth + 1):
            self._grow.append(graphs.capture(lambda level=level: phases.level(level, 0)))  # type: ignore[misc]
        self._score: dict[int, Captured[Scored] | Between] = {}
        self._verify: dict[int, Captured[Verified]] = {}
        # the largest first, so that the others reuse its memory
        for n in sorted(self._sizes, reverse=True):
            if phases.target.spread:
                gathered = graphs.capture(lambda n=n: phases.gathered(n))  # type: ignore[misc]
                self._score[n] = Between(phases, gathered)
            else:
                self._score[n] = graphs.capture(lambda n=n: phases.score(n))  # type: ignore[misc]
            if phases.captures_verify:
                verify = lambda n=n: phases.verify(self._score[n].result)  # noqa: E731
                self._verify[n] = graphs.capture(verify, phases.length.zero_)
        self.capture_seconds = graphs.seconds
        size = report_size(phases.depth, max(self._sizes))
        self._back = [pinned(size, device) for _ in range(2)]
        self._standing = pinned(2 * (phases.depth + 1), device).view(-1, 2)
        self._seen = [Signal(device) for _ in range(phases.depth + 1)]

    def grow(self, level: int, budget: int) -> bool:
        """Draft one more level, without a wait; see `Executor`."""
        self._grow[level].replay()
        found = self._grow[level].result
        assert found is not None
        self._standing[level].copy_(found, non_blocking=True)
        self._seen[level].set()
        return True

    def standing(self, level: int) -> tuple[float, float]:
        """See `Executor`."""
        self._seen[level].wait()
        best, ahead = self._standing[level].tolist()
        return best, ahead

    def score(self, n: int) -> None:
        """See `Executor`."""
        self._score[n].replay()

    def verify(self, n: int) -> Verified:
        """See `Executor`."""
        if n in self._verify:
            self._verify[n].replay()
            done = self._verify[n].result
        else:
            with torch.inference_mode():
                done = self.phases.verify(self._score[n].result)
        with torch.inference_mode():
            self.phases.end(done)
        self._back.reverse()  # the other buffer holds the step before, which may be unread
        report, found = self._back[0][: len(done.report)], done.likeliest
        report.copy_(done.report, non_blocking=True)
        return Verified(report, Likeliest(*(part.clone() for part in found)) if found else None)

    def widths(self, levels: int) -> list[int]:
        """See `Executor`."""
        assert self.phases.trees is not None
        return list(self.phases.trees.bounds.level_widths[:levels])
