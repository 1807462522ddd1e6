"""Dynamic growth: estimates that learn, copies from the text, nodes that pay for their time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import tiny_model

from dynasurge.acceptance import BIN_EDGES, Acceptance, interpolate, load_priors, make_acceptance
from dynasurge.engine import Engine
from dynasurge.latency import Costs, cache_file, load_costs
from dynasurge.lookup import Lookup
from dynasurge.policies import POLICIES, Wish
from dynasurge.shapes import BestFirst, Slot, Thrifty

COSTS = Costs(widths=(1, 2, 4, 8), target_seconds=(1.0, 1.1, 1.3, 1.9), draft_seconds=(0.1, 0.1, 0.1, 0.1))


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


# --- estimates ---------------------------------------------------------------------------------------------------------


def test_curves_are_interpolated_and_constant_outside() -> None:
    curve = ((0.2, 0.6), (0.1, 0.5))
    assert [interpolate(curve, x) for x in (0.0, 0.2, 0.4, 0.6, 1.0)] == pytest.approx([0.1, 0.1, 0.3, 0.5, 0.5])


def test_the_shipped_priors_are_probabilities_for_every_rule() -> None:
    priors = load_priors()
    assert set(priors) == {"topdown", "traversal", "greedy"}
    for curves in priors.values():
        for kind, (xs, ys) in curves.items():
            assert kind.rstrip("+") in BIN_EDGES
            assert list(xs) == sorted(xs)
            assert all(0 <= y <= 1 for y in ys)
    assert priors["topdown"]["point"][1][-1] > 0.8, "a confident draft is mostly right"


def test_estimates_follow_what_is_observed_and_forget_with_the_prompt() -> None:
    curves = {"point": ((0.0, 1.0), (0.0, 1.0))}
    acceptance = Acceptance(curves)
    assert acceptance.estimate("point", 0.5, 0.5) == pytest.approx(0.5)
    for _ in range(200):
        acceptance.observe("point", 0.5, tried=1.0, accepted=0.25)
    assert acceptance.estimate("point", 0.5, 0.5) == pytest.approx(0.25, abs=0.03)
    assert acceptance.estimate("point", 0.9, 0.9) == pytest.approx(0.9), "another bin learns by itself"
    acceptance.reset()
    assert acceptance.estimate("point", 0.5, 0.5) == pytest.approx(0.5)


def test_a_fixed_prior_does_not_learn_and_own_is_the_drafts_word() -> None:
    fixed, own = make_acceptance("fixed", "topdown", 0.6), make_acceptance("own", "topdown", 0.6)
    before = fixed.estimate("first", 0.3, 0.3)
    fixed.observe("first", 0.3, 50.0, 0.0)
    assert fixed.estimate("first", 0.3, 0.3) == before > 0.3
    assert own.estimate("first", 0.3, 0.3) == 0.3


# --- copies ------------------------------------------------------------------------------------------------------------


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
def test_a_copy_is_a_point_behind_what_is_sampled_from_the_rest(policy: str) -> None:
    q = torch.tensor([[0.5, 0.3, 0.2]] * 2)
    wishes = [Wish(k=2, copy=0, match=3.0), Wish(k=2, copy=2, match=1.0)]
    for seed in range(10):
        for wish, children in zip(
            wishes, POLICIES[policy](q, wishes, torch.Generator().manual_seed(seed)), strict=True
        ):
            (copy,) = [child for child in children.members if child.kind == "echo"]
            assert (copy.token, copy.x, copy.point) == (wish.copy, wish.match, True)
            assert children.tokens.count(copy.token) == 1
            assert float(children.base[copy.token]) == 0 or policy == "topk"
    for match, kinds in ((2.0, []), (8.0, ["lookup"])):  # a token that the draft hardly thinks of needs a long match
        doubted = POLICIES[policy](torch.tensor([[0.95, 0.05]]), [Wish(k=1, copy=1, match=match)], torch.Generator())[0]
        assert [child.kind for child in doubted.members if child.kind == "lookup"] == kinds


# --- nodes that pay ----------------------------------------------------------------------------------------------------


def test_slopes_are_those_of_the_lower_hull() -> None:
    bumpy = Costs(widths=(1, 2, 4, 8), target_seconds=(1.0, 1.4, 1.3, 1.9), draft_seconds=(0.1,) * 4)
    slopes = [bumpy.slope(nodes) for nodes in range(1, 12)]
    assert slopes == pytest.approx(sorted(slopes)), "never falling"
    assert bumpy.target(3) == pytest.approx(1.3)
    assert slopes[0] == pytest.approx(0.1)
    assert slopes[-1] == pytest.approx(0.15), "the last slope goes on beyond the curve"


def test_slots_stay_while_they_pay() -> None:
    shape = Thrifty(budget=8, max_depth=4, max_children=4, costs=COSTS)
    assert shape.rate == pytest.approx(1.0), "tokens per second without a tree"
    assert shape.keep(pool(0.5, 0.05, 0.2, 0.14)) == [0, 1, 3, 4]
    shape.grown(pool(0.5), [0, 1], 1)
    shape.verified(4)
    assert shape.rate == pytest.approx(5 / (1.0 + 1.2))
    assert shape.keep(pool(0.5, 0.2, 0.2, 0.14)) == [0, 1], "0.2 < 2.27 tokens/s * 0.1 s"
    shape.reset()
    assert shape.keep(pool(0.5, 0.05, 0.2, 0.14)) == [0, 1, 3, 4]


def test_the_budget_is_a_maximum() -> None:
    shape = BestFirst(budget=2, max_depth=4, max_children=4)
    assert shape.keep(pool(0.1, 0.5, 0.2, 0.0)) == [0, 2, 3]
    assert shape.keep(pool(0.1, 0.0)) == [0, 1]


def test_a_level_is_drafted_only_if_it_pays() -> None:
    slots = pool(0.5, 0.2)
    cheap = Thrifty(budget=8, max_depth=4, max_children=4, costs=COSTS)
    assert cheap.expand(slots, [0, 1, 2], [1, 2]) == [1, 2]
    assert BestFirst(budget=2, max_depth=4, max_children=4).expand(slots, [0, 1, 2], [1, 2]) == [1], (
        "2's would be worth less"
    )
    dear = Costs(widths=(1, 8), target_seconds=(1.0, 1.1), draft_seconds=(0.5, 0.5))
    assert Thrifty(budget=8, max_depth=4, max_children=4, costs=dear).expand(slots, [0, 1, 2], [1, 2]) == []


def test_wishes_shrink_to_what_could_be_kept() -> None:
    shape = BestFirst(budget=4, max_depth=4, max_children=4)
    slots = pool(0.5, 0.1, 0.1, 0.1)
    assert shape.wish(slots, 0).k == 4, "nothing is known yet"
    shape.grown(slots, [0, 1, 2, 3, 4], 1)
    wide, narrow = shape.wish(slots, 0), shape.wish(slots, 2)
    assert wide.k == 4
    assert narrow.k == 1
    assert narrow.floor == pytest.approx(0.5)
    assert wide.floor == pytest.approx(0.05)


def test_curves_are_measured_once_and_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DYNASURGE_CACHE", str(tmp_path))
    target, draft = Engine(tiny_model("llama"), 128), Engine(tiny_model("llama", layers=1), 128)
    costs = load_costs(target, draft)
    assert costs.widths[0] == 1
    assert all(seconds > 0 for seconds in costs.target_seconds + costs.draft_seconds)
    assert cache_file(target, draft).is_file()
    assert target.length == draft.length == 0
    monkeypatch.setattr("dynasurge.latency.measure", lambda *_: pytest.fail("measured twice"))
    assert load_costs(target, draft) == costs
    assert torch.get_num_threads() >= 1
