"""Distributions and draws: top-p by hand, the law of drawing without replacement, and numerical
corners."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import toy
from scipy.stats import chisquare

from dynasurge import probabilities
from dynasurge.drafting.child_kinds import Kind
from dynasurge.drafting.proposals import Limits
from dynasurge.probabilities import Random


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def chance(seed: int = 0) -> Random:
    return Random(generator(seed))


def test_temperature_and_top_p_by_hand() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64).log()
    torch.testing.assert_close(probabilities.to_probs(logits, 1.0), logits.exp())
    squared = logits.exp() ** 2
    torch.testing.assert_close(probabilities.to_probs(logits, 0.5), squared / squared.sum())
    kept = torch.tensor([0.5, 0.3, 0.0, 0.0], dtype=torch.float64) / 0.8
    torch.testing.assert_close(
        probabilities.to_probs(logits, 1.0, 0.6), kept
    )  # 0.5 < 0.6: the token that crosses stays
    torch.testing.assert_close(
        probabilities.to_probs(logits, 1.0, 0.01), torch.tensor([1.0, 0, 0, 0], dtype=torch.float64)
    )


def test_extreme_settings_are_greedy_not_nan() -> None:
    logits = torch.tensor([[-3.0, 40.0, 2.0]])
    for T, P in ((1e-40, 1.0), (1e-6, 1.0), (1.0, 1e-50)):
        assert probabilities.to_probs(logits, T, P).tolist() == [[0.0, 1.0, 0.0]]


def test_greedy_is_all_mass_on_the_argmax() -> None:
    assert probabilities.to_probs(torch.tensor([[1.0, 3.0, 2.0]]), 0.0).tolist() == [
        [0.0, 1.0, 0.0]
    ]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_become_float32_probabilities(dtype: torch.dtype) -> None:
    probs = probabilities.to_probs(torch.randn(3, 1000).to(dtype), 0.6)
    assert probs.dtype == torch.float32
    torch.testing.assert_close(probs.sum(-1), torch.ones(3))


def test_drawing_without_replacement_has_the_right_law() -> None:
    probs = torch.tensor([0.5, 0.25, 0.0, 0.2, 0.05], dtype=torch.float64)
    draws = chance().draw(probs.expand(60_000, -1), 3)
    support = [0, 1, 3, 4]
    counts, expected = [], []
    for triple in itertools.permutations(support, 3):
        mass, left = 1.0, 1.0
        for token in triple:
            mass *= float(probs[token]) / left
            left -= float(probs[token])
        counts.append(int((draws == torch.tensor(triple)).all(-1).sum()))
        expected.append(60_000 * mass)
    assert sum(counts) == 60_000, "only tokens of positive probability, never one twice"
    assert chisquare(counts, expected).pvalue > 1e-4


def test_a_large_vocabulary_is_drawn_by_its_probabilities() -> None:
    probs = torch.softmax(3 * torch.randn(49_153, generator=generator(1)), -1)
    draws = chance().draw(probs.expand(400, -1), 8)
    assert all(len(set(row)) == 8 for row in draws.tolist())
    first = chance(2).draw(probs.expand(4_000, -1), 1).flatten()
    group = torch.arange(49_153) % 7  # seven groups of tokens, spread over all blocks
    expected = torch.zeros(7, dtype=torch.float64).index_add(0, group, probs.double())
    observed = torch.bincount(group[first], minlength=7)
    assert chisquare(observed, 4_000 * expected / expected.sum()).pvalue > 1e-4


def test_exhausted_rows_are_marked() -> None:
    probs = torch.tensor([[0.0, 1.0, 0.0, 0.0], [0.3, 0.0, 0.7, 0.0], [0.0, 0.0, 0.0, 0.0]])
    draws = chance().draw(probs, 3)
    assert draws[0].tolist() == [1, -1, -1]
    assert set(draws[1, :2].tolist()) == {0, 2}
    assert draws[1, 2] == -1
    assert draws[2].tolist() == [-1, -1, -1]


def test_one_token_vocabulary() -> None:
    assert chance().draw(torch.ones(1, 1), 2).tolist() == [[0, -1]]
    assert probabilities.draw(torch.ones(1), chance()) == 0


@pytest.mark.parametrize("bad", [[math.nan, math.nan], [0.0, 0.0]])
def test_a_distribution_without_mass_is_an_error(bad: list[float]) -> None:
    with pytest.raises(ValueError, match="no mass"):
        probabilities.draw(torch.tensor(bad), chance())


def test_the_largest_uniform_still_draws_a_possible_token() -> None:
    weights = torch.tensor([[0.2, 0.5, 0.0], [0.0, 0.0, 1e-300]], dtype=torch.float64)
    top = torch.tensor([1.0, 1.0], dtype=torch.float64)  # beyond what torch.rand returns
    columns, empty = probabilities.invert(weights, top)
    assert columns.tolist() == [1, 2]
    assert empty.tolist() == [False, False]
    columns, _ = probabilities.invert(weights, torch.zeros(2, dtype=torch.float64))
    assert columns.tolist() == [0, 2]


def test_the_input_is_never_written_to() -> None:
    probs = torch.full((2, 9), 1 / 9)  # nine tokens: blocks of three, no padding
    before = probs.clone()
    chance().draw(probs, 5)
    assert torch.equal(probs, before)


@pytest.mark.parametrize("vocab", [5, 49, 1000])
def test_both_devices_draw_alike(vocab: int) -> None:
    generator = torch.Generator().manual_seed(0)
    probs = torch.softmax(4 * torch.randn(6, vocab, generator=generator), dim=-1)
    probs[1], probs[2, 2:], probs[3] = 0.0, 0.0, torch.nan
    width = -(-vocab // 10)
    blocks = torch.nn.functional.pad(probs, (0, -vocab % width)).view(6, -1, width)
    mass = blocks.sum(-1, dtype=torch.float64)
    uniforms = torch.rand(6, 4, 2, generator=generator, dtype=torch.float64)
    drawn = [
        draw(blocks.clone(), mass.clone(), uniforms)
        for draw in (probabilities._draw_on_cpu, probabilities._draw_on_gpu)
    ]
    assert torch.equal(*drawn)
    assert (drawn[0][[1, 3]] == -1).all()
    assert (drawn[0][2, 2:] == -1).all()


def test_sampled_children_report_the_law_they_were_drawn_from() -> None:
    q = torch.tensor([[0.5, 0.25, 0.1875, 0.0625]])
    _, made = toy.propose("sampled", q, 4, chance())
    left = q[0].clone()
    for rank, token in enumerate(toy.tokens_of(made, 0)):
        law = left / left.sum()
        assert made.kind[0, rank] == rank
        own = float(law[token])
        for name in ("proposal", "own", "x"):
            assert float(getattr(made, name)[0, rank]) == pytest.approx(own), name
        assert float(made.q[0, rank]) == float(q[0, token])
        mean = float(law @ law)
        assert float(made.x_before[0, rank]) == pytest.approx(mean), "blind to its own token"
        left[token] = 0.0
    assert left.sum() == 0


def test_topk_children_are_the_likeliest_tokens() -> None:
    _, made = toy.propose("topk", torch.tensor([[0.2, 0.5, 0.3]]), 2, chance())
    assert toy.tokens_of(made, 0) == [1, 2]
    assert made.proposal.tolist() == [[1.0, 1.0]]
    assert made.x[0].tolist() == pytest.approx([0.5, 0.3])
    assert made.kind.tolist() == [[Kind.POINT] * 2]


def test_hybrid_children_are_one_sampled_from_the_rest_then_the_top() -> None:
    q = torch.tensor([[0.1, 0.4, 0.2, 0.3], [0.0, 0.5, 0.5, 0.0], [0.1, 0.4, 0.2, 0.3]])
    limits, seen = Limits(floor=torch.tensor([[0.0], [0.0], [0.35]])), set()
    for seed in range(20):
        base, made = toy.propose("hybrid", q, 3, chance(seed), limits)
        first, second, third = (toy.tokens_of(made, row) for row in range(3))
        seen.add(first[0])
        assert first[1:] == [1, 3]
        assert made.kind[0].tolist() == [Kind.TAIL, Kind.POINT, Kind.POINT]
        assert float(made.proposal[0, 0]) == pytest.approx(float(q[0, first[0]]) / 0.3)
        assert float(made.x[0, 0]) == pytest.approx(0.3), "the mass outside the points"
        torch.testing.assert_close(base[0], torch.tensor([0.1, 0.0, 0.2, 0.0]))
        assert second == [1, 2], "nothing is left to sample"
        assert third[1:] == [1], "what does not reach the floor is left to the sampled child"
        torch.testing.assert_close(base[2], torch.tensor([0.1, 0.0, 0.2, 0.3]))
    assert seen == {0, 2}
    _, alone = toy.propose("hybrid", q[:1], 1, chance())
    assert alone.kind.tolist() == [[Kind.TAIL]]


def test_a_node_has_no_more_points_than_places() -> None:
    q = torch.tensor([[0.1, 0.4, 0.2, 0.3]] * 2)
    base, made = toy.propose("hybrid", q, 4, chance(), Limits(torch.tensor([[2], [4]])))
    assert [toy.tokens_of(made, row)[1:] for row in range(2)] == [[1], [1, 3, 2]]
    assert base[0, 1] == 0
    assert base[0, 3] > 0
