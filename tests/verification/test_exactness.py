"""Losslessness by exact enumeration: every draw of the growth, every accept/reject outcome, every
bonus.

The emitted tokens, completed by target samples to a fixed length, must have the target's own law to
1e-12 in total variation; variants with a known mistake must miss it by more than 1e-3, so that this
test is known to be able to fail.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import toy

from dynasurge.decoding.loop import Decoder
from dynasurge.drafting.acceptance_estimates import make_acceptance
from dynasurge.drafting.child_kinds import Class, Kind
from dynasurge.drafting.cost_model import Costs
from dynasurge.drafting.growth import Drafter
from dynasurge.drafting.prompt_lookup import Lookup
from dynasurge.drafting.proposals import POLICIES
from dynasurge.drafting.tree_budget import BestFirst, Shape, StaticShape, Thrifty
from dynasurge.trees.growmap import Growmap, build_growmap
from dynasurge.trees.token_tree import TokenTree
from dynasurge.verification.prototype import PrototypeShape, bfs
from dynasurge.verification.rules import RULES, Rule, topdown, verify

PROMPT = (0, 2, 1)
DYNAMIC_RULES = [name for name in RULES if name != "reserved"]  # it needs child counts fixed ahead
LOPSIDED = Growmap(parents=(-1, 0, 0, 1, 3))  # root -> x -> chain of 2, and a leaf beside x
SHAPES = {
    "chain3": build_growmap("chain3"),
    "2x2": build_growmap("2x2"),
    "3x1": build_growmap("3x1"),
    "2ary2": build_growmap("2ary2"),
    "lopsided": LOPSIDED,
}


def make_drafter(
    draft: toy.Table,
    shape: Shape,
    policy: str,
    lookup: bool = False,
    T: float = 1.0,
    values: str = "learned",
) -> Drafter:
    copies = Lookup() if lookup else None
    acceptance = make_acceptance(values, "topdown", T)
    return Drafter(toy.TableEngine(draft), shape, POLICIES[policy], acceptance, copies, T=T, P=1.0)


def grow(
    draft: toy.Table,
    shape: Shape,
    policy: str,
    script: Any,
    T: float = 1.0,
    values: str = "learned",
) -> Any:
    drafter = make_drafter(draft, shape, policy, T=T, values=values)
    drafter.start(())
    return drafter.grow(PROMPT, script, shape.max_depth)


def grown(
    draft: toy.Table, shape: Shape, policy: str, T: float = 1.0, values: str = "learned"
) -> Iterator[tuple[float, TokenTree, Any]]:
    for weight, result in toy.enumerate_runs(lambda s: grow(draft, shape, policy, s, T, values)):
        yield weight, result.tree, result.q


def distance(trees: Any, rule: Any, target: toy.Table, length: int) -> float:
    law = toy.verify_law(trees, rule, target, PROMPT, length)
    return toy.total_variation(law, toy.target_law(target, PROMPT, length))


@pytest.mark.parametrize("zeros", [False, True], ids=["dense", "zeros"])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", SHAPES)
def test_static_growth_is_lossless(name: str, rule: str, policy: str, zeros: bool) -> None:
    shape = StaticShape(SHAPES[name])
    target, draft = toy.random_table(1, zeros=zeros), toy.random_table(2, zeros=zeros)
    assert distance(grown(draft, shape, policy), RULES[rule], target, shape.max_depth + 1) < 1e-12


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("rule", DYNAMIC_RULES)
@pytest.mark.parametrize(
    ("budget", "depth", "children"),
    [(1, 2, 2), (2, 3, 2), (3, 2, 3), (3, 3, 2), (4, 2, 2), (5, 2, 2)],
)
def test_dynamic_growth_is_lossless(
    budget: int, depth: int, children: int, rule: str, policy: str
) -> None:
    shape = BestFirst(budget=budget, max_depth=depth, max_children=children)
    target, draft = toy.random_table(3), toy.random_table(4)
    trees = list(grown(draft, shape, policy))
    assert max(tree.size for _, tree, _ in trees) == budget
    assert distance(trees, RULES[rule], target, shape.max_depth + 1) < 1e-12


@pytest.mark.parametrize("rule", RULES)
def test_the_prototypes_shape_is_lossless(rule: str) -> None:
    """What was wrong with the prototype was its rule, not its trees: their counts are fixed before
    anything is drawn."""
    trees = list(grown(toy.random_table(4), PrototypeShape(4), "sampled"))
    assert {tree.parents for _, tree, _ in trees} == {(-1, 0, 0, 1, 1)}
    assert distance(trees, RULES[rule], toy.random_table(3), 3) < 1e-12


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("rule", DYNAMIC_RULES)
@pytest.mark.parametrize("paid", [False, True], ids=["filled", "paid"])
def test_copies_and_costs_are_lossless(
    rule: str, policy: str, paid: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Text that repeats itself, and nodes that have to pay: the second tree of a prompt, after one
    step of learning."""
    if policy == "sampled":
        toy.copy_anything(monkeypatch)
    costs = Costs(widths=(1, 8), target_seconds=(1.0, 5.2), draft_seconds=(0.02, 0.02))
    bounds = {"budget": 4, "max_depth": 3, "max_children": 2}
    shape = Thrifty(**bounds, costs=costs) if paid else BestFirst(**bounds)
    text = (0, 2, 1, 0, 2, 1)
    target, draft = toy.random_table(13), toy.random_table(16)

    def second(script: Any) -> Any:
        drafter = make_drafter(draft, shape, policy, lookup=True)
        drafter.start(text[:-2])
        first = drafter.grow(text[:-1], ReplayFirst(), 3)
        drafter.learn(first, (), [1.0] + [0.3] * first.tree.size)
        return drafter.grow(text, script, 3)

    trees = [(weight, result.tree, result.q) for weight, result in toy.enumerate_runs(second)]
    slots = [slot for _, result in toy.enumerate_runs(second) for slot in result.slots]
    assert any(slot.kind.counted for slot in slots) or paid
    assert min(tree.size for _, tree, _ in trees) < 4 or not paid or policy != "sampled", (
        "not every node pays"
    )
    law = toy.verify_law(iter(trees), RULES[rule], target, text, 4)
    assert toy.total_variation(law, toy.target_law(target, text, 4)) < 1e-12


