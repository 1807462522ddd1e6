"""The prototype's dynamic tree: 2 to 4 children a node by budget, left to right, until the budget
is spent."""

from __future__ import annotations

import pytest
import torch
import toy

from dynasurge.drafting.acceptance_estimates import make_acceptance
from dynasurge.drafting.growth import Drafter
from dynasurge.drafting.proposals import sampled
from dynasurge.probabilities import Random
from dynasurge.trees.token_tree import TokenTree
from dynasurge.verification.prototype import PrototypeShape, bfs, prototype_growmap

PROMPT = (0, 2, 1)


def grow(draft: toy.Table, budget: int, seed: int) -> TokenTree:
    shape = PrototypeShape(budget)
    drafter = Drafter(
        toy.TableEngine(draft),
        shape,
        sampled,
        make_acceptance("fixed", "topdown", 1.0),
        T=1.0,
        P=1.0,
    )
    drafter.start(())
    return drafter.grow(PROMPT, Random.seeded(seed), shape.max_depth).tree


@pytest.mark.parametrize(
    ("budget", "children"),
    [(1, 2), (4, 2), (5, 2), (16, 2), (17, 3), (32, 3), (33, 4), (64, 4), (100, 4)],
)
def test_the_tree_has_b_nodes_filled_from_the_left(budget: int, children: int) -> None:
    for seed in range(3):
        tree = grow(toy.random_table(1, vocab=7), budget, seed)
        assert tree.parents == (-1, *((node - 1) // children for node in range(1, budget + 1)))
        assert not any(tree.point[1:])
        assert prototype_growmap(budget).parents == tree.parents


def test_a_distribution_that_runs_out_of_tokens_gives_fewer_children() -> None:
    rows = {PROMPT: [1.0, 0.0, 0.0], (*PROMPT, 0): [0.0, 0.5, 0.5]}
    tree = grow(lambda context: rows.get(context, [0.4, 0.3, 0.3]), 4, 0)
    assert tree.parents == (-1, 0, 1, 1, 2)


def test_its_rule_verifies_a_copied_token_that_the_draft_was_not_asked_about() -> None:
    tree = TokenTree(
        tokens=(0, 1, 2), parents=(-1, 0, 1), proposal=(1.0,) * 3, point=(True, True, True)
    )
    p = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    verdict = bfs(tree, p, [torch.empty(0)] * 3, Random.seeded(0))
    assert (verdict.path, verdict.bonus) == ((1, 2), 0)
