"""What a tree costs on this machine: the seconds of a target pass and of a draft pass, by width.
Each pass includes the work that follows it in a step: verification of a tree of that size, or the
draw of a level's children.

The curves are measured once per machine, pair, dtype and thread count, in a few seconds. As in
decoding, passes of both models take turns. Every round takes all widths once, so a slow moment of
the machine does not bend a curve. The least time over the rounds counts, because it was disturbed
least.

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
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch

from dynasurge import probabilities
from dynasurge.decoding.captured_latency import TEXT, captured_costs
from dynasurge.decoding.captured_latency import WIDTHS as CAPTURED_WIDTHS
from dynasurge.decoding.engines import Engines
from dynasurge.drafting.cost_model import Costs
from dynasurge.drafting.proposals import Wish, sampled
from dynasurge.files import cache_folder, write_whole
from dynasurge.models.engine import Engine
from dynasurge.models.failures import shrinking
from dynasurge.trees.token_tree import TokenTree
from dynasurge.verification.rules import traversal, verify

WIDTHS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128)
ROUNDS = 8
CHILDREN = 4  # drawn at every node of a level
METHOD = 3  # version of the method; curves of another version are measured again


def widths_of(engines: Engines) -> tuple[int, ...]:
    """The widths at which both engines can be measured as they will run."""
    widths = CAPTURED_WIDTHS if engines.captures else WIDTHS
    # captured draft passes have one price, so only the target's room counts
    limiting = [engines.target] if engines.captures else list(engines)
    widest = min(min(e.widest, e.reach - min(TEXT // 2, e.reach // 4)) for e in limiting)
    return tuple(w for w in widths if w <= max(1, widest))


def measure(engines: Engines, on_width: Callable[[], object] = lambda: None) -> Costs:
    """Time both engines at every width that fits. Resets the engines before and after.

    Calls on_width after each width of each round.
    """
    with shrinking("tree"), torch.inference_mode():
        return _measure(engines, on_width)


def _measure(engines: Engines, on_width: Callable[[], object]) -> Costs:
    target, draft = _both(engines)
    widths = widths_of(engines)
    if engines.captures:
        try:
            return captured_costs(target, draft, widths, on_width)
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            engines.decode_uncaptured()  # measure what runs instead
            return _measure(engines, on_width)
    chance = probabilities.Random.seeded(0)

    def draw(logits: torch.Tensor) -> None:
        sampled(probabilities.to_probs(logits, 1.0), [Wish(k=CHILDREN)] * len(logits), chance)

    def judge(logits: torch.Tensor) -> None:
        p = probabilities.to_probs(logits, 1.0)
        even = torch.full_like(
            p[0], 1 / p.shape[-1]
        )  # with q = p nothing might be left to draw from
        verify(traversal, _tree(len(p)), p, [even] * len(p), chance)

    engines.reset()
    for engine in engines:
        engine.extend(
            [1 + number % 50 for number in range(max(1, min(TEXT, engine.reach - widths[-1])))]
        )
    drafted: list[list[float]] = [[] for _ in widths]
    verified: list[list[float]] = [[] for _ in widths]
    for _ in range(ROUNDS):
        for at, width in reversed(
            list(enumerate(widths))
        ):  # the widest pass frees much memory, so no narrow one follows it
            drafted[at].append(_seconds(draft, width, draw))
            verified[at].append(_seconds(target, width, judge))
            on_width()
    engines.reset()
    return Costs(
        widths=widths,
        target_seconds=tuple(min(times) for times in verified),
        draft_seconds=tuple(min(times) for times in drafted),
    )


def _both(engines: Engines) -> tuple[Engine, Engine]:
    assert engines.draft is not None, "costs need a draft"
    return engines.target, engines.draft


def _tree(size: int) -> TokenTree:
    """A tree of `size` nodes with the root, each with up to two sampled children."""
    chances = (1.0, *[0.5] * (size - 1))
    return TokenTree(
        tokens=tuple(node % 2 for node in range(size)),  # siblings differ
        parents=tuple((node - 1) // 2 if node else -1 for node in range(size)),
        proposal=chances,
        point=(True, *[False] * (size - 1)),
    )


def _seconds(engine: Engine, width: int, work: Callable[[torch.Tensor], None]) -> float:
    """Seconds of a pass over `width` tokens after the present text, and of the `work` that follows
    it. `work` ends with a wait for the device."""
    start = time.perf_counter()
    work(engine.forward([1 + number % 50 for number in range(width)], [-1] + [0] * (width - 1)))
    seconds = time.perf_counter() - start
    engine.commit([])
    return seconds


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
    kind = [engines.captures, target.compiled, METHOD]
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