class ReplayFirst(toy.Script):
    """Takes the first possible outcome everywhere: a past step, whatever it was."""

    def __init__(self) -> None:
        super().__init__([])


@pytest.mark.parametrize("rule", DYNAMIC_RULES)
def test_a_sampled_child_is_kept_whatever_grows_below_its_later_siblings(rule: str) -> None:
    """A confident point above a near-uniform level: were the hybrid's first child worth less than
    the point behind it, its place would depend on a token drawn below that point, and traversal
    would be off by 0.1."""
    rows = {
        PROMPT: [0.72, 0.16, 0.12],
        (*PROMPT, 0): [0.36, 0.33, 0.31],
        (*PROMPT, 0, 1): [0.99, 0.006, 0.004],
    }
    shape = BestFirst(budget=3, max_depth=3, max_children=2)
    trees = list(grown(lambda context: rows.get(context, [0.5, 0.3, 0.2]), shape, "hybrid"))
    targets = [toy.random_table(seed) for seed in range(3)]
    targets.append(lambda context: [0.7, 0.2, 0.1] if context == PROMPT else [0.2, 0.2, 0.6])
    assert max(distance(trees, RULES[rule], target, 4) for target in targets) < 1e-12


@pytest.mark.parametrize("rule", DYNAMIC_RULES)
def test_a_slot_keeps_its_place_whether_or_not_its_token_pays_for_a_pass(rule: str) -> None:
    """After a first child 0, its sibling's token decides whether a second level pays for its draft
    pass. Were that level's slots to take the sibling's place, 2 would be kept there, 1 never, and
    the text would be off by 1/12."""
    rows = {PROMPT: [0.7, 0.2, 0.1], (*PROMPT, 0): [0.5, 0.5, 0.0]}
    costs = Costs(widths=(1, 8), target_seconds=(1.0, 1.0 + 1e-6), draft_seconds=(0.51, 0.51))
    shape = Thrifty(budget=3, max_depth=2, max_children=2, costs=costs)
    trees = list(
        grown(lambda context: rows.get(context, [1.0, 0.0, 0.0]), shape, "sampled", values="own")
    )
    assert distance(trees, RULES[rule], lambda context: [0.1, 0.45, 0.45], 3) < 1e-12


@pytest.mark.parametrize(
    ("seed", "budget", "seconds", "values"),
    [
        (0, 4, 0.308, "learned"),
        (0, 4, 0.134, "own"),
        (8, 4, 0.383, "own"),
        (9, 3, 0.586, "own"),
        (23, 3, 0.563, "own"),
    ],
)
def test_passes_that_pay_for_some_tokens_only_are_lossless(
    seed: int, budget: int, seconds: float, values: str
) -> None:
    """Models and prices found by search: were levels not final, texts would be off by 4e-5
    (learned) to 0.13 (own)."""
    target, draft = (
        toy.random_table(seed + 1000, sharpness=2.0),
        toy.random_table(seed + 50, sharpness=2.0),
    )
    forked = 0
    for price in (seconds, 0.1, 0.2, 0.3, 0.4):
        costs = Costs(widths=(1, 8), target_seconds=(1.0, 1.0 + 7e-6), draft_seconds=(price, price))
        shape = Thrifty(budget=budget, max_depth=3, max_children=2, costs=costs)
        trees = list(grown(draft, shape, "sampled", values=values))
        forked += len({tree.depth for _, tree, _ in trees}) > 1
        for rule in DYNAMIC_RULES:
            assert distance(trees, RULES[rule], target, 4) < 1e-12
    assert forked, "some price is paid for some tokens only"


