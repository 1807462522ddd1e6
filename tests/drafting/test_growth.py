"""Growth: copies from the text, rows that are exact or padded, kernels that do what torch code
does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import toy

from dynasurge import triton_kernels
from dynasurge.decoding.executors import Replayed
from dynasurge.decoding.phases import Judge, Phases
from dynasurge.drafting.acceptance_estimates import make_acceptance
from dynasurge.drafting.child_kinds import Kind
from dynasurge.drafting.growth import (
    GrowingTree,
    Proposer,
    TreeBounds,
    by_comparing,
    ordered,
)
from dynasurge.drafting.kept_nodes import assemble
from dynasurge.drafting.prompt_lookup import CONTEXT, LEAST, find_copies, find_runs
from dynasurge.drafting.proposals import POLICIES, Drawn, draw
from dynasurge.probabilities import Random, Uniforms
from dynasurge.trees.growmap import build_growmap
from dynasurge.verification.families import Families, Level
from dynasurge.verification.rules import RULES, stop_law


def copies(text: list[int], paths: list[list[int]]) -> list[tuple[int, int]]:
    """(token, match) after each path."""
    padded = torch.tensor([-1] * CONTEXT + text + [-1] * 4)
    contexts = [([-1] * CONTEXT + text + path)[-CONTEXT:] for path in paths]
    found = find_copies(padded, torch.tensor([len(text)]), torch.tensor(contexts))
    return list(zip(*(part.tolist() for part in found), strict=True))


def test_the_longest_match_and_its_latest_occurrence_win() -> None:
    assert copies([1, 2, 3, 9, 2, 3, 8, 1, 2], [[3]]) == [(9, 3)], "1 2 3 was followed by 9"
    text = [1, 2, 3, 9, 2, 3, 8, 1, 2, 3, 7, 5, 3]
    matches = [match for _, match in copies(text, [[], [7, 5, 3], [4]])]
    assert matches == [0, 0, 0], "one token is no match"
    assert copies([1, 2], [[1, 2]])[0][1] == 0, "nothing follows"


def test_a_run_is_what_followed_the_match() -> None:
    text = [1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3]
    padded, known = torch.tensor([-1] * CONTEXT + text + [-1] * 4), torch.tensor([len(text)])
    contexts = torch.tensor([([-1] * CONTEXT + text + path)[-CONTEXT:] for path in ([], [4], [9])])
    tokens, matches = find_runs(padded, known, contexts, 11)
    assert tokens[0, :9].tolist() == [4, 5, 6, 7, 8, 9, 1, 2, 3]
    assert matches[0].tolist() == [3, 4, 5, 6, 7, 8, 8, 8, 8, 0, 0], "the text ends there"
    assert tokens[1, :3].tolist() == [5, 6, 7]
    assert matches[1, :3].tolist() == [4, 5, 6]
    assert not matches[2].any()


def test_copies_are_what_a_search_finds() -> None:
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(3, (40,), generator=generator).tolist()
    paths = [[], [1], [2, 0], [0, 1, 2], [2, 2, 2, 2, 2, 2, 2, 2, 1]]
    best = 0
    for path, (token, match) in zip(paths, copies(text, paths), strict=True):
        context = [*text, *path][-CONTEXT:]
        found = [
            (n, place)
            for n in range(LEAST, CONTEXT + 1)
            for place in range(n, len(text))
            if text[place - n : place] == context[-n:]
        ]
        n, place = max(found, default=(0, 0))
        assert match == n
        assert not n or token == text[place]
        best = max(best, n)
    assert best >= 4


@pytest.mark.parametrize("policy", POLICIES)
def test_a_copy_is_a_point_after_what_is_sampled_from_the_rest(
    policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    q, found = torch.tensor([[0.5, 0.3, 0.2]] * 2), ([0, 2], [3, 2])
    if policy == "sampled":  # which needs no copy of what the draft proposes anyway
        toy.copy_anything(monkeypatch)
    for seed in range(10):
        base, made = toy.propose(policy, q, 2, Random.seeded(seed), found=found)
        for row in range(2):
            tokens, there = toy.tokens_of(made, row), made.exists[row]
            [at] = (there & (made.kind[row] >= Kind.ECHO)).nonzero()[:, 0].tolist()
            assert int(made.token[row, at]) == found[0][row]
            assert float(made.x[row, at]) == found[1][row]
            assert tokens.count(found[0][row]) == 1
            assert float(base[row, found[0][row]]) == 0 or policy == "topk"
    monkeypatch.undo()
    _, agreed = toy.propose(policy, q, 2, Random.seeded(0), found=found)
    assert (Kind.ECHO in agreed.kind[0].tolist()) == (policy != "sampled")
    # a token that the draft hardly thinks of needs a long match
    for match, copied in ((2, False), (8, True)):
        doubted = torch.tensor([[0.95, 0.05]])
        _, made = toy.propose(policy, doubted, 2, Random.seeded(0), found=([1], [match]))
        assert bool((made.exists & (made.kind == Kind.LOOKUP)).any()) == copied


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
        drawn = Drawn(masses.shape[1], tokens, masses, total, squares)
        made = POLICIES["sampled"].propose(drawn)
        assert len(made.x_before[:, len(elders)].unique()) == 1
        assert len(made.x[:, len(elders)].unique()) == 400


def test_comparing_orders_as_a_stable_sort_does() -> None:
    values = torch.randint(0, 9, (200,), generator=torch.Generator().manual_seed(3)).double()
    expected = values.sort(descending=True, stable=True).indices
    assert torch.equal(by_comparing(values), expected)
    assert torch.equal(ordered(values, 150), expected[:150])
    assert int(ordered(values, 201)[-1]) > len(values)  # no such slot


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
    growing = GrowingTree.empty(bounds, vocab, torch.device(device), padded=True)
    text = torch.full((CONTEXT + 4,), -1, device=device)
    growing.start(text[:CONTEXT].clone())
    table = make_acceptance("learned", "topdown", 1.0).table().to(device)
    how = Proposer(policy=POLICIES[policy], table=table)
    for level in range(1, bounds.depth + 1):
        if level > 1:
            growing.advance(level - 1, how.frontier(growing), 12)
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
    rule, k = RULES["traversal" if bottom_up else "topdown"], bounds.children
    node = nodes.number[growing.row_slot[:-1]]
    child = torch.where(node[:, None] < 13, nodes.number[1:-1].view(-1, k), 13)
    points = growing.kind[1:-1].view(-1, k) >= Kind.POINT
    spans = [Level(growing.rows(level), k, k) for level in range(1, 4)]
    families = Families(node, child, growing.token[1:-1].view(-1, k), points, node, spans)
    relations = (nodes.parent, nodes.exists, nodes.seen)
    left, base = [p.clone(), p.clone()], growing.base
    one = stop_law(rule, families, left[0], base.clone(), *relations)
    monkeypatch.setattr(triton_kernels, "usable", lambda table: False)
    two = stop_law(rule, families, left[1], base.clone(), *relations)
    monkeypatch.undo()
    monkeypatch.setattr(triton_kernels, "INTERPRETED", True)
    torch.testing.assert_close(one.stop, two.stop, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(left[0][:13], left[1][:13], atol=1e-6, rtol=1e-4)
    assert abs(float(one.stop.sum()) - 1) < 1e-5
    drawn = triton_kernels.draw(q, uniforms)
    places = torch.arange(len(q), device=device)[:, None].double()
    tokens, masses, *_ = triton_kernels.draw(q, uniforms, places)
    there = torch.arange(bounds.children, device=device) < places
    assert torch.equal(tokens, torch.where(there, drawn[0], -1))
    assert torch.equal(masses, torch.where(there, drawn[1], 0.0))
    monkeypatch.setattr(triton_kernels, "usable", lambda table: False)
    for fast, slow in zip(drawn, draw(q, Uniforms(uniforms), uniforms.shape[1]), strict=True):
        torch.testing.assert_close(fast, slow, atol=1e-12, rtol=1e-9)


class NoValues:
    """An engine of tensors that have shapes but no values."""

    device, vocab, static_length = torch.device("meta"), 1000, 256
    compiled = spread = rereads = False

    def extend(self, tokens: Any) -> None: ...
    def reset(self) -> None: ...
    def prepare(self) -> None: ...

    def score(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        rows: torch.Tensor,
        hidden: torch.Tensor,
        parents: torch.Tensor | None = None,
        *,
        captured: bool,
    ) -> torch.Tensor:
        assert tokens.shape == positions.shape == rows.shape == hidden.shape[:1]
        return torch.zeros(len(tokens), self.vocab, device="meta")

    def move(self, rows: torch.Tensor, to: torch.Tensor) -> None:
        assert rows.shape == to.shape


@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("rule", RULES)
def test_a_captured_step_never_looks_at_values(rule: str, policy: str, static: bool) -> None:
    """What waits for the device cannot be captured: on the meta device it raises."""
    trees = toy.dynamic(12, 3, 4, policy, width=8, copies=True, run=4)
    if static:
        trees = toy.static(build_growmap("4x2"), policy)
        growmap = trees.growmap
        assert growmap is not None
        trees = replace(trees, growmap=growmap.to("meta"))
    engine: Any = NoValues()
    judge = Judge(rule=RULES[rule], T=0.6, P=0.9)
    Replayed(Phases(engine, engine, trees, judge, padded=True, captured=True))
    Replayed(Phases(engine, None, None, replace(judge, T=0.0), padded=True, captured=True))
