"""The prompt drafts too: it proposes what followed the last tokens earlier in the text.

Summaries, code and dialogue repeat themselves. Take the last n tokens of a path (the text, then the
drafted tokens that lead to a node). If they occurred before, the token that followed them becomes a
point child of the node. It costs no draft pass. Its value is learned from such children in this
prompt (drafting/acceptance_estimates.py, kind `lookup`, by n; `echo` where the draft agrees). If
nothing repeats, copies lose their places to the draft's own proposals. Prompt lookup decoding is
the same idea for one chain.
"""

from __future__ import annotations

from collections.abc import Sequence

LENGTHS = (8, 6, 5, 4, 3, 2)  # how many tokens must match; longer matches first


class Lookup:
    """An index of the text's n-grams; the latest occurrence wins."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget the text."""
        self._text: list[int] = []
        self._next: dict[tuple[int, ...], int] = {}

    def read(self, text: Sequence[int]) -> None:
        """Index the whole text so far. Only tokens that were not read before are added."""
        for position in range(len(self._text), len(text)):
            for n in LENGTHS:
                if position >= n:
                    self._next[tuple(text[position - n : position])] = text[position]
        self._text = list(text)

    def find(self, path: Sequence[int]) -> tuple[int, int] | None:
        """(token, n): the token that followed the longest match, of n tokens, with the end of the
        text and `path`; None without a match."""
        context = [*self._text[-LENGTHS[0] :], *path][-LENGTHS[0] :]
        for n in LENGTHS:
            if n <= len(context) and (token := self._next.get(tuple(context[-n:]))) is not None:
                return token, n
        return None
