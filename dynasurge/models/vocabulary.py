"""Two vocabularies: which tokens a draft may propose to its target.

A token is shared if both tokenizers give the same text the same id. A target with added or renamed
special tokens keeps its draft, which never proposes those tokens, as if their probability were 0.
If one text has two different ids, the vocabularies differ, and the pair is refused.
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

    draft, target: their names. *_size: the number of ids in their embeddings; if a tokenizer is
    missing, the sizes must be equal. Raises UsageError if the two do not fit; it names the first
    token that differs.
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
