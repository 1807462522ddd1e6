"""Things that tests of several rooms look at: a step, random trees, rows of a study."""

from __future__ import annotations

import random
from typing import Any

from dynasurge import Settings, TokenTree
from dynasurge.decoding.trace import StepView
from dynasurge.experiments.schema import Row
from dynasurge.generation_config import LAW_FIELDS
from dynasurge.settings import PHASES


def view(
    path: tuple[int, ...],
    *,
    bottom_up: bool = False,
    rule: str = "topdown",
    beyond: tuple[int, ...] = (),
) -> StepView:
    """0 -> 1 -> (3 -> 6, 4 -> 7, 5)
    0 -> 2 -> 8"""
    n = 9
    tree = TokenTree(
        tokens=tuple(range(n)),
        parents=(-1, 0, 0, 1, 1, 1, 3, 4, 2),
        proposal=(1.0, *[0.25] * (n - 1)),
        point=(True, *[False] * (n - 1)),
        value=(1.0, *[0.5] * (n - 1)),
    )
    return StepView(
        number=3,
        rule=rule,
        bottom_up=bottom_up,
        tree=tree,
        path=path,
        beyond=beyond,
        emitted=(*path, 50),
        texts=tuple(f" t{node}" for node in range(n)),
        bonus="\n<b>",
        written=(*(f" t{node}" for node in path), "\n<b>"),
        p=(1.0, *[0.125] * (n - 1)),
        q=(1.0, *[0.25] * (n - 1)),
        reach=(1.0, *[0.0625] * (n - 1)),
    )


def random_parents(seed: int) -> list[int]:
    """Drawing order as a token tree has it: a parent before its children, levels mixed."""
    rng = random.Random(seed)
    return [-1, *(rng.randrange(max(0, u - 12), u) for u in range(1, 80))]


LAW: dict[str, Any] = Settings(T=0.6, P=1.0).under({}).to_dict()
LAW = {name: LAW[name] for name in LAW_FIELDS}  # a whole one
AUTO, TREE = Settings(mode="auto", **LAW), Settings(B=4, **LAW)
ETV = Settings(B=4, use_bfs=True, **LAW)


ABOUT: dict[str, str | None] = {"device": "1 CPU threads", "dtype": "float32", "commit": None}


def row(
    settings: Settings,
    index: int,
    ranks: list[list[int]],
    children: list[list[int]] | None = None,
    seconds: float = 1.0,
    dataset: str = "d",
    kind: str = "",
) -> Row:
    """A row whose steps took `ranks`, each with a bonus token; a quarter of `seconds` went to each
    phase."""
    accepted = [len(step) for step in ranks]
    return Row(
        label=settings.label,
        run=f"{settings.hash()}-0000-{dataset}",
        hash=settings.hash(),
        lossless=settings.lossless,
        settings=settings.to_dict(),
        dataset=dataset,
        revision=None,
        index=index,
        id=str(index),
        kind=kind,
        prompt_ids=[index],
        output_ids=[0] * (sum(accepted) + len(accepted)),
        text="",
        accepted=accepted,
        ranks=ranks,
        children=children or [[2] * (len(step) + 1) for step in ranks],
        expected=[float(count) for count in accepted],
        predicted=[],
        reached=[],
        tree_size=[4 * (k + 1) for k in range(len(ranks))],
        tree_depth=[2] * len(ranks),
        tree_width=[3] * len(ranks),
        passes=[2] * len(ranks),
        confidence=[*(0.5 + 0.1 * k for k in range(len(ranks) - 1)), None],
        seconds=seconds + 0.5,
        prefill_seconds=0.5,
        about=dict(ABOUT),
        **{f"{phase}_seconds": seconds / 4 for phase in PHASES},
    )
