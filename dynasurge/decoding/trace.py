"""A generation with all that a picture of it shows: the tree of every step, and both models'
probabilities.

    trace = dynasurge.trace(pair, "The harbour council met on Tuesday", mode="dTree", B=16, T=0.6)
    trace.steps[3]              # in a notebook: the tree of step 3

A trace is made of the records that `generate` makes on this machine: the same steps, the same
trees, the same text.

A drafted node's *fate* depends on the rule. Top-down verification tries siblings in drawing order
and goes on below the first that it accepts. It never looks at nodes below a refused node, or at
siblings after an accepted one. ETV works bottom up: it has refused everything before the node where
it stops, whole subtrees at a time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from transformers import PreTrainedTokenizerBase

from dynasurge.decoding.session import Session
from dynasurge.models.pair import Pair
from dynasurge.models.prompts import Prompt
from dynasurge.settings import PHASES, Settings, settings_of
from dynasurge.trees.token_tree import TokenTree
from dynasurge.verification.rules import path_to

if TYPE_CHECKING:
    import pandas as pd

# How a type is shown as "svg", "png" or "html": plots/pictures.py puts it here.
PICTURES: dict[tuple[type, str], Callable[..., Any]] = {}
LETTER = 8  # the most tokens in one letter of any script
PART = "◌"  # a token that is only a part of a letter
LIKELY = 5  # how many of the likeliest tokens to keep after each node
Fate = Literal["root", "accepted", "cut", "rejected", "untried"]


@dataclass(frozen=True, kw_only=True)
class Guesses:
    """Tokens as text with their probabilities and numbers, the likeliest first: the target's, and
    the draft's, () where it has not read the node."""

    target: tuple[tuple[str, float, int], ...]
    draft: tuple[tuple[str, float, int], ...]


