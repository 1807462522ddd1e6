"""The prompt drafts too: what followed the last tokens earlier in the text.

Summaries, code and dialogue repeat themselves. Wherever the last n tokens of a path (the text, then
the drafted tokens that lead to a node) stood before, the token that followed them there is proposed
as a point child of the node. It costs no draft pass, and it is worth what such children turned out
to be worth in this prompt (drafting/acceptance_estimates.py, kind `lookup`, by n): where nothing
repeats, they lose their places to the draft's own proposals; and apart where the draft agrees
(`echo`). Prompt lookup decoding is the same idea for one chain.
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
        """Take in the whole text so far; what was read before is only extended."""
        for position in range(len(self._text), len(text)):
            for n in LENGTHS:
                if position >= n:
                    self._next[tuple(text[position - n : position])] = text[position]
        self._text = list(text)

    def find(self, path: Sequence[int]) -> tuple[int, int] | None:
        """(token, n): the token that followed the longest match, of n tokens, of the text's end and
        `path`; None without one."""
        context = [*self._text[-LENGTHS[0] :], *path][-LENGTHS[0] :]
        for n in LENGTHS:
            if n <= len(context) and (token := self._next.get(tuple(context[-n:]))) is not None:
                return token, n
        return None
