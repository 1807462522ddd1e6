"""Verification at its numerical corners, and what it costs the host of a GPU."""

from __future__ import annotations

import warnings

import pytest
import torch
from conftest import DEVICES

from dynasurge.drafting.proposals import POLICIES, Wish
from dynasurge.probabilities import Random, to_probs
from dynasurge.trees.growmap import build_growmap
from dynasurge.trees.token_tree import TokenTree
from dynasurge.verification.rules import RULES, Handle, reach, reserve, share_out, verify

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
        children = POLICIES[policy](q[None], [Wish(k=len(growmap.children[node]))], chance)[0]
        bases[numbers[node]] = children.base
        for number, token, is_point in zip(
            growmap.children[node], children.tokens, children.point, strict=False
        ):
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
            bonus = law.bonus(node[None])[0]
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
        emitted += chance * law.stop[0] * law.bonus(torch.tensor([0]))[0]
    torch.testing.assert_close(emitted, p, atol=1e-6, rtol=0)


@pytest.mark.parametrize("handle", [share_out, reserve])
def test_no_child_gets_a_weight_that_is_no_number(handle: Handle) -> None:
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
        exists = drawn >= 0
        if handle is reserve and not exists.all():
            continue  # it is never given such nodes together
        a = torch.rand(4, 1, generator=generator).clamp(min=1e-6) if trial % 3 else torch.ones(4, 1)
        tokens = torch.where(exists, drawn, drawn[:, :1].clamp(min=0))
        weights, after, left = handle(a, p.clone(), q.clone(), tokens, exists, k)
        assert torch.where(exists, weights, 0.0).isfinite().all(), trial
        assert after.isfinite().all(), trial
        assert left.isfinite().all(), trial


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
    assert law.bonus(torch.tensor([0]))[0].tolist() == RIGHT


@pytest.mark.parametrize("rule", RULES)
def test_nan_logits_are_named(rule: str) -> None:
    tree, bases = draw_tree("2x1", torch.tensor(EQUAL), "sampled", 0)
    with pytest.raises(ValueError, match="NaN"):
        verify(
            RULES[rule],
            tree,
            torch.full((3, 3), torch.nan),
            bases,
            Random.seeded(0),
        )


@pytest.mark.parametrize("logit", [torch.nan, -torch.inf])
def test_greedy_decoding_names_nan_logits_too(logit: float) -> None:
    p = to_probs(torch.full((1, 3), logit), 0.0)
    with pytest.raises(ValueError, match="NaN"):
        verify(
            RULES["topdown"],
            TokenTree.root(0),
            p,
            [torch.empty(0)],
            Random.seeded(0),
        )


def test_sampled_children_come_before_points() -> None:
    with pytest.raises(ValueError, match="node 2 is sampled but follows a point"):
        TokenTree(
            tokens=(0, 1, 2), parents=(-1, 0, 0), proposal=(1.0,) * 3, point=(True, True, False)
        )


@pytest.mark.skipif("cuda" not in DEVICES, reason="needs a GPU")
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("rule", RULES)
def test_the_host_waits_for_the_device_once(rule: str, policy: str) -> None:
    q = torch.softmax(torch.randn(50, generator=torch.Generator().manual_seed(0)), 0)
    tree, bases = draw_tree("4x8", q, policy, 0)
    p = q.cuda().expand(tree.size + 1, -1)
    bases = [base.cuda() for base in bases]
    verify(RULES[rule], tree, p, bases, Random.seeded(0))
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            verify(RULES[rule], tree, p, bases, Random.seeded(0))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len([w for w in caught if "synchron" in str(w.message)]) == 1