@dataclass(frozen=True, kw_only=True, repr=False)
class StepView:
    """One step, ready to be drawn. Tuples have one entry a node, root included, unless said
    otherwise.

    number: the step's, from 0. rule: its name. bottom_up: whether verification went from the leaves
    up. path, emitted: as in StepRecord. beyond: accepted nodes after the end of the text. texts:
    the tokens as text. bonus: the bonus token's text, None if the end cut it off. written: what
    each emitted token adds to the running text; it is empty while a letter of several tokens is not
    complete. p, q: the target's and the draft's probability of the node's token at its parent, 1
    for the root (at T = 0, q is the draft's at T = 1; NaN where the draft has not read the parent).
    reach: the probability that verification accepts the node. likely: what both models thought
    likely after the node. seconds: by phase (draft, target, verify, other); a little more than
    those of `generate`, because `likely` is computed meanwhile.
    """

    number: int
    rule: str
    bottom_up: bool
    tree: TokenTree
    path: tuple[int, ...]
    beyond: tuple[int, ...]
    emitted: tuple[int, ...]
    texts: tuple[str, ...]
    bonus: str | None
    written: tuple[str, ...]
    p: tuple[float, ...]
    q: tuple[float, ...]
    reach: tuple[float, ...]
    likely: tuple[Guesses, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def accepted(self) -> int:
        """How many drafted tokens the target accepted."""
        return len(self.path)

    @property
    def stop(self) -> int:
        """The node where verification stopped: the last accepted one, or 0 (the root)."""
        return (0, *self.path, *self.beyond)[-1]

    @cached_property
    def fates(self) -> tuple[Fate, ...]:
        """Each node's fate."""
        fates: list[Fate] = ["untried" if node else "root" for node in range(self.tree.size + 1)]
        path = (*self.path, *self.beyond)
        on_path = (0, *path)
        for node in path:
            fates[node] = "accepted" if node in self.path else "cut"
        for node, parent in enumerate(self.tree.parents[1:], start=1):
            if node in path:
                continue
            below_refused = self.bottom_up and fates[parent] == "rejected"
            successor = next(
                (n for n in path if self.tree.parents[n] == parent), self.tree.size + 1
            )
            if below_refused or (parent in on_path and node < successor) or self.rule == "bfs":
                fates[node] = "rejected"
        return tuple(fates)

    def __repr__(self) -> str:
        return f"<step {self.number}: {self.tree.size} drafted, {len(self.path)} accepted>"

    def _repr_svg_(self) -> str:
        return str(PICTURES[StepView, "svg"](self))

    def _repr_png_(self) -> bytes:
        return bytes(PICTURES[StepView, "png"](self))


@dataclass(frozen=True, kw_only=True, repr=False)
class Trace:
    """A prompt as the models read it, the text generated after it, and the steps."""

    prompt: str
    settings: Settings
    text: str
    steps: list[StepView] = field(default_factory=list)

    def __repr__(self) -> str:
        return f"<{len(self.steps)} steps, {sum(len(step.emitted) for step in self.steps)} tokens>"

    def _repr_svg_(self) -> str:
        return str(PICTURES[Trace, "svg"](self))

    def _repr_png_(self) -> bytes:
        return bytes(PICTURES[Trace, "png"](self))

    def to_frame(self) -> pd.DataFrame:
        """One row a step: step, drafted (nodes), levels, accepted, tokens (emitted), text (what
        they add), and milliseconds by phase (draft_ms, ...)."""
        import pandas as pd

        rows = [
            {
                "step": step.number,
                "drafted": step.tree.size,
                "levels": step.tree.depth,
                "accepted": step.accepted,
                "tokens": len(step.emitted),
                "text": "".join(step.written),
            }
            | {f"{phase}_ms": 1e3 * seconds for phase, seconds in step.seconds.items()}
            for step in self.steps
        ]
        return pd.DataFrame(rows)

    def to_html(self, path: str | os.PathLike[str]) -> None:
        """Write all steps as one HTML file that needs neither network nor kernel: trees, text and
        bars as in the explorer. Raises UsageError if it cannot be written."""
        PICTURES[Trace, "html"](self, path)


def trace(pair: Pair, prompt: Prompt, **settings: Any) -> Trace:
    """Generate once and keep every step's view. prompt: see `Session.generate`. Keyword arguments
    are the fields of `Settings`.

    Raises UsageError for a wrong setting, and for a prompt without tokens.
    """
    names = {"draft": pair.draft_name, "target": pair.target_name}
    session = Session(pair, settings_of(names | settings), likely=LIKELY)
    ids = session.encode(prompt)
    steps = list(watch(session, ids))
    read, written = pair.tokenizer.decode(ids), [t for step in steps for t in step.emitted]
    text = pair.tokenizer.decode(written, skip_special_tokens=True)
    return Trace(prompt=str(read), settings=session.settings, text=str(text), steps=steps)


def watch(session: Session, ids: list[int], *, index: int = 0) -> Iterator[StepView]:
    """Decode after a prompt. Each step is decoded when the caller takes its view."""
    words, settings, partial = Words(session.pair.tokenizer), session.settings, list[int]()
    root = words.token(ids[-1])
    for number, record in enumerate(session.stream(ids, index=index)):
        tree, bonus = record.tree, record.emitted[len(record.path) :]
        texts, letters = words.of_tree(tree, partial, root)
        likely = tuple(
            Guesses(
                target=words.guesses(letter, own.target), draft=words.guesses(letter, own.draft)
            )
            for letter, own in zip(letters, record.likely, strict=False)
        )
        last = letters[(0, *record.path)[-1]]
        written = tuple(words.written(partial, token) for token in record.emitted)
        root = written[-1] or PART
        yield StepView(
            number=number,
            rule=settings.rule,
            bottom_up=settings.T != 0 and settings.rule in ("traversal", "reserved"),
            tree=tree,
            path=record.path,
            beyond=path_to(tree, record.end)[len(record.path) :],
            emitted=record.emitted,
            texts=texts,
            bonus=words.after(last, bonus[0]) if bonus else None,
            written=written,
            p=record.p,
            q=record.q,
            reach=tuple(record.reach),
            likely=likely,
            seconds={phase: getattr(record, f"{phase}_seconds") for phase in PHASES},
        )


class Words:
    """Tokens as text. A letter of several tokens stands at the one that completes it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer, self._known = tokenizer, dict[int, str]()

    def token(self, token: int) -> str:
        """One token alone, see `token_text`."""
        if token not in self._known:
            self._known[token] = token_text(self._tokenizer, token)
        return self._known[token]

    def written(self, partial: list[int], token: int) -> str:
        """The text that a token adds to the running text. partial: the tokens of an incomplete
        letter before it, which this updates."""
        if not partial and (whole := self.token(token)) != PART:
            return whole
        partial.append(token)
        text = str(self._tokenizer.decode(partial))
        if text.endswith("\ufffd") and len(partial) < LETTER:
            return ""
        partial.clear()
        return text

    def after(self, partial: Sequence[int], token: int) -> str:
        """A token after the tokens of an incomplete letter; PART if it does not complete it."""
        return self.written([*partial], token) or PART

    def guesses(
        self, partial: Sequence[int], found: Sequence[tuple[int, float]]
    ) -> tuple[tuple[str, float, int], ...]:
        """Likely tokens as text, with their probabilities and numbers."""
        return tuple((self.after(partial, token), chance, token) for token, chance in found)

    def of_tree(
        self, tree: TokenTree, partial: Sequence[int], root: str
    ) -> tuple[tuple[str, ...], list[list[int]]]:
        """Each node as text, and the tokens of an incomplete letter after it. partial: those after
        the root, whose text is `root`."""
        texts, letters = [root], [[*partial]]
        for token, parent in zip(tree.tokens[1:], tree.parents[1:], strict=True):
            letter = [*letters[parent]]
            texts.append(self.written(letter, token) or PART)
            letters.append(letter)
        return tuple(texts), letters


def token_text(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """One token as text, with the blank that may begin it; PART if it is only part of a letter."""
    piece = tokenizer.convert_ids_to_tokens(token)
    text = str(tokenizer.decode([token]))
    if "�" in text:
        return PART
    begins_word = isinstance(piece, str) and piece.startswith("▁") and not text.startswith(" ")
    return " " + text if begins_word else text
