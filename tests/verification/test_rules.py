"""Verification at its numerical corners."""

from __future__ import annotations

import pytest
import torch
import toy

from dynasurge.drafting.child_kinds import Kind
from dynasurge.drafting.proposals import POLICIES
from dynasurge.probabilities import Random, to_probs
from dynasurge.trees.growmap import build_growmap
from dynasurge.trees.token_tree import TokenTree
from dynasurge.verification.families import Families, Level, families_of, relations_of
from dynasurge.verification.rules import RULES, reach, stop_law

EQUAL, LEFT, RIGHT = [0.5, 0.3, 0.2], [0.6, 0.4, 0.0], [0.0, 0.0, 1.0]
CORNERS = {
    "p = q": (EQUAL, EQUAL),
    "zeros in p": (LEFT, EQUAL),
    "zeros in q": (EQUAL, LEFT),
    "disjoint": (RIGHT, LEFT),
    "one token": ([1.0], [1.0]),
    "both certain": (RIGHT, RIGHT),
    "residual of rounding only": ([1.0 - 1e-7, 1e-7, 0.0], [1.0, 0.0, 0.0]),
    "a child nearly sure to be refused": ([1e-30, 1.0, 0.0], [1.0 - 1e-7, 0.0, 1e-7]),
    "both nearly certain": ([1.0] + [1e-10] * 9, [1.0] + [1e-10] * 9),
}


def draw_tree(
    shape: str, q: torch.Tensor, policy: str, seed: int
) -> tuple[TokenTree, list[torch.Tensor]]:
    """A static tree whose every node has the draft distribution q."""
    growmap, chance = build_growmap(shape), Random.seeded(seed)
    tokens, parents, point, bases = [0], [-1], [True], [q]
    numbers = {0: 0}
    for node in range(growmap.size):
        if node not in numbers or not growmap.children[node]:
            continue
        base, made = toy.propose(policy, q[None], len(growmap.children[node]), chance)
        bases[numbers[node]], there = base[0], made.exists[0]
        points = (made.kind[0][there] >= Kind.POINT).tolist()
        own = zip(growmap.children[node], toy.tokens_of(made, 0), points, strict=False)
        for number, token, is_point in own:
            numbers[number] = len(tokens)
            tokens.append(token)
            parents.append(numbers[node])
            point.append(is_point)
            bases.append(q)
    ones = (1.0,) * len(tokens)
    return TokenTree(
        tokens=tuple(tokens), parents=tuple(parents), proposal=ones, point=tuple(point)
    ), bases


def test_reach_is_the_chance_that_the_path_goes_through_a_node() -> None:
    tree = TokenTree(
        tokens=(0, 1, 2, 1, 0),
        parents=(-1, 0, 0, 1, 3),
        proposal=(1.0,) * 5,
        point=(True, False, False, False, False),
    )
    assert reach(tree, (0.1, 0.2, 0.3, 0.15, 0.25)) == pytest.approx([1.0, 0.6, 0.3, 0.4, 0.25])


@pytest.mark.parametrize("rule", RULES)
def test_a_first_child_is_reached_as_often_as_it_is_accepted(rule: str) -> None:
    p, q = (torch.tensor(row, dtype=torch.float64) for row in ([0.2, 0.5, 0.3], [0.6, 0.2, 0.2]))
    tree, bases = draw_tree("2x1", q, "sampled", 0)
    stop = RULES[rule](tree, p.expand(3, -1), bases).stop.tolist()
    first = tree.tokens[1]
    assert reach(tree, stop)[1] == pytest.approx(min(1.0, float(p[first] / q[first])))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("corner", CORNERS)
def test_corners_give_laws(corner: str, rule: str, policy: str, dtype: torch.dtype) -> None:
    """No NaN, no lost mass, and never a bonus token that the target would not say."""
    p, q = (torch.tensor(row, dtype=dtype) for row in CORNERS[corner])
    for seed, shape in enumerate(["chain3", "2x2", "3x1", "2ary2", "8x1"] * 4):
        tree, bases = draw_tree(shape, q, policy, seed)
        law = RULES[rule](tree, p.expand(tree.size + 1, -1), bases)
        assert bool((law.stop >= 0).all())
        assert float(law.stop.sum()) == pytest.approx(1.0, abs=1e-6)
        for node in law.stop.nonzero()[:, 0]:
            bonus = law.bonus[node] / law.bonus[node].sum()
            assert float(bonus.sum()) == pytest.approx(1.0, abs=1e-6)
            assert bool((bonus >= 0).all())
            assert float(bonus[p == 0].sum()) == 0.0


