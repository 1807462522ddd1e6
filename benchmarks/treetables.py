"""The tables of trees.py: tokens a step and a second of different trees, paired by prompt."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np
from shards import gained, rate, read_rows

BUDGETS = (16, 32, 64)
STATIC = ("static", "fast static")
RIVALS = (*STATIC, "prototype", "DySpec", "OPT-Tree")
NAMES = (*RIVALS, "fixed", "learned", "copies", "default")  # of trees of at most B nodes


def table(args: argparse.Namespace) -> None:
    """Expected accepted tokens a step, and with --speeds tokens a second, over all steps of all
    prompts, as Markdown; gains are paired by prompt, with 95% bootstrap intervals. With --kinds,
    what copies bring to which prompts, all B together (in runs with --every: at the same
    places)."""
    rows = read_rows(*sorted(args.output.rglob("rows-*.jsonl")))
    accepted = {_key(row): (sum(row["expected"]), len(row["expected"])) for row in rows}
    for row in rows:
        for budget, total in row["hindsight"].items():
            accepted[(*_key(row)[:3], "hindsight", int(budget))] = (total, len(row["expected"]))
    _compare(accepted, "copies", [*NAMES, "hindsight"], ".3f")
    if args.kinds:
        _by_kind(rows, accepted)
    if args.speeds:
        speeds = {_key(row): (row["tokens"], row["seconds"]) for row in rows if row["seconds"]}
        _compare(speeds, "default", ["no tree", *NAMES], ".0f")
        _adapted(speeds)


Prompt = tuple[str, int]  # data and number
Values = dict[
    tuple[str, int, float, str, int], tuple[float, float]
]  # by data, prompt, T, method, B: amount, counted by


def _key(row: dict[str, Any]) -> tuple[str, int, float, str, int]:
    return row["data"], row["index"], row["T"], row["method"], row["B"]


def _compare(values: Values, ours: str, names: Sequence[str], form: str) -> None:
    """Print a row a (data, T, B): by method, and the gain of `ours` over the best static tree and
    over the best of RIVALS, of the prompts that all these methods have."""
    names = [name for name in names if any(key[3] == name for key in values)]
    heads = (
        {f"`{ours}` over the best static": STATIC, "over the best other": RIVALS}
        if ours in names
        else {}
    )
    there = {head: [name for name in names if name in several] for head, several in heads.items()}
    gains = {head: several for head, several in there.items() if several}
    print(f"\n| {' | '.join(['prompts', 'T', 'B', 'n', *names, *gains])} |")
    print("|---" * (4 + len(names) + len(gains)) + "|")
    for data, T in _rows(values):
        for budget in BUDGETS:
            found = _paired(values, data, T, {name: (name, budget) for name in names})
            if found is None:
                continue
            cells = [data, f"{T:g}", str(budget), str(len(found[names[0]]))]
            cells += [f"{rate(found[name], 2):{form}}" for name in names]
            for several in gains.values():
                best = max(several, key=lambda name: float(rate(found[name], 2)))
                cells.append(f"{gained(found[best], found[ours])} ({best})")
            print(f"| {' | '.join(cells)} |")


def _by_kind(rows: Sequence[dict[str, Any]], accepted: Values) -> None:
    """Print a row a (data, kind of prompt, T): what the text's own continuations bring, all B
    together."""
    kinds = {(row["data"], row["index"]): row["kind"] or "all" for row in rows}
    out = []
    for data, T in sorted({(data, T) for data, _, T, _, _ in accepted}):
        for kind in sorted({name for (d, _), name in kinds.items() if d == data}):
            mine = {key: value for key, value in accepted.items() if kinds[key[:2]] == kind}
            wanted = {(name, B): (name, B) for name in ("learned", "copies") for B in BUDGETS}
            found = _paired(mine, data, T, wanted)
            if found is not None:
                a, b = (
                    np.sum([found[name, B] for B in BUDGETS], axis=0)
                    for name in ("learned", "copies")
                )
                numbers = (
                    f"{a[:, 1].sum():.0f} | {rate(a, 2):.3f} | {rate(b, 2):.3f} | {gained(a, b)}"
                )
                out.append(f"| {data} | {kind} | {T:g} | {len(a)} | {numbers} |")
    _print(
        "| prompts | kind | T | n | steps | learned | copies | gain |",
        out,
        "`learned` and `copies` at every B",
    )


def _adapted(speeds: Values) -> None:
    """Print a row a (data, T): `auto`, which was told no B, beside the best B."""
    out = []
    for data, T in _rows(speeds):
        fixed: dict[Any, tuple[str, int]] = {budget: ("default", budget) for budget in BUDGETS}
        found = _paired(speeds, data, T, fixed | {"auto": ("auto", 0), "no tree": ("no tree", 0)})
        if found is None:
            continue
        best = max(BUDGETS, key=lambda budget: float(rate(found[budget], 2)))
        own, alone = found["auto"], found["no tree"]
        cells = [
            data,
            f"{T:g}",
            str(len(own)),
            f"{rate(alone, 2):.0f}",
            str(best),
            f"{rate(found[best], 2):.0f}",
        ]
        cells += [f"{rate(own, 2):.0f}", gained(found[best], own), gained(alone, own)]
        out.append(f"| {' | '.join(cells)} |")
    head = (
        "| prompts | T | n | no tree | best B | its speed | auto | over the best B | over no tree |"
    )
    _print(head, out, "`no tree`, `auto`, and `default` at every B")


def _print(head: str, rows: Sequence[str], needs: str) -> None:
    """Print a table, or what it lacks."""
    rule = "|---" * (head.count("|") - 1) + "|"
    print("\n".join(["", head, rule, *rows]) if rows else f"\n(no prompt has {needs})")


def _rows(values: Values) -> list[tuple[str, float]]:
    """Each data and T, and where there are several data, all of them together."""
    single = sorted({(data, T) for data, _, T, _, _ in values})
    several = len({data for data, _ in single}) > 1
    return single + ([("all", T) for T in sorted({T for _, T in single})] if several else [])


def _paired(
    values: Values, data: str, T: float, wanted: dict[Any, tuple[str, int]]
) -> dict[Any, np.ndarray] | None:
    """Amounts and what they are counted by, [prompts, 2], of the prompts that have all that is
    wanted (by any name: method and B; what has no tree has no B); None if there are none."""
    columns: dict[Any, dict[Prompt, tuple[float, float]]] = {
        name: {
            (d, i): value
            for (d, i, t, m, b), value in values.items()
            if data in (d, "all") and (t, m) == (T, method) and b in (budget, 0)
        }
        for name, (method, budget) in wanted.items()
    }
    prompts = sorted(set.intersection(*map(set, columns.values())))
    return (
        {name: np.array([column[i] for i in prompts]) for name, column in columns.items()}
        if prompts
        else None
    )
