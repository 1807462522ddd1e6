"""From a finished generation to its row (schema.py), and the run name that rows of one setting
share."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence

from dynasurge.decoding.loop import StepRecord
from dynasurge.decoding.session import Generation
from dynasurge.drafting.acceptance_estimates import load_priors
from dynasurge.experiments.datasets import Prompt
from dynasurge.experiments.schema import Row
from dynasurge.settings import PHASES, Settings
from dynasurge.trees.growmap import load_growmap

SECONDS = tuple(f"{phase}_seconds" for phase in PHASES)


def make_row(
    settings: Settings,
    dataset: str,
    prompt: Prompt,
    result: Generation,
    about: dict[str, str | None],
    every: int = 0,
) -> Row:
    """The record of one prompt under one setting. about: see experiments/provenance.py. every: see
    `Row`."""
    steps = result.steps
    seconds = {name: sum(getattr(step, name) for step in steps) for name in SECONDS}
    return Row(
        label=settings.label,
        run=run_name(settings, dataset, every),
        hash=settings.hash(),
        lossless=settings.lossless,
        settings=settings.to_dict(),
        dataset=dataset,
        revision=prompt.revision,
        index=prompt.index,
        id=prompt.id,
        kind=prompt.kind,
        every=every,
        prompt_ids=result.prompt_ids,
        output_ids=result.output_ids,
        text=result.text,
        accepted=[step.accepted for step in steps],
        ranks=[_ranks(step) for step in steps],
        children=[_children(step) for step in steps],
        expected=[round(step.expected, 4) for step in steps],
        predicted=_by_level(steps, "value"),
        reached=_by_level(steps, "reach"),
        tree_size=[step.tree.size for step in steps],
        tree_depth=[step.tree.depth for step in steps],
        tree_width=[step.tree.width for step in steps],
        passes=[step.passes for step in steps],
        confidence=[
            round(step.confidence, 4) if step.confidence == step.confidence else None
            for step in steps
        ],
        seconds=result.seconds,
        prefill_seconds=result.prefill_seconds,
        about=about,
        **seconds,
    )


def _by_level(steps: Sequence[StepRecord], what: str) -> list[float]:
    """Sums over the nodes of each level of all steps: of slot values, or of the probabilities that
    the path reached the nodes."""
    sums: dict[int, float] = defaultdict(float)
    for step in steps:
        numbers = step.tree.value if what == "value" else step.reach
        for depth, number in zip(step.tree.depths, numbers, strict=False):
            sums[depth] += number
    return [round(sums[depth], 4) for depth in range(1, max(sums, default=0) + 1)]


def _ranks(step: StepRecord) -> list[int]:
    tree = step.tree
    return [tree.children[tree.parents[node]].index(node) for node in step.path]


def _children(step: StepRecord) -> list[int]:
    chosen = (0, *step.path)[: len(step.emitted)]
    return [len(step.tree.children[node]) for node in chosen]


def run_name(settings: Settings, dataset: str, every: int = 0) -> str:
    """The name of a setting on a dataset; it depends on its files by content. Rows of one run have
    the same name."""
    files = str(load_growmap(settings.growmap).parents) if settings.growmap is not None else ""
    if settings.priors is not None:
        files += str(load_priors(settings.priors))
    if every:
        files += f"every {every}"
    return f"{settings.hash()}-{hashlib.sha256(files.encode()).hexdigest()[:4]}-{dataset}"