@pytest.mark.parametrize("mode", ["auto", "sTree", pytest.param("dTree", marks=pytest.mark.slow)])
@pytest.mark.parametrize("rule", DYNAMIC_RULES)
def test_two_steps_of_the_decode_loop_are_lossless(mode: str, rule: str) -> None:
    """The whole loop, caches included: every outcome of two steps, bonus tokens drawn and read
    back."""
    target, draft = toy.random_table(5), toy.random_table(6)
    shapes: dict[str, Shape | None] = {
        "auto": None,
        "sTree": StaticShape(build_growmap("2x1")),
        "dTree": BestFirst(budget=2, max_depth=2, max_children=2),
    }
    shape = shapes[mode]
    length = 3

    def run(script: Any) -> tuple[int, ...]:
        drafter = make_drafter(draft, shape, "sampled") if shape else None
        decoder = Decoder(
            toy.TableEngine(target), drafter, partial(verify, RULES[rule]), T=1.0, P=1.0
        )
        decoder.prefill(PROMPT)
        steps = decoder.steps(PROMPT, length, script)
        return tuple(
            token for _, record in zip(range(2), steps, strict=False) for token in record.emitted
        )

    law: toy.Law = defaultdict(float)
    for weight, tokens in toy.enumerate_runs(run):
        for rest, mass in toy.target_law(target, PROMPT + tokens, length - len(tokens)).items():
            law[tokens + rest] += weight * mass
    assert toy.total_variation(law, toy.target_law(target, PROMPT, length)) < 1e-12


@pytest.mark.parametrize("rule", RULES)
def test_greedy_decoding_accepts_the_argmax_path_only(rule: str) -> None:
    target = toy.random_table(7)

    def greedy(context: tuple[int, ...]) -> list[float]:
        probs = target(context)
        return [float(x == max(probs)) for x in probs]

    trees = list(grown(toy.random_table(8), StaticShape(SHAPES["2ary2"]), "topk", T=0.0))
    assert len(trees) == 1, "at T = 0 the tree is deterministic"
    assert distance(trees, RULES[rule], greedy, 3) < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_levelwise_growth_has_the_law_of_one_at_a_time(seed: int) -> None:
    """Drafting a wide frontier and keeping the best slots draws the same law as growing the best
    slot each time."""
    draft, shape = toy.random_table(seed), BestFirst(budget=4, max_depth=3, max_children=2)
    laws: list[toy.Law] = []
    for grower in (
        lambda s: paths_of(grow(draft, shape, "sampled", s).tree),
        lambda s: one_at_a_time(draft, 4, 3, 2, s),
    ):
        law: toy.Law = defaultdict(float)
        for weight, paths in toy.enumerate_runs(grower):
            law[paths] += weight
        laws.append(law)
    assert toy.total_variation(*laws) < 1e-12
    assert len(laws[0]) > 20


def paths_of(tree: TokenTree) -> Any:
    """A tree as the set of its root-to-node paths, each step with the sibling's rank: free of
    numbering."""
    paths: list[Any] = [()]
    for node in range(1, len(tree.tokens)):
        parent = tree.parents[node]
        paths.append((*paths[parent], (tree.children[parent].index(node), tree.tokens[node])))
    return tuple(sorted(paths))


def estimate(path: Any, rank: int, chance: float) -> float:
    of = Class.at(Kind.sampled(rank), len(path) + 1)
    return make_acceptance("fixed", "topdown", 1.0).estimate(of, chance, chance)


