"""The prototype: its tree, 2 to 4 children a node by budget, left to right, and its rule."""

from __future__ import annotations

import pytest
import torch
import toy

from dynasurge.probabilities import Random
from dynasurge.trees.token_tree import TokenTree
from dynasurge.verification.prototype import bfs, prototype_growmap


@pytest.mark.parametrize(
    ("budget", "children"),
    [(1, 2), (4, 2), (5, 2), (16, 2), (17, 3), (32, 3), (33, 4), (64, 4), (100, 4)],
)
def test_the_tree_has_b_nodes_filled_from_the_left(budget: int, children: int) -> None:
    for seed in range(3):
        table, trees = toy.random_table(1, vocab=7), toy.static(prototype_growmap(budget))
        tree = toy.Steps(table, table, trees, vocab=7)(Random.seeded(seed)).tree
        assert tree.parents == (-1, *((node - 1) // children for node in range(1, budget + 1)))
        assert not any(tree.point[1:])


def test_a_distribution_that_runs_out_of_tokens_gives_fewer_children() -> None:
    rows = {toy.PROMPT: [1.0, 0.0, 0.0], (*toy.PROMPT, 0): [0.0, 0.5, 0.5]}
    draft = lambda text: rows.get(text, [0.4, 0.3, 0.3])  # noqa: E731
    steps = toy.Steps(draft, draft, toy.static(prototype_growmap(6)))
    assert steps(Random.seeded(0)).tree.parents == (-1, 0, 1, 1)


def test_its_rule_verifies_a_copied_token_that_the_draft_was_not_asked_about() -> None:
    tree = TokenTree(
        tokens=(0, 1, 2), parents=(-1, 0, 1), proposal=(1.0,) * 3, point=(True, True, True)
    )
    p = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    verdict = bfs(tree, p, [torch.empty(0)] * 3, Random.seeded(0))
    assert (verdict.path, verdict.bonus) == ((1, 2), 0)
