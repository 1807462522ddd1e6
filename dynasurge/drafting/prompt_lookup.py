"""The prompt drafts too: it proposes what followed the last tokens earlier in the text.

Summaries, code and dialogue repeat themselves. Take the last n tokens of a path (the text, then the
drafted tokens that lead to a node). If they occurred before, the token that followed them becomes a
point child of the node. It costs no draft pass. Its value is learned from such children in this
prompt (drafting/acceptance_estimates.py, kind `lookup`, by n; `echo` where the draft agrees). If
nothing repeats, copies lose their places to the draft's own proposals.

A *run* continues a copy: below a node that the draft has not read, the text proposes a chain of the
tokens that followed (kind `blind`). It needs no draft pass, so a text that repeats itself is
followed far beyond the drafted levels. Prompt lookup decoding is the same idea for one chain.
"""

from __future__ import annotations

import torch

CONTEXT = 8  # the most tokens that are compared; the longest match counts
LEAST = 2  # tokens that must match


def find_copies(
    text: torch.Tensor, length: torch.Tensor, context: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """For each context [w, CONTEXT]: the token that followed the longest match of its end earlier
    in the text, the latest among equals, and the match's length, 0 for none; int64 [w] each. See
    `find_runs`."""
    tokens, matches = find_runs(text, length, context, 1)
    return tokens[:, 0], matches[:, 0]


def find_runs(
    text: torch.Tensor, length: torch.Tensor, context: torch.Tensor, run: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """For each context [w, CONTEXT]: the `run` tokens that followed the longest match of its end
    earlier in the text, the latest among equals, and how many tokens match before each, 0 where
    there is none; int64 [w, run] each.

    text: int64 [CONTEXT + T]; its first CONTEXT tokens are -1. length: [1], how many of the T
    tokens are known. A -1 in a context matches nothing.
    """
    windows = text.unfold(0, CONTEXT, 1)[:-1]  # the tokens before each token
    context = torch.where(context < 0, -2, context)
    back = torch.arange(CONTEXT - 1, -1, -1, device=text.device)  # 0 is the last token
    equal = torch.where(windows == context[:, None], CONTEXT, back).amin(-1)
    places = torch.arange(len(windows), device=text.device)
    match = torch.where((equal >= LEAST) & (places < length), equal, 0)
    best = (match * len(windows) + places).amax(-1)
    ahead = torch.arange(run, device=text.device)
    place, match = best[:, None] % len(windows) + ahead, best[:, None] // len(windows)
    match = torch.where((match > 0) & (place < length), (match + ahead).clamp(max=CONTEXT), 0)
    return text[CONTEXT + place.clamp(max=len(windows) - 1)], match
