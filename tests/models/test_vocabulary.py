"""Drafts whose vocabulary is not quite their target's: what is shared is proposed, the rest
never."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import VOCAB, save_model, tiny_model, tiny_tokenizer
from tokenizers import AddedToken, Tokenizer, models
from transformers import PreTrainedTokenizerFast

from dynasurge import Pair, Session, Settings, UsageError, load_pair
from dynasurge.models.vocabulary import shared_tokens

PROMPT = [5, 17, 8, 40, 33, 9, 21]


def saved(
    folder: Path, vocab: int, added: list[str], renamed: dict[str, str], seed: int = 0
) -> str:
    tiny_model("llama", vocab=vocab, seed=seed).save_pretrained(folder)
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [AddedToken(token) for token in added]}
    )
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer.json"
    text = path.read_text()
    for old, new in renamed.items():
        text = text.replace(f'"{old}"', f'"{new}"')
    path.write_text(text)
    return str(folder)


@pytest.mark.parametrize(
    ("vocab", "added", "renamed", "unknown"),
    [
        (VOCAB + 2, ["<tool>", "<end>"], {}, {VOCAB, VOCAB + 1}),
        (VOCAB, [], {"w90": "<im_start>"}, {90}),
    ],
    ids=["added", "renamed"],
)
@pytest.mark.parametrize("T", [0.0, 1.5])
def test_a_target_with_other_special_tokens_keeps_its_draft(
    vocab: int,
    added: list[str],
    renamed: dict[str, str],
    unknown: set[int],
    T: float,
    tmp_path: Path,
) -> None:
    draft, target = (
        save_model(tmp_path / "d", "llama", seed=1),
        saved(tmp_path / "t", vocab, added, renamed),
    )
    pair = load_pair(draft, target, dtype="float32", device="cpu")
    assert pair.shared is not None
    assert set((~pair.shared).nonzero().flatten().tolist()) == unknown
    shared = {"T": T, "new_tokens": 60, "lookup": False}
    steps = Session(pair, Settings(B=12, fill=True, **shared)).generate(PROMPT).steps  # type: ignore[arg-type]
    proposed = {token for step in steps for token in step.tree.tokens[1:]}
    assert len(proposed) > 20
    if T > 0:
        assert not proposed & unknown
    else:
        emitted = [token for step in steps for token in step.emitted]
        assert emitted == Session(pair, Settings(mode="auto", **shared)).generate(PROMPT).output_ids  # type: ignore[arg-type]


def pair_of(draft: str, target: str) -> Pair:
    return load_pair(draft, target, dtype="float32", device="cpu")


def test_the_first_token_that_differs_is_named(tmp_path: Path) -> None:
    target = save_model(tmp_path / "t", "llama")
    swapped = saved(tmp_path / "d", VOCAB, [], {"w7": "x", "w9": "w7", "x": "w9"})
    with pytest.raises(
        UsageError, match=r"its token 'w9' has id 7, but id 9 in --target .*; choose a draft of"
    ):
        pair_of(swapped, target)


def test_without_a_tokenizer_sizes_must_do() -> None:
    assert shared_tokens("d", None, 96, "t", tiny_tokenizer(), 96) is None
    with pytest.raises(
        UsageError, match=r"its vocabulary \(50 tokens\) is not that of --target t \(96 tokens\)"
    ):
        shared_tokens("d", None, 50, "t", tiny_tokenizer(), 96)


def test_nothing_in_common_is_no_pair() -> None:
    words = {f"v{i}": i for i in range(VOCAB)}
    other = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="v0"))
    )
    with pytest.raises(UsageError, match="has no token in common with --target"):
        shared_tokens("d", other, VOCAB, "t", tiny_tokenizer(), VOCAB)


def test_a_smaller_table_than_the_tokenizers_says_which_ids_are_missing() -> None:
    shared = shared_tokens("d", tiny_tokenizer(90), 90, "t", tiny_tokenizer(), 96)
    assert shared is not None
    assert torch.equal(shared, torch.arange(96) < 90)