@pytest.mark.parametrize("rule", ["topdown", "traversal"])
def test_a_sibling_drawn_from_next_to_nothing_is_verified_like_any_other(rule: str) -> None:
    """The draft is so sure of token 0 that what is left for its sibling has a mass of 1e-35. The
    sibling is still drawn from what is left, renormalised, and nothing of that size may decide what
    is emitted."""
    q, p = to_probs(torch.tensor([10.0, 2.0, 1.9]), 0.1), torch.tensor([0.2, 0.4, 0.4])
    emitted = torch.zeros(3)
    share = q[1:] / q[1:].sum()
    for second, chance in zip((1, 2), share.tolist(), strict=True):
        ones, points = (1.0, 1.0, 1.0), (True, False, False)
        tree = TokenTree(tokens=(0, 0, second), parents=(-1, 0, 0), proposal=ones, point=points)
        law = RULES[rule](tree, p.expand(3, -1), [q, q, q])
        emitted[0] += chance * law.stop[1]
        emitted[second] += chance * law.stop[2]
        emitted += chance * law.stop[0] * law.bonus[0] / law.bonus[0].sum()
    torch.testing.assert_close(emitted, p, atol=1e-6, rtol=0)


@pytest.mark.parametrize("rule", RULES)
def test_no_child_gets_a_weight_that_is_no_number(rule: str) -> None:
    """Confident nodes, tiny leftovers, columns that some nodes do not use."""
    generator = torch.Generator().manual_seed(0)
    for trial in range(700):
        vocab, k = 3 + trial % 10, 2 + trial % 7
        sharp = 10.0 ** (trial % 4)
        logits = torch.randn(2, 4, vocab, generator=generator) * sharp
        q, p = torch.softmax(logits[0], -1), torch.softmax(logits[trial % 2] + trial % 3 * 1e-7, -1)
        if trial % 5 == 0:  # as top-p leaves them: fewer tokens than columns
            q = q.masked_fill(torch.arange(vocab) >= 2, 0.0)
            q = q / q.sum(-1, keepdim=True).clamp(min=1e-38)
        drawn = Random(generator).draw(q, k)
        # four roots side by side, of which each has its own children
        nodes, spare = torch.arange(4), torch.nn.functional.pad
        child = torch.where(drawn >= 0, 4 + torch.arange(4 * k).view(4, k), 4 + 4 * k)
        families = Families(
            nodes, child, drawn.clamp(min=0), drawn < -1, nodes, [Level(slice(0, 4), k, k)]
        )
        n = 4 + 4 * k
        parent = torch.cat([torch.full((4,), -1), nodes.repeat_interleave(k)])
        left, base = (spare(rows, (0, 0, 0, 1)) for rows in (p, q))
        exists = torch.isin(torch.arange(n), torch.cat([nodes, child.flatten()]))
        found = stop_law(RULES[rule], families, left, base, parent, exists, torch.eye(n) > 0)
        assert found.stop.isfinite().all(), trial
        assert left.isfinite().all(), trial


@pytest.mark.parametrize("rule", ["topdown", "traversal"])
def test_a_draft_without_numbers_does_not_spoil_the_targets(rule: str) -> None:
    """A copied token under a node whose draft logits are NaN: its base is not asked."""
    tree = TokenTree(tokens=(0, 1), parents=(-1, 0), proposal=(1.0,) * 2, point=(True, True))
    p = torch.tensor([EQUAL, EQUAL])
    families, _ = families_of(tree, p, [])
    left, q = torch.nn.functional.pad(p, (0, 0, 0, 1)), torch.full((2, 3), torch.nan)
    found = stop_law(RULES[rule], families, left, q, *relations_of(tree, p.device))
    assert found.stop.tolist() == pytest.approx([0.7, 0.3])
    assert left[0].tolist() == pytest.approx([0.5, 0.0, 0.2])


@pytest.mark.parametrize("rule", RULES)
def test_a_perfect_draft_is_always_accepted(rule: str) -> None:
    q = torch.tensor(EQUAL)
    tree, bases = draw_tree("chain3", q, "sampled", 0)
    assert RULES[rule](tree, q.expand(4, -1), bases).stop.tolist() == pytest.approx(
        [0, 0, 0, 1], abs=1e-6
    )


@pytest.mark.parametrize("shape", ["4x3", "3x1", "chain3"])
def test_on_k_by_d_trees_traversal_is_reserved(shape: str) -> None:
    """So its guarantee, never below topdown at any node, is traversal's there."""
    source = torch.Generator().manual_seed(5)
    for seed in range(20):
        p, q = torch.softmax(2 * torch.randn(2, 8, generator=source, dtype=torch.float64), -1)
        tree, bases = draw_tree(shape, q, "sampled", seed)
        laws = [
            RULES[rule](tree, p.expand(tree.size + 1, -1), bases).stop
            for rule in ("traversal", "reserved")
        ]
        torch.testing.assert_close(*laws, atol=1e-12, rtol=0)


@pytest.mark.parametrize("rule", RULES)
def test_disjoint_supports_are_never_accepted(rule: str) -> None:
    p, q = torch.tensor(RIGHT), torch.tensor(LEFT)
    tree, bases = draw_tree("2x2", q, "sampled", 0)
    law = RULES[rule](tree, p.expand(tree.size + 1, -1), bases)
    assert law.stop.tolist() == pytest.approx([1, 0, 0, 0, 0])
    assert law.bonus[0].tolist() == RIGHT


def test_sampled_children_come_before_points() -> None:
    with pytest.raises(ValueError, match="node 2 is sampled but follows a point"):
        TokenTree(
            tokens=(0, 1, 2), parents=(-1, 0, 0), proposal=(1.0,) * 3, point=(True, True, False)
        )
