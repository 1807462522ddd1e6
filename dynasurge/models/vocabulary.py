"""Two vocabularies: which tokens a draft may propose to its target.

A token is shared if both tokenizers know it by the same text and the same id. A target with added
or renamed special tokens keeps its draft: those tokens are never proposed, as if the draft gave
them probability 0. One text with two ids is another vocabulary, and such a pair is refused.
"""

from __future__ import annotations

import torch
from transformers import PreTrainedTokenizerBase

from dynasurge.errors import UsageError

FAMILY = "choose a draft of the target's own family"


def shared_tokens(
    draft: str,
    draft_tokenizer: PreTrainedTokenizerBase | None,
    draft_size: int,
    target: str,
    target_tokenizer: PreTrainedTokenizerBase | None,
    target_size: int,
) -> torch.Tensor | None:
    """The tokens that the draft may propose, bool [target_size]; None for all.

    draft, target: their names; *_size: how many ids their embeddings have, which must be equal
    where a tokenizer is missing. Raises UsageError if the two do not fit, naming the first token
    that differs.
    """
    if draft_tokenizer is None or target_tokenizer is None:
        if draft_size != target_size:
            reason = f"its vocabulary ({draft_size} tokens) is not that of --target {target} ({target_size} tokens)"
            raise UsageError("--draft", draft, reason, FAMILY)
        return None
    mine, its = draft_tokenizer.get_vocab(), target_tokenizer.get_vocab()
    if mine == its:
        return None
    differing = [token for token, number in mine.items() if its.get(token, number) != number]
    if differing:
        token = min(differing, key=lambda token: mine[token])
        reason = (
            f"its token {token!r} has id {mine[token]}, but id {its[token]} in --target {target}"
        )
        raise UsageError("--draft", draft, reason, FAMILY)
    ids = [
        number
        for token, number in mine.items()
        if token in its and number < min(draft_size, target_size)
    ]
    if not ids:
        raise UsageError("--draft", draft, f"has no token in common with --target {target}", FAMILY)
    shared = torch.zeros(target_size, dtype=torch.bool)
    shared[ids] = True
    return shared
