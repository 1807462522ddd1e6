"""The cost of captured steps: a decoder makes the steps that will run, on some text, and the device
times them.

decoding/latency.py uses this for engines on a GPU. Captured target passes have room for a few fixed
numbers of nodes. Each number is measured, with the verification after it. A draft pass always has
room for FRONTIER nodes, so it has one price. That price includes the choice of nodes and the
proposal of their children.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from dynasurge.decoding.captured_exchange import Trees
from dynasurge.decoding.captured_loop import CapturedDecoder
from dynasurge.drafting.acceptance_estimates import make_acceptance
from dynasurge.drafting.captured_budget import Size, SizePlanner
from dynasurge.drafting.captured_tree import FRONTIER, TreeBounds
from dynasurge.drafting.cost_model import Costs
from dynasurge.models.engine import Engine
from dynasurge.probabilities import Random

WIDTHS = (1, 17, 33, 65, 129)  # a root and the nodes of each captured pass
REPEATS = 9
TEXT = 160  # tokens in the cache while measuring
LEVELS, CHILDREN = 4, 8
LOOKED_AT = 1e-300  # the host looks at every level, and every level is good enough


def captured_costs(
    target: Engine,
    draft: Engine,
    widths: Sequence[int],
    on_width: Callable[[], object] = lambda: None,
) -> Costs:
    """Measure the curves at `widths`. Calls on_width after each width. Resets the engines before
    and after. Raises RuntimeError if a step cannot be captured."""
    levels = max(1, min(LEVELS, (draft.static_length - 3) // FRONTIER))
    bounds = TreeBounds(depth=levels, width=FRONTIER, children=CHILDREN)
    room = min(target.static_length - widths[-1], draft.static_length - bounds.row_count)
    text = [1 + number % 50 for number in range(max(2, min(TEXT, room)))]
    sizes = [width - 1 for width in widths if width > 1] or [1]
    trees = Trees(
        bounds=bounds,
        budget=sizes[-1],
        policy="sampled",
        planner=SizePlanner(sizes=sizes, budget=sizes[-1], max_depth=levels),
        acceptance=make_acceptance("fixed", "traversal", 1.0),
        copies=True,
    )
    plain = CapturedDecoder(target, None, None, rule="topdown", T=1.0, P=1.0)
    growing = CapturedDecoder(target, draft, trees, rule="traversal", T=1.0, P=1.0)
    scored, drafted, rest = [], [], []
    for width in widths:
        decoder = growing if width > 1 else plain
        size = Size(nodes=width - 1, depth=levels if width > 1 else 0, least=LOOKED_AT)
        for engine in (target, draft):
            engine.reset()
        decoder.prefill(text)
        chance = Random.seeded(0)
        steps = [decoder.rehearse(len(text), size, chance) for _ in range(REPEATS + 1)][1:]
        scored.append(
            statistics.median(step["target_seconds"] + step["verify_seconds"] for step in steps)
        )
        drafted.append(statistics.median(step["draft_seconds"] for step in steps) / levels)
        rest.append(statistics.median(step["other_seconds"] for step in steps))
        on_width()
    for engine in (target, draft):
        engine.reset()
    return Costs(
        widths=tuple(widths),
        target_seconds=tuple(scored),
        draft_seconds=(max(drafted[-1], 1e-6),) * len(widths),  # width 1 drafts nothing
        step_seconds=statistics.median(rest),
    )
