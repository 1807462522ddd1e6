"""Records as Markdown: every table of the documentation is printed here, from a folder of records.

    dynasurge table figures/data                          speeds and accepted tokens of every setting
    dynasurge table runs/study --against "chain3" auto     times as fast as these, paired by prompt
    dynasurge table runs/places --trees                    which trees accept most, side by side

Settings are compared on the same prompts; intervals are those of results_frame.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dynasurge.errors import UsageError
from dynasurge.experiments.results_frame import Paired, paired, results, rule_gains
from dynasurge.settings import PHASES

OURS = "dTree"  # how labels of our trees begin
SIDE_BY_SIDE = ("accepted_per_step", "tokens_per_step", "tokens_per_second")  # more is better


def _cells(cells: Sequence[str]) -> str:
    """One line of a table."""
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def results_table(frame: pd.DataFrame) -> str:
    """`results` in Markdown, one table a dataset, for a README. `over the floor` is left out if no
    record knows it."""
    table, lines = results(frame), list[str]()
    known = bool(table["over_floor"].notna().any())
    heads = ["T", "policy", "tree", "tokens per step", "accepted per step", "tokens/s"]
    heads += ["over `auto`", *["over the floor"] * known, "ms a request"]
    heads += [f"ms a step: {' / '.join(PHASES)}"]
    laws = [law for law in frame["law"].unique() if ", " in law]  # that T does not say
    told = "; ".join(["", *laws])
    for dataset, group in table.groupby("dataset", sort=False):
        prompts = sorted(group["prompts"].unique())
        lines += [
            f"**{Path(str(dataset)).stem}** (n = {', '.join(map(str, prompts))}{told})",
            "",
            _cells(heads),
            "|---" * len(heads) + "|",
        ]
        ordered = group.sort_values("T", kind="stable")
        lines += [_line(row, known) for row in ordered.to_dict(orient="records")] + [""]
    return "\n".join(lines)


def _line(row: dict[str, Any], floor: bool) -> str:
    phases = " / ".join(f"{row[phase]:.1f}" for phase in PHASES)
    policy = "" if row["label"] == "auto" else "topk" if row["T"] == 0 else row["policy"]
    cells = [
        f"{row['T']:g}",
        policy,
        row["label"],
        f"{row['tokens_per_step']:.2f}",
        f"{row['accepted_per_step']:.2f}",
        f"{row['tokens_per_second']:.1f}",
        _speedup(row),
        *([f"{row['over_floor']:.2f}x" if row["over_floor"] > 0 else ""] if floor else []),
        f"{1e3 * row['latency_per_request_s']:.0f}",
        phases,
    ]
    return _cells(cells)


def _speedup(row: dict[str, Any]) -> str:
    if row["speedup"] != row["speedup"]:
        return ""
    known = row["speedup_low"] == row["speedup_low"]
    return f"{row['speedup']:.2f}x" + (
        f" [{row['speedup_low']:.2f}, {row['speedup_high']:.2f}]" if known else ""
    )


def against_table(frame: pd.DataFrame, others: Sequence[str]) -> str:
    """How many times as fast every setting is as each of these, by temperature, over the prompts
    (of all datasets) that both have. Raises UsageError for a label that is not there."""
    for other in others:
        if other not in set(frame["label"]):
            known = ", ".join(sorted(frame["label"].unique()))
            raise UsageError("--against", other, "is no setting there", f"choose among: {known}")
    rng = np.random.default_rng(0)
    heads = [f"over `{other}`" for other in others]
    lines = [f"| T | tree | {' | '.join(heads)} |", "|---" * (2 + len(heads)) + "|"]
    for T, rows in frame.groupby("T"):
        for label in rows["label"].unique():
            cells = [_ratio(rows, other, str(label), "tokens_per_second", rng) for other in others]
            lines.append(_cells([f"{T:g}", str(label), *cells]))
    return "\n".join(lines)


def rules_table(frame: pd.DataFrame) -> str:
    """What ETV gains: accepted tokens a step of every tree top-down and with ETV, and their ratio,
    by temperature, over the prompts (of all datasets) that both have. Raises UsageError."""
    gains = rule_gains(frame, by=["T", "policy"])
    place = {label: number for number, label in enumerate(frame["label"].unique())}
    gains = gains.assign(place=gains["tree"].map(place)).sort_values(["T", "place"], kind="stable")
    if gains.empty:
        reason, remedy = "no tree was verified by both rules", "sweep with --use_bfs"
        raise UsageError("records", "top-down or ETV", reason, remedy)
    lines = [_cells(["T", "tree", "n", "top-down", "ETV", "ETV over top-down"]), "|---" * 6 + "|"]
    for row in gains.itertuples():
        numbers = [str(row.prompts), f"{row.a:.2f}", f"{row.b:.2f}"]
        several = gains.loc[gains["tree"] == row.tree, "policy"].nunique() > 1
        tree = f"{row.tree} {row.policy}" if several else str(row.tree)
        lines.append(_cells([f"{row.T:g}", tree, *numbers, _times(row)]))
    return "\n".join(lines)


def trees_table(frame: pd.DataFrame, measure: str = "accepted_per_step") -> str:
    """Trees of one budget side by side: a row a (dataset, T, B), a column a kind of tree, and how
    much more ours has of a measure than the best other one. A static tree of so many nodes counts
    as of that budget. Rules are compared apart: ETV's rows at a temperature, if there are any, else
    top-down's."""
    rng = np.random.default_rng(0)
    trees = frame[frame["mode"] != "auto"]
    if trees.empty:
        raise UsageError("records", "auto alone", "there is no tree", "sweep some, as --mode dTree")
    several = trees.groupby(["dataset", "T", "label"])["policy"].nunique()
    if (several > 1).any():
        reason, remedy = "has several child policies", "narrow the rows, with --policy for instance"
        raise UsageError("label", several.idxmax()[2], reason, remedy)
    trees = trees[trees["use_bfs"] == trees.groupby("T")["use_bfs"].transform("any")]
    plain = trees["label"].str.partition(" +")[0]
    largest = (
        trees["tree_size"].map(lambda sizes: max(sizes, default=0)).groupby(plain).transform("max")
    )
    trees = trees.assign(
        kind=plain.str.replace(r" B=\w+| filled", "", regex=True),
        budget=largest.where(trees["mode"] == "sTree", trees["B"]).astype(str),
    )
    lines: list[str] = []
    for budget, rows in trees.groupby("budget", sort=False):
        kinds = list(rows["kind"].unique())
        head = ["prompts", "T", "n", *kinds, "ours over the best other"]
        lines += [f"**B = {budget}**", "", _cells(head), "|---" * len(head) + "|"]
        every = [rows]
        if rows["dataset"].nunique() > 1:  # and all of them together
            place = rows["dataset"] + " " + rows["index"].astype(str)
            every.append(rows.assign(dataset="all", index=place))
        for group in every:
            lines += _trees_of(group, kinds, measure, rng)
        lines.append("")
    return "\n".join(lines)


