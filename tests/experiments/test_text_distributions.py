"""Analysis against the rules themselves, by enumeration and on small models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import toy
from conftest import tiny_model, tiny_tokenizer

from dynasurge import Pair, load_pair
from dynasurge.drafting.child_kinds import Kind
from dynasurge.drafting.proposals import POLICIES
from dynasurge.experiments.text_distributions import (
    mean_accepted,
    rank_acceptance,
    text_distributions,
)
from dynasurge.probabilities import Random
from dynasurge.trees.token_tree import TokenTree
from dynasurge.verification.rules import RULES


def star(tokens: list[int], point: list[bool]) -> TokenTree:
    """Children of the root only."""
    n = len(tokens)
    return TokenTree(
        tokens=(0, *tokens), parents=(-1, *[0] * n), proposal=(1.0,) * (n + 1), point=(True, *point)
    )


@pytest.mark.parametrize("top_p", [False, True], ids=["dense", "few tokens"])
@pytest.mark.parametrize("policy", POLICIES)
def test_rank_acceptance_is_what_topdown_does_at_each_node(policy: str, top_p: bool) -> None:
    source = torch.Generator().manual_seed(3)
    p, q = torch.softmax(2 * torch.randn(2, 12, 6, generator=source, dtype=torch.float64), -1)
    if top_p:
        q = q.masked_fill(torch.arange(6) >= torch.arange(1, 13)[:, None] % 6 + 1, 0.0)
        q = q / q.sum(-1, keepdim=True)
    accepted, proposal = rank_acceptance(p, q, policy, 4, Random.seeded(1))
    base, made = toy.propose(policy, q, 4, Random.seeded(1))
    for row in range(12):
        there = made.exists[row]
        tree = star(toy.tokens_of(made, row), (made.kind[row] >= Kind.POINT)[there].tolist())
        law = RULES["topdown"](tree, p[row].expand(tree.size + 1, -1), [base[row]])
        assert accepted[row][there].tolist() == pytest.approx(law.stop[1:].tolist(), abs=1e-12)
        assert accepted[row][~there].tolist() == [0.0] * (4 - tree.size)
        assert proposal[row][there].tolist() == pytest.approx(made.proposal[row][there].tolist())


def test_mean_accepted_is_the_mean_depth() -> None:
    q = torch.tensor([0.6, 0.4], dtype=torch.float64)
    tree = star([0], [False])
    p = torch.tensor([[0.3, 0.7]] * 2, dtype=torch.float64)
    for rule in RULES.values():
        assert mean_accepted(rule, tree, p, [q]) == pytest.approx(0.5)


@pytest.mark.parametrize("vocab", [90, 110])
def test_text_distributions_meet_over_the_targets_vocabulary(vocab: int) -> None:
    """A draft whose table is padded otherwise proposes none of the tokens it lacks; greedy trees
    ask its own ranking."""
    target, draft = tiny_model("llama"), tiny_model("llama", layers=1, vocab=vocab)
    models = Pair(
        draft=draft, target=target, tokenizer=tiny_tokenizer(), draft_name="d", target_name="t"
    )
    known = target.config.vocab_size
    p, q = text_distributions(models, [5, 6], [7, 8], T=0.0)
    assert p.shape == q.shape == (2, known)
    assert p.amax(-1).tolist() == [1.0, 1.0]
    torch.testing.assert_close(q.sum(-1), torch.ones(2))
    assert (q.amax(-1) < 0.9).all(), "not greedy"
    assert q[:, vocab:].sum() == 0


def test_text_distributions_stand_ahead_of_each_token(
    tiny_folders: dict[str, tuple[str, str]], tmp_path: Path
) -> None:
    pair = load_pair(*tiny_folders["llama"], device="cpu", dtype="float32")
    assert tiny_tokenizer().vocab_size == pair.target.config.vocab_size
    prompt, output = [5, 6, 7], [8, 9, 10]
    p, q = text_distributions(pair, prompt, output, T=0.7)
    assert p.shape == q.shape == (3, pair.target.config.vocab_size)
    with torch.inference_mode():
        for model, rows in ((pair.target, p), (pair.draft, q)):
            for number in range(3):
                logits = model(torch.tensor([prompt + output[:number]])).logits[0, -1]
                torch.testing.assert_close(rows[number], torch.softmax(logits / 0.7, -1))
