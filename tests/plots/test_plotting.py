"""Drawings of trees: every node has a place of its own, and the picture says what the tree says."""

from __future__ import annotations

from itertools import pairwise

import pytest
from samples import random_parents

from dynasurge import build_growmap, optimal_growmap
from dynasurge.plots.figures import tree_figure, tree_positions
from dynasurge.trees.token_tree import children_of, depths_of


@pytest.mark.parametrize("seed", range(10))
def test_nodes_keep_their_distance_and_their_order(seed: int) -> None:
    parents = random_parents(seed)
    xs, depths, children = tree_positions(parents), depths_of(parents), children_of(parents)
    level = [0]
    while level:
        assert all(xs[b] - xs[a] >= 1 - 1e-9 for a, b in pairwise(level)), (
            "left to right as their parents, and apart"
        )
        level = [child for u in level for child in children[u]]
    assert xs[0] == 0
    for u, family in enumerate(children):
        assert not family or xs[u] == pytest.approx((xs[family[0]] + xs[family[-1]]) / 2)
    assert len({(round(x, 6), d) for x, d in zip(xs, depths, strict=True)}) == len(parents)


def test_a_subtree_is_tucked_under_the_siblings_beside_it() -> None:
    xs = tree_positions((-1, 0, 0, 1, 1, 1))
    assert xs == [0, -0.5, 0.5, -1.5, -0.5, 0.5]


@pytest.mark.slow
def test_the_picture_has_a_label_a_node_and_stays_on_a_page() -> None:
    growmap = optimal_growmap([0.55, 0.14, 0.07, 0.04, 0.03, 0.02, 0.01], 127, 10)
    axes = tree_figure(growmap.parents).axes[0]
    assert [text.get_text() for text in axes.texts] == [str(u) for u in range(128)]
    low, high = axes.get_ylim()
    assert low > high, "the root on top"
    assert [text.get_text() for text in tree_figure((-1,)).axes[0].texts] == ["0"], "a bare root"
    words = (
        tree_figure((-1, 0, 0), labels=["The", " harbour", "$x$"], caption="step 3").axes[0].texts
    )
    assert [text.get_text() for text in words] == ["The", " harbour", "$x$"]
    assert not any(text.get_parse_math() for text in words), "a token is no formula"
    for spec in ("2ary11", "chain4000"):
        figure = tree_figure(build_growmap(spec).parents)
        assert max(figure.get_size_inches()) < 32
        assert not figure.axes[0].texts, "too many to be read: dots"
