"""Reads back what commands print and write, so that tests look at values and not at how they are
laid out."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any


def records(folder: Path) -> list[dict[str, Any]]:
    """The rows that a run has written to its folder."""
    return [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]


def numbers(text: str) -> list[float]:
    """The numbers that a text tells, in order."""
    return [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", text)]


def aligned(text: str) -> dict[str, list[str]]:
    """The lines of a table in columns: by the first cell, the others."""
    lines = [re.split(r"\s{2,}", line.rstrip()) for line in text.splitlines()]
    return {first: others for first, *others in lines if others}


def markdown(text: str) -> dict[str, list[dict[str, str]]]:
    """The tables of a text by the title in front of each: rows, whose cells go by their column."""
    tables: dict[str, list[dict[str, str]]] = {}
    title, head = "", []
    for line in text.splitlines():
        if line.startswith("**"):
            title, head = line.replace("*", ""), []
        elif line.startswith("|"):
            cells = [cell.strip() for cell in line[1:-1].split("|")]
            if not head:
                head = cells
            elif not set(line) <= set("|-"):
                tables.setdefault(title, []).append(dict(zip(head, cells, strict=True)))
    return tables
