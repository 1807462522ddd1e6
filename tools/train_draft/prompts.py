"""Openers: written beginnings that the target continues.

A draft is used on news, web pages, questions and code, so its training text should be similar. A
small grammar of templates and word lists gives hundreds of thousands of different beginnings; the
target writes the rest. A share of the openers is only a start token or one random token. All of
this follows from (seed, shard).

In a template ``{slot}`` draws a new choice each time. ``{slot1}`` draws once and stays the same
within the opener. Choices may hold slots.
"""

from __future__ import annotations

import random
from typing import Any

from tools.train_draft.templates import FOLLOW_UP, KINDS, TEMPLATES
from tools.train_draft.wordlists import WORDS

__all__ = ["KINDS", "TEMPLATES", "fill", "openers", "write_opener"]


class _Slots(dict[str, str]):
    """Mapping for ``str.format_map``: draws a choice for each slot, and remembers only numbered
    ones."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self.rng = rng

    def __missing__(self, slot: str) -> str:
        numbered = slot[-1].isdigit()
        choice = self.rng.choice(WORDS[slot.rstrip("0123456789")])
        text = choice.format_map(self) if "{" in choice else choice
        if numbered:
            self[slot] = text
        return text


def fill(template: str, rng: random.Random) -> str:
    """A template with every slot drawn."""
    return template.format_map(_Slots(rng))


def write_opener(kind: str, rng: random.Random) -> str:
    """One opener of a kind other than ``bare``. It starts with a capital unless it is code or a
    list."""
    text = fill(rng.choice(TEMPLATES[kind]), rng)
    if kind == "news":
        text = text[:1].upper() + text[1:] + fill(rng.choice(FOLLOW_UP), rng)
    elif kind in ("web", "encyclopedia", "story"):
        text = text[:1].upper() + text[1:]
        if rng.random() < 0.2:
            text += " " + fill(rng.choice(WORDS["sentence"]), rng)
    if (
        kind not in ("chat", "question") and rng.random() < 0.25
    ):  # stop in the middle, as a prompt that was cut to a length does
        words = text.split(" ")
        text = " ".join(words[: rng.randint(1, len(words))]) or text
    return text.rstrip(" ") or text


def openers(tokenizer: Any, seed: int, shard: int, count: int, longest: int) -> list[list[int]]:
    """``count`` openers of one shard as token ids, each with 1 to ``longest`` tokens."""
    rng = random.Random(f"{seed}:{shard}")
    kinds = rng.choices(list(KINDS), weights=list(KINDS.values()), k=count)
    texts: list[str] = []
    places: list[int] = []
    result: list[list[int]] = [[] for _ in range(count)]
    start = 0 if tokenizer.bos_token_id is None else int(tokenizer.bos_token_id)
    for place, kind in enumerate(kinds):
        if kind == "bare":
            result[place] = [start if rng.random() < 0.3 else rng.randrange(len(tokenizer))]
            continue
        text = write_opener(kind, rng)
        if kind == "chat" and tokenizer.chat_template is not None:
            turns = [{"role": "user", "content": text}]
            if rng.random() < 0.4:
                turns.insert(0, {"role": "system", "content": "You are a helpful assistant."})
            text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        texts.append(text)
        places.append(place)
    encoded = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    for place, ids in zip(places, encoded, strict=True):
        result[place] = list(ids[:longest]) or [start]
    return result
