"""The audit: our rules are clean, every mistake is found with a small counterexample, and what it
says of a case is what a hand count gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import dynasurge
from dynasurge.cli.main import main
from dynasurge.drafting.proposals import POLICIES
from dynasurge.errors import UsageError
from dynasurge.experiments.assisted_generation import assisted_generation, tiny_model
from dynasurge.trees.growmap import Growmap
from dynasurge.trees.token_tree import TokenTree
from dynasurge.verification.audit import Models, audit, first_token, fixed
from dynasurge.verification.enumeration import Script, outcomes, random_table
from dynasurge.verification.mistakes import MISTAKES, children, properly_drawn, walk
from dynasurge.verification.properly_drawn import DROPPED, NOT_DRAWN, REORDERED
from dynasurge.verification.rules import RULES, StopLaw
from dynasurge.verification.sampled_audit import audit_samples

DRAWINGS = {
    "siblings sorted after drawing": REORDERED,
    "children merged by a set": DROPPED,
    "unlikely children pruned": DROPPED,
    "top-k verified as if sampled": NOT_DRAWN,
    "argmax taken for a draw": NOT_DRAWN,
}
HALVES = Models(name="halves", p=fixed(0.5, 0.5), q=fixed(0.9, 0.1), vocab=2)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("rule", RULES)
def test_our_rules_are_clean(rule: str, policy: str) -> None:
    report = audit(rule, policy=policy)
    assert report.lossless
    assert report.distance < 1e-12
    assert "lossless on all of 78 cases" in str(report)


@pytest.mark.parametrize("name", MISTAKES)
def test_every_mistake_is_found_with_a_small_counterexample(name: str) -> None:
    report = audit(MISTAKES[name].what, stop=True)
    example = report.counterexample
    assert example is not None
    assert len(example.tokens) <= 3
    assert example.edge == (name == "a coin of exactly 0")
    if example.edge:
        assert "exactly 0" in str(report)
    else:
        assert abs(example.expected - example.found) > 1e-6
        head = example.models if not example.shape else f"{example.models}, tree {example.shape}"
        assert head in str(report)
    assert len(example.p) == len(example.q) == len(example.tokens)


@pytest.mark.parametrize("name", DRAWINGS)
def test_the_broken_condition_is_named(name: str) -> None:
    report = audit(MISTAKES[name].what)
    assert report.condition == DRAWINGS[name]
    assert "not properly drawn" in str(report)


def right(tree: Any, p: Any, q: Any, chance: Any) -> Any:
    return walk(tree, p, q, lambda own, drawn: chance.uniform() < own / drawn, chance.token)


def step(p: Any, q: Any, chance: Script) -> list[int]:
    token = chance.token(q())
    if chance.coin(float(p()[token] / q()[token])):
        return [token, chance.token(p([token]))]
    return [chance.token(torch.relu(p() - q()))]


@pytest.mark.parametrize("what", [right, properly_drawn, step])
def test_a_readers_own_lossless_code_is_clean(what: Any) -> None:
    report = audit(what)
    assert report.lossless
    assert report.distance < 1e-12


def test_a_drawing_may_stop_depending_on_what_it_drew() -> None:
    """Condition (i) allows it: a second child only after an unlikely first one."""

    def some(q: Any, chance: Script) -> TokenTree:
        first = chance.token(q())
        rest = q().clone()
        rest[first] = 0.0
        more = float(q()[first]) < 0.5 and float(rest.sum()) > 0
        return children([first, chance.token(rest)] if more else [first], q())

    report = audit(some)
    assert report.lossless
    assert report.condition == ""


def test_numbers_of_a_counterexample_are_those_of_a_hand_count() -> None:
    """p = (1/2, 1/2), q = (9/10, 1/10), the argmax taken for a draw: token 0 passes with 5/9."""
    report = audit(MISTAKES["argmax taken for a draw"].what, zoo=[HALVES])
    example = report.counterexample
    assert example is not None
    found = dict(zip(("expected", "found"), (example.expected, example.found), strict=True))
    assert example.tokens in ((0,), (1,))
    share = 5 / 9 if example.tokens == (0,) else 4 / 9
    assert found == pytest.approx({"expected": 0.5, "found": share})
    assert report.distance == pytest.approx(1 / 18)


def test_the_law_of_the_first_token() -> None:
    p, q = (0.5, 0.2, 0.3), (0.3, 0.5, 0.2)
    assert first_token(properly_drawn, p, q) == pytest.approx(p, abs=1e-12)
    law = first_token(MISTAKES["siblings sorted after drawing"].what, p, q)
    assert sum(law) == pytest.approx(1)
    assert sum(abs(a - b) for a, b in zip(law, p, strict=True)) / 2 > 0.1


def test_lengths_stand_beside_those_of_traversal() -> None:
    report = audit("topdown", zoo=[HALVES], shapes=["chain2"])
    ((mine, ours),) = report.accepted.values()
    # one token: 0.6; both: 0.6 * 0.6, and traversal's more
    assert mine == pytest.approx(0.6 + 0.36)
    assert ours > mine
    assert "traversal" in str(report)


def test_growmaps_of_one_size_are_cases_of_their_own() -> None:
    shapes = [Growmap(parents=(-1, 0, 1)), Growmap(parents=(-1, 0, 0))]
    report = audit("topdown", zoo=[HALVES], shapes=shapes)
    (chain, _), (fork, _) = report.accepted.values()
    assert (chain, fork) == (pytest.approx(0.96), pytest.approx(1.0))


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("botup", "rule botup: is unknown; choose among: topdown, traversal, reserved, bfs"),
        (lambda a, b: None, "is no rule, drawing or step; write rule(tree, p, q[, chance])"),
        (lambda tree, p, q, rng: ((), 0), "is no rule, drawing or step"),
        (lambda tree, p, q: ((), 0), "rule tuple: is no StopLaw; return one, or take chance"),
        (lambda tree, p, q, chance: None, "rule None: is no verdict; return a path of nodes and a"),
        (lambda tree, p, q, chance: ((), 0.5), "is no verdict; return a path of nodes and a"),
        (lambda tree, p, q, chance: ((), 9), "rule 9: the bonus is none of the tokens 0 to 1"),
        (lambda tree, p, q, chance: ((9,), 0), "is no path of the tree"),
        (lambda p, q, chance: [0.9], "step [0.9]: are no tokens"),
        (
            lambda p, q, chance: [chance.token([0.0, 0.0])],
            "chance (nan, nan): are no probabilities",
        ),
        (lambda p, q, chance: list(iter(lambda: chance.token(q()), 7)), "the step goes on"),
        (lambda p, q, chance: [], "are not one or more of the tokens 0 to 1"),
        (lambda p, q, chance: [7], "step [7]: are not one or more of the tokens 0 to 1"),
        (lambda p, q, chance: 7, "step 7: are no tokens; return a list of tokens"),
        (lambda q, chance: [1], "drawing list: is no TokenTree; return one"),
        (lambda q, chance: children([7], torch.ones(8)), "drawing [7]: are not all tokens, 0 to 1"),
        (
            lambda q, chance: replace(children([0, 0], q()), point=(True, True, True)),
            "drawing [0, 0]: has a point beside an equal sibling",
        ),
        (
            lambda tree, p, q, chance: ((2, 1), 0),
            "is no path of the tree; return its nodes in order",
        ),
    ],
)
def test_what_is_no_rule_is_one_line(what: Any, message: str) -> None:
    with pytest.raises(UsageError) as error:
        audit(what)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


Change = Callable[[StopLaw], Any]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda law: replace(law, stop=law.stop / 2), "its stop sums to 0.5"),
        (lambda law: replace(law, stop=law.stop * torch.nan), "its stop sums to nan"),
        (lambda law: replace(law, stop=law.stop[:1]), "stop and bonus have the shapes (1,) and"),
        (lambda law: replace(law, bonus=law.bonus * 0), "is no distribution"),
    ],
)
def test_what_is_no_stop_law_is_one_line(change: Change, message: str) -> None:
    with pytest.raises(UsageError) as error:
        audit(lambda tree, p, q: change(RULES["topdown"](tree, p, q)))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def siblings_not_renormalised_below_the_root(
    tree: TokenTree, p: torch.Tensor, q: Sequence[torch.Tensor], chance: Script
) -> tuple[list[int], int]:
    node, path, left = 0, list[int](), p[0]
    while True:
        for place, child in enumerate(tree.children[node]):
            token = tree.tokens[child]
            drawn = q[node].clone()
            drawn[[tree.tokens[elder] for elder in tree.children[node][:place]]] = 0.0
            drawn = drawn / drawn.sum()
            proposal = drawn[token] if node == 0 or not place else q[node][token]
            if chance.coin(float(left[token] / proposal)):
                node, left = child, p[child]
                path.append(child)
                break
            left = torch.relu(left - drawn)
            left = left / left.sum() if left.sum() > 0 else p[node]
        else:
            return path, chance.token(left)


def wrong_bonus_after_three(
    tree: TokenTree, p: torch.Tensor, q: Sequence[torch.Tensor], chance: Script
) -> tuple[list[int], int]:
    path, bonus = walk(tree, p, q, lambda a, b: chance.coin(a / b), chance.token)
    return [*path], int(p[path[-1]].argmax()) if len(path) == 3 else bonus


@pytest.mark.parametrize(
    "rule", [siblings_not_renormalised_below_the_root, wrong_bonus_after_three]
)
def test_what_shows_only_deeper_is_found(rule: Any) -> None:
    assert not audit(rule, stop=True).lossless


def test_tokens_may_be_tensors() -> None:
    """Of a model that says something else after each token."""

    def step(p: Any, q: Any, chance: Script) -> list[Any]:
        token = chance.pick(q())[0]
        if chance.coin(p()[token] / q()[token]):
            return [token, chance.token(p([token]))]
        return [chance.token(torch.relu(p() - q()))]

    assert audit(step).lossless


def test_nothing_to_look_at_is_no_clean_audit() -> None:
    for how in ({"shapes": []}, {"zoo": []}):
        with pytest.raises(UsageError, match="no case was left to look at"):
            audit("topdown", **how)  # type: ignore[arg-type]


def test_a_difference_like_float32_s_says_so() -> None:
    report = audit(lambda tree, p, q: RULES["topdown"](tree, p.float(), [x.float() for x in q]))
    assert not report.lossless
    assert "perhaps rounding" in str(report)


@pytest.mark.parametrize("body", ["import sys; sys.exit(0)", "return [1 // 0]"])
def test_code_that_stops_is_one_line(
    body: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    name = f"stops{abs(hash(body))}"
    (tmp_path / f"{name}.py").write_text(f"def bad(p, q, chance):\n    {body}\n")
    assert main(["audit", f"{name}:bad"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"RULE {name}:bad: stopped with" in line
    assert f"{name}.py line 2; correct it" in line


def test_rules_may_return_their_law_and_write_to_what_they_get() -> None:
    def mine(
        tree: TokenTree, p: torch.Tensor, q: list[torch.Tensor], *, rule: str = "topdown"
    ) -> StopLaw:
        law = RULES[rule](tree, p, q)
        for own in (p, *q):
            own.fill_(7.0)
        return law

    how: Any = {"zoo": [HALVES], "shapes": ["2x1"]}
    assert audit(mine, **how).accepted == audit("topdown", **how).accepted
    with pytest.raises(UsageError, match="policy None: is unknown; choose among: sampled"):
        audit(mine, policy=None, **how)  # type: ignore[arg-type]


def test_a_uniform_number_can_only_be_compared() -> None:
    def thirds(chance: Script) -> int:
        u = chance.uniform()
        return 0 if u < 1 / 3 else 1 if u < torch.tensor(2 / 3) else 2

    law = dict.fromkeys(range(3), 0.0)
    for weight, result in outcomes(thirds):
        law[result] += weight
    assert law == pytest.approx({0: 1 / 3, 1: 1 / 3, 2: 1 / 3})
    edges = [(one.weight, one.edge, one.result) for one in outcomes(lambda c: c.uniform() <= 0.0)]
    assert sorted(edges) == [(0.0, True, True), (1.0, False, False)]
    assert [one.result for one in outcomes(lambda c: c.uniform() >= 1.0)] == [False]
    with pytest.raises(TypeError, match="can be compared with < and >, and nothing else"):
        list(outcomes(lambda chance: float(chance.uniform())))


# --- by samples


def test_samples_of_the_law_pass_and_others_do_not() -> None:
    table = random_table(5, vocab=4)

    def draw(seed: int, wrong: float = 0.0) -> list[int]:
        generator, tokens = torch.Generator().manual_seed(seed), []
        for _ in range(2):
            law = torch.tensor(table(tuple(tokens)))
            law = (1 - wrong) * law + wrong * torch.eye(4, dtype=torch.float64)[int(law.argmin())]
            tokens.append(int(torch.multinomial(law, 1, generator=generator)))
        return tokens

    how: dict[str, Any] = {"vocab": 4, "length": 2, "samples": 1500}
    fine = audit_samples(draw, table, **how)
    assert fine.passes
    assert fine.chance > 0.01
    assert "no difference found" in str(fine)
    off = audit_samples(lambda seed: draw(seed, 0.3), table, **how)
    assert not off.passes
    assert "NOT lossless" in str(off)
    assert fine.limit < fine.detects < 0.2


def test_an_impossible_sequence_decides() -> None:
    report = audit_samples(
        lambda seed: [int(seed == 99)], fixed(1.0, 0.0), vocab=2, length=1, samples=100
    )
    assert not report.passes
    assert "wrote [1], which has probability 0" in str(report)
    with pytest.raises(UsageError, match="length 9: has 10604499373 sequences of 13 tokens"):
        audit_samples(lambda seed: [0], fixed(1.0), vocab=13, length=9)
    with pytest.raises(UsageError, match=r"sample .0.: are not 2 of the tokens 0 to 0"):
        audit_samples(lambda seed: [0], fixed(1.0), vocab=1, length=2)


@pytest.mark.slow
def test_assisted_generation_of_transformers_passes() -> None:
    """An engine of which only tokens come out."""
    sample, law = assisted_generation(tiny_model(1), tiny_model(2), [3, 4, 5], 2)
    report = audit_samples(sample, law, vocab=6, samples=600)
    assert report.passes, report
    wrong = audit_samples(sample, lambda tokens: law((*tokens, 0)), vocab=6, samples=600)
    assert not wrong.passes


# --- the command


def test_the_command_audits_names_and_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "readers_rule.py").write_text(
        "def greedy(q, chance):\n"
        "    from dynasurge.verification.mistakes import argmax_as_if_drawn\n"
        "    return argmax_as_if_drawn(q, chance)\n"
    )
    assert main(["audit", "topdown", "--shapes", "chain1"]) == 0
    assert "topdown: lossless" in capsys.readouterr().out
    assert main(["audit", "readers_rule:greedy"]) == 1
    assert "greedy: NOT lossless" in capsys.readouterr().out
    for line, message in (
        ("readers_rule:missing", "readers_rule has no function 'missing'; it has greedy"),
        ("nowhere:rule", "cannot be imported (ModuleNotFoundError"),
        ("nothing", "rule nothing: is unknown; choose among"),
        ("topdown --shapes 9by9", "growmap 9by9: not the name of a shape"),
        ("topdown --policy best", "policy best: is unknown; choose among: sampled"),
    ):
        assert main(["audit", *line.split()]) == 2
        captured = capsys.readouterr()
        assert message in captured.err
        assert captured.err.count("\n") == 1


def test_the_page_lists_every_mistake() -> None:
    page = (Path(__file__).parents[2] / "docs" / "guides" / "audit.md").read_text()
    listed = [line.split("|")[1].strip() for line in page.splitlines() if line.startswith("| ")]
    assert listed[1:] == [*MISTAKES]
    for line in page.splitlines():
        name = line.split("|")[1].strip() if line.startswith("| ") else ""
        if name in MISTAKES and name != "a coin of exactly 0":
            report = audit(MISTAKES[name].what, stop=True)
            example = report.counterexample
            assert example is not None
            said = [cell.strip() for cell in line.split("|")[4].split("`")]
            assert said[1] == str([*example.tokens])
            numbers = [float(number) for number in said[2].split(",") if number.strip()]
            assert numbers == pytest.approx([example.expected, example.found], abs=1e-3)


def test_the_audit_is_public() -> None:
    assert dynasurge.audit is audit
    assert dynasurge.audit_samples is audit_samples
