"""Statistics of single steps: where in a text, how deep in a tree and at which sibling drafts are
accepted, and how hard texts are.

Functions on the DataFrame of experiments/results_frame.py. Its rows hold a list with one entry a
step for every column used here. A step that emits n tokens accepted n - 1 drafted tokens and added
a bonus token. `study` has these functions too.

`by` names the columns whose values are kept apart; by default those of a row of the results table.
Rows that differ only in other columns are pooled.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from dynasurge.errors import UsageError

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
    steps = _explode(frame, by, accepted="accepted")
    began = steps["accepted"] + 1
    began = began.groupby(steps["row"]).cumsum() - began
    steps["position"] = began // width * width
    return _means(steps, by, "position")


def complexity_along(
    frame: pd.DataFrame, width: int = 16, by: Sequence[str] = COLUMN
) -> pd.DataFrame:
    """How hard the text is along its way: the mean of each of COMPLEXITY by the place in the output
    where a step began, in bins of `width` tokens, with the number of steps. Give it the rows of one
    prompt, or of many."""
    steps = _explode(frame, by, **{name: name for name in COMPLEXITY.values()})
    began = steps["accepted"] + 1
    steps["position"] = (began.groupby(steps["row"]).cumsum() - began) // width * width
    return _complexity(steps, [*by, "position"])


def complexity_by_kind(frame: pd.DataFrame, by: Sequence[str] = COLUMN) -> pd.DataFrame:
    """Which kinds of prompt get deep narrow trees and which get wide ones: the mean of each of
    COMPLEXITY by kind, with the numbers of steps and prompts."""
    groups = [*by, "kind"]
    out = _complexity(
        _explode(frame, groups, **{name: name for name in COMPLEXITY.values()}), groups
    )
    prompts = frame.drop_duplicates([*groups, "dataset", "index"]).groupby(groups).size()
    return out.join(prompts.rename("prompts"), on=groups)


def _complexity(steps: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    groups = steps.groupby(by, sort=True)
    columns = {name: groups[column].mean() for name, column in COMPLEXITY.items()}
    return pd.DataFrame({"steps": groups.size(), **columns}).reset_index()


def acceptance_by_confidence(
    frame: pd.DataFrame, bins: int = 5, by: Sequence[str] = COLUMN
) -> pd.DataFrame:
    """accepted_per_step and steps by the draft's confidence in a step's tree (see `Draft`), in
    `bins` equal intervals of [0, 1], named by their middles. Steps without a draft are left out."""
    steps = _explode(frame, by, accepted="accepted", confidence="confidence").dropna(
        subset=["confidence"]
    )
    interval = (steps["confidence"] * bins).astype(int).clip(0, bins - 1)
    return _means(steps.assign(confidence=(interval + 0.5) / bins), by, "confidence")


def acceptance_by_depth(frame: pd.DataFrame, by: Sequence[str] = COLUMN) -> pd.DataFrame:
    """By depth d: `reached`, how often a path was at depth d - 1 above at least one child, and
    `accepted`, the share of those that went on to depth d."""
    return _share(_choices(frame, by), by, "depth")


def acceptance_by_rank(frame: pd.DataFrame, by: Sequence[str] = COLUMN) -> pd.DataFrame:
    """By sibling rank j: `reached`, how often a path was above more than j children, and
    `accepted`, the share of those that went on to the child of rank j.
    (`text_distributions.rank_acceptance` measures the same at nodes with equally many children, for
    the best static tree.)"""
    choices = _choices(frame, by)
    tried = choices.loc[choices.index.repeat(choices["count"])]
    rank = tried.groupby(level=0).cumcount()
    return _share(tried.assign(went=tried["rank"] == rank, rank=rank), by, "rank")


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
    """One table row for each node at which a path was above children: the columns of `by`, the
    children's depth, their count, the rank that the path went on to (-1 for none), and whether it
    went on."""
    records = [
        (*group, depth, count, ranks[depth - 1] if depth <= len(ranks) else -1)
        for *group, rows, counts in zip(
            *(frame[name] for name in (*by, "ranks", "children")), strict=True
        )
        for ranks, children in zip(rows, counts, strict=True)
        for depth, count in enumerate(children, start=1)
        if count
    ]
    choices = pd.DataFrame(records, columns=[*by, "depth", "count", "rank"])
    return choices.assign(went=choices["rank"] >= 0)


def _share(choices: pd.DataFrame, by: Sequence[str], name: str) -> pd.DataFrame:
    groups = choices.groupby([*by, name], sort=True)["went"]
    return pd.DataFrame({"reached": groups.size(), "accepted": groups.mean()}).reset_index()


def _means(steps: pd.DataFrame, by: Sequence[str], name: str) -> pd.DataFrame:
    groups = steps.groupby([*by, name], sort=True)["accepted"]
    return pd.DataFrame({"steps": groups.size(), "accepted_per_step": groups.mean()}).reset_index()


def _explode(frame: pd.DataFrame, by: Sequence[str], **columns: str) -> pd.DataFrame:
    """One table row a step; `row` is the number of the row that it came from."""
    steps = frame.reset_index(drop=True)[[*by, *columns.values()]].explode(list(columns.values()))
    numbers = {name: float if name == "confidence" else int for name in columns.values()}
    return steps.astype(numbers).rename_axis("row").reset_index()
