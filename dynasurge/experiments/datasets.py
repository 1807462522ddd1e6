"""Prompts: the bundled demo set, a local file, or a dataset of the model hub.

Hub datasets are streamed: only the requested rows are fetched, never the whole set. All rows are of
one commit, which is recorded.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynasurge.errors import UsageError, first_line
from dynasurge.files import ASSETS
from dynasurge.settings import DEMO

DEMO_PROMPTS = ASSETS / "demo_prompts.jsonl"
FILE_TYPES = (".txt", ".jsonl", ".csv", ".parquet")
TEXT_FIELDS = ("text", "article", "prompt", "content")
DEFAULT_ROWS = 200


@dataclass(frozen=True, kw_only=True)
class HubDataset:
    """Where a named dataset is on the hub, and which field holds the text."""

    path: str
    config: str | None
    split: str
    field: str


HUB_DATASETS = {
    "cnn": HubDataset(
        path="abisee/cnn_dailymail", config="3.0.0", split="validation", field="article"
    ),
    "c4": HubDataset(path="allenai/c4", config="en", split="validation", field="text"),
    "wiki": HubDataset(
        path="wikimedia/wikipedia", config="20231101.en", split="train", field="text"
    ),
    "openwebtext": HubDataset(
        path="Skylion007/openwebtext", config=None, split="train", field="text"
    ),
}


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """index: its row in the dataset, which also names its random stream. kind: a label, '' if the
    data has none. text: its text, or the messages of a chat. revision: the dataset's commit on the
    hub; for a file, the start of its content's `sha256:`."""

    index: int
    id: str
    kind: str
    text: str | list[dict[str, str]]
    revision: str = ""


def load_prompts(
    dataset: str = DEMO, start: int = 0, end: int | None = None, *, chat: bool = False
) -> list[Prompt]:
    """Rows [start, end) of a dataset: `demo`, a hub name of `HUB_DATASETS`, or a path to a file of
    `FILE_TYPES`. chat: whether rows with `messages` give these.

    end = None means at most DEFAULT_ROWS rows. Raises UsageError for an unknown or unreadable
    dataset, an empty range, and an `end` after the last row.
    """
    if start < 0:
        raise UsageError("--start", start, "rows are counted from 0", "use --start 0")
    if end is not None and end < 1:
        raise UsageError("--end", end, "is one past the last row", "use --end 1 or more")
    if end is not None and start >= end:
        raise UsageError(
            "--start", start, f"not below --end {end}", f"use --start 0 or --end {start + 1}"
        )
    stop = min(start + DEFAULT_ROWS if end is None else end, sys.maxsize)
    if dataset in HUB_DATASETS:
        revision, rows = _hub_rows(dataset, start, stop)
    else:
        path = DEMO_PROMPTS if dataset == DEMO else Path(dataset)
        if dataset != DEMO and path.suffix not in FILE_TYPES:
            known = ", ".join((DEMO, *HUB_DATASETS))
            raise UsageError(
                "--dataset", dataset, "unknown", f"choose {known}, or a {'/'.join(FILE_TYPES)} file"
            )
        rows = list(itertools.islice(_file_rows(path, chat), min(start, stop), stop))
        revision = _revision(path.read_bytes())
    if not rows or (end is not None and len(rows) < end - start):
        available = start + len(rows)
        flag, value = ("--end", end) if end is not None and rows else ("--start", start)
        if not rows and start == 0:
            raise UsageError(
                "--dataset", dataset, "holds no prompt", "give one with at least one row of text"
            )
        held = (
            f"--dataset {dataset} has {available} rows"
            if rows
            else f"--dataset {dataset} has no row there"
        )
        raise UsageError(
            flag, value, held, f"use --end {available}" if rows else "use a smaller --start"
        )
    return [_prompt(start + i, row, revision) for i, row in enumerate(rows)]


