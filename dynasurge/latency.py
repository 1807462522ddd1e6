"""What a tree costs on this machine: seconds of a target pass by its width, and of a draft pass by its width.

The curves are measured once per machine, pair, dtype and thread count, in a few seconds, and kept in the user's cache
folder (`$DYNASURGE_CACHE`, else `~/.cache/dynasurge`); `dynasurge calibrate` measures them anew. A wider pass is never
cheaper; where it seems so, that is noise, and the narrower one counts as the wider. Otherwise curves are taken as they
are, with their steps and bends: four nodes may cost half as much as thirty.
"""

from __future__ import annotations

import bisect
import hashlib
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from dynasurge import sampling
from dynasurge.engine import Engine
from dynasurge.faults import shrinking
from dynasurge.files import cache_folder, write_whole
from dynasurge.forest import Forest, Layout, assemble
from dynasurge.graphs import Graphs
from dynasurge.judge import judge, law
from dynasurge.policies import Wish, hybrid
from dynasurge.proposing import draw_children, settle
from dynasurge.tree import TokenTree
from dynasurge.verification import traversal, verify

WIDTHS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128)
CAPTURED_WIDTHS = (1, 16, 32, 64, 128)  # each is captured by itself, and perhaps compiled
REPEATS = 5
TEXT = 160  # tokens in the cache while measuring


@dataclass(frozen=True, kw_only=True)
class Costs:
    """widths, rising from 1; target_seconds and draft_seconds: a pass over so many tokens; step_seconds: the rest of a
    step (drawing, verification, bookkeeping), whatever the tree."""

    widths: tuple[int, ...]
    target_seconds: tuple[float, ...]
    draft_seconds: tuple[float, ...]
    step_seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.widths[:1] != (1,) or list(self.widths) != sorted(set(self.widths)):
            raise ValueError(f"widths {self.widths} do not rise from 1")
        for seconds in (self.target_seconds, self.draft_seconds):
            if len(seconds) != len(self.widths) or not all(0 < s < math.inf for s in seconds):
                raise ValueError(f"{seconds} are not the seconds of {len(self.widths)} widths")
        if not 0 <= self.step_seconds < math.inf:
            raise ValueError(f"step_seconds is {self.step_seconds}")

    def extended(self, other: Costs) -> Costs:
        """These curves as far as they go, unchanged, and behind that the other's, which is never below them."""
        more = [at for at, width in enumerate(other.widths) if width > self.widths[-1]]
        return replace(
            self,
            widths=self.widths + tuple(other.widths[at] for at in more),
            target_seconds=self.target_seconds
            + tuple(max(other.target_seconds[at], *self.target_seconds) for at in more),
            draft_seconds=self.draft_seconds + tuple(max(other.draft_seconds[at], *self.draft_seconds) for at in more),
        )

    def target(self, nodes: int) -> float:
        """Seconds of a target pass over a tree of so many drafted nodes."""
        return _at(self.widths, self._target_floor, nodes + 1)

    def draft(self, width: int) -> float:
        """Seconds of a draft pass over a level of so many nodes, with the drawing of its children."""
        return _at(self.widths, self._draft_floor, width)

    def step(self, nodes: int, passes: int) -> float:
        """Seconds of a whole step that drafted so many nodes in so many passes."""
        width = max(1, round(nodes / passes)) if passes else 1
        return self.target(nodes) + passes * self.draft(width) + self.step_seconds

    @cached_property
    def _target_floor(self) -> list[float]:
        return _floor(self.target_seconds)

    @cached_property
    def _draft_floor(self) -> list[float]:
        return _floor(self.draft_seconds)


def _floor(seconds: Sequence[float]) -> list[float]:
    """The largest curve that never falls and never exceeds the measured one."""
    return [min(seconds[i:]) for i in range(len(seconds))]


def _at(xs: Sequence[float], ys: Sequence[float], x: float) -> float:
    """Linear between the points, the last slope going on beyond the end."""
    if len(xs) == 1:
        return ys[0]
    at = min(max(1, bisect.bisect_left(xs, x)), len(xs) - 1)
    return ys[at - 1] + (ys[at] - ys[at - 1]) * (x - xs[at - 1]) / (xs[at] - xs[at - 1])


