"""Optimal trees against two other ways to find them: every tree there is, and the likeliest free
slot first."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Iterator, Sequence

import pytest

from dynasurge import (
    Growmap,
    UsageError,
    best_size,
    build_growmap,
    expected_accepted,
    optimal_growmap,
)
from dynasurge.trees.optimal_growmap import MAX_DEPTH, MAX_NODES


def random_vector(rng: random.Random, ranks: int, *, falling: bool) -> list[float]:
    """Outcomes of one node: the ranks' shares of one, and the share of those where the path
    ends."""
    weights = [rng.random() ** 3 for _ in range(ranks + 1)]
    shares = [w / sum(weights) for w in weights[:-1]]
    return sorted(shares, reverse=True) if falling else shares


def heap_value(acceptance: Sequence[float], nodes: int, depth: int) -> float:
    """Best first: a slot is worth the product along its path; growing one frees its next sibling
    and its first child."""
    value, slots = (
        0.0,
        [(-acceptance[0], 0, 1, 1.0)],
    )  # minus the slot's value, rank, level, its parent's value
    for _ in range(nodes):
        if not slots:
            break
        worth, rank, level, parent = heapq.heappop(slots)
        value -= worth
        if rank + 1 < len(acceptance):
            heapq.heappush(slots, (-parent * acceptance[rank + 1], rank + 1, level, parent))
        if level < depth:
            heapq.heappush(slots, (worth * acceptance[0], 0, level + 1, -worth))
    return value


def every_tree(nodes: int) -> Iterator[Growmap]:
    """All ordered trees of exactly so many nodes below the root, by their breadth-first parents."""
    for rising in itertools.combinations_with_replacement(range(nodes), nodes):
        if all(parent < node for node, parent in enumerate(rising, start=1)):
            yield Growmap(parents=(-1, *rising))


def value_by_hand(growmap: Growmap, levels: Sequence[Sequence[float]]) -> float:
    """The sum over nodes of the product along each path, from the parents alone; ranks without an
    entry count 0."""
    total = 0.0
    for node in range(1, growmap.size):
        product, u = 1.0, node
        while u:
            parent = growmap.parents[u]
            rank = u - growmap.parents.index(parent)
            level = levels[min(growmap.depths[parent], len(levels) - 1)]
            product, u = product * (level[rank] if rank < len(level) else 0.0), parent
        total += product
    return total


def test_every_tree_is_every_tree() -> None:
    assert [sum(1 for _ in every_tree(n)) for n in range(1, 7)] == [1, 2, 5, 14, 42, 132]


@pytest.mark.parametrize("seed", range(40))
def test_the_programme_equals_the_heap_on_falling_vectors(seed: int) -> None:
    rng = random.Random(seed)
    vector = random_vector(rng, rng.randint(1, 16), falling=True)
    nodes, depth = rng.randint(1, 127), rng.randint(1, 16)
    tree = optimal_growmap(vector, nodes, depth)
    assert tree.size <= nodes + 1
    assert tree.depth <= depth
    assert max(map(len, tree.children)) <= len(vector)
    assert expected_accepted(tree, vector) == pytest.approx(
        heap_value(vector, nodes, depth), rel=1e-12
    )


@pytest.mark.parametrize("falling", [True, False])
@pytest.mark.parametrize("seed", range(8))
def test_no_small_tree_is_better(seed: int, falling: bool) -> None:
    """With vectors that rise, too: rank 1 costs a node of rank 0 first, and the programme knows."""
    rng = random.Random(seed)
    levels = [
        random_vector(rng, rng.randint(1, 4), falling=falling) for _ in range(rng.randint(1, 3))
    ]
    for nodes, depth in itertools.product(range(1, 7), (1, 2, 3, 6)):
        best = max(
            value_by_hand(g, levels)
            for n in range(1, nodes + 1)
            for g in every_tree(n)
            if g.depth <= depth
        )
        tree = optimal_growmap(levels, nodes, depth)
        assert tree.size <= nodes + 1
        assert tree.depth <= depth
        assert value_by_hand(tree, levels) == pytest.approx(best, rel=1e-12)
        assert expected_accepted(tree, levels) == pytest.approx(best, rel=1e-12)


def test_expected_accepted_by_hand() -> None:
    two_chains = build_growmap("2x2")
    assert expected_accepted(two_chains, [0.5, 0.25]) == pytest.approx(
        0.5 + 0.25 + 0.5 * 0.5 + 0.25 * 0.5
    )
    assert expected_accepted(two_chains, [0.5]) == pytest.approx(0.5 + 0.5 * 0.5), (
        "rank 1 is never accepted"
    )
    assert expected_accepted(two_chains, [[0.5, 0.25], [0.1]]) == pytest.approx(0.75 + 0.75 * 0.1)
    assert expected_accepted(Growmap(parents=(-1,)), [0.5]) == 0


def test_known_optimal_trees() -> None:
    assert optimal_growmap([0.9, 0.05], 4, 4) == build_growmap("chain4")
    assert optimal_growmap([0.4, 0.3, 0.2], 3, 4) == build_growmap("3x1")
    assert optimal_growmap([0.9, 0.05], 4, 2).parents == (-1, 0, 0, 1, 1), (
        "the bound stops the chain"
    )
    assert optimal_growmap([0.01, 0.9], 3, 2).parents == (-1, 0, 0, 2), (
        "a poor rank 0 opens the way to a good rank 1"
    )
    assert optimal_growmap([[0.2, 0.2], [0.9]], 4, 2) == build_growmap("2x2"), "levels of their own"


def test_nodes_that_add_nothing_are_left_out() -> None:
    assert optimal_growmap([0.6, 0.2], 100, 2).size == 7, (
        "two ranks on two levels have room for six"
    )
    assert optimal_growmap([0.6, 0.0, 0.0], 5, 2) == build_growmap("chain2")
    assert optimal_growmap([[0.6], [0.0]], 5, 5) == build_growmap("chain1")


def test_the_largest_size_of_use_takes_no_time_to_find() -> None:
    vector = [0.5 * 0.5**rank for rank in range(16)]
    tree = optimal_growmap(vector, 255, 16)
    assert tree.size == 256
    assert expected_accepted(tree, vector) == pytest.approx(heap_value(vector, 255, 16), rel=1e-12)


def test_best_size_is_the_fastest_of_every_small_tree() -> None:
    curve = {1: 1.0, 3: 1.1, 7: 2.0}
    seconds = {2: 1.05, 3: 1.1, 4: 1.325, 5: 1.55, 6: 1.775, 7: 2.0}
    for vector, draft_time in itertools.product(
        ([0.9, 0.05], [0.4, 0.3, 0.2], [0.2, 0.5]), (0.0, 0.1, 1.0)
    ):
        best = max(
            (value_by_hand(g, [vector]) + 1) / (seconds[g.size] + g.depth * draft_time)
            for n in range(1, 7)
            for g in every_tree(n)
        )
        chosen = best_size(vector, curve, draft_time, max_nodes=20)
        assert chosen.tokens_per_second == pytest.approx(best, rel=1e-12)
        assert chosen.seconds == pytest.approx(
            seconds[chosen.growmap.size] + chosen.growmap.depth * draft_time
        )
        assert chosen.expected_accepted == pytest.approx(
            value_by_hand(chosen.growmap, [vector]), rel=1e-12
        )


def test_best_size_picks_the_chain_or_the_bush() -> None:
    """Nodes that cost and free drafts ask for a chain; dear drafts and free nodes for one wide
    level."""
    sure, unsure = [0.9, 0.05], [0.4, 0.3, 0.2]
    assert best_size(sure, lambda n: 1 + 0.1 * n, 0.0, max_nodes=4).growmap == build_growmap(
        "chain4"
    )
    assert best_size(unsure, lambda n: 1.0, 1.0, max_nodes=3).growmap == build_growmap("3x1")
    assert best_size(
        unsure, lambda n: 1.0, 0.0, max_nodes=40, max_depth=3
    ).growmap == build_growmap("3ary3")


BAD_VECTORS = [
    ([], "is not a list of numbers"),
    ([[]], "vector 1 of 1 is not a list of numbers"),
    ([[0.5], 0.2], "vector 2 of 2 is not a list of numbers"),
    ([0.2, [0.5]], "is not a list of numbers"),
    (["a"], "is not a list of numbers"),
    ([[[0.5]]], "is not a list of numbers"),
    ([10**400], "is not a list of numbers"),
    ([0.5, -0.1], "has an entry outside [0, 1]"),
    ([1.5], "has an entry outside [0, 1]"),
    ([float("nan")], "has an entry outside [0, 1]"),
    ([0.6, 0.6], "sums to 1.2"),
    ([[0.5], [0.6, 0.6]], "vector 2 of 2 sums to 1.2"),
    ([0.0, 0.0], "nothing is ever accepted"),
]


@pytest.mark.parametrize(("vector", "message"), BAD_VECTORS)
def test_bad_vectors_are_named(vector: list[float], message: str) -> None:
    for call in (
        lambda: optimal_growmap(vector, 3, 2),
        lambda: expected_accepted(build_growmap("2x2"), vector),
        lambda: best_size(vector, {8: 1.0}, 0.1),
    ):
        with pytest.raises(UsageError) as caught:
            call()
        assert message in str(caught.value)
        assert str(caught.value).startswith("--acceptance ")


def test_bad_sizes_and_times_are_named() -> None:
    for nodes, depth, name in (
        (0, 1, "nodes"),
        (MAX_NODES + 1, 1, "nodes"),
        (1, 0, "depth"),
        (1, MAX_DEPTH + 1, "depth"),
    ):
        with pytest.raises(UsageError, match=f"--{name} .*must lie in 1"):
            optimal_growmap([0.5], nodes, depth)
    for latency in ({}, {1: 1.0}, {4: 0.0}, {4: float("nan")}, lambda n: -1.0):
        with pytest.raises(UsageError, match=r"^latency"):
            best_size([0.5], latency, 0.1)
    for draft_time in (-1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match=r"^draft_time"):
            best_size([0.5], {4: 1.0}, draft_time)
