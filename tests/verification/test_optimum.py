"""The most that a lossless rule accepts over all levels: what is known of it, and all rules below it."""

from __future__ import annotations

import pytest
import torch
from toy import PROMPT, Steps, Table, dynamic, random_table, static, target_rows

from dynasurge.experiments.text_distributions import mean_accepted
from dynasurge.trees.growmap import build_growmap
from dynasurge.trees.token_tree import TokenTree
from dynasurge.verification.optimum import Path, best_accepted, drawn_paths
from dynasurge.verification.rules import RULES
from dynasurge.verification.single_node_bound import acceptance_bound


def optimum(steps: Steps, target: Table) -> float:
    drawn = drawn_paths((weight, grown.tree) for weight, grown in steps.grown())
    assert sum(drawn.values()) == pytest.approx(1.0, abs=1e-12)
    return best_accepted(drawn, lambda path: target((*PROMPT, *path)))


def accepted(steps: Steps, target: Table, *rules: str) -> list[float]:
    totals = [0.0] * len(rules)
    for weight, (tree, base) in steps.grown():
        rows = target_rows(tree, target, PROMPT)
        for place, rule in enumerate(rules):
            totals[place] += weight * mean_accepted(RULES[rule], tree, rows, base)
    return totals


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("shape", ["chain1", "chain2", "chain3"])
def test_on_a_chain_traversal_is_an_optimum(shape: str, seed: int) -> None:
    """Block verification's theorem."""
    target, draft = random_table(seed), random_table(seed + 50)
    steps = Steps(draft, target, static(build_growmap(shape)))
    best = optimum(steps, target)
    traversal, topdown = accepted(steps, target, "traversal", "topdown")
    assert best == pytest.approx(traversal, abs=1e-6)
    if shape == "chain2":
        assert best > topdown + 1e-4


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("k", [1, 2])
def test_at_one_node_it_is_the_single_node_bound(k: int, seed: int) -> None:
    target, draft = random_table(seed), random_table(seed + 50)
    steps = Steps(draft, target, static(build_growmap(f"{k}x1")))
    p, q = (torch.tensor(table(PROMPT)) for table in (target, draft))
    assert optimum(steps, target) == pytest.approx(acceptance_bound(p, q, k, "sampled"), abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_no_rule_accepts_more(seed: int) -> None:
    target, draft = random_table(seed), random_table(seed + 50)
    for trees, rules in (
        (static(build_growmap("2x2")), ("topdown", "traversal", "reserved")),
        (dynamic(3, 2, 2), ("topdown", "traversal")),
    ):
        steps = Steps(draft, target, trees)
        assert max(accepted(steps, target, *rules)) <= optimum(steps, target) + 1e-6


def test_a_hand_made_case() -> None:
    """One tree of one child that the target wants half of the time, and one below it always: the
    best rule accepts both or none."""
    tree = TokenTree(
        tokens=(-1, 0, 1), parents=(-1, 0, 1), proposal=(1.0, 1.0, 1.0), point=(True, True, True)
    )

    def p(path: Path) -> list[float]:
        return [0.0, 1.0] if path else [0.5, 0.5]

    assert best_accepted(drawn_paths([(1.0, tree)]), p) == pytest.approx(1.0)
