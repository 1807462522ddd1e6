"""From a finished generation to its row (schema.py), and the name under which rows of one setting
belong together."""

from __future__ import annotations

import hashlib

from dynasurge.decoding.loop import StepRecord
from dynasurge.decoding.session import Generation
from dynasurge.drafting.acceptance_estimates import load_priors
from dynasurge.experiments.datasets import Prompt
from dynasurge.experiments.schema import FORMAT, PHASES, Row
from dynasurge.settings import Settings
from dynasurge.trees.growmap import load_growmap


def make_row(
    run: str,
    settings: Settings,
    dataset: str,
    prompt: Prompt,
    result: Generation,
    about: dict[str, str | None],
) -> Row:
    """The record of one prompt under one setting.

    One entry a step: accepted, tree_size, tree_depth, tree_width, passes and confidence (None where
    the draft proposed nothing; see `Draft`); ranks: the sibling rank of every node of the accepted
    path; children: how many children each node had at which a choice was made, the root and then
    the path (the path's last node is left out where the text ended there). about: see
    experiments/provenance.py.
    """
    steps = result.steps
    row: Row = {
        "format": FORMAT,
        "label": settings.label,
        "run": run,
        "hash": settings.hash(),
        "lossless": settings.lossless,
        "settings": settings.to_dict(),
        "dataset": dataset,
        "revision": prompt.revision,
        "index": prompt.index,
        "id": prompt.id,
        "kind": prompt.kind,
        "prompt_ids": result.prompt_ids,
        "output_ids": result.output_ids,
        "text": result.text,
        "accepted": [step.accepted for step in steps],
        "ranks": [_ranks(step) for step in steps],
        "children": [_children(step) for step in steps],
        "tree_size": [step.tree.size for step in steps],
        "tree_depth": [step.tree.depth for step in steps],
        "tree_width": [step.tree.width for step in steps],
        "passes": [step.passes for step in steps],
        "confidence": [
            round(step.confidence, 4) if step.confidence == step.confidence else None
            for step in steps
        ],
        "seconds": result.seconds,
        "prefill_seconds": result.prefill_seconds,
    }
    for phase in PHASES:
        row[f"{phase}_seconds"] = sum(getattr(step, f"{phase}_seconds") for step in steps)
    row["about"] = about
    return row


def _ranks(step: StepRecord) -> list[int]:
    tree = step.tree
    return [tree.children[tree.parents[node]].index(node) for node in step.path]


def _children(step: StepRecord) -> list[int]:
    chosen = (0, *step.path)[: len(step.emitted)]
    return [len(step.tree.children[node]) for node in chosen]


def run_name(settings: Settings, dataset: str) -> str:
    """Names a setting on a dataset, its files by content; rows with the same name belong
    together."""
    files = str(load_growmap(settings.growmap).parents) if settings.growmap is not None else ""
    if settings.priors is not None:
        files += str(load_priors(settings.priors))
    return f"{settings.hash()}-{hashlib.sha256(files.encode()).hexdigest()[:4]}-{dataset}"
