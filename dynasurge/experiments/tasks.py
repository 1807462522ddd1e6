"""Which prompts an evaluation takes: read by the pair's tokenizer, cut, and long enough."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dynasurge.errors import UsageError
from dynasurge.experiments.datasets import Prompt
from dynasurge.models.pair import Pair


@dataclass(frozen=True, kw_only=True)
class Task:
    """A prompt to take through every setting. ids: its tokens, already cut."""

    dataset: str
    prompt: Prompt
    ids: list[int]


class Tasks(NamedTuple):
    """skipped: by dataset, the indices of prompts that are too short; cut: by dataset, how many
    were cut."""

    tasks: list[Task]
    skipped: dict[str, list[int]]
    cut: dict[str, int]


def make_tasks(
    pair: Pair,
    data: Mapping[str, Sequence[Prompt]],
    limit: int | None,
    least: int,
    *,
    chat: bool = False,
) -> Tasks:
    """The prompts of at least `least` tokens, each cut to `limit`, dataset by dataset. chat: see
    `Pair.encode`. Raises UsageError if a dataset has none."""
    out = Tasks([], {}, {})
    for dataset, prompts in data.items():
        texts = [_encoded(pair, prompt, chat, None) for prompt in prompts]
        encoded = [
            Task(
                dataset=dataset,
                prompt=prompt,
                ids=_encoded(pair, prompt, chat, limit) if len(ids) > (limit or len(ids)) else ids,
            )
            for prompt, ids in zip(prompts, texts, strict=True)
        ]
        tasks = [task for task in encoded if len(task.ids) >= least]
        out.skipped[dataset] = [task.prompt.index for task in encoded if len(task.ids) < least]
        out.cut[dataset] = sum(
            len(ids) > len(task.ids) for ids, task in zip(texts, encoded, strict=True)
        )
        if not tasks:
            longest = max(len(task.ids) for task in encoded)
            held = f"no row asked for of --dataset {dataset} has so many tokens"
            remedy = (
                f"use --min-prompt-len {longest}, or other rows" if longest else "choose other rows"
            )
            raise UsageError("--min-prompt-len", least, held, remedy)
        out.tasks.extend(tasks)
    return out


def _encoded(pair: Pair, prompt: Prompt, chat: bool, limit: int | None) -> list[int]:
    """A prompt's tokens. A text without a token is to be left out, not refused."""
    text = prompt.text
    if isinstance(text, str) and not pair.tokenizer(text).input_ids:
        return []
    return pair.encode(text, chat=chat, limit=limit)
