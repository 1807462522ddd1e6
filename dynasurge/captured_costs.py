"""What captured steps cost: target and draft passes by width, and the rest of a step, timed as they are replayed.

Part of latency.py, for engines on a GPU: there a pass is measured with what follows it in a captured step, softmax for the
target, softmax and drawing for the draft, and all in one CUDA graph, waited for. A draft pass always has room for FRONTIER
nodes, so it has one price.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from dynasurge import sampling
from dynasurge.engine import Engine
from dynasurge.forest import FRONTIER, Forest, Layout, assemble
from dynasurge.graphs import Graphs, fused
from dynasurge.judge import judge, law
from dynasurge.proposing import draw_children
from dynasurge.settling import settle

REPEATS = 7
TEXT = 160  # tokens in the cache while measuring
NODES = 64  # of the tree whose verification is timed


def captured_seconds(
    target: Engine, draft: Engine, widths: Sequence[int], on_width: Callable[[], object]
) -> dict[str, Any]:
    """`target_seconds` and `draft_seconds` by width, and `step_seconds`; see latency.Costs."""
    seconds = []
    for width in widths:
        seconds.append(_seconds(target, width, _scored))
        on_width()
    level = _seconds(draft, min(FRONTIER, widths[-1]), _proposed)
    return {
        "target_seconds": tuple(seconds),
        "draft_seconds": (level,) * len(widths),
        "step_seconds": _verified(target),
    }


def _scored(engine: Engine, logits: torch.Tensor) -> None:
    sampling.to_probs(logits, 1.0)


def _proposed(engine: Engine, logits: torch.Tensor) -> None:
    q = fused(sampling.to_proposal, engine.compiled)(logits, 1.0)
    uniforms = torch.full((len(q), 8, 2), 0.5, dtype=torch.float64, device=q.device)
    drawn, worth = draw_children("sampled", q, uniforms)[1], uniforms[:, 0, 0]
    fused(settle, engine.compiled)("sampled", drawn, worth, worth, None, None, True, 8)


def _verified(target: Engine) -> float:
    """Seconds of a captured rule over a tree of NODES nodes in 8 levels."""
    forest = Forest.empty(Layout(depth=8, width=16, children=8), target.vocab, target.device)
    forest.slot_value.fill_(0.5)
    p = torch.full((NODES + 2, target.vocab), 1.0 / target.vocab, device=target.device)
    uniforms = torch.full((2, 2), 0.5, dtype=torch.float64, device=target.device)
    return _replayed(lambda: judge(law(forest, assemble(forest, NODES), p, "traversal"), uniforms), target.device)


def _seconds(engine: Engine, width: int, work: Callable[[Engine, torch.Tensor], None]) -> float:
    """A pass over `width` tokens behind some text, and the `work` that follows it."""
    length = min(TEXT, engine.static_length - width)
    engine.reset()
    engine.extend([1 + number % 50 for number in range(length)])
    places = torch.arange(width, device=engine.device)
    hidden = torch.arange(engine.static_length, device=engine.device) > length + places[:, None]
    tokens, rows = 1 + places % 50, length + places
    seconds = _replayed(lambda: work(engine, engine.score_at(tokens, rows, rows, hidden)), engine.device)
    engine.reset()
    return seconds


def _replayed(work: Callable[[], object], device: torch.device) -> float:
    captured, times = Graphs(device).capture(work), []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        captured.replay()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])
