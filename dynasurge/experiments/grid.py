"""Grids: every combination of modes, trees, rules, policies, temperatures and seeds, as a list of
settings.

A combination that repeats another is left out: `auto` has no tree, so it has no budget and no rule;
static trees have no budget; greedy text is the same for every rule and policy.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

from dynasurge.errors import UsageError
from dynasurge.settings import BASELINES, MODES, Etv, Policy, Settings, growmap_name

GREEDY: Policy = "topk"  # at T = 0 every policy is this one
AXES = ("mode", "growmap", "B", "use_bfs", "policy", "T", "seed")


def grid(
    *,
    mode: Sequence[str] = MODES,
    growmap: Sequence[str] = (),
    B: Sequence[int | str] = ("auto",),
    use_bfs: Sequence[bool] = (False,),
    etv: Etv = "traversal",
    policy: Sequence[str] = ("sampled",),
    T: Sequence[float | None] = (0.6,),
    seed: Sequence[int] = (0,),
    **shared: Any,
) -> list[Settings]:
    """Different settings, `auto` first at each temperature and seed. shared: other fields, the same
    for all.

    etv: the rule of settings with use_bfs. Raises UsageError for a combination that `Settings`
    refuses, and for two growmaps with one name.
    """
    names = [growmap_name(path) for path in growmap]
    for path, name in zip(growmap, names, strict=True):
        if names.count(name) > 1:
            raise UsageError(
                "--growmap",
                path,
                "two files of one name make one column",
                "rename one, or give it once",
            )
        if " +" in name:
            raise UsageError(
                "--growmap", path, "its name reads like a rule's", "rename it without ' +'"
            )
    plan = []
    for t, s, m in product(T, seed, mode):
        for tree in _trees(m, growmap, B):
            for p, with_etv in [("sampled", False)] if m == "auto" else product(policy, use_bfs):
                own = tree | ({"use_bfs": True, "etv": etv} if with_etv else {})
                plan.append(
                    Settings(**(shared | own | {"mode": m, "T": t, "seed": s, "policy": p}))
                )
    return distinct(plan)


def distinct(plan: Iterable[Settings]) -> list[Settings]:
    """A plan without settings that make the same text with the same trees: greedy text is the same
    for every rule and policy."""
    greedy: dict[str, Any] = {"policy": GREEDY, "use_bfs": False, "etv": "traversal"}
    return list(
        dict.fromkeys(
            replace(settings, **greedy) if settings.T == 0 and settings.mode != "auto" else settings
            for settings in plan
        )
    )


def check_methods(methods: Sequence[str], budgets: Sequence[int | str]) -> None:
    """Raise UsageError for an unknown method, and for one that needs a budget that is a number."""
    for method in methods:
        if method not in BASELINES:
            remedy = f"choose among {', '.join(BASELINES)}"
            raise UsageError("--methods", method, "is unknown", remedy)
        if not method.startswith("chain") and all(B == "auto" for B in budgets):
            reason = "needs a budget, and --B has no number"
            raise UsageError("--methods", method, reason, "add one, as in --B 64 auto")


def _trees(
    mode: str, growmaps: Sequence[str], budgets: Sequence[int | str]
) -> Iterator[dict[str, Any]]:
    """The fields that distinguish a mode's trees. Only dynamic trees have a budget to fill."""
    if mode == "dTree":
        yield from ({"B": budget} for budget in budgets)
    elif mode == "sTree":
        yield from ({"growmap": path, "fill": False} for path in growmaps)
        if not growmaps:
            yield {}  # Settings then reports the missing growmap
    else:
        yield {"fill": False}