def one_at_a_time(draft: toy.Table, budget: int, depth: int, children: int, script: Any) -> Any:
    """Best-first growth as DySpec's paper tells it: pop the best slot, draw its token, push its two
    successors."""
    paths: list[Any] = [()]
    heap: list[tuple[float, Any, float, float, tuple[int, ...]]] = []

    def push(cap: float, path: Any, value: float, reach: float, used: tuple[int, ...]) -> None:
        probs = draft(PROMPT + tuple(token for _, token in path))
        left = [0.0 if token in used else p for token, p in enumerate(probs)]
        slot = min(
            cap,
            value * reach * estimate(path, len(used), sum(p * p for p in left) / sum(left) ** 2),
        )
        heap.append((slot, path, value, reach, used))

    push(1.0, (), 1.0, 1.0, ())
    while heap and len(paths) <= budget:
        heap.sort(key=lambda item: -item[0])
        slot, path, value, reach, used = heap.pop(0)
        probs = draft(PROMPT + tuple(token for _, token in path))
        left = sum(p for token, p in enumerate(probs) if token not in used)
        token = script.choose([0.0 if t in used else p / left for t, p in enumerate(probs)])
        accepted = reach * estimate(path, len(used), probs[token] / left)
        paths.append((*path, (len(used), token)))
        if len(path) + 1 < depth:
            push(slot, paths[-1], value * accepted, 1.0, ())
        if len(used) + 1 < min(children, toy.VOCAB):
            push(slot, path, value, reach - accepted, (*used, token))
    return tuple(sorted(paths))


# --- mistakes seen in public code: each must be caught


def reordered(tree: TokenTree, q: Any) -> TokenTree:
    """Siblings sorted by probability after drawing (leaves of a k x 1 tree)."""
    order = sorted(range(1, len(tree.tokens)), key=lambda n: -q[0][tree.tokens[n]])
    return replace(tree, tokens=(tree.tokens[0], *(tree.tokens[n] for n in order)))


def pruned(tree: TokenTree, q: Any) -> TokenTree:
    """Drawn nodes dropped because their own token scored low."""
    kept = [n for n in range(1, len(tree.tokens)) if q[0][tree.tokens[n]] > 0.3]
    return TokenTree(
        tokens=(tree.tokens[0], *(tree.tokens[n] for n in kept)),
        parents=(-1, *(0 for _ in kept)),
        proposal=(1.0,) * (len(kept) + 1),
        point=(True, *(False for _ in kept)),
    )


@pytest.mark.parametrize("mistake", [reordered, pruned])
def test_changing_a_drawn_tree_by_its_tokens_is_caught(mistake: Any) -> None:
    target, draft = toy.random_table(9), toy.random_table(10)
    trees = [
        (w, mistake(t, q), q) for w, t, q in grown(draft, StaticShape(SHAPES["3x1"]), "sampled")
    ]
    assert distance(trees, topdown, target, 2) > 1e-3


def test_merging_repeated_draws_is_caught() -> None:
    """Children drawn with replacement, repeats merged by set(), then verified as if drawn
    without."""
    target, draft = toy.random_table(9), toy.random_table(10)
    q = torch.tensor([draft(PROMPT)], dtype=torch.float64)

    def run(script: Any) -> TokenTree:
        tokens = sorted({script.choose(q[0].tolist()) for _ in range(3)})
        n = len(tokens)
        return TokenTree(
            tokens=(PROMPT[-1], *tokens),
            parents=(-1, *[0] * n),
            proposal=(1.0,) * (n + 1),
            point=(True, *[False] * n),
        )

    trees = [(weight, tree, q) for weight, tree in toy.enumerate_runs(run)]
    assert distance(trees, topdown, target, 2) > 1e-3


def test_drawing_at_another_temperature_is_caught() -> None:
    target, draft = toy.random_table(9), toy.random_table(10)
    right = torch.tensor(draft(PROMPT), dtype=torch.float64)
    wrong = torch.softmax(right.log() / 0.5, -1)
    trees = [
        (w, t, [wrong, *q[1:]])
        for w, t, q in grown(draft, StaticShape(build_growmap("2x1")), "sampled")
    ]
    assert distance(trees, topdown, target, 2) > 1e-3


def test_the_prototypes_rule_is_caught() -> None:
    target, draft = toy.random_table(9), toy.random_table(10)

    def run(script: Any) -> tuple[int, ...]:
        result = grow(draft, StaticShape(SHAPES["2x2"]), "sampled", script)
        tree: TokenTree = result.tree
        verdict = bfs(tree, toy.target_rows(tree, target, PROMPT), result.q, script)
        return (*(tree.tokens[node] for node in verdict.path), verdict.bonus)

    law: toy.Law = defaultdict(float)
    for weight, tokens in toy.enumerate_runs(run):
        for rest, mass in toy.target_law(target, PROMPT + tokens, 3 - len(tokens)).items():
            law[tokens + rest] += weight * mass
    assert sum(law.values()) == pytest.approx(1)
    assert toy.total_variation(law, toy.target_law(target, PROMPT, 3)) > 1e-2


# --- what is known about accepted lengths


