"""The notebook's toy: exact where children are drawn properly, off where they are not."""

from __future__ import annotations

import pytest

from dynasurge.verification.properly_drawn import MISTAKES, emitted_law
from dynasurge.verification.rules import RULES

P, Q = (0.5, 0.2, 0.3), (0.3, 0.5, 0.2)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("q", [Q, (0.7, 0.3, 0.0)])
def test_properly_drawn_children_emit_the_targets_law(
    rule: str, k: int, q: tuple[float, ...]
) -> None:
    assert emitted_law(P, q, k, rule=rule) == pytest.approx(P, abs=1e-12)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_tampering_with_them_does_not(mistake: str) -> None:
    law = emitted_law(P, Q, 2, tamper=MISTAKES[mistake])
    assert sum(law) == pytest.approx(1)
    assert sum(abs(a - b) for a, b in zip(law, P, strict=True)) / 2 > 1e-2


def test_distributions_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="p has 3 tokens, q has 2"):
        emitted_law(P, (0.5, 0.5), 2)
