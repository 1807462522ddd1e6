"""The size that is chosen before a step, and when its growth stops."""

from __future__ import annotations

import itertools

import pytest

from dynasurge.drafting.cost_model import Costs
from dynasurge.drafting.tree_budget import LONGEST_REST, SLACK, Size, SizePlanner

SIZES, DEPTH, LAG = (16, 32, 64), 12, 2


def costs(*, node: float = 0.0, level: float = 0.05) -> Costs:
    """A target pass takes a second and `node` more for each, a draft pass `level`."""
    return Costs(
        widths=(1, 129), target_seconds=(1.0, 1.0 + 128 * node), draft_seconds=(level, level)
    )


def make_pace(price: Costs | None = None) -> SizePlanner:
    return SizePlanner(sizes=SIZES, budget=64, max_depth=DEPTH, lag=LAG, costs=price)


def tree(
    nodes: int, depth: int, first: float, fall: float, elder: float = 0.1
) -> tuple[list[float], list[int]]:
    """Values and depths of the best nodes when each of a level is worth so much of its elder, the
    first a chain's node."""
    slots = sorted(
        ((first * fall**d * elder**rank, d + 1) for d in range(depth) for rank in range(10)),
        reverse=True,
    )
    return [value for value, _ in slots[:nodes]], [d for _, d in slots[:nodes]]


def drafted(size: Size, first: float, fall: float) -> int:
    """How many levels a step with such a chain gets."""
    depth = min(LAG, size.depth)
    while depth < size.depth and size.goes_on(first * fall ** (depth - LAG), 0):
        depth += 1
    return depth


def step(planner: SizePlanner, first: float, fall: float, elder: float = 0.1) -> tuple[int, int]:
    """One step of such a text: nodes and levels."""
    size = planner.choose()
    depth = drafted(size, first, fall)
    planner.learn(size, *tree(size.nodes, depth, first, fall, elder), [1] * depth)
    return size.nodes, depth


def steady(
    planner: SizePlanner, first: float, fall: float, steps: int, elder: float = 0.1
) -> tuple[int, int]:
    """The size and depth that it chooses after so many steps."""
    return [step(planner, first, fall, elder) for _ in range(steps)][-1]


def rate(nodes: int, depth: int, first: float, fall: float, price: Costs) -> float:
    """Tokens a second of such steps."""
    return (1 + sum(tree(nodes, depth, first, fall)[0])) / (
        price.target(nodes) + depth * price.draft(1)
    )


@pytest.mark.parametrize("fall", [0.3, 0.6, 0.8, 0.95])
@pytest.mark.parametrize(
    "price", [costs(), costs(node=0.01), costs(level=0.3)], ids=["cheap", "nodes", "levels"]
)
def test_a_steady_text_gets_trees_about_as_fast_as_the_best(fall: float, price: Costs) -> None:
    best = max(rate(n, d, 0.7, fall, price) for n in SIZES for d in range(1, DEPTH + 1))
    assert rate(*steady(make_pace(price), 0.7, fall, 30), 0.7, fall, price) > 0.9 * best


def test_a_mixed_text_is_drafted_faster_than_by_any_fixed_size() -> None:
    """Easy and hard steps in turns: depth goes by the step at hand."""
    price, kinds = costs(level=0.1), [(0.95, 0.95), (0.3, 0.3)]
    planner, made = make_pace(price), []
    for number in range(60):
        made.append(step(planner, *kinds[number % 2]))

    def total(sizes: list[tuple[int, int]]) -> float:
        tokens = sum(1 + sum(tree(n, d, *kinds[i % 2])[0]) for i, (n, d) in enumerate(sizes))
        return tokens / sum(price.target(n) + d * price.draft(1) for n, d in sizes)

    fixed = max(total([(n, d)] * 60) for n in SIZES for d in range(1, DEPTH + 1))
    assert total(made) > 1.05 * fixed
    assert [depth for _, depth in made[-2:]] == [DEPTH, LAG]


