"""The size and depth that a captured step settles on before it is made."""

from __future__ import annotations

import pytest

from dynasurge.costs import Costs
from dynasurge.pace import Pace, Size

SIZES, DEPTH = (16, 32, 64), 12


def costs(*, node: float = 0.0, level: float = 0.05) -> Costs:
    """A target pass takes a second and `node` more for each, a draft pass `level`."""
    return Costs(widths=(1, 129), target_seconds=(1.0, 1.0 + 128 * node), draft_seconds=(level, level))


def tree(size: Size, first: float, fall: float, elder: float = 0.1) -> tuple[list[float], list[int]]:
    """Values and depths of the best nodes when each of a level is worth so much of its elder, the first a chain's node."""
    slots = [(first * fall**d * elder**rank, d + 1) for d in range(size.depth) for rank in range(10)]
    slots = sorted(slots, reverse=True)[: size.nodes]
    return [value for value, _ in slots], [depth for _, depth in slots]


def settled(pace: Pace, first: float, fall: float, steps: int, elder: float = 0.1) -> Size:
    """What it chooses after so many steps of such a text."""
    for _ in range(steps):
        size = pace.choose()
        pace.learn(size, *tree(size, first, fall, elder))
    return pace.choose()


def rate(size: Size, first: float, fall: float, price: Costs) -> float:
    """Tokens a second of such steps."""
    return (1 + sum(tree(size, first, fall)[0])) / (price.target(size.nodes) + size.depth * price.draft(1))


@pytest.mark.parametrize("fall", [0.3, 0.6, 0.8, 0.95])
@pytest.mark.parametrize("price", [costs(), costs(node=0.01), costs(level=0.3)], ids=["cheap", "nodes", "levels"])
def test_a_steady_text_gets_trees_about_as_fast_as_the_best(fall: float, price: Costs) -> None:
    pace = Pace(sizes=SIZES, budget=64, max_depth=DEPTH, costs=price)
    chosen = settled(pace, 0.7, fall, 30)
    best = max(rate(Size(nodes=n, depth=d), 0.7, fall, price) for n in SIZES for d in range(1, DEPTH + 1))
    assert rate(chosen, 0.7, fall, price) > 0.97 * best


def test_levels_that_did_not_pay_are_drafted_again_when_the_text_gets_easy() -> None:
    pace = Pace(sizes=SIZES, budget=64, max_depth=DEPTH, costs=costs(level=0.1))
    assert settled(pace, 0.9, 0.95, 12).depth >= 10
    assert settled(pace, 0.4, 0.2, 12).depth <= 2
    assert settled(pace, 0.9, 0.95, 12).depth >= 10
    pace.reset()
    assert pace.choose() == Pace(sizes=SIZES, budget=64, max_depth=DEPTH, costs=costs(level=0.1)).choose()


def test_large_trees_come_back_when_the_text_gets_easy() -> None:
    pace = Pace(sizes=SIZES, budget=64, max_depth=DEPTH, costs=costs(node=0.002))
    assert settled(pace, 0.3, 0.2, 30, 0.05).nodes == 16
    assert settled(pace, 0.5, 0.9, 20, 0.8).nodes == 64


def test_nodes_are_not_kept_that_do_not_pay() -> None:
    sizes = [
        settled(Pace(sizes=SIZES, budget=64, max_depth=DEPTH, costs=costs(node=node)), 0.7, 0.6, 20).nodes
        for node in (0.0, 0.05)
    ]
    assert sizes == [64, 16]


def test_without_costs_trees_are_filled_a_level_deeper_than_lately() -> None:
    pace = Pace(sizes=SIZES, budget=64, max_depth=DEPTH)
    pace.learn(Size(nodes=64, depth=6), [0.5, 0.4, 0.3], [1, 2, 3])
    assert pace.choose().nodes == 64
    assert settled(pace, 0.7, 0.9, 12) == Size(nodes=64, depth=DEPTH)
    assert Pace(sizes=SIZES, budget=64, max_depth=DEPTH, fixed=True).choose() == Size(nodes=64, depth=DEPTH)
