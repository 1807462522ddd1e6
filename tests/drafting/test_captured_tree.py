"""Growth and verification in tensors of fixed shape: lossless by exact enumeration, and the same as
node by node."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import toy

from dynasurge import triton_kernels
from dynasurge.decoding.captured_exchange import Trees
from dynasurge.decoding.captured_loop import CapturedDecoder
from dynasurge.drafting.acceptance_estimates import CELLS, make_acceptance
from dynasurge.drafting.captured_budget import LAG, Size, SizePlanner
from dynasurge.drafting.captured_frontier import Proposer
from dynasurge.drafting.captured_proposals import Drawn, draw, draw_children, find_copies, propose
from dynasurge.drafting.captured_tree import (
    CONTEXT,
    GrowingTree,
    Nodes,
    TreeBounds,
    assemble,
    growmap_bounds,
)
from dynasurge.drafting.child_kinds import TABLED, Kind
from dynasurge.drafting.prompt_lookup import Lookup
from dynasurge.drafting.proposals import POLICIES, Wish, sampled
from dynasurge.probabilities import Random, Uniforms
from dynasurge.trees.growmap import Growmap, build_growmap
from dynasurge.trees.token_tree import TokenTree
from dynasurge.verification.captured_rules import CapturedStopLaw, law, share_level
from dynasurge.verification.rules import RULES

PROMPT = (0, 2, 1)
RULES_HERE = ("topdown", "traversal")


def proposer(policy: str, values: str = "learned", **other: Any) -> Proposer:
    acceptance = make_acceptance(values, "topdown", 1.0)
    return Proposer(policy=policy, table=None if values == "own" else acceptance.table(), **other)


def growmap_proposer(growmap: Growmap, policy: str) -> Proposer:
    most = max(map(len, growmap.children))
    numbers = torch.full((growmap.size + 1, most), -1)
    for node, own in enumerate(growmap.children):
        numbers[node, : len(own)] = torch.tensor(own, dtype=torch.int64)
    return Proposer(policy=policy, growmap=numbers)


def grow(
    draft: toy.Table,
    bounds: TreeBounds,
    how: Proposer,
    n: int,
    script: Any,
    text: tuple[int, ...] = PROMPT,
    *,
    size: Size | None = None,
    lag: int = LAG,
    best: Callable[[GrowingTree, int], torch.Tensor] = GrowingTree.best,
) -> tuple[GrowingTree, Nodes]:
    """One tree behind a text, the draft a table of probabilities. size: when to stop, by what
    `best` says of the level `lag` levels above."""
    growing = GrowingTree.empty(bounds, toy.VOCAB, torch.device("cpu"), torch.float64)
    padded = torch.tensor([-1] * CONTEXT + list(text) + [-1] * 3)
    known = torch.tensor([len(text)])
    growing.start(padded[len(text) : len(text) + CONTEXT])
    contexts: dict[int, tuple[int, ...]] = {0: text}
    for level in range(1, bounds.depth + 1):
        rows = bounds.rows(level)
        if size is not None and level > lag and not size.goes_on(float(best(growing, level - lag))):
            break
        if level > 1:
            assert growing.advance(level - 1, how.frontier(growing)) == rows
            for row in range(rows.start, rows.stop):
                above, slot = int(growing.chain[row, level - 2]), int(growing.row_slot[row])
                if growing.slot_value[slot] > 0:
                    contexts[row] = (*contexts[above], int(growing.token[slot]))
        certain = [1.0] + [0.0] * (toy.VOCAB - 1)  # of rows to spare: nothing to enumerate
        known_rows = [
            draft(contexts[row]) if row in contexts else certain
            for row in range(rows.start, rows.stop)
        ]
        q = torch.tensor(known_rows, dtype=torch.float64)
        how.fill(growing, level, q, script, padded, known)
    return growing, assemble(growing, n)


def tree_of(growing: GrowingTree, nodes: Nodes) -> TokenTree:
    """The nodes that exist, which come first."""
    count = int(nodes.exists.sum())
    assert nodes.exists[:count].all()
    slot = nodes.slot[:count]
    return TokenTree(
        tokens=tuple(growing.token[slot].tolist()),
        parents=tuple(nodes.parent[:count].tolist()),
        proposal=tuple(growing.proposal[slot].tolist()),
        point=tuple((growing.kind[slot] >= Kind.POINT).tolist()),
    )


def judged(
    growing: GrowingTree, nodes: Nodes, target: toy.Table, rule: str, text: tuple[int, ...]
) -> tuple[TokenTree, CapturedStopLaw]:
    tree = tree_of(growing, nodes)
    p = torch.zeros(nodes.none + 1, toy.VOCAB, dtype=torch.float64)
    p[: tree.size + 1] = toy.target_rows(tree, target, text)
    return tree, law(growing, nodes, p, rule)


def distances(
    runs: Callable[[Any], tuple[GrowingTree, Nodes]],
    target: toy.Table,
    length: int,
    text: tuple[int, ...] = PROMPT,
) -> tuple[dict[str, float], set[TokenTree]]:
    """By rule, the total variation between the emitted law and the target's; and the trees that
    were met."""
    merged: dict[TokenTree, list[Any]] = {}
    for weight, (growing, nodes) in toy.enumerate_runs(runs):
        entry = merged.setdefault(tree_of(growing, nodes), [0.0, growing, nodes])
        entry[0] += weight

    def outcomes(rule: str) -> Iterator[tuple[float, tuple[int, ...], torch.Tensor]]:
        for tree, (weight, growing, nodes) in merged.items():
            base = growing.base.clone()
            found = judged(growing, nodes, target, rule, text)[1]
            assert abs(float(found.stop.sum()) - 1.0) < 1e-12
            for node in range(tree.size + 1):
                if found.stop[node] > 0:
                    bonus = found.bonus(torch.tensor([node]))[0]
                    yield (
                        weight * float(found.stop[node]),
                        toy.path_tokens(tree, node),
                        bonus / bonus.sum(),
                    )
            growing.base.copy_(base)

    law = toy.target_law(target, text, length)
    found = {rule: toy.emitted_law(outcomes(rule), target, text, length) for rule in RULES_HERE}
    return {rule: toy.total_variation(own, law) for rule, own in found.items()}, set(merged)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    ("n", "depth", "width", "children"),
    [
        (1, 1, 1, 2),
        (3, 2, 1, 3),
        pytest.param(3, 3, 2, 2, marks=pytest.mark.slow),
        (4, 2, 2, 2),
    ],
)
def test_dynamic_growth_is_lossless(
    n: int, depth: int, width: int, children: int, policy: str
) -> None:
    values = "own" if children == 3 else "learned"
    target, draft = toy.random_table(3), toy.random_table(4)
    bounds, how = TreeBounds(depth=depth, width=width, children=children), proposer(policy, values)
    found, trees = distances(lambda script: grow(draft, bounds, how, n, script), target, depth + 1)
    assert max(found.values()) < 1e-12
    assert max(tree.size for tree in trees) == n


@pytest.mark.parametrize("zeros", [False, True], ids=["dense", "zeros"])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    "name", ["chain3", "2x2", "3x1", pytest.param("lopsided", marks=pytest.mark.slow)]
)
def test_static_growth_is_lossless(name: str, policy: str, zeros: bool) -> None:
    growmap = Growmap(parents=(-1, 0, 0, 1, 3)) if name == "lopsided" else build_growmap(name)
    target, draft = toy.random_table(1, zeros=zeros), toy.random_table(2, zeros=zeros)
    bounds, how = (
        growmap_bounds(growmap.children, growmap.depths),
        growmap_proposer(growmap, policy),
    )
    runs = lambda script: grow(draft, bounds, how, growmap.size - 1, script)  # noqa: E731
    found, trees = distances(runs, target, growmap.depth + 1)
    assert max(found.values()) < 1e-12
    assert zeros or {tree.parents for tree in trees} == {growmap.parents}


@pytest.mark.parametrize("policy", POLICIES)
def test_copies_are_lossless(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if policy == "sampled":
        toy.copy_anything(monkeypatch)
    text = (0, 2, 1, 0, 2, 1)
    target, draft = toy.random_table(13), toy.random_table(16)
    bounds, how = TreeBounds(depth=3, width=2, children=2), proposer(policy, copies=True)
    found, trees = distances(
        lambda script: grow(draft, bounds, how, 4, script, text), target, 4, text
    )
    assert max(found.values()) < 1e-12
    assert any(tree.point[node] for tree in trees for node in range(1, tree.size + 1))


def test_a_hybrid_that_must_pay_is_lossless() -> None:
    target, draft = toy.random_table(3), toy.random_table(4)
    bounds = TreeBounds(depth=3, width=2, children=3)
    sizes = {}
    for cut in (0.0, 0.1):
        how = proposer("hybrid", cut=torch.tensor([cut], dtype=torch.float64))
        found, trees = distances(
            lambda script, how=how: grow(draft, bounds, how, 8, script), target, 4
        )  # type: ignore[misc]
        assert max(found.values()) < 1e-12
        sizes[cut] = max(tree.size for tree in trees)
    assert sizes[0.1] < sizes[0.0]


@pytest.mark.slow
def test_a_frontier_chosen_by_what_tokens_turned_out_to_be_is_caught() -> None:
    """The draft reads one node of the second level. Were it the one whose token came out better,
    whether a slot of that level keeps its place would depend on its own token."""
    table = torch.full((3, len(TABLED), CELLS), 0.3, dtype=torch.float64)
    likely = (torch.arange(CELLS) / (CELLS - 1)) ** 2 >= 0.5
    table[:, Kind.FIRST] = torch.where(
        likely, 0.95, 0.2
    )  # a likely token is accepted far more often
    table[:, Kind.SECOND] = 0.5
    bounds = TreeBounds(depth=3, width=2, children=2, widths=(1, 2, 1))
    draft, target = (toy.random_table(seed, sharpness=2.0) for seed in (55, 1005))
    found = {}
    for how in (Proposer(policy="sampled", table=table), ByToken(policy="sampled", table=table)):
        found[type(how)] = distances(
            lambda script, how=how: grow(draft, bounds, how, 4, script), target, 4
        )[0]  # type: ignore[misc]
    assert max(found[Proposer].values()) < 1e-12
    assert min(found[ByToken].values()) > 1e-3


def a_sum(growing: GrowingTree, level: int) -> torch.Tensor:
    """A mistake: what a level is worth in all."""
    return growing.slot_value[growing.bounds.slots(level)].sum()


@pytest.mark.parametrize(
    ("lag", "policy", "least", "n"),
    [
        pytest.param(1, "sampled", 0.25, 4, marks=pytest.mark.slow),
        pytest.param(2, "sampled", 0.3, 4, marks=pytest.mark.slow),
        (1, "hybrid", 0.2, 10),
        (2, "hybrid", 0.2, 10),
    ],
)
def test_a_draft_that_stops_where_it_does_not_pay_is_lossless(
    lag: int, policy: str, least: float, n: int
) -> None:
    """Behind what differs from run to run: values of the second level do, which depend on tokens of
    the first."""
    table, x = (
        torch.full((3, len(TABLED), CELLS), 0.3, dtype=torch.float64),
        (torch.arange(CELLS) / (CELLS - 1)) ** 2,
    )
    table[:, Kind.FIRST], table[:, Kind.SECOND], table[:, Kind.TAIL], table[:, Kind.POINT] = (
        0.3 + 0.6 * x,
        0.2 + 0.3 * x,
        0.5 * x,
        x,
    )
    target, draft = toy.random_table(3), toy.random_table(4)
    bounds = TreeBounds(depth=2 + lag, width=1, children=2, widths=(1, 2, *[1] * lag))
    how, size = Proposer(policy=policy, table=table), Size(nodes=n, depth=bounds.depth, least=least)
    found, trees = distances(
        lambda script: grow(draft, bounds, how, n, script, size=size, lag=lag), target, 3 + lag
    )
    assert max(found.values()) < 1e-12
    assert len({tree.depth for tree in trees}) > 1


@pytest.mark.slow
def test_a_draft_that_stops_by_what_a_level_is_worth_in_all_is_caught() -> None:
    """A second child whose token came out well tips the scale, and the first one's grandchild takes
    its place."""
    rows = {0: [0.98, 0.01, 0.01], 1: [0.34, 0.33, 0.33], 2: [0.9, 0.05, 0.05]}
    table = torch.full((3, len(TABLED), CELLS), 0.5, dtype=torch.float64)
    table[0, Kind.FIRST], table[1, Kind.FIRST] = (
        0.95,
        torch.where((torch.arange(CELLS) / (CELLS - 1)) ** 2 < 0.7, 0.3, 0.95),
    )
    bounds, how = (
        TreeBounds(depth=3, width=2, children=2, widths=(1, 2, 1)),
        Proposer(policy="sampled", table=table),
    )
    target, size = toy.random_table(3, sharpness=2.0), Size(nodes=3, depth=3, least=0.9465)

    def draft(text: tuple[int, ...]) -> list[float]:
        return rows[text[-1]] if len(text) > len(PROMPT) else [0.4, 0.3, 0.3]

    for best in (GrowingTree.best, a_sum):

        def runs(script: Any, best: Any = best) -> Any:
            return grow(draft, bounds, how, 3, script, size=size, lag=1, best=best)

        found = distances(runs, target, 4)[0].values()  # type: ignore[arg-type]
        assert max(found) < 1e-12 if best == GrowingTree.best else min(found) > 0.01


class ByToken(Proposer):
    """A mistake."""

    def frontier(self, growing: GrowingTree) -> torch.Tensor:
        return growing.node_value


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("rule", RULES_HERE)
def test_the_stop_law_is_that_of_the_rule(rule: str, policy: str) -> None:
    """The same trees, judged node by node."""
    target, draft = toy.random_table(21), toy.random_table(22)
    bounds, how = TreeBounds(depth=3, width=2, children=3), proposer(policy)
    runs = toy.enumerate_runs(lambda script: grow(draft, bounds, how, 5, script))
    for _, (growing, nodes) in itertools.islice(runs, 0, 600, 20):
        bases = {
            int(nodes.number[slot]): growing.base[row].clone()
            for row, slot in enumerate(growing.row_slot[:-1])
        }
        tree, found = judged(growing, nodes, target, rule, PROMPT)
        p = toy.target_rows(tree, target, PROMPT)
        expected = RULES[rule](
            tree, p, [bases.get(node, torch.empty(0)) for node in range(tree.size + 1)]
        )
        torch.testing.assert_close(found.stop[: tree.size + 1], expected.stop, atol=1e-12, rtol=0)
        for node in range(tree.size + 1):
            if expected.stop[node] > 1e-12:
                bonus = found.bonus(torch.tensor([node]))[0]
                torch.testing.assert_close(
                    bonus / bonus.sum(), expected.bonus(torch.tensor([node]))[0]
                )


def test_copies_are_those_that_lookup_finds() -> None:
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(3, (40,), generator=generator).tolist()
    lookup = Lookup()
    lookup.read(text)
    padded = torch.tensor([-1] * CONTEXT + text + [-1] * 4)
    paths = [[], [1], [2, 0], [0, 1, 2], [2, 2, 2, 2, 2, 2, 2, 2, 1]]
    contexts = torch.tensor([(text + path)[-CONTEXT:] for path in paths])
    tokens, matches = find_copies(padded, torch.tensor([len(text)]), contexts)
    for path, token, match in zip(paths, tokens.tolist(), matches.tolist(), strict=True):
        assert (lookup.find(path) or (token, 0)) == (token, match)
    assert matches.max() >= 4


def test_sampled_children_are_the_policys() -> None:
    """Of rows that run out of tokens, too, and of every rank."""
    q = torch.softmax(2 * torch.randn(20, 7, generator=torch.Generator().manual_seed(0)), -1)
    q[0, 2:], q[1, 1:] = 0.0, 0.0
    made = propose("sampled", draw_children("sampled", q, Random.seeded(1), 6)[1])
    for row, children in enumerate(sampled(q, [Wish(k=6)] * 20, Random.seeded(1))):
        there = made.exists[row].nonzero()[:, 0].tolist()
        assert there == list(range(len(children.members))) != []
        assert made.tokens[row, there].tolist() == children.tokens
        assert made.kind[row, there].tolist() == [child.kind for child in children.members]
        for name in ("proposal", "x", "x_before", "own", "own_before"):
            theirs = [getattr(child, name) for child in children.members]
            assert getattr(made, name)[row, there].tolist() == pytest.approx(theirs, abs=1e-9), name
    assert set(made.kind.flatten().tolist()) == {*range(Kind.TAIL)}


def test_not_even_rounding_tells_a_child_its_own_token_before_it_is_drawn() -> None:
    """400 rows whose first tokens, or first two, are alike and whose next one differs."""
    own = torch.linspace(0.0, 2e-8, 400, dtype=torch.float64)
    for elders in ([], [1 - 3e-7], [0.7, 0.3 - 5e-8]):
        masses = torch.tensor([*elders, 0.0, 0.0], dtype=torch.float64).repeat(400, 1)
        masses[:, len(elders)] = own
        total, squares = (
            torch.ones(400, dtype=torch.float64),
            torch.full((400,), 0.987, dtype=torch.float64),
        )
        tokens = torch.ones_like(masses, dtype=torch.int64)
        none = dict.fromkeys(("best", "values", "copies"))
        drawn = Drawn(
            tokens=tokens, masses=masses, total=total, squares=squares, k=masses.shape[1], **none
        )
        made = propose("sampled", drawn)
        assert len(made.x_before[:, len(elders)].unique()) == 1
        assert len(made.x[:, len(elders)].unique()) == 400


@pytest.mark.parametrize("bottom_up", [True, False])
@pytest.mark.parametrize("policy", POLICIES)
def test_kernels_do_what_torch_code_does(
    policy: str, bottom_up: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU, or as Triton interprets them."""
    pytest.importorskip("triton")
    monkeypatch.setattr(triton_kernels, "INTERPRETED", True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator().manual_seed(1)
    bounds, vocab = TreeBounds(depth=3, width=4, children=4), 1024  # 32 blocks of 32, for both
    growing = GrowingTree.empty(bounds, vocab, torch.device(device))
    text = torch.full((CONTEXT + 4,), -1, device=device)
    growing.start(text[:CONTEXT].clone())
    how = proposer(policy)
    how = Proposer(policy=policy, table=how.table.to(device) if how.table is not None else None)
    for level in range(1, bounds.depth + 1):
        if level > 1:
            growing.advance(level - 1, how.frontier(growing))
        rows = bounds.rows(level)
        q = torch.softmax(
            3 * torch.randn(rows.stop - rows.start, vocab, generator=generator), -1
        ).to(device)
        q[:, ::7] = 0
        uniforms = torch.rand(
            len(q), bounds.children, 2, generator=generator, dtype=torch.float64
        ).to(device)
        how.fill(growing, level, q, Uniforms(uniforms), text, torch.tensor([0], device=device))
    nodes = assemble(growing, 12)
    p = torch.softmax(3 * torch.randn(14, vocab, generator=generator), -1).to(device)
    base, rule = growing.base.clone(), "traversal" if bottom_up else "topdown"
    one = law(growing, nodes, p.clone(), rule)
    bonus = one.bonus(torch.arange(13, device=device)).clone()
    monkeypatch.setattr(triton_kernels, "share", share_level)
    growing.base.copy_(base)
    two = law(growing, nodes, p.clone(), rule)
    torch.testing.assert_close(one.stop, two.stop, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(
        bonus, two.bonus(torch.arange(13, device=device)), atol=1e-6, rtol=1e-4
    )
    assert abs(float(one.stop.sum()) - 1) < 1e-5
    drawn = triton_kernels.draw(q, uniforms)
    monkeypatch.setattr(triton_kernels, "usable", lambda table: False)
    for fast, slow in zip(drawn, draw(q, Uniforms(uniforms), uniforms.shape[1]), strict=True):
        torch.testing.assert_close(fast, slow, atol=1e-12, rtol=1e-9)


class NoValues:
    """An engine of tensors that have shapes but no values."""

    device, vocab, static_length, compiled = torch.device("meta"), 1000, 256, False

    def extend(self, tokens: Any) -> None: ...
    def reset(self) -> None: ...
    def prepare(self) -> None: ...

    def score_at(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        rows: torch.Tensor,
        hidden: torch.Tensor,
    ) -> torch.Tensor:
        assert tokens.shape == positions.shape == rows.shape == hidden.shape[:1]
        return torch.zeros(len(tokens), self.vocab, device="meta")

    def move(self, rows: torch.Tensor, to: torch.Tensor) -> None:
        assert rows.shape == to.shape


@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("rule", RULES_HERE)
def test_a_step_never_looks_at_values(
    rule: str, policy: str, static: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits for the device cannot be captured: on the meta device it raises."""
    growmap = torch.zeros(9, 4, dtype=torch.int64, device="meta") if static else None
    trees = Trees(
        bounds=TreeBounds(depth=3, width=8, children=4),
        budget=12,
        policy=policy,
        planner=SizePlanner(sizes=(8, 16), budget=12, max_depth=3),
        acceptance=make_acceptance("learned", rule, 0.6),
        growmap=growmap,
        copies=not static,
    )
    engine: Any = NoValues()
    CapturedDecoder(engine, engine, trees, rule=rule, T=0.6, P=0.9)
    CapturedDecoder(engine, None, None, rule=rule, T=0.0, P=1.0)
