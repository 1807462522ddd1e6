"""Rules of other papers: what they accept, and whether they are lossless."""

from __future__ import annotations

import pytest
import torch

from dynasurge.trees.token_tree import TokenTree
from dynasurge.verification.audit import audit
from dynasurge.verification.enumeration import outcomes, random_table
from dynasurge.verification.others import choose_path, greedy_paths, hierarchical
from dynasurge.verification.rules import RULES

CHAINS = ["chain1", "chain2", "chain3"]


def test_hierarchical_verification_is_lossless_on_chains() -> None:
    report = audit(hierarchical, shapes=CHAINS)
    assert report.lossless
    assert report.distance < 1e-12


@pytest.mark.parametrize("seed", range(6))
def test_hierarchical_verification_is_traversal_on_chains(seed: int) -> None:
    """The same probability of stopping at each node, and the same bonus tokens there."""
    generator = torch.Generator().manual_seed(seed)
    p, q = (
        torch.softmax(1.5 * torch.randn(4, 3, generator=generator, dtype=torch.float64), -1)
        for _ in range(2)
    )
    tokens = [int(torch.multinomial(row, 1, generator=generator)) for row in q[:3]]
    tree = TokenTree(
        tokens=(-1, *tokens),
        parents=(-1, 0, 1, 2),
        proposal=(1.0, *(float(q[node][token]) for node, token in enumerate(tokens))),
        point=(True, False, False, False),
    )
    law = RULES["traversal"](tree, p, list(q))
    expected = law.stop[:, None] * law.bonus / law.bonus.sum(-1, keepdim=True).clamp(min=1e-300)
    found = torch.zeros_like(expected)
    for weight, (path, bonus) in outcomes(lambda chance: hierarchical(tree, p, list(q), chance)):
        found[len(path), bonus] += weight
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_without_the_cap_it_accepts_more_and_is_not_lossless() -> None:
    def uncapped(tree, p, q, chance):  # type: ignore[no-untyped-def]
        return hierarchical(tree, p, q, chance, capped=False)

    report = audit(uncapped, shapes=["chain2"])
    assert not report.lossless
    mine, ours = (sum(pair[side] for pair in report.accepted.values()) for side in (0, 1))
    assert mine > ours


def test_other_trees_are_refused() -> None:
    with pytest.raises(ValueError, match="chains of sampled tokens"):
        audit(hierarchical, shapes=["2x1"])


@pytest.mark.parametrize(("paths", "length"), [(1, 2), (2, 1), (3, 1), (2, 2)])
def test_greedy_paths_are_lossless(paths: int, length: int) -> None:
    def step(p, q, chance):  # type: ignore[no-untyped-def]
        return greedy_paths(p, q, chance, paths=paths, length=length)

    report = audit(step)
    assert report.lossless
    assert report.distance < 1e-12


def test_a_chosen_paths_law_and_its_expected_length() -> None:
    """Both from every pair of drawn paths, and every coin."""
    tables = [random_table(seed) for seed in (3, 4)]

    def model(number: int):  # type: ignore[no-untyped-def]
        return lambda tokens: torch.tensor(tables[number](tuple(tokens)), dtype=torch.float64)

    p, q = model(0), model(1)
    picked, accepted, expected = torch.zeros(3, dtype=torch.float64), 0.0, 0.0
    law = torch.zeros(3, dtype=torch.float64)
    words = [(a, b) for a in range(3) for b in range(3)]
    chances = {word: float(q([])[word[0]] * q(word[:1])[word[1]]) for word in words}
    for first in words:
        for second in words:
            weight = chances[first] * chances[second]
            best = choose_path([first, second], p, q)
            picked[best.tokens[0]] += weight
            law, expected = best.laws[0], expected + weight * best.expected_length
    torch.testing.assert_close(picked, law, rtol=0, atol=1e-12)
    run = lambda chance: greedy_paths(p, q, chance, paths=2, length=2)  # noqa: E731
    for weight, emitted in outcomes(run):
        accepted += weight * (len(emitted) - 1)
    assert accepted == pytest.approx(expected, abs=1e-12)
