"""Losslessness by exact enumeration: every draw of the growth, every accept/reject outcome, every
bonus.

The emitted tokens, completed by target samples to a fixed length, must have the target's own law to
1e-12 in total variation; variants with a known mistake must miss it by more than 1e-3, so that this
test is known to be able to fail. Steps are those of the real loop, with exact tensors (as a CPU
makes them) or padded ones (as a GPU replays them).
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import Any

import pytest
import torch
import toy
from toy import PROMPT, Grown, Steps, dynamic, estimate, static

from dynasurge.decoding.executors import Direct
from dynasurge.decoding.loop import Decoder
from dynasurge.decoding.phases import Judge, Phases
from dynasurge.drafting.acceptance_estimates import make_acceptance
from dynasurge.drafting.child_kinds import Class, Kind
from dynasurge.drafting.growth import GrowingTree, Proposer
from dynasurge.drafting.proposals import POLICIES
from dynasurge.trees.growmap import Growmap, build_growmap
from dynasurge.trees.token_tree import TokenTree
from dynasurge.verification.prototype import bfs, prototype_growmap
from dynasurge.verification.rules import RULES, Rule

DYNAMIC_RULES = [name for name in RULES if name != "reserved"]  # it needs child counts fixed ahead
LOPSIDED = Growmap(parents=(-1, 0, 0, 1, 3))  # root -> x -> chain of 2, and a leaf beside x
SHAPES = {
    "chain3": build_growmap("chain3"),
    "2x2": build_growmap("2x2"),
    "3x1": build_growmap("3x1"),
    "2ary2": build_growmap("2ary2"),
    "lopsided": LOPSIDED,
}
PADDED = pytest.mark.parametrize("padded", [False, True], ids=["exact", "padded"])


def mostly(padded: bool) -> Any:
    """One of both forms at night only: what the test looks at is the same code."""
    one = pytest.param(padded, marks=pytest.mark.slow, id="padded" if padded else "exact")
    other = pytest.param(not padded, marks=pytest.mark.nightly, id="exact" if padded else "padded")
    return pytest.mark.parametrize("padded", [one, other])


def grown(draft: toy.Table, trees: Any, **how: Any) -> list[tuple[float, Grown]]:
    target = toy.random_table(0, how.get("vocab", toy.VOCAB))
    return list(Steps(draft, target, trees, **how).grown())


def distance(trees: list[tuple[float, Grown]], rule: Rule, target: toy.Table, length: int) -> float:
    law = toy.verify_law(iter(trees), rule, target, PROMPT, length)
    return toy.total_variation(law, toy.target_law(target, PROMPT, length))


# --- whole steps


@PADDED
@pytest.mark.parametrize("zeros", [False, True], ids=["dense", "zeros"])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    "name",
    [
        "3x1",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("chain3", "lopsided", "2x2")),
    ],
)
def test_steps_with_static_trees_are_lossless(
    name: str, rule: str, policy: str, zeros: bool, padded: bool
) -> None:
    if rule == "reserved" and policy != "sampled":
        pytest.skip("it needs sampled children")
    growmap = SHAPES[name]
    target, draft = toy.random_table(1, zeros=zeros), toy.random_table(2, zeros=zeros)
    steps = Steps(draft, target, static(growmap, policy), rule, padded=padded)
    assert steps.distance(target, growmap.depth + 1) < 1e-12


@PADDED
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("rule", DYNAMIC_RULES)
@pytest.mark.parametrize(
    ("n", "depth", "width", "children"),
    [
        (1, 1, 1, 2),
        (3, 2, 1, 3),
        pytest.param(3, 2, 2, 2, marks=pytest.mark.slow),
        pytest.param(3, 3, 1, 2, marks=pytest.mark.slow),
    ],
)
def test_steps_with_dynamic_trees_are_lossless(
    n: int, depth: int, width: int, children: int, rule: str, policy: str, padded: bool
) -> None:
    values = "own" if children == 3 else "learned"
    target, draft = toy.random_table(3), toy.random_table(4)
    trees = dynamic(n, depth, children, policy, values=values, width=width)
    steps = Steps(draft, target, trees, rule, padded=padded)
    assert steps.distance(target, depth + 1) < 1e-12


@PADDED
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("shape", [None, "2x2"], ids=["dynamic", "static"])
def test_steps_with_a_draft_that_reads_features_are_lossless(
    shape: str | None, policy: str, padded: bool
) -> None:
    """Its law depends on what the target has scored, and on which tokens it has not."""
    target, draft = toy.random_table(3), toy.random_table(4)
    trees = static(SHAPES[shape], policy) if shape else dynamic(3, 2, 2, policy, width=1)
    how = {"padded": padded, "engine": toy.FeatureTableEngine}
    steps = Steps(draft, target, trees, "traversal", **how)
    assert steps.distance(target, 3) < 1e-12


@PADDED
@pytest.mark.parametrize("policy", POLICIES)
def test_steps_with_copies_are_lossless(
    policy: str, padded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if policy == "sampled":
        toy.copy_anything(monkeypatch)
    text = (0, 2, 1, 0, 2, 1)
    target, draft = toy.random_table(13), toy.random_table(16)
    steps = Steps(
        draft,
        target,
        dynamic(4, 3, 2, policy, width=2, copies=True),
        "traversal",
        padded=padded,
        text=text,
    )
    assert steps.distance(target, 4) < 1e-12
    drawn = [tree for _, (tree, _) in steps.grown()]
    assert any(tree.point[node] for tree in drawn for node in range(1, tree.size + 1))


@PADDED
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("n", "worth"), [(4, 0.0), (5, 0.06)])
def test_steps_with_runs_are_lossless(n: int, worth: float, policy: str, padded: bool) -> None:
    """Runs that take the places of other nodes, and runs that not all leaves get."""
    text = (0, 2, 1, 0, 2, 1)
    target, draft = toy.random_table(13), toy.random_table(16)
    how = {"width": 1, "copies": True, "run": 2, "levels": 2}
    trees = dynamic(n, 4, 2, policy, worth=worth, **how)
    steps = Steps(draft, target, trees, "traversal", padded=padded, text=text)
    assert steps.distance(target, 5) < 1e-12
    deep = any(tree.depth > 2 for _, (tree, _) in steps.grown())
    assert deep or policy == "topk"  # whose nodes are worth more here


@PADDED
@pytest.mark.parametrize("policy", POLICIES)
def test_children_that_must_be_worth_their_slots_are_lossless(policy: str, padded: bool) -> None:
    target, draft, sizes = toy.random_table(3), toy.random_table(4), {}
    children, depth = (2, 2) if policy == "sampled" else (3, 3)
    for cut in (0.0, 0.4 if policy == "sampled" else 0.1):
        trees = dynamic(8, depth, children, policy, width=2)
        trees.planner.cut = cut
        steps = Steps(draft, target, trees, "traversal", padded=padded)
        steps.trees.planner.reset = lambda: None  # type: ignore[method-assign]
        assert steps.distance(target, 4) < 1e-12
        sizes[cut] = min(tree.size for _, (tree, _) in steps.grown())
    assert min(sizes.values()) < sizes[0.0] or policy == "topk"


@PADDED
@pytest.mark.parametrize(
    ("lag", "policy", "least", "n"),
    [
        pytest.param(1, "sampled", 0.25, 4, marks=pytest.mark.slow),
        pytest.param(2, "sampled", 0.3, 4, marks=pytest.mark.nightly),
        (1, "hybrid", 0.2, 10),
        pytest.param(2, "hybrid", 0.2, 10, marks=pytest.mark.slow),
    ],
)
def test_a_draft_that_stops_where_it_does_not_pay_is_lossless(
    lag: int, policy: str, least: float, n: int, padded: bool
) -> None:
    """After what differs from run to run: values of the second level do, which depend on tokens of
    the first."""
    acceptance = toy.acceptance_of(
        {
            Kind.FIRST: lambda x: 0.3 + 0.6 * x,
            Kind.SECOND: lambda x: 0.2 + 0.3 * x,
            Kind.TAIL: lambda x: 0.5 * x,
            Kind.POINT: lambda x: x,
        }
    )
    target, draft = toy.random_table(3), toy.random_table(4)
    trees = dynamic(n, 2 + lag, 2, policy, width=1, least=least, lag=lag, acceptance=acceptance)
    trees = replace(trees, bounds=replace(trees.bounds, widths=(1, 2, *[1] * lag)))
    steps = Steps(draft, target, trees, "traversal", padded=padded)
    assert steps.distance(target, 3 + lag) < 1e-12
    assert len({tree.depth for _, (tree, _) in steps.grown()}) > 1


@PADDED
@pytest.mark.parametrize("mode", ["auto", "sTree", pytest.param("dTree", marks=pytest.mark.slow)])
@pytest.mark.parametrize("rule", DYNAMIC_RULES)
def test_two_steps_of_the_decode_loop_are_lossless(mode: str, rule: str, padded: bool) -> None:
    """The whole loop, caches included: every outcome of two steps, bonus tokens drawn and read
    back; where the host is a step behind, too."""
    target, draft = toy.random_table(5), toy.random_table(6)
    trees = {
        "auto": None,
        "sTree": static(build_growmap("2x1")),
        "dTree": dynamic(2, 1, 2, width=2),
    }[mode]
    length = 3
    phases = Phases(
        toy.TableEngine(target),
        toy.TableEngine(draft) if trees else None,
        trees,
        Judge(rule=RULES[rule], T=1.0, P=1.0),
        padded=padded,
        dtype=torch.float64,
    )
    decoder = Decoder(Direct(phases, lag=2 if padded else 1))

    def run(script: Any) -> tuple[int, ...]:
        for engine in (phases.target, phases.draft):
            if engine is not None:
                engine.reset()
        decoder.prefill(PROMPT)
        steps = decoder.steps(PROMPT, length, script)
        return tuple(
            token for _, record in zip(range(2), steps, strict=False) for token in record.emitted
        )

    law: toy.Law = defaultdict(float)
    for weight, tokens in toy.enumerate_runs(run, lambda prefix: toy.Script(prefix, phases)):
        for rest, mass in toy.target_law(target, PROMPT + tokens, length - len(tokens)).items():
            law[tokens + rest] += weight * mass
    assert toy.total_variation(law, toy.target_law(target, PROMPT, length)) < 1e-12


# --- growth, then every rule on the same trees


@pytest.mark.parametrize("zeros", [False, True], ids=["dense", "zeros"])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", SHAPES)
def test_static_growth_is_lossless(name: str, policy: str, zeros: bool) -> None:
    target, draft = toy.random_table(1, zeros=zeros), toy.random_table(2, zeros=zeros)
    trees = grown(draft, static(SHAPES[name], policy))
    for rule in RULES.values():
        assert distance(trees, rule, target, SHAPES[name].depth + 1) < 1e-12
    assert zeros or {tree.parents for _, (tree, _) in trees} == {SHAPES[name].parents}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    ("budget", "depth", "children"),
    [
        (2, 2, 2),
        (5, 2, 2),
        *(pytest.param(*how, marks=pytest.mark.slow) for how in ((3, 2, 3), (3, 3, 2))),
    ],
)
def test_dynamic_growth_is_lossless(budget: int, depth: int, children: int, policy: str) -> None:
    target, draft = toy.random_table(3), toy.random_table(4)
    trees = grown(draft, dynamic(budget, depth, children, policy))
    assert max(tree.size for _, (tree, _) in trees) == budget
    for rule in DYNAMIC_RULES:
        assert distance(trees, RULES[rule], target, depth + 1) < 1e-12


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("kind", ["static", "dynamic", "runs"])
def test_padded_rows_grow_the_trees_of_exact_ones(kind: str, policy: str) -> None:
    draft = toy.random_table(4)
    runs = {"copies": True, "run": 1, "worth": 0.05, "levels": 2}
    trees = {
        "static": static(SHAPES["2x2"], policy),
        "dynamic": dynamic(4, 2, 2, policy, width=2),
        "runs": dynamic(4, 3, 2, policy, width=2, **runs),
    }[kind]
    laws: list[dict[Any, float]] = []
    for padded in (False, True):
        law: dict[Any, float] = defaultdict(float)
        text = (0, 2, 1, 0, 2, 1)
        for weight, (tree, _) in grown(draft, trees, padded=padded, text=text):
            law[tree.tokens, tree.parents] += weight
        laws.append(law)
    assert toy.total_variation(*laws) < 1e-12
    assert len(laws[0]) > 2 or policy == "topk"


@pytest.mark.parametrize("rule", RULES)
def test_the_prototypes_shape_is_lossless(rule: str) -> None:
    """What was wrong with the prototype was its rule, not its trees: their counts are fixed before
    anything is drawn."""
    trees = grown(toy.random_table(4), static(prototype_growmap(4)))
    assert {tree.parents for _, (tree, _) in trees} == {(-1, 0, 0, 1, 1)}
    assert distance(trees, RULES[rule], toy.random_table(3), 3) < 1e-12


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
    trees = grown(lambda text: rows.get(text, [0.5, 0.3, 0.2]), dynamic(3, 3, 2, "hybrid"))
    targets = [toy.random_table(seed) for seed in range(3)]
    targets.append(lambda context: [0.7, 0.2, 0.1] if context == PROMPT else [0.2, 0.2, 0.6])
    assert max(distance(trees, RULES[rule], target, 4) for target in targets) < 1e-12


@pytest.mark.parametrize("rule", RULES)
def test_greedy_decoding_accepts_the_argmax_path_only(rule: str) -> None:
    target = toy.random_table(7)

    def greedy(context: tuple[int, ...]) -> list[float]:
        probs = target(context)
        return [float(x == max(probs)) for x in probs]

    trees = grown(toy.random_table(8), static(SHAPES["2ary2"], "topk"), T=0.0)
    assert len(trees) == 1, "at T = 0 the tree is deterministic"
    assert distance(trees, RULES[rule], greedy, 3) < 1e-12


@pytest.mark.parametrize(
    ("seed", "budget"),
    [
        pytest.param(0, 3, marks=pytest.mark.slow),
        *(pytest.param(seed, 4, marks=pytest.mark.nightly) for seed in range(3)),
    ],
)
def test_levelwise_growth_has_the_law_of_one_at_a_time(seed: int, budget: int) -> None:
    """Drafting a wide frontier and keeping the best slots draws the same law as growing the best
    slot each time."""
    draft = toy.random_table(seed)
    laws: list[toy.Law] = []
    trees = grown(draft, dynamic(budget, 3, 2))
    level_by_level = ((w, paths_of(tree)) for w, (tree, _) in trees)
    one_by_one = toy.enumerate_runs(lambda s: one_at_a_time(draft, budget, 3, 2, s))
    for runs in (level_by_level, one_by_one):
        law: toy.Law = defaultdict(float)
        for weight, paths in runs:
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


PRIOR = make_acceptance("fixed", "topdown", 1.0)


def guess(path: Any, rank: int, chance: float) -> float:
    return estimate(PRIOR, Class.at(Kind.sampled(rank), len(path) + 1), chance)


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
            value * reach * guess(path, len(used), sum(p * p for p in left) / sum(left) ** 2),
        )
        heap.append((slot, path, value, reach, used))

    push(1.0, (), 1.0, 1.0, ())
    while heap and len(paths) <= budget:
        heap.sort(key=lambda item: -item[0])
        slot, path, value, reach, used = heap.pop(0)
        probs = draft(PROMPT + tuple(token for _, token in path))
        left = sum(p for token, p in enumerate(probs) if token not in used)
        token = script.choose([0.0 if t in used else p / left for t, p in enumerate(probs)])
        accepted = reach * guess(path, len(used), probs[token] / left)
        paths.append((*path, (len(used), token)))
        if len(path) + 1 < depth:
            push(slot, paths[-1], value * accepted, 1.0, ())
        if len(used) + 1 < min(children, toy.VOCAB):
            push(slot, path, value, reach - accepted, (*used, token))
    return tuple(sorted(paths))


# --- mistakes seen in public code, or made here: each must be caught


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
    trees = [(w, Grown(mistake(t, q), q)) for w, (t, q) in grown(draft, static(SHAPES["3x1"]))]
    assert distance(trees, RULES["topdown"], target, 2) > 1e-3


def test_merging_repeated_draws_is_caught() -> None:
    """Children drawn with replacement, repeats merged by set(), then verified as if drawn
    without."""
    target, draft = toy.random_table(9), toy.random_table(10)
    q = torch.tensor([draft(PROMPT)], dtype=torch.float64)

    def run(script: Any) -> Grown:
        tokens = sorted({script.choose(q[0].tolist()) for _ in range(3)})
        n = len(tokens)
        tree = TokenTree(
            tokens=(PROMPT[-1], *tokens),
            parents=(-1, *[0] * n),
            proposal=(1.0,) * (n + 1),
            point=(True, *[False] * n),
        )
        return Grown(tree, [q[0]] * (n + 1))

    assert distance(list(toy.enumerate_runs(run)), RULES["topdown"], target, 2) > 1e-3


def test_drawing_at_another_temperature_is_caught() -> None:
    target, draft = toy.random_table(9), toy.random_table(10)
    right = torch.tensor(draft(PROMPT), dtype=torch.float64)
    wrong = torch.softmax(right.log() / 0.5, -1)
    trees = [
        (w, Grown(t, [wrong, *q[1:]])) for w, (t, q) in grown(draft, static(build_growmap("2x1")))
    ]
    assert distance(trees, RULES["topdown"], target, 2) > 1e-3


def test_the_prototypes_rule_is_caught() -> None:
    """In the real loop, where it verifies on the host."""
    target, draft = toy.random_table(9), toy.random_table(10)
    steps = Steps(draft, target, static(SHAPES["2x2"]), verify=bfs)
    law: toy.Law = defaultdict(float)
    for weight, record in toy.enumerate_runs(steps):
        tokens = record.emitted
        for rest, mass in toy.target_law(target, PROMPT + tokens, 3 - len(tokens)).items():
            law[tokens + rest] += weight * mass
    assert sum(law.values()) == pytest.approx(1)
    assert toy.total_variation(law, toy.target_law(target, PROMPT, 3)) > 1e-2


@mostly(padded=True)
def test_a_frontier_chosen_by_what_tokens_turned_out_to_be_is_caught(
    padded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The draft reads one node of the second level. Were it the one whose token came out better,
    whether a slot of that level keeps its place would depend on its own token."""
    acceptance = toy.acceptance_of(
        # a likely token is accepted far more often
        {Kind.FIRST: lambda x: 0.95 if x >= 0.5 else 0.2, Kind.SECOND: lambda x: 0.5}
    )
    trees = dynamic(4, 3, 2, width=2, acceptance=acceptance)
    trees = replace(trees, bounds=replace(trees.bounds, widths=(1, 2, 1)))
    draft, target = (toy.random_table(seed, sharpness=2.0) for seed in (55, 1005))
    steps = Steps(draft, target, trees, "topdown" if padded else "traversal", padded=padded)
    assert steps.distance(target, 4) < 1e-12
    monkeypatch.setattr(Proposer, "frontier", lambda self, growing: growing.node_value)
    assert steps.distance(target, 4) > 1e-3


