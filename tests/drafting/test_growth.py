"""Dynamic growth: estimates that learn, copies from the text, nodes that pay for their time."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
import toy
from conftest import tiny_model

from dynasurge.decoding.engines import Engines
from dynasurge.decoding.latency import cache_file, load_costs
from dynasurge.drafting.acceptance_estimates import (
    Acceptance,
    cells,
    curves_at,
    interpolate,
    load_priors,
    make_acceptance,
)
from dynasurge.drafting.child_kinds import CLASSES, Class, Kind, depth_class
from dynasurge.drafting.cost_model import Costs
from dynasurge.drafting.prompt_lookup import Lookup
from dynasurge.drafting.proposals import POLICIES, Wish
from dynasurge.drafting.tree_budget import BestFirst, Slot, Thrifty
from dynasurge.models.engine import Engine
from dynasurge.probabilities import Random

COSTS = Costs(
    widths=(1, 2, 4, 8), target_seconds=(1.0, 1.1, 1.3, 1.9), draft_seconds=(0.1, 0.1, 0.1, 0.1)
)


def slot(value: float, *, parent: int = 0, depth: int = 1) -> Slot:
    return Slot(
        token=1,
        parent=parent,
        depth=depth,
        rank=0,
        proposal=1.0,
        kind="point",
        x=0.5,
        slot_value=value,
        node_value=value,
    )


def pool(*values: float) -> list[Slot]:
    return [slot(1.0, parent=-1, depth=0), *(slot(value) for value in values)]


# --- estimates
# ---------------------------------------------------------------------------------------------------------


def test_curves_are_interpolated_and_constant_outside() -> None:
    curve = ((0.2, 0.6), (0.1, 0.5))
    assert [interpolate(curve, x) for x in (0.0, 0.2, 0.4, 0.6, 1.0)] == pytest.approx(
        [0.1, 0.1, 0.3, 0.5, 0.5]
    )


def test_the_shipped_priors_are_probabilities_for_every_rule() -> None:
    priors = load_priors()
    assert set(priors) == {"topdown", "traversal", "greedy"}
    for curves in (
        curves for by_temperature in priors.values() for curves in by_temperature.values()
    ):
        for of, (xs, ys) in curves.items():
            assert of in CLASSES
            assert list(xs) == sorted(xs)
            assert all(0 <= y <= 1 for y in ys)
    for T in (0.2, 0.6, 0.8, 1.0, 1.5):
        assert curves_at(priors["topdown"], T)[Class(Kind.POINT)][1][-1] > 0.8, (
            "a confident draft is mostly right"
        )


def test_deep_children_have_curves_of_their_own_or_those_further_up() -> None:
    assert [depth_class(level) for level in range(1, 7)] == [0, 1, 1, 2, 2, 2]
    curves = {
        Class(Kind.POINT): ((0.5,), (0.1,)),
        Class(Kind.TAIL): ((0.5,), (0.2,)),
        Class(Kind.TAIL, 1): ((0.5,), (0.3,)),
        Class(Kind.TAIL, 2): ((0.5,), (0.4,)),
    }
    acceptance = Acceptance(curves)
    assert [acceptance.estimate(Class(Kind.POINT, depth), 0.5, 0.5) for depth in range(3)] == [
        0.1,
        0.1,
        0.1,
    ]
    assert [acceptance.estimate(Class(Kind.TAIL, depth), 0.5, 0.5) for depth in range(3)] == [
        0.2,
        0.3,
        0.4,
    ]
    cell = cells(Kind.TAIL).index(min(cells(Kind.TAIL), key=lambda x: abs(x - 0.5)))
    assert acceptance.table()[:, Kind.TAIL, cell].tolist() == pytest.approx([0.2, 0.3, 0.4])
    acceptance.observe(Class.named("tail++"), 0.5, tried=100.0, accepted=0.0)
    assert acceptance.estimate(Class.named("tail+"), 0.5, 0.5) == 0.3, (
        "each depth learns on its own"
    )
    assert acceptance.estimate(Class.named("tail++"), 0.5, 0.5) < 0.1


def test_curves_are_interpolated_between_temperatures() -> None:
    low, high = ((0.2, 0.6), (0.1, 0.5)), ((0.4,), (0.7,))
    point, tail, first = (Class(kind) for kind in (Kind.POINT, Kind.TAIL, Kind.FIRST))
    priors = {0.5: {point: low, tail: low}, 1.0: {point: high, first: high}}
    for T, share in ((0.1, 0.0), (0.5, 0.0), (0.6, 0.2), (1.0, 1.0), (2.0, 1.0)):
        curves = curves_at(priors, T)
        for x in (0.0, 0.2, 0.3, 0.4, 0.5, 1.0):
            expected = (1 - share) * interpolate(low, x) + share * interpolate(high, x)
            assert interpolate(curves[point], x) == pytest.approx(expected), (T, x)
    middle = curves_at(priors, 0.7)
    assert interpolate(middle[tail], 0.4) == pytest.approx(0.3), (
        "what the other temperature never met"
    )
    assert interpolate(middle[first], 0.1) == 0.7


def test_estimates_follow_what_is_observed_and_forget_with_the_prompt() -> None:
    curves = {Class(Kind.POINT): ((0.0, 1.0), (0.0, 1.0))}
    acceptance = Acceptance(curves)
    assert acceptance.estimate(Class(Kind.POINT), 0.5, 0.5) == pytest.approx(0.5)
    for _ in range(200):
        acceptance.observe(Class(Kind.POINT), 0.5, tried=1.0, accepted=0.25)
    assert acceptance.estimate(Class(Kind.POINT), 0.5, 0.5) == pytest.approx(0.25, abs=0.03)
    assert acceptance.estimate(Class(Kind.POINT), 0.9, 0.9) == pytest.approx(0.9), (
        "another bin learns on its own"
    )
    acceptance.reset()
    assert acceptance.estimate(Class(Kind.POINT), 0.5, 0.5) == pytest.approx(0.5)


def test_a_fixed_prior_does_not_learn_and_own_is_the_drafts_word() -> None:
    fixed, own = make_acceptance("fixed", "topdown", 0.6), make_acceptance("own", "topdown", 0.6)
    before = fixed.estimate(Class(Kind.FIRST), 0.3, 0.3)
    fixed.observe(Class(Kind.FIRST), 0.3, 50.0, 0.0)
    assert fixed.estimate(Class(Kind.FIRST), 0.3, 0.3) == before > 0.3
    assert own.estimate(Class(Kind.FIRST), 0.3, 0.3) == 0.3


# --- copies
# ------------------------------------------------------------------------------------------------------------


def test_the_longest_match_and_its_latest_occurrence_win() -> None:
    lookup = Lookup()
    lookup.read([1, 2, 3, 9, 2, 3, 8, 1, 2])
    assert lookup.find([3]) == (9, 3), "1 2 3 was followed by 9"
    lookup.read([1, 2, 3, 9, 2, 3, 8, 1, 2, 3, 7, 5, 3])
    assert lookup.find([]) is None, "one token is no match"
    assert lookup.find([7, 5, 3]) is None
    assert lookup.find([4]) is None
    lookup.reset()
    assert lookup.find([3]) is None


@pytest.mark.parametrize("policy", POLICIES)
def test_a_copy_is_a_point_behind_what_is_sampled_from_the_rest(
    policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    q = torch.tensor([[0.5, 0.3, 0.2]] * 2)
    if policy == "sampled":  # which needs no copy of what the draft proposes anyway
        toy.copy_anything(monkeypatch)
    wishes = [Wish(k=2, copy=0, match=3.0), Wish(k=2, copy=2, match=2.0)]
    for seed in range(10):
        for wish, children in zip(
            wishes, POLICIES[policy](q, wishes, Random.seeded(seed)), strict=True
        ):
            (copy,) = [
                child for child in children.members if child.kind in (Kind.ECHO, Kind.LOOKUP)
            ]
            assert (copy.token, copy.x, copy.point) == (wish.copy, wish.match, True)
            assert children.tokens.count(copy.token) == 1
            assert float(children.base[copy.token]) == 0 or policy == "topk"
    monkeypatch.undo()
    agreed = POLICIES[policy](q, wishes, Random.seeded(0))
    assert any(child.kind is Kind.ECHO for child in agreed[0].members) == (policy != "sampled")
    for match, kinds in (
        (2.0, []),
        (8.0, [Kind.LOOKUP]),
    ):  # a token that the draft hardly thinks of needs a long match
        doubted = POLICIES[policy](
            torch.tensor([[0.95, 0.05]]), [Wish(k=1, copy=1, match=match)], Random.seeded(0)
        )[0]
        assert [child.kind for child in doubted.members if child.kind is Kind.LOOKUP] == kinds


# --- nodes that pay
# ----------------------------------------------------------------------------------------------------


def test_curves_never_fall_and_keep_their_bends() -> None:
    bumpy = Costs(
        widths=(1, 2, 4, 8), target_seconds=(1.0, 1.4, 1.3, 1.9), draft_seconds=(0.1, 0.3, 0.2, 0.4)
    )
    assert [bumpy.target(nodes) for nodes in (0, 1, 2, 3, 5, 7)] == pytest.approx(
        [1.0, 1.3, 1.3, 1.3, 1.6, 1.9]
    )
    assert bumpy.target(11) == pytest.approx(2.5), "the last slope goes on beyond the curve"
    assert bumpy.draft(2) == pytest.approx(0.2)
    assert bumpy.step(3, 2) == pytest.approx(1.3 + 2 * 0.2)


def taught(costs: Costs, *values: float, emitted: int, steps: int = 50, budget: int = 8) -> Thrifty:
    """A shape after many steps whose slots were worth so much and led to so many tokens."""
    shape = Thrifty(budget=budget, max_depth=4, max_children=4, costs=costs)
    for _ in range(steps):
        slots = pool(*values)
        shape.grown(slots, shape.keep(slots), 1)
        shape.verified(emitted)
    return shape


def test_slots_stay_while_they_pay() -> None:
    """At about 2 tokens a second, slots of 0.1 seconds must be worth 0.2."""
    shape = taught(COSTS, 0.8, 0.5, 0.3, 0.1, 0.05, emitted=3)
    assert shape.rate == pytest.approx(3 / (1.3 + 0.1), rel=0.02)
    assert shape.keep(pool(0.8, 0.5, 0.3, 0.1, 0.05)) == [0, 1, 2, 3]
    shape.verified(3)
    assert shape.keep(pool(0.9, 0.9, 0.8, 0.7, 0.5, 0.4)) == [0, 1, 2, 3, 4, 5, 6], (
        "a confident step has a larger tree"
    )
    shape.verified(3)
    assert shape.keep(pool(0.3, 0.1, 0.1)) == [0, 1], "and a doubtful one a smaller"
    shape.reset()
    fresh = Thrifty(budget=8, max_depth=4, max_children=4, costs=COSTS)
    assert (shape.rate, shape.wish(pool(), 0)) == (fresh.rate, fresh.wish(pool(), 0)), "forgotten"


def test_a_dear_start_does_not_hide_cheap_nodes_behind_it() -> None:
    """Four nodes cost as much as eight: none or all, and all pay."""
    step = Costs(widths=(1, 2, 8), target_seconds=(1.0, 1.4, 1.4), draft_seconds=(0.05,) * 3)
    assert len(taught(step, *[0.2] * 7, emitted=2).keep(pool(*[0.2] * 7))) == 8
    assert taught(step, *[0.02] * 7, emitted=1).keep(pool(*[0.02] * 7)) == [0], (
        "here not even all together"
    )


def test_where_nothing_pays_the_draft_rests_longer_and_longer() -> None:
    dear = Costs(widths=(1, 8), target_seconds=(1.0, 9.0), draft_seconds=(0.5, 0.5))
    shape = taught(dear, 0.01, emitted=1)
    shape.reset()
    rests, drafted = [], 0
    for _ in range(40):
        rests.append(shape.rests())
        if not rests[-1]:
            drafted += 1
            slots = pool(0.01)
            assert shape.keep(slots) == [0] or drafted < 3, "it takes a step or two to find out"
            shape.grown(slots, [0], 1)
        shape.verified(1)
    looks = [step for step, rest in enumerate(rests) if not rest][-4:]
    assert [b - a for a, b in pairwise(looks)] == [5, 9, 17], "1, 2, 4, ... steps of rest between"
    slots = pool(0.99, 0.98)
    while shape.rests():
        shape.verified(1)
    for _ in range(200):  # the text becomes easy
        shape.grown(slots, [0, 1, 2], 1)
        shape.verified(3)
    assert not shape.rests()
    assert not shape.rests()


def test_the_budget_is_a_maximum() -> None:
    shape = BestFirst(budget=2, max_depth=4, max_children=4)
    assert shape.keep(pool(0.1, 0.5, 0.2, 0.0)) == [0, 2, 3]
    assert shape.keep(pool(0.1, 0.0)) == [0, 1]


def test_a_level_is_drafted_only_if_it_pays() -> None:
    cheap = Thrifty(budget=8, max_depth=4, max_children=4, costs=COSTS)
    slots = pool(0.5, 0.2)
    assert cheap.expand(slots, cheap.keep(slots), [1, 2]) == [1, 2]
    assert BestFirst(budget=2, max_depth=4, max_children=4).expand(slots, [0, 1, 2], [1, 2]) == [
        1
    ], "2's would be worth less"
    dear = Costs(widths=(1, 8), target_seconds=(1.0, 1.1), draft_seconds=(0.5, 0.5))
    shape = Thrifty(budget=8, max_depth=4, max_children=4, costs=dear)
    assert shape.expand(slots, shape.keep(slots), [1, 2]) == []


def test_wishes_shrink_to_what_could_be_kept() -> None:
    shape = BestFirst(budget=4, max_depth=4, max_children=4)
    slots = pool(0.5, 0.1, 0.1, 0.1)
    assert shape.wish(slots, 0).k == 4, "nothing is known yet"
    shape.grown(slots, [0, 1, 2, 3, 4], 1)
    wide, narrow = shape.wish(slots, 0), shape.wish(slots, 2)
    assert wide.k == 4
    assert narrow.k == 2, "the third would be accepted a quarter of the time at most"
    assert narrow.floor == pytest.approx(0.5)
    assert wide.floor == pytest.approx(0.05)


def test_curves_are_measured_once_and_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DYNASURGE_CACHE", str(tmp_path))
    target, draft = Engine(tiny_model("llama"), 128), Engine(tiny_model("llama", layers=1), 128)
    engines = Engines(target, draft)
    costs = load_costs(engines)
    assert costs.widths[0] == 1
    assert all(seconds > 0 for seconds in costs.target_seconds + costs.draft_seconds)
    assert cache_file(engines).is_file()
    assert target.length == draft.length == 0
    monkeypatch.setattr(
        "dynasurge.decoding.latency.measure", lambda *_: pytest.fail("measured twice")
    )
    assert load_costs(engines) == costs
    assert torch.get_num_threads() >= 1