def one_prompt(text: str) -> Prompt:
    """A text as the only prompt of a dataset. Raises UsageError if it is none."""
    if not text.strip():
        raise UsageError("--prompt", repr(text), "has no text", "give at least one word")
    try:
        content = text.encode()
    except UnicodeEncodeError as error:  # half a surrogate pair: other bytes of the shell
        reason, remedy = "is not UTF-8", "give text in UTF-8"
        raise UsageError("--prompt", ascii(text)[:60], reason, remedy) from error
    return Prompt(index=0, id="0", kind="", text=text, revision=_revision(content))


def _revision(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()[:12]}"


def _prompt(index: int, row: dict[str, Any], revision: str) -> Prompt:
    name = _said(row.get("id")) or str(index)
    kind = _said(row.get("kind", row.get("category")))  # Spec-Bench calls it a category
    return Prompt(index=index, id=name, kind=kind, text=row["text"], revision=revision)


def _said(value: Any) -> str:
    """A field as text; '' for a missing one, which a table's reader gives as NaN."""
    missing = value is None or (isinstance(value, float) and math.isnan(value))
    return (
        "" if missing else str(value).encode(errors="replace").decode()
    )  # a file cannot hold half a surrogate pair


def _hub_rows(name: str, start: int, stop: int) -> tuple[str, list[dict[str, Any]]]:
    """The commit that the dataset's name means today, and rows of that commit. Raises
    UsageError."""
    from datasets import load_dataset  # slow to import, and not needed for local prompts
    from huggingface_hub import HfApi

    source = HUB_DATASETS[name]
    try:
        revision = HfApi().dataset_info(source.path).sha or "main"
        stream = load_dataset(
            source.path, source.config, split=source.split, revision=revision, streaming=True
        )
        rows = list(
            itertools.islice(stream.skip(start), stop - start)
        )  # take() would open one more file
    except Exception as error:  # without a network the hub's client raises many unrelated types
        reason = f"cannot be fetched from the hub ({first_line(error)})"
        remedy = "check the network, or use --dataset demo or a local file"
        raise UsageError("--dataset", name, reason, remedy) from error
    return revision, [
        {"id": row.get("id", start + i), "text": row[source.field]} for i, row in enumerate(rows)
    ]


def _file_rows(path: Path, chat: bool) -> Iterable[dict[str, Any]]:
    """Rows of a local file, each with a `text`. A .txt file has one prompt a line; blank lines are
    left out. Raises UsageError."""
    try:
        if path.suffix in (".txt", ".jsonl"):
            lines = [
                line for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip()
            ]
            rows = [{"text": line} if path.suffix == ".txt" else json.loads(line) for line in lines]
            return _with_text(path, rows, chat)
        import pandas as pd  # slow to import

        cells = {"keep_default_na": False, "na_values": [""]}  # a text may well be "null"
        frame = pd.read_csv(path, **cells) if path.suffix == ".csv" else pd.read_parquet(path)
        return _with_text(path, frame.to_dict(orient="records"), chat)
    except UsageError:
        raise
    except (OSError, ValueError, ImportError, RecursionError) as error:
        reason = f"cannot be read ({first_line(error)})"
        raise UsageError("--dataset", path, reason, "check the path and the format") from error


def _with_text(path: Path, rows: list[Any], chat: bool) -> list[dict[str, Any]]:
    """The rows, each with its prompt as `text`."""
    for number, row in enumerate(rows):
        found = row if isinstance(row, dict) else {}
        messages = found.get("messages")
        if chat and messages is not None:
            chat_of = messages.tolist() if hasattr(messages, "tolist") else messages  # a parquet's
            if not isinstance(chat_of, list) or not all(isinstance(m, dict) for m in chat_of):
                reason, remedy = f"row {number}: its messages are no list of objects", "correct it"
                raise UsageError("--dataset", path, reason, remedy)
            row["text"] = chat_of
            continue
        field = next((f for f in TEXT_FIELDS if isinstance(found.get(f), str)), None)
        if field is None:
            named = f"name the text field one of {', '.join(TEXT_FIELDS)}"
            remedy = named if messages is None else "add --chat to use its messages"
            raise UsageError("--dataset", path, f"row {number} has no text field", remedy)
        row[field].encode()  # half a surrogate pair is no text; this raises ValueError
        row["text"] = row[field]
    return rows
