"""Rows: what is recorded of one prompt under one setting, and what the rows of a setting come to."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dynasurge.drafting.acceptance_estimates import load_priors
from dynasurge.settings import Settings
from dynasurge.experiments.datasets import Prompt
from dynasurge.decoding.loop import StepRecord
from dynasurge.decoding.session import Generation
from dynasurge.trees.growmap import load_growmap

FORMAT = 2  # of a row; 1 had no ranks, children, confidence, passes, revision and about
PHASES = ("draft", "target", "verify", "other")
Row = dict[str, Any]


def make_row(
    run: str, settings: Settings, dataset: str, prompt: Prompt, result: Generation, about: dict[str, str | None]
) -> Row:
    """The record of one prompt under one setting.

    One entry a step: accepted, tree_size, tree_depth, tree_width, passes and confidence (None where the draft proposed
    nothing; see `Draft`); ranks: the sibling rank of every node of the accepted
    path; children: how many children each node had at which a choice was made, the root and then the path (the path's
    last node is left out where the text ended there). about: see experiments/provenance.py.
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
        "confidence": [round(step.confidence, 4) if step.confidence == step.confidence else None for step in steps],
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
    """Names a setting on a dataset, its files by content; rows with the same name belong together."""
    files = str(load_growmap(settings.growmap).parents) if settings.growmap is not None else ""
    if settings.priors is not None:
        files += str(load_priors(settings.priors))
    return f"{settings.hash()}-{hashlib.sha256(files.encode()).hexdigest()[:4]}-{dataset}"


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a run of one setting came to. Seconds are wall time.

    accepted_per_step: mean drafted tokens accepted per target pass; tokens_per_step: that + 1, the bonus token.
    tokens_per_second and latency_per_token_s: decoding only; latency_per_request_s: a whole prompt, prefill included.
    acceptance_histogram: {accepted: steps}. *_seconds: totals over the run; the four phases make up decoding.
    """

    label: str
    lossless: bool
    prompts: int
    tokens: int
    steps: int
    tokens_per_second: float
    latency_per_token_s: float
    latency_per_request_s: float
    accepted_per_step: float
    tokens_per_step: float
    tree_size_per_step: float
    acceptance_histogram: dict[int, int]
    prefill_seconds: float
    draft_seconds: float
    target_seconds: float
    verify_seconds: float
    other_seconds: float


def summarise(rows: Sequence[Row]) -> Summary:
    """Sum up the rows of one setting (at least one row)."""
    totals = {phase: sum(row[f"{phase}_seconds"] for row in rows) for phase in PHASES}
    accepted = [count for row in rows for count in row["accepted"]]
    tokens, decoding = sum(len(row["output_ids"]) for row in rows), sum(totals.values())
    return Summary(
        label=rows[0]["label"],
        lossless=rows[0]["lossless"],
        prompts=len(rows),
        tokens=tokens,
        steps=len(accepted),
        tokens_per_second=tokens / decoding,
        latency_per_token_s=decoding / tokens,
        latency_per_request_s=sum(row["seconds"] for row in rows) / len(rows),
        accepted_per_step=sum(accepted) / len(accepted),
        tokens_per_step=sum(accepted) / len(accepted) + 1,
        tree_size_per_step=sum(size for row in rows for size in row["tree_size"]) / len(accepted),
        acceptance_histogram=dict(sorted(Counter(accepted).items())),
        prefill_seconds=sum(row["prefill_seconds"] for row in rows),
        **{f"{phase}_seconds": totals[phase] for phase in PHASES},
    )
