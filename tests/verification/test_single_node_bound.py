"""The single-node bound against everything that can be enumerated: the linear programme, all token
sets, all draws."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator
from functools import partial

import pytest
import torch
import toy
from scipy.optimize import linprog

from dynasurge.drafting.proposals import POLICIES
from dynasurge.probabilities import Random
from dynasurge.verification import single_node_bound
from dynasurge.verification.rules import RULES
from dynasurge.verification.single_node_bound import acceptance_bound, node_acceptance


def distribution(seed: int, vocab: int, sharpness: float = 1.5, zeros: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    logits = sharpness * torch.randn(vocab, generator=generator, dtype=torch.float64)
    logits[torch.randperm(vocab, generator=generator)[:zeros]] = -torch.inf
    return torch.softmax(logits, 0)


def nodes(vocabs: tuple[int, ...]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Pairs p, q of every size, flat and sharp, with and without zeros."""
    for seed, (vocab, sharpness) in enumerate(itertools.product(vocabs, (0.3, 1.5, 4.0))):
        yield distribution(seed, vocab, sharpness), distribution(seed + 100, vocab, sharpness)
        yield (
            distribution(seed, vocab, sharpness, zeros=vocab // 2),
            distribution(seed + 100, vocab, sharpness, zeros=(vocab - 1) // 2),
        )


def drafts_law(q: torch.Tensor, k: int, policy: str) -> dict[frozenset[int], float]:
    """The law of the set of children, from the policy itself."""
    law: dict[frozenset[int], float] = defaultdict(float)
    for weight, children in toy.enumerate_runs(
        lambda script: toy.tokens_of(toy.propose(policy, q[None], k, script)[1], 0)
    ):
        law[frozenset(children)] += weight
    return law


def draws_law(q: torch.Tensor, k: int) -> dict[frozenset[int], float]:
    """The law of k draws without replacement, by sets: cheaper than by sequences, and exact when
    masses are far apart."""
    law = {frozenset[int](): 1.0}
    for _ in range(k):
        longer: dict[frozenset[int], float] = defaultdict(float)
        for drawn, weight in law.items():
            left = {
                token: mass
                for token, mass in enumerate(q.tolist())
                if mass > 0 and token not in drawn
            }
            for token, mass in left.items():
                longer[drawn | {token}] += weight * mass / sum(left.values())
        law = longer
    return law


def best_coupling(p: torch.Tensor, law: dict[frozenset[int], float]) -> float:
    """The linear programme: the likeliest that an emitted token of law p is among the drafts."""
    pairs = list(itertools.product(law, range(len(p))))
    reward = [float(token in drafts) for drafts, token in pairs]
    rows = [[float(drafts == row) for drafts, _ in pairs] for row in law]
    columns = [[float(token == column) for _, token in pairs] for column in range(len(p))]
    plan = linprog([-r for r in reward], A_eq=rows + columns, b_eq=[*law.values(), *p.tolist()])
    assert plan.success
    return -float(plan.fun)


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("policy", POLICIES)
def test_the_bound_is_the_optimum_of_the_linear_programme(policy: str, k: int) -> None:
    for p, q in nodes((1, 2, 3, 4, 5)):
        assert acceptance_bound(p, q, k, policy) == pytest.approx(
            best_coupling(p, drafts_law(q, k, policy)), abs=1e-9
        )


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("policy", POLICIES)
def test_no_rule_is_above_the_bound(policy: str, k: int) -> None:
    """And topdown is on it with point masses (hybrid included), strictly below it with several
    sampled children."""
    gaps = []
    for p, q in nodes((2, 4)):
        best = acceptance_bound(p, q, k, policy)
        for name, rule in RULES.items():
            if name == "reserved" and policy != "sampled":
                continue  # it needs sampled children
            runs = toy.enumerate_runs(partial(node_acceptance, rule, p, q, k, policy, 1))
            gap = best - sum(weight * accepted for weight, accepted in runs)
            assert gap > -1e-9, name
            gaps.append(gap)
    if policy == "sampled" and k > 1:
        assert max(gaps) > 1e-2
    else:
        assert max(gaps) < 1e-9


def test_one_sampled_child_is_accepted_with_the_overlap() -> None:
    for p, q in nodes((1, 3, 50)):
        assert acceptance_bound(p, q, 1, "sampled") == pytest.approx(
            float(torch.minimum(p, q).sum()), abs=1e-12
        )


@pytest.mark.parametrize("k", [2, 3, 4])
def test_the_best_set_is_a_prefix_of_the_tokens_by_p_over_q(k: int) -> None:
    """All token sets, and the inequality that the module's proof rests on."""
    for p, q in nodes((3, 5, 6)):
        law = draws_law(q, min(k, int((q > 0).sum())))
        inside = {
            frozenset(chosen): sum(
                weight for drafts, weight in law.items() if drafts <= set(chosen)
            )
            for size in range(len(q) + 1)
            for chosen in itertools.combinations(range(len(q)), size)
        }
        best = min(1 + float(p[list(chosen)].sum()) - mass for chosen, mass in inside.items())
        assert acceptance_bound(p, q, k, "sampled") == pytest.approx(best, abs=1e-9)
        support = [token for token in range(len(q)) if q[token] > 0]
        for few in inside:
            for x, y in itertools.permutations([token for token in support if token not in few], 2):
                first = inside[few | {x}] - inside[few]
                second = inside[few | {x, y}] - inside[few | {x}]
                assert first * q[y] <= second * q[x] + 1e-15


@pytest.mark.parametrize(("vocab", "k"), [(3, 2), (5, 3), (8, 2), (8, 4), (11, 8)])
@pytest.mark.parametrize("sharpness", [0.0, 1.0, 4.0, 12.0])
def test_quadrature_against_all_draws(vocab: int, k: int, sharpness: float) -> None:
    """Every prefix, for masses up to some twenty orders of magnitude apart."""
    q = distribution(vocab, vocab, sharpness)
    law = draws_law(q, k)
    escape = [
        sum(w for drafts, w in law.items() if max(drafts) >= size) for size in range(vocab + 1)
    ]
    assert single_node_bound._escape(q, k).tolist() == pytest.approx(escape, abs=1e-11)


def test_zeros_ties_and_too_few_tokens() -> None:
    one = torch.ones(1)
    p, q = torch.tensor([0.0, 0.0, 0.3, 0.7]), torch.tensor([0.4, 0.6, 0.0, 0.0])
    for policy, k in itertools.product(POLICIES, (1, 2, 3, 9)):
        assert acceptance_bound(one, one, k, policy) == 1
        assert acceptance_bound(p, q, k, policy) == 0, "disjoint supports"
        assert acceptance_bound(p, p, k, policy) == pytest.approx(
            0.7 if (policy, k) == ("topk", 1) else 1
        )
    p, q = torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor([0.5, 0.5, 0.0, 0.0])
    for policy in POLICIES:
        assert acceptance_bound(p, q, 3, policy) == pytest.approx(0.3), (
            "both tokens that the draft knows"
        )
    uniform = torch.full((6,), 1 / 6)
    for k in range(1, 6):
        assert acceptance_bound(uniform, uniform, k, "sampled") == pytest.approx(1)
        assert acceptance_bound(uniform, uniform, k, "topk") == pytest.approx(k / 6)
    assert acceptance_bound(3 * p, 7 * q.flip(0), 1, "hybrid") == pytest.approx(0.7), (
        "the scale does not matter"
    )


@pytest.mark.parametrize("k", [4, 8])
def test_a_whole_vocabulary_agrees_with_draws(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """V = 49,152: every prefix moves little when the step is halved, and agrees with sampled
    children."""
    vocab, draws = 49_152, 1_000
    q = distribution(0, vocab, 4.0)
    p = torch.softmax(q.log() + distribution(1, vocab, 1.0).log(), 0)
    order = (p / q).argsort()
    p, q = p[order], q[order]
    escape = single_node_bound._escape(q, k)
    best = acceptance_bound(p, q, k, "sampled")
    assert best == pytest.approx(
        float((torch.cat([p.new_zeros(1), p.cumsum(0)]) + escape).min()), abs=1e-12
    )

    chance = Random.seeded(2)
    last = torch.cat([chance.draw(q.expand(50, -1), k).amax(1) for _ in range(draws // 50)])
    for size in torch.searchsorted(escape.flip(0), torch.tensor([0.1, 0.5, 0.9], dtype=q.dtype)):
        prefix = vocab - int(size)
        escapes = float(escape[prefix])
        error = (escapes * (1 - escapes) / draws) ** 0.5
        assert float((last >= prefix).double().mean()) == pytest.approx(escapes, abs=4 * error)
    accepted = node_acceptance(RULES["topdown"], p, q, k, "sampled", 50, chance)
    assert float(accepted.mean()) < best + 4 * 0.5 / 50**0.5

    monkeypatch.setattr(single_node_bound, "STEP", single_node_bound.STEP / 2)
    assert float((single_node_bound._escape(q, k) - escape).abs().max()) < 1e-10


@pytest.mark.slow
def test_a_mean_over_drawn_children_nears_the_hybrid_bound() -> None:
    p, q = distribution(0, 200, 2.0).float(), distribution(1, 200, 2.0).float()
    sets = node_acceptance(RULES["topdown"], p, q, 4, "hybrid", 2_000, Random.seeded(3))
    assert float(sets.mean()) == pytest.approx(
        acceptance_bound(p, q, 4, "hybrid"), abs=4 * 0.5 / 2_000**0.5
    )


def test_mistakes_are_named() -> None:
    p = torch.tensor([0.5, 0.5])
    with pytest.raises(ValueError, match="unknown policy 'greedy'"):
        acceptance_bound(p, p, 1, "greedy")
    with pytest.raises(ValueError, match="k = 0"):
        acceptance_bound(p, p, 0, "topk")
    with pytest.raises(ValueError, match=r"must both be \[V\]"):
        acceptance_bound(p, torch.ones(3), 1, "topk")
    with pytest.raises(ValueError, match="mass"):
        acceptance_bound(p, torch.zeros(2), 1, "topk")