def _trees_of(
    rows: pd.DataFrame, kinds: Sequence[str], measure: str, rng: np.random.Generator
) -> Iterator[str]:
    for (dataset, T), here in rows.groupby(["dataset", "T"], sort=False):
        sums = results(here).set_index("label")
        label = here.drop_duplicates("kind").set_index("kind")["label"]
        value = {kind: float(sums.loc[label[kind], measure]) for kind in kinds if kind in label}
        mine = [kind for kind in value if kind.startswith(OURS)]
        best = max(
            (kind for kind in value if kind not in mine), key=value.__getitem__, default=None
        )
        top = max(mine, key=value.__getitem__, default=None)
        gain = ""
        if best is not None and top is not None:
            gain = f"{_ratio(here, label[best], label[top], measure, rng)} ({best})"
        cells = [Path(str(dataset)).stem, f"{T:g}", str(sums["prompts"].max())]
        cells += [f"{value[kind]:.2f}" if kind in value else "" for kind in kinds]
        yield _cells([*cells, gain])


def _ratio(rows: pd.DataFrame, a: str, b: str, measure: str, rng: np.random.Generator) -> str:
    """How many times as much b has of a measure as a, with its interval."""
    if a == b or not {a, b} <= set(rows["label"]):
        return ""
    return _times(paired(rows, a, b, measure, rng=rng))


def _times(found: Paired) -> str:
    """The ratio of a pair and its interval."""
    if found.ratio != found.ratio:  # nothing was accepted
        return ""
    known = found.low == found.low
    return f"{found.ratio:.2f}x" + (f" [{found.low:.2f}, {found.high:.2f}]" if known else "")


def markdown_table(frame: pd.DataFrame) -> str:
    """Any frame as Markdown."""
    lines = [list(frame.columns), ["---"] * frame.shape[1]]
    lines += [[f"{cell:g}" if isinstance(cell, float) else str(cell) for cell in row]
              for row in frame.itertuples(index=False)]  # fmt: skip
    return "\n".join(map(_cells, lines))
