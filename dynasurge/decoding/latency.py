"""What a tree costs on this machine: the seconds of a target pass and of a draft pass, by width.
Each pass includes the work that follows it in a step: verification of a tree of that size, or the
choice of nodes and the proposal of their children.

A decoder makes steps on some text, whose levels have fixed widths, and times their phases. The
curves are measured once per machine, pair, dtype and thread count, in a few seconds. Every round
takes all widths once, so a slow moment of the machine does not bend a curve; the median of the
rounds counts. Captured target passes have room for a few fixed numbers of nodes; each number is
measured. Captured draft passes always have room for FRONTIER nodes, so they have one price.

The user's cache folder (`$DYNASURGE_CACHE`, else `~/.cache/dynasurge`) keeps the curves; `dynasurge
calibrate` measures them again. A wider pass is never cheaper. If it seems so, that is noise, and
the narrower width gets the wider one's time. All else in a curve stays, with its steps and bends:
four nodes may cost half as much as thirty.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import statistics
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch

from dynasurge.decoding.engines import Engines
from dynasurge.decoding.executors import Direct, Replayed
from dynasurge.decoding.loop import Decoder
from dynasurge.decoding.phases import Judge, Phases
from dynasurge.decoding.report import Trees
from dynasurge.drafting.acceptance_estimates import make_acceptance
from dynasurge.drafting.cost_model import Costs
from dynasurge.drafting.growth import FRONTIER, TreeBounds
from dynasurge.drafting.proposals import POLICIES
from dynasurge.drafting.tree_budget import Size, SizePlanner
from dynasurge.files import cache_folder, write_whole
from dynasurge.models.engine import Engine
from dynasurge.models.failures import shrinking
from dynasurge.probabilities import Random
from dynasurge.verification.rules import RULES

WIDTHS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128)
CAPTURED_WIDTHS = (1, 17, 33, 65, 129)  # a root and the nodes of each captured pass
ROUNDS = 8
WIDE, WIDE_ROUNDS = 48, 2  # on a CPU such trees never pay, and take most of the time
TEXT = 160  # tokens in the cache while measuring
LEVELS = {True: 4, False: 2}  # of the trees, if captured and if not
METHOD = 5  # changes with what a pass costs, or how it is measured; older curves are measured anew
CHILDREN = {True: 8, False: 4}  # of a node
JUDGE = Judge(rule=RULES["traversal"], T=1.0, P=1.0)


def widths_of(engines: Engines) -> tuple[int, ...]:
    """The widths at which both engines can be measured as they will run."""
    widths = CAPTURED_WIDTHS if engines.captures else WIDTHS
    # captured draft passes have one price, so only the target's room counts
    limiting = [engines.target] if engines.captures else list(engines)
    widest = min(min(e.widest, e.reach - max(2, min(TEXT // 2, e.reach // 4))) for e in limiting)
    return tuple(w for w in widths if w <= max(1, widest))


def measure(engines: Engines, on_width: Callable[[], object] = lambda: None) -> Costs:
    """Time both engines at every width that fits. Resets the engines before and after.

    Calls on_width after each width of each round.
    """
    with shrinking("tree"), torch.inference_mode():
        if engines.captures:
            try:
                return _measure(engines, on_width)
            except RuntimeError as error:
                if isinstance(error, torch.OutOfMemoryError):
                    raise
                engines.decode_uncaptured()  # measure what runs instead
        return _measure(engines, on_width)


def _measure(engines: Engines, on_width: Callable[[], object]) -> Costs:
    target, draft = engines.target, engines.draft
    assert draft is not None, "costs need a draft"
    widths, captured = widths_of(engines), engines.captures
    levels, width = LEVELS[captured], FRONTIER if captured else widths[-1]
    levels = max(1, min(levels, 1 + (draft.reach - 2) // width))
    room = min(target.reach - widths[-1], draft.reach - 1 - (levels - 1) * width)
    text = [1 + number % 50 for number in range(max(1, min(TEXT, room)))]
    if captured:
        plain = Decoder(Replayed(Phases(target, None, None, JUDGE, padded=True, captured=True)))
        sizes = [width - 1 for width in widths if width > 1] or [1]
        growing = _decoder(target, draft, FRONTIER, sizes, levels, captured)
        decoders = [plain, *[growing] * (len(widths) - 1)]
    else:
        decoders = [_decoder(target, draft, n, [max(1, n - 1)], levels, captured) for n in widths]
    engines.reset()
    for decoder in decoders:
        decoder.prefill(text)  # only the first one reads
    times: list[list[dict[str, float]]] = [[] for _ in widths]
    chance = Random.seeded(0)
    for number in range(ROUNDS + captured):  # the first replays of a graph are slow
        # the widest pass frees much memory, so no narrow one follows it
        for at, width in reversed(list(enumerate(widths))):
            size = Size(nodes=width - 1, depth=levels if width > 1 or not captured else 0)
            if captured or width < WIDE or number < WIDE_ROUNDS:
                step = decoders[at].rehearse(len(text), size, chance)
                if number >= captured:
                    times[at].append(step)
            on_width()
    engines.reset()

    def usual(*phases: str) -> list[float]:
        sums = [[sum(step[f"{name}_seconds"] for name in phases) for step in own] for own in times]
        return [statistics.median(own) for own in sums]

    drafted = usual("draft")
    prices = [drafted[-1] / levels] * len(widths)
    if not captured and levels > 1:  # the first of two passes reads one token
        prices = [seconds - drafted[0] / levels for seconds in drafted]
    return Costs(
        widths=widths,
        target_seconds=tuple(usual("target", "verify")),
        draft_seconds=tuple(max(1e-6, seconds) for seconds in prices),
        step_seconds=statistics.median(usual("other")),
    )


def _decoder(
    target: Engine, draft: Engine, width: int, sizes: list[int], levels: int, captured: bool
) -> Decoder:
    """A decoder whose draft passes read `width` nodes."""
    trees = Trees(
        bounds=TreeBounds(depth=levels, width=width, children=CHILDREN[captured]),
        budget=sizes[-1],
        policy=POLICIES["sampled"],
        planner=SizePlanner(sizes=sizes, budget=sizes[-1], max_depth=levels, lag=2),
        acceptance=make_acceptance("fixed", "traversal", 1.0),
        copies=True,
    )
    phases = Phases(target, draft, trees, JUDGE, padded=True, captured=captured)
    return Decoder(Replayed(phases) if captured else Direct(phases, lag=2))


def cache_file(engines: Engines) -> Path:
    """The file of this machine's and pair's curves."""
    target, device = engines.target, engines.target.device
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else platform.processor() or platform.machine()
    )
    configs = [engine.model.config.to_json_string() for engine in engines]
    key = [
        name,
        os.cpu_count(),
        torch.get_num_threads(),
        torch.__version__,
        str(target.model.dtype),
        *configs,
    ]
    kind = [engines.captures, target.compiled, METHOD, *["spread"] * target.spread]
    digest = hashlib.sha256(json.dumps([*key, *kind]).encode()).hexdigest()[:16]
    return cache_folder() / "latency" / f"{digest}.json"


def load_costs(
    engines: Engines,
    *,
    anew: bool = False,
    on_width: Callable[[], object] = lambda: None,
) -> Costs:
    """This machine's curves for the pair of these engines.

    They are measured and stored if no file has them, if the file is damaged or does not reach the
    engines' largest width, or if `anew`. If the cache folder cannot be written, `anew` raises
    OSError; otherwise the next session measures again.
    """
    path = cache_file(engines)
    kept = None if anew else read_costs(path)
    if kept is not None and kept.widths[-1] >= widths_of(engines)[-1]:
        return kept
    costs = measure(engines, on_width)
    path = cache_file(engines)  # the engines may have stopped capturing
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with write_whole(path) as partial:
            partial.write_text(json.dumps(asdict(costs)))
    except OSError:
        if anew:
            raise
    return costs


def read_costs(path: Path) -> Costs | None:
    """The curves of a file; None if it does not exist or is damaged."""
    try:
        data = json.loads(path.read_text())
        step_seconds = data.pop("step_seconds")
        return Costs(
            step_seconds=step_seconds, **{name: tuple(numbers) for name, numbers in data.items()}
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
