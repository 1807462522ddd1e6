"""Links between the project's pages, and paths that its files name, lead somewhere. (`make docs`
checks those of the built site.)"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"\]\((?![a-z]+:)([^\s)#]*)#?([^\s)]*)\)")
NAMED = re.compile(r"\bdocs/[\w/-]+\.(?:md|py)\b")
CODE = re.compile(r"```.*?```|^(?: {4}|\t).*?$|`[^`\n]*`", re.DOTALL | re.MULTILINE)


def tracked(*patterns: str) -> list[Path]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *patterns]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no git, or no clone")
    return [ROOT / line for line in listed.stdout.splitlines() if (ROOT / line).exists()]


def prose(file: Path) -> str:
    """A page's text: a notebook's cells of Markdown, or the whole file."""
    text = file.read_text("utf-8")
    if file.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        texts = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
        text = "\n\n".join(texts)
    return text


def anchors(file: Path) -> set[str]:
    """The anchors of a page's headings, as repository browsers make them."""
    headings = re.findall(r"^#+ (.+)$", prose(file), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_link_leads_somewhere() -> None:
    lost = []
    for page in tracked("*.md", "*.ipynb"):
        for link, anchor in LINK.findall(CODE.sub("", prose(page))):
            file = (page.parent / link).resolve() if link else page
            found = file.exists() and (not anchor or anchor in anchors(file))
            lost += [] if found else [f"{page.relative_to(ROOT)}: {link}#{anchor}"]
    assert not lost


def test_every_page_that_a_file_names_exists() -> None:
    lost = []
    for file in tracked("*.py", "*.sh", "*.md", "*.toml", "*.yml", "Makefile"):
        for name in NAMED.findall(file.read_text("utf-8")):
            lost += [] if (ROOT / name).exists() else [f"{file.relative_to(ROOT)}: {name}"]
    assert not lost