def expected_length(rule: Rule, tree: TokenTree, p: Any, q: Any) -> float:
    return sum(
        chance * depth
        for chance, depth in zip(rule(tree, p, q).stop.tolist(), tree.depths, strict=True)
    )


def test_the_known_tree_where_traversal_accepts_less() -> None:
    """root -> x -> [leaf, y -> chain of 4]: an honest counterexample to 'traversal is always
    longer'."""
    growmap = Growmap(parents=(-1, 0, 1, 1, 3, 4, 5, 6))
    p = [[0.5, 0.5]] * 7
    q = [[0.999, 0.001], [0.9, 0.1], *[[0.5, 0.5]] * 5]
    lengths: dict[str, float] = defaultdict(float)
    for weight, tree, rows in grown(
        lambda c: q[len(c) - len(PROMPT)], StaticShape(growmap), "sampled"
    ):
        target = torch.tensor([p[d] for d in tree.depths], dtype=torch.float64)
        for name, rule in RULES.items():
            lengths[name] += weight * expected_length(rule, tree, target, rows)
    assert lengths["topdown"] == pytest.approx(1.8036, abs=5e-5)
    assert lengths["traversal"] == pytest.approx(1.6040, abs=5e-5)


@pytest.mark.parametrize("seed", range(5))
def test_traversal_accepts_at_least_as_much_as_topdown_on_chains(seed: int) -> None:
    target, draft = toy.random_table(seed), toy.random_table(seed + 100)
    lengths: dict[str, float] = defaultdict(float)
    for weight, tree, q in grown(draft, StaticShape(SHAPES["chain3"]), "sampled"):
        for name, rule in RULES.items():
            lengths[name] += weight * expected_length(
                rule, tree, toy.target_rows(tree, target, PROMPT), q
            )
    assert lengths["traversal"] >= lengths["topdown"] - 1e-12


NODE_SHAPES = {
    "chain3": (3, build_growmap("chain3")),
    "2x1": (3, build_growmap("2x1")),
    "3x1": (4, build_growmap("3x1")),
    "2x2": (2, build_growmap("2x2")),
    "2x3": (2, build_growmap("2x3")),
    "2ary2": (3, build_growmap("2ary2")),
    "lopsided": (2, LOPSIDED),
    "nested": (2, Growmap(parents=(-1, 0, 0, 1, 1, 3))),
}


def node_acceptance(
    rules: list[str], growmap: Growmap, vocab: int, seed: int
) -> dict[str, list[float]]:
    """Over all draws: the probability that each node of a static tree is accepted, under each
    rule."""
    target, draft = toy.random_table(seed, vocab), toy.random_table(seed + 10_000, vocab)
    total = {name: [0.0] * growmap.size for name in rules}
    for weight, tree, q in grown(draft, StaticShape(growmap), "sampled"):
        p = toy.target_rows(tree, target, PROMPT)
        for name in rules:
            below = RULES[name](tree, p, q).stop.tolist()
            for node in range(growmap.size - 1, 0, -1):
                below[tree.parents[node]] += below[node]
            total[name] = [a + weight * b for a, b in zip(total[name], below, strict=True)]
    return total


@pytest.mark.slow
@pytest.mark.parametrize("name", NODE_SHAPES)
def test_reserved_accepts_every_node_at_least_as_often_as_topdown(name: str) -> None:
    _compare_node_by_node(name, range(24))


@pytest.mark.nightly
@pytest.mark.parametrize("name", NODE_SHAPES)
def test_reserved_accepts_every_node_at_least_as_often_as_topdown_of_many_models(name: str) -> None:
    _compare_node_by_node(name, range(24, 224))


def _compare_node_by_node(name: str, seeds: range) -> None:
    vocab, growmap = NODE_SHAPES[name]
    more = 0
    for seed in seeds:
        total = node_acceptance(["topdown", "reserved"], growmap, vocab, seed)
        gains = [r - t for r, t in zip(total["reserved"], total["topdown"], strict=True)]
        assert min(gains) >= -1e-12, (seed, gains)
        more += sum(gains) > 1e-6
    assert more > len(seeds) / 10 or growmap.depth == 1, "and it does accept more"


def test_the_node_by_node_check_can_fail() -> None:
    """`traversal` is below topdown at some node of some model, so the check above would see it."""
    vocab, growmap = NODE_SHAPES["nested"]
    worst = 0.0
    for seed in range(15):
        total = node_acceptance(["topdown", "traversal"], growmap, vocab, seed)
        worst = min(
            worst, *(r - t for r, t in zip(total["traversal"], total["topdown"], strict=True))
        )
    assert worst < -1e-3