def test_levels_that_did_not_pay_are_drafted_again_when_the_text_gets_easy() -> None:
    planner = make_pace(costs(level=0.25))
    assert steady(planner, 0.9, 0.97, 12)[1] >= 8
    assert steady(planner, 0.05, 0.2, 12)[1] == 1  # not even a second level pays
    assert steady(planner, 0.9, 0.97, 12)[1] >= 8
    planner.reset()
    assert planner.choose() == make_pace(costs(level=0.25)).choose()


def test_large_trees_come_back_when_the_text_gets_easy() -> None:
    planner = make_pace(costs(node=0.002))
    assert steady(planner, 0.3, 0.2, 30, 0.05)[0] == 16
    assert steady(planner, 0.5, 0.9, 20, 0.8)[0] == 64


def test_nodes_are_not_kept_that_do_not_pay() -> None:
    assert [steady(make_pace(costs(node=node)), 0.7, 0.6, 20)[0] for node in (0.0, 0.05)] == [
        64,
        16,
    ]


def test_without_costs_trees_are_filled_as_deep_as_anything_would_stay() -> None:
    planner = make_pace()
    assert planner.choose() == Size(nodes=64, depth=6)
    planner.learn(Size(nodes=64, depth=6), [0.5] * 60 + [0.2] * 4, [1] * 64, [1] * 6)
    assert planner.choose() == Size(nodes=64, depth=DEPTH, least=SLACK * 0.2)
    planner.learn(
        Size(nodes=64, depth=6), [0.5, 0.4, 0.3], [1, 2, 3], [1] * 6
    )  # not filled: more must be offered
    assert planner.choose().least < SLACK * 0.2
    assert SizePlanner(
        sizes=SIZES, budget=64, max_depth=DEPTH, lag=LAG, fixed=True
    ).choose() == Size(nodes=64, depth=DEPTH)


def test_a_level_ends_the_growth_where_nothing_has_a_place() -> None:
    size = Size(nodes=4, depth=8, least=0.1)
    assert size.goes_on(0.2, 3)
    assert not size.goes_on(0.2, 4), "four better slots are there already"
    assert not size.goes_on(0.05, 0), "it does not pay"
    assert not Size(nodes=4, depth=8).goes_on(0.0, 0), "there is no slot"


def test_where_nothing_pays_the_draft_rests_longer_and_longer() -> None:
    price = Costs(widths=(1, 9), target_seconds=(1.0, 1.8), draft_seconds=(0.3, 0.3))
    planner = SizePlanner(sizes=(0, 1, 2, 8), budget=8, max_depth=4, lag=1, costs=price)
    drafted = []
    for _ in range(80):
        size = planner.choose()
        drafted.append(size.nodes > 0)
        planner.learn(size, [0.01] * (size.nodes > 0), [1] * (size.nodes > 0), [1] * size.depth)
    looks = [step for step, looked in enumerate(drafted) if looked]
    pauses = [b - a - 1 for a, b in itertools.pairwise(looks)]
    assert pauses == sorted(pauses)
    assert pauses[-1] == LONGEST_REST
    for _ in range(3 * LONGEST_REST):  # the text becomes easy
        size = planner.choose()
        easy = [0.99] * size.nodes
        planner.learn(size, easy, [1] * len(easy), [1] * (size.nodes > 0))
    assert planner.choose().nodes > 0


def test_draft_passes_cost_what_they_lately_did() -> None:
    """A wide pass may cost more: its price is that of the widths that this prompt's passes had."""
    wide = Costs(widths=(1, 9), target_seconds=(1.0, 1.0), draft_seconds=(0.01, 0.8))
    least = {}
    for width in (1, 9):
        planner = SizePlanner(sizes=(0, 8), budget=8, max_depth=4, lag=1, costs=wide)
        for _ in range(10):
            size = planner.choose()
            planner.learn(size, [0.9] * 4, [1, 2, 3, 4], [width] * 4)
        least[width] = planner.choose().least
    assert least[9] > 10 * least[1]