def widths_of(target: Engine, draft: Engine) -> tuple[int, ...]:
    """The widths at which both engines can be measured as they will run."""
    widest = min(min(e.widest, e.max_length - min(TEXT // 2, e.max_length // 4)) for e in (target, draft))
    widths = WIDTHS if target.device.type == "cpu" else CAPTURED_WIDTHS
    return tuple(w for w in widths if w <= max(1, widest))


def measure(target: Engine, draft: Engine, on_width: Callable[[], object] = lambda: None) -> Costs:
    """Time both engines at every width that fits, medians of REPEATS. Engines are reset before and after.

    on_width is called after each width.
    """
    with shrinking("tree"):
        return _measure(target, draft, on_width)


def _measure(target: Engine, draft: Engine, on_width: Callable[[], object]) -> Costs:
    widths, seconds = widths_of(target, draft), []
    for width in widths:
        seconds.append((_seconds(target, width, _scored), _seconds(draft, width, _proposed)))
        on_width()
    target_seconds, draft_seconds = zip(*seconds, strict=True)
    step = _verified(target) if target.device.type == "cuda" else _seconds(target, 1, _judged) - target_seconds[0]
    return Costs(widths=widths, target_seconds=target_seconds, draft_seconds=draft_seconds, step_seconds=max(0.0, step))


def _scored(logits: torch.Tensor) -> None:
    if logits.device.type == "cuda":  # on a CPU a rule computes only what it looks at
        sampling.to_probs(logits, 1.0)


def _proposed(logits: torch.Tensor) -> None:
    q = sampling.to_probs(logits, 1.0)
    if logits.device.type == "cuda":
        uniforms = torch.full((len(q), 8, 2), 0.5, dtype=torch.float64, device=q.device)
        worth = uniforms[:, 0, 0]
        settle("sampled", draw_children("sampled", q, uniforms)[1], worth, worth, None, None, True)
    else:
        hybrid(q, [Wish(k=8)] * len(q), torch.Generator().manual_seed(0))


def _judged(logits: torch.Tensor) -> None:
    tree = TokenTree(tokens=(0, 1), parents=(-1, 0), proposal=(1.0, 1.0), point=(True, True))
    p = sampling.to_probs(logits, 1.0).expand(2, -1)
    verify(traversal, tree, p, [p[0], p[0]], torch.Generator().manual_seed(0))


def _verified(target: Engine) -> float:
    """Seconds of a captured rule over a tree of 64 nodes in 8 levels."""
    forest = Forest.empty(Layout(depth=8, width=16, children=8), target.vocab, target.device)
    forest.slot_value.fill_(0.5)
    p = torch.full((66, target.vocab), 1.0 / target.vocab, device=target.device)
    uniforms = torch.full((2, 2), 0.5, dtype=torch.float64, device=target.device)
    return _replayed(lambda: judge(law(forest, assemble(forest, 64), p, "traversal"), uniforms), target.device)


def _seconds(engine: Engine, width: int, work: Callable[[torch.Tensor], None]) -> float:
    """A pass over `width` tokens behind some text, and the `work` that follows it."""
    engine.reset()
    length = min(TEXT, engine.max_length - width)
    engine.extend([1 + number % 50 for number in range(length)])
    if engine.device.type == "cuda":
        places = torch.arange(width, device=engine.device)
        hidden = torch.arange(engine.max_length, device=engine.device) > length + places[:, None]
        seconds = _replayed(
            lambda: work(engine.score_at(1 + places % 50, length + places, length + places, hidden)), engine.device
        )
    else:
        seconds = _clocked(lambda: _pass(engine, width, work))
    engine.reset()
    return seconds


def _pass(engine: Engine, width: int, work: Callable[[torch.Tensor], None]) -> None:
    work(engine.forward([1 + number % 50 for number in range(width)], [-1] + [0] * (width - 1)))
    engine.commit([])


def _replayed(work: Callable[[], object], device: torch.device) -> float:
    captured = Graphs(device).capture(work)

    def replay() -> None:
        captured.replay()
        torch.cuda.synchronize(device)

    return _clocked(replay)


def _clocked(work: Callable[[], object]) -> float:
    times = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def cache_file(target: Engine, draft: Engine) -> Path:
    """Where the curves of this machine and pair live."""
    device = target.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    configs = [engine.model.config.to_json_string() for engine in (target, draft)]
    key = [name, os.cpu_count(), torch.get_num_threads(), torch.__version__, str(target.model.dtype), *configs]
    kind = ["Engine", target.compiled]
    digest = hashlib.sha256(json.dumps([*key, *kind]).encode()).hexdigest()[:16]
    return cache_folder() / "latency" / f"{digest}.json"


def load_costs(
    target: Engine, draft: Engine, *, anew: bool = False, on_width: Callable[[], object] = lambda: None
) -> Costs:
    """This machine's curves for the pair behind these engines. They are measured, and kept, if there are none, if those
    there cannot be read or stop short of what these engines run, or if `anew`; then a cache that cannot be written raises
    OSError, else it costs the next session a measurement."""
    path = cache_file(target, draft)
    kept = None if anew else read_costs(path)
    if kept is not None and kept.widths[-1] >= widths_of(target, draft)[-1]:
        return kept
    costs = measure(target, draft, on_width)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with write_whole(path) as partial:
            partial.write_text(json.dumps(asdict(costs)))
    except OSError:
        if anew:
            raise
    return costs


def read_costs(path: Path) -> Costs | None:
    """The curves of a file; None if it is not there, or damaged."""
    try:
        data = json.loads(path.read_text())
        step_seconds = data.pop("step_seconds")
        return Costs(step_seconds=step_seconds, **{name: tuple(numbers) for name, numbers in data.items()})
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
