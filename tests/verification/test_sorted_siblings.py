"""The rule that tries siblings in the order in which the target wants them: lossless on static trees
whose siblings are drawn independently, and what it accepts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch

from dynasurge.drafting.proposals import Limits
from dynasurge.experiments.text_distributions import mean_depth
from dynasurge.probabilities import Uniforms
from dynasurge.trees.growmap import Growmap, build_growmap
from dynasurge.trees.token_tree import TokenTree
from dynasurge.verification.audit import audit, draw_tree
from dynasurge.verification.enumeration import outcomes, random_table
from dynasurge.verification.optimum import best_accepted, drawn_paths
from dynasurge.verification.rules import tokens_to
from dynasurge.verification.sorted_siblings import INDEPENDENT, sorted_siblings

LOPSIDED = Growmap(parents=(-1, 0, 0, 1, 1, 3))
Model = Callable[[Sequence[int]], torch.Tensor]


def shape_of(name: str) -> Growmap:
    return LOPSIDED if name == "lopsided" else build_growmap(name)


def rows_of(tree: TokenTree, p: Model) -> torch.Tensor:
    return torch.stack([p(tokens_to(tree, node)) for node in range(tree.size + 1)])


@pytest.mark.parametrize(
    "name",
    [
        *("2x1", "3x1", "4x1", "chain2", "2x2"),
        pytest.param("lopsided", marks=pytest.mark.slow),
        pytest.param("2ary2", marks=pytest.mark.nightly),
        pytest.param("3x2", marks=pytest.mark.nightly),
    ],
)
def test_it_is_lossless(name: str) -> None:
    report = audit(sorted_siblings, policy=INDEPENDENT, shapes=[shape_of(name)])
    assert report.lossless, report
    assert report.distance < 1e-12


def test_its_children_are_drawn_independently_and_say_how() -> None:
    q = torch.tensor([[0.7, 0.2, 0.1], [0.3, 0.3, 0.4]], dtype=torch.float64)
    numbers = torch.rand(2, 5, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    _, drawn = INDEPENDENT.draw(q, Uniforms(numbers), 5, Limits())
    made = INDEPENDENT.propose(drawn)
    for place in range(5):
        own = Uniforms(numbers[:, place : place + 1]).draw(q, 1)
        assert torch.equal(made.token[:, place : place + 1], own)
    torch.testing.assert_close(made.proposal, q.gather(1, made.token))
    assert len(made.token[0].unique()) < 5


def test_draws_without_replacement_make_it_wrong() -> None:
    """Its laws are those of independent draws."""
    assert not audit(sorted_siblings, shapes=["2x1"]).lossless


def model(seed: int) -> Model:
    table = random_table(seed)
    return lambda tokens: torch.tensor(table(tuple(tokens)), dtype=torch.float64)


def accepted(growmap: Growmap, p: Model, q: Model) -> tuple[float, float]:
    """Expected accepted tokens of the rule, and of the best one on the same trees."""
    drawn, mine = [], 0.0
    for weight, (tree, base) in outcomes(lambda chance: draw_tree(growmap, INDEPENDENT, q, chance)):
        drawn.append((weight, tree))
        mine += weight * mean_depth(sorted_siblings(tree, rows_of(tree, p), base), tree)
    return mine, best_accepted(drawn_paths(drawn), lambda path: p(path).tolist())


@pytest.mark.parametrize("seed", range(5))
def test_at_one_node_it_is_nearly_the_best(seed: int) -> None:
    for k in (1, 2, 3):
        mine, best = accepted(build_growmap(f"{k}x1"), model(seed), model(seed + 50))
        assert (1 - 1e-6 if k == 1 else 0.95) * best < mine < best + 1e-6


@pytest.mark.parametrize("seed", range(3))
def test_on_chains_nothing_accepts_more_and_on_trees_little(seed: int) -> None:
    mine, best = accepted(build_growmap("chain3"), model(seed), model(seed + 50))
    assert mine == pytest.approx(best, abs=1e-6)
    mine, best = accepted(build_growmap("2x2"), model(seed), model(seed + 50))
    assert 0.9 * best < mine < best + 1e-6