@mostly(padded=False)
def test_a_draft_that_stops_by_what_a_level_is_worth_in_all_is_caught(
    padded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second child whose token came out well tips the scale, and the first one's grandchild takes
    its place."""
    rows = {0: [0.98, 0.01, 0.01], 1: [0.34, 0.33, 0.33], 2: [0.9, 0.05, 0.05]}

    acceptance = toy.acceptance_of({}, other=0.5)
    xs = tuple(i / 400 for i in range(401))
    acceptance._curves[Class(Kind.FIRST, 0)] = (xs, tuple(0.95 for _ in xs))
    acceptance._curves[Class(Kind.FIRST, 1)] = (xs, tuple(0.3 if x < 0.7 else 0.95 for x in xs))
    trees = dynamic(3, 3, 2, width=2, least=0.9465, acceptance=acceptance)
    trees = replace(trees, bounds=replace(trees.bounds, widths=(1, 2, 1)))
    target = toy.random_table(3, sharpness=2.0)

    def draft(text: tuple[int, ...]) -> list[float]:
        return rows[text[-1]] if len(text) > len(PROMPT) else [0.4, 0.3, 0.3]

    def in_all(growing: GrowingTree, level: int, **_: bool) -> torch.Tensor:
        own = growing.slot_value[growing.slots(level)].sum().view(1)
        return torch.cat([own, torch.zeros_like(own)])

    steps = Steps(draft, target, trees, "traversal", padded=padded)
    assert steps.distance(target, 4) < 1e-12
    monkeypatch.setattr(GrowingTree, "standing", in_all)
    assert steps.distance(target, 4) > 0.01


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
    for weight, (tree, rows) in grown(lambda c: q[len(c) - len(PROMPT)], static(growmap), vocab=2):
        target = torch.tensor([p[d] for d in tree.depths], dtype=torch.float64)
        for name, rule in RULES.items():
            lengths[name] += weight * expected_length(rule, tree, target, rows)
    assert lengths["topdown"] == pytest.approx(1.8036, abs=5e-5)
    assert lengths["traversal"] == pytest.approx(1.6040, abs=5e-5)


@pytest.mark.parametrize("seed", range(5))
def test_traversal_accepts_at_least_as_much_as_topdown_on_chains(seed: int) -> None:
    target, draft = toy.random_table(seed), toy.random_table(seed + 100)
    lengths: dict[str, float] = defaultdict(float)
    for weight, (tree, q) in grown(draft, static(SHAPES["chain3"])):
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
    for weight, (tree, q) in toy.Steps(draft, target, static(growmap), vocab=vocab).grown():
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
    _compare_node_by_node(name, range(8))


@pytest.mark.nightly
@pytest.mark.parametrize("name", NODE_SHAPES)
def test_reserved_accepts_every_node_at_least_as_often_as_topdown_of_many_models(name: str) -> None:
    _compare_node_by_node(name, range(8, 224))


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
