"""Estimates of acceptance: curves, what they learn, and what they forget."""

from __future__ import annotations

import pytest
import torch
import toy
from toy import estimate

from dynasurge.drafting.acceptance_estimates import (
    Acceptance,
    cells,
    curves_at,
    interpolate,
    load_priors,
    make_acceptance,
)
from dynasurge.drafting.child_kinds import CLASSES, Class, Kind, depth_class
from dynasurge.drafting.slot_values import estimates


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
    assert [estimate(acceptance, Class(Kind.POINT, depth), 0.5) for depth in range(3)] == [
        0.1,
        0.1,
        0.1,
    ]
    assert [estimate(acceptance, Class(Kind.TAIL, depth), 0.5) for depth in range(3)] == [
        0.2,
        0.3,
        0.4,
    ]
    cell = cells(Kind.TAIL).index(min(cells(Kind.TAIL), key=lambda x: abs(x - 0.5)))
    assert acceptance.table()[:, Kind.TAIL, cell].tolist() == pytest.approx([0.2, 0.3, 0.4])
    acceptance.observe(Class.named("tail++"), 0.5, tried=100.0, accepted=0.0)
    assert estimate(acceptance, Class.named("tail+"), 0.5) == 0.3, "each depth learns on its own"
    assert estimate(acceptance, Class.named("tail++"), 0.5) < 0.1


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
    assert estimate(acceptance, Class(Kind.POINT), 0.5) == pytest.approx(0.5, abs=0.01)
    for _ in range(200):
        acceptance.observe(Class(Kind.POINT), 0.5, tried=1.0, accepted=0.25)
    assert estimate(acceptance, Class(Kind.POINT), 0.5) == pytest.approx(0.25, abs=0.03)
    assert estimate(acceptance, Class(Kind.POINT), 0.9) == pytest.approx(0.9, abs=0.01), (
        "another bin learns on its own"
    )
    acceptance.reset()
    assert estimate(acceptance, Class(Kind.POINT), 0.5) == pytest.approx(0.5, abs=0.01)


def test_a_fixed_prior_does_not_learn_and_without_one_the_draft_is_believed() -> None:
    fixed = make_acceptance("fixed", "topdown", 0.6)
    before = estimate(fixed, Class(Kind.FIRST), 0.3)
    fixed.observe(Class(Kind.FIRST), 0.3, 50.0, 0.0)
    assert estimate(fixed, Class(Kind.FIRST), 0.3) == before > 0.3
    _, made = toy.propose("topk", torch.tensor([[0.3, 0.7]]), 2, None)
    before, after = estimates(None, made)
    assert before.tolist() == after.tolist() == [pytest.approx([0.7, 0.3])]
