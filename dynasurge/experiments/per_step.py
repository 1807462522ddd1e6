"""Statistics of single steps: where in a text, how deep in a tree and at which sibling drafts are
accepted, and how hard texts are.

Functions on the DataFrame of experiments/results_frame.py. Its rows hold a list with one entry a
step for every column used here. A step that emits n tokens accepted n - 1 drafted tokens and added
a bonus token. `study` has these functions too.

`by` names the columns whose values are kept apart; by default those of a row of the results table.
Rows that differ only in other columns are pooled. Every mean NAME (but for predictions) has its 95%
interval over prompts in NAME_low and NAME_high (experiments/intervals.py), and `prompts` counts
them.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from dynasurge.errors import UsageError
from dynasurge.experiments.intervals import PROMPT, means

COLUMN = ("dataset", "T", "policy", "label")  # the columns that identify a row of the results table

# Measures of how hard a step's text is, and the column of each.
COMPLEXITY = {
    "confidence": "confidence",
    "size": "tree_size",
    "depth": "tree_depth",
    "accepted_per_step": "accepted",
}


def acceptance_by_position(
    frame: pd.DataFrame, width: int = 16, by: Sequence[str] = COLUMN
) -> pd.DataFrame:
    """accepted_per_step and steps by the place in the output where a step began, in bins of `width`
    tokens."""
    steps = _explode(frame, by, accepted_per_step="accepted")
    steps["position"] = _began(steps["accepted_per_step"], steps["row"]) // width * width
    return means(steps, [*by, "position"], ["accepted_per_step"], "steps")


def complexity(frame: pd.DataFrame, by: Sequence[str] = (*COLUMN, "kind")) -> pd.DataFrame:
    """Which texts get deep narrow trees and which get wide ones: the mean of each of COMPLEXITY,
    with the number of steps."""
    return means(_explode(frame, by, **COMPLEXITY), by, list(COMPLEXITY), "steps")


def complexity_along(
    frame: pd.DataFrame, width: int = 16, by: Sequence[str] = COLUMN
) -> pd.DataFrame:
    """How hard the text is along its way: `complexity` by the place in the output where a step
    began, in bins of `width` tokens. Give it the rows of one prompt, or of many."""
    steps = _explode(frame, by, **COMPLEXITY)
    steps["position"] = _began(steps["accepted_per_step"], steps["row"]) // width * width
    return means(steps, [*by, "position"], list(COMPLEXITY), "steps")


def _began(accepted: pd.Series, row: pd.Series) -> pd.Series:
    """The place in the output where each step began, in tokens. row: the row of each step."""
    emitted = accepted + 1
    return emitted.groupby(row).cumsum() - emitted


def acceptance_by_confidence(
    frame: pd.DataFrame, bins: int = 5, by: Sequence[str] = COLUMN
) -> pd.DataFrame:
    """accepted_per_step and steps by the draft's confidence in a step's tree (see `Draft`), in
    `bins` equal intervals of [0, 1], named by their middles. Steps without a draft are left out."""
    steps = _explode(frame, by, accepted_per_step="accepted", confidence="confidence")
    steps = steps.dropna(subset=["confidence"])
    steps["confidence"] = middles(steps["confidence"], bins)
    return means(steps, [*by, "confidence"], ["accepted_per_step"], "steps")


def middles(values: pd.Series, bins: int) -> pd.Series:
    """The middle of each value's interval, of `bins` equal ones of [0, 1]."""
    return ((values * bins).astype(int).clip(0, bins - 1) + 0.5) / bins


def acceptance_by_depth(frame: pd.DataFrame, by: Sequence[str] = COLUMN) -> pd.DataFrame:
    """By depth d: `reached`, how often a path was at depth d - 1 above at least one child, and
    `accepted`, the share of those that went on to depth d."""
    return means(_choices(frame, by), [*by, "depth"], ["accepted"], "reached")


def acceptance_by_rank(frame: pd.DataFrame, by: Sequence[str] = COLUMN) -> pd.DataFrame:
    """By sibling rank j: `reached`, how often a path was above more than j children, and
    `accepted`, the share of those that went on to the child of rank j.
    (`text_distributions.rank_acceptance` measures the same at nodes with equally many children, for
    the best static tree.)"""
    choices = _choices(frame, by)
    tried = choices.loc[choices.index.repeat(choices["count"])]
    rank = tried.groupby(level=0).cumcount()
    tried = tried.assign(accepted=(tried["rank"] == rank).astype(float), rank=rank)
    return means(tried, [*by, "rank"], ["accepted"], "reached")


def predictions_by_depth(frame: pd.DataFrame, by: Sequence[str] = COLUMN) -> pd.DataFrame:
    """How good slot values are, by depth of dynamic trees: `predicted`, the sum of slot values a
    step; `reached`, the sum of the probabilities that the path reached these nodes; and their
    `ratio`."""
    known = frame[frame["predicted"].map(len) > 0] if "predicted" in frame else frame[:0]
    if known.empty:
        reason, remedy = "no row knows what its slots were worth", "sweep dynamic trees again"
        raise UsageError("records", "predicted", reason, remedy)
    lists = known[[*by, "steps", "predicted", "reached"]].assign(
        depth=known["predicted"].map(lambda sums: list(range(1, len(sums) + 1)))
    )
    rows = lists.explode(["predicted", "reached", "depth"])
    sums = rows.astype({"predicted": float, "reached": float}).groupby([*by, "depth"], sort=True)
    out = sums[["predicted", "reached"]].sum()
    steps = known.groupby(list(by))["steps"].sum()
    out = out.div(steps.reindex(out.index.droplevel("depth")).to_numpy(), axis=0)
    return out.assign(ratio=out["reached"] / out["predicted"]).reset_index()


def _choices(frame: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """One table row for each node at which a path was above children: the columns of `by` and of
    PROMPT, the children's depth, their count, the rank that the path went on to (-1 for none), and
    1 in `accepted` if it went on, else 0."""
    keys = list(dict.fromkeys([*by, *PROMPT]))
    records = [
        (*group, depth, count, ranks[depth - 1] if depth <= len(ranks) else -1)
        for *group, rows, counts in zip(
            *(frame[name] for name in (*keys, "ranks", "children")), strict=True
        )
        for ranks, children in zip(rows, counts, strict=True)
        for depth, count in enumerate(children, start=1)
        if count
    ]
    choices = pd.DataFrame(records, columns=[*keys, "depth", "count", "rank"])
    return choices.assign(accepted=(choices["rank"] >= 0).astype(float))


def _explode(frame: pd.DataFrame, by: Sequence[str], **columns: str) -> pd.DataFrame:
    """One table row a step, with the columns of `by` and of PROMPT, and lists of the frame under new
    names; `row` is the number of the row that it came from."""
    keys = list(dict.fromkeys([*by, *PROMPT]))
    lists = frame[list(columns.values())].set_axis(list(columns), axis=1)
    steps = pd.concat([frame[keys], lists], axis=1).reset_index(drop=True).explode(list(columns))
    numbers = {name: float if name == "confidence" else int for name in columns}
    return steps.astype(numbers).rename_axis("row").reset_index()
