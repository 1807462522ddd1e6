"""Pages that every build makes anew, from docstrings and from parsers, and what pages of docs/ ask
for in a comment: tables of records, the fields of a dataclass, lists of commands, contents.

Generated pages lie in docs/reference/api and docs/reference/commands, which git ignores.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import functools
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

from docstrings import indented
from sources import module_page
from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer

from dynasurge.cli.flags import Parser
from dynasurge.cli.growmap import FORMS
from dynasurge.cli.main import COMMANDS, main
from dynasurge.cli.table import BEGIN, refreshed
from tools.train_draft.__main__ import build_parser

REFERENCE = Path("docs/reference")
COMMAND_LIST = "<!-- commands -->"
CONTENTS = "<!-- contents -->"  # the pages that a page lists are below it
LISTED = re.compile(r"^- \[(.+?)\]\((\S+?)\)", re.MULTILINE)
GLUED = re.compile(
    r" (?=\[[-+]?\d)|(?<=\d[,%]) (?=[-+]?\d[\d.%]*\])| (?=/ \d)|(?<=\d /) | (?=B=|\+ETV|filled)"
)
ROW = re.compile(r"^\|.*", re.MULTILINE)
FIELDS = re.compile(r"<!-- fields (\S+)\.(\w+) -->")


def write(app: Sphinx) -> None:
    """Write all generated pages; a file that stays the same keeps its time."""
    pages = dict(modules())
    pages |= {path: command(parser) for path, parser in parsers().items()}
    for path, text in pages.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text("utf-8") != text:
            path.write_text(text, "utf-8")
    for path in {*REFERENCE.glob("api/*.md"), *REFERENCE.glob("commands/*.md")} - set(pages):
        path.unlink()  # of a module or command that is gone


def modules() -> Iterator[tuple[Path, str]]:
    """A page for every module. A room's page lists its modules with their first sentences."""
    for file in sorted(Path("dynasurge").rglob("[!_]*.py")) + sorted(
        Path("dynasurge").glob("*/__init__.py")
    ):
        page = Path(f"{module_page(file)}.md")
        text = f"# {page.stem.partition('.')[2]}\n\n{fenced([f'.. automodule:: {page.stem}'])}\n"
        if file.name == "__init__.py":
            for below in sorted(file.parent.glob("[!_]*.py")):
                said = ast.get_docstring(ast.parse(below.read_text("utf-8"))) or ""
                text += f"\n- [{below.stem}]({page.stem}.{below.stem}.md): {first_sentence(said)}"
            text += f"\n\n{CONTENTS}\n"
        yield page, text


def first_sentence(text: str) -> str:
    """The first sentence, without the name of a command before it."""
    text = re.sub(r"^`(dynasurge|make) \w+`: ", "", text)
    return " ".join(re.split(r"(?<=[.?])\s|\n\n", text)[0].split())


@functools.cache
def parsers() -> dict[Path, argparse.ArgumentParser]:
    """The parser of every form of the command, and its page."""
    lines = [[], *([word] for word in COMMANDS), ["calibrate", "acceptance"]]
    found = [parser_of(words) for words in [*lines, *(["growmap", form] for form in FORMS)]]
    for action in build_parser()._actions:
        if isinstance(action, argparse._SubParsersAction):
            for about in action._choices_actions:
                action.choices[about.dest].description = about.help
            found += action.choices.values()
    name = {parser.prog: re.sub(r"[^\w]+", "-", parser.prog) for parser in found}
    return {REFERENCE / "commands" / f"{name[parser.prog]}.md": parser for parser in found}


def parser_of(words: list[str]) -> argparse.ArgumentParser:
    """The parser of `dynasurge WORDS`, caught when it is about to read arguments."""
    caught: list[argparse.ArgumentParser] = []

    def catch(parser: argparse.ArgumentParser, *_: Any) -> None:
        caught.append(parser)
        raise KeyboardInterrupt  # `main` answers with a line and an exit code

    with patch.object(Parser, "parse_args", catch), patch("sys.stderr"):
        main(words)
    return caught[0]


def command(parser: argparse.ArgumentParser) -> str:
    """The page of a command: its help."""
    lines = [f".. program:: {parser.prog}", ""]
    for action in parser._actions:
        values = parser._get_formatter()._format_args(
            action, str(action.metavar or action.dest).upper()
        )
        names = [f"{flag} {values}".strip() for flag in action.option_strings] or [values]
        said = (action.help or "default: %(default)s") % (vars(action) | {"prog": parser.prog})
        lines += [
            f".. option:: {', '.join(names)}",
            "",
            *(f"   {line}" for line in indented([said])),
        ]
    usage = "\n".join([parser.format_usage(), parser.epilog or ""]).strip()
    return f"# {parser.prog}\n\n{parser.description or ''}\n\n```text\n{usage}\n```\n\n{fenced(lines)}\n"


def fenced(lines: list[str]) -> str:
    """reStructuredText inside a page of Markdown."""
    return "\n".join(["```{eval-rst}", *lines, "```"])


def complete(app: Sphinx, docname: str, source: list[str]) -> None:
    """Put in what a page asks for, before it is parsed."""
    path, text = Path(app.env.doc2path(docname)), source[0]
    if "docs" in path.parts and BEGIN.search(text) and "`<!-- dynasurge" not in text:
        text = refreshed(path)
    if "docs" in path.parts:
        text = ROW.sub(lambda row: GLUED.sub("\u00a0", row[0]), text)  # numbers stay on one line
    text = FIELDS.sub(lambda found: fields(found[1], found[2]), text)
    if COMMAND_LIST in text:
        listed = [f"- [{parser.prog}]({page.relative_to(REFERENCE)}): {first_sentence(parser.description or '')}"
                  for page, parser in parsers().items()]  # fmt: skip
        text = text.replace(COMMAND_LIST, "\n".join(listed))
    if CONTENTS in text:
        below = [f"{label} <{target(link)}>" for label, link in LISTED.findall(text)]
        text += "\n".join(["", "```{toctree}", ":hidden:", "", *below, "```", ""])
    source[0] = text


def target(link: str) -> str:
    """What a table of contents calls the page that a link in a list leads to."""
    _, inside, module = link.partition("dynasurge/")
    return (
        f"/{module_page(Path(inside + module))}"
        if link.endswith(".py")
        else link.rpartition(".")[0]
    )


def fields(module: str, name: str) -> str:
    """The fields of a dataclass as a table. Their meanings are the `#:` comments beside them."""
    said = ModuleAnalyzer.for_module(module).find_attr_docs()
    lines = ["| field | type | meaning |", "|---|---|---|"]
    for field in dataclasses.fields(getattr(importlib.import_module(module), name)):
        kind = str(field.type).replace("|", r"\|")
        lines.append(
            f"| `{field.name}` | `{kind}` | {' '.join(said.get((name, field.name), []))} |"
        )
    return "\n".join(lines)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("builder-inited", write)
    app.connect("source-read", complete)
    return {"parallel_read_safe": True}
