"""The record of one prompt under one setting, a row, and the sums over the rows of a setting.

Nothing here needs torch: tables of records are read where no model is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

FORMAT = 2  # of a row; 1 had no ranks, children, confidence, passes, revision and about
PHASES = ("draft", "target", "verify", "other")
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a run of one setting came to. Seconds are wall time.

    accepted_per_step: mean drafted tokens accepted per target pass; tokens_per_step: that + 1, the
    bonus token. tokens_per_second and latency_per_token_s: decoding only; latency_per_request_s: a
    whole prompt, prefill included. acceptance_histogram: {accepted: steps}. *_seconds: totals over
    the run; the four phases make up decoding.
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
