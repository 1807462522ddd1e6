"""The rule that looks at two siblings: lossless on static trees, and what it accepts."""

from __future__ import annotations

import pytest
import torch

from dynasurge.trees.growmap import build_growmap
from dynasurge.trees.token_tree import TokenTree
from dynasurge.verification.audit import Models, audit, draw_tree
from dynasurge.verification.enumeration import outcomes, random_table
from dynasurge.verification.lookahead import expected_length, lookahead
from dynasurge.verification.rules import RULES

VOCAB = 4


def pairs_of_models() -> list[Models]:
    return [
        Models(
            name=str(seed), p=random_table(2 * seed, 4), q=random_table(2 * seed + 1, 4), vocab=4
        )
        for seed in range(3)
    ]


@pytest.mark.parametrize("shape", ["2x1", "chain2", "3x1", "2x2", "2ary2", "4x1"])
def test_it_is_lossless_on_static_trees(shape: str) -> None:
    report = audit(lookahead, shapes=[shape])
    assert report.lossless, report
    assert report.distance < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["3x1", "4x1", "2x2"])
def test_it_is_lossless_with_four_tokens(shape: str) -> None:
    assert audit(lookahead, shapes=[shape], zoo=pairs_of_models()).distance < 1e-12


def test_the_second_look_is_what_makes_it_accept_more() -> None:
    """One pair of children: it gets nearly all that a rule can get there, top-down does not."""
    report = audit(lookahead, shapes=["2x1"], zoo=pairs_of_models())
    mine, ours = (sum(pair[side] for pair in report.accepted.values()) for side in (0, 1))
    assert mine > 1.03 * ours


def test_the_expected_length_is_that_of_all_its_coins() -> None:
    table, draft = random_table(1, VOCAB), random_table(2, VOCAB)
    growmap = build_growmap("2ary2")

    def q(tokens: tuple[int, ...] = ()) -> torch.Tensor:
        return torch.tensor(draft(tuple(tokens)))

    drawn = [
        one.result for one in outcomes(lambda chance: draw_tree(growmap, "sampled", q, chance))
    ]
    for tree, base in drawn[::37]:
        p = torch.stack([torch.tensor(table(_tokens(tree, u))) for u in range(tree.size + 1)])
        mean = 0.0
        for weight, (path, _) in outcomes(lambda c, t=tree, p=p, b=base: lookahead(t, p, b, c)):
            mean += weight * len(path)
        assert expected_length(tree, p, base) == pytest.approx(mean, abs=1e-12)


def _tokens(tree: TokenTree, node: int) -> tuple[int, ...]:
    return () if node == 0 else (*_tokens(tree, tree.parents[node]), tree.tokens[node])


def test_on_chains_it_is_traversal() -> None:
    report = audit(lookahead, shapes=["chain1", "chain2"])
    for mine, ours in report.accepted.values():
        assert mine == pytest.approx(ours)


def test_points_are_refused() -> None:
    with pytest.raises(ValueError, match="sampled children"):
        audit(lookahead, policy="topk", shapes=["2x1"])


def test_a_child_whose_sibling_depends_on_it_makes_it_wrong() -> None:
    """Why it is for static trees only."""

    def some(q, chance):  # type: ignore[no-untyped-def]
        first = chance.token(q())
        rest = q().clone()
        rest[first] = 0.0
        more = float(q()[first]) < 0.4 and float(rest.sum()) > 0
        tokens = [first, chance.token(rest)] if more else [first]
        return tokens

    wrong = 0.0
    for models in pairs_of_models():

        def step(p, q, chance):  # type: ignore[no-untyped-def]
            tokens = some(q, chance)
            n = len(tokens)
            tree = TokenTree(
                tokens=(-1, *tokens),
                parents=(-1, *[0] * n),
                proposal=(1.0,) * (n + 1),
                point=(True, *[False] * n),
            )
            rows = torch.stack([p(), *(p([token]) for token in tokens)])
            path, bonus = lookahead(tree, rows, [q()] * (n + 1), chance)
            return [*(tree.tokens[node] for node in path), bonus]

        wrong = max(wrong, audit(step, zoo=[models]).distance)
    assert wrong > 1e-3
    assert "traversal" in RULES
