"""Docstrings are Markdown: autodoc hands them to MyST in place of reStructuredText."""

from __future__ import annotations

from docutils import nodes
from docutils.utils import new_document
from myst_parser.parsers.sphinx_ import MystParser
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


class Markdown(SphinxDirective):
    """`.. markdown::` in a page of reStructuredText: its content is Markdown."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        here = new_document(self.get_source_info()[0], self.state.document.settings)
        MystParser().parse("\n".join(self.content), here)
        children: list[nodes.Node] = here.children
        return children


def indented(lines: list[str]) -> list[str]:
    """The directive with these lines as its content."""
    return [".. markdown::", "", *(f"   {line}" for line in lines), ""] if any(lines) else lines


def read(
    app: Sphinx, what: str, name: str, value: object, options: object, lines: list[str]
) -> None:
    lines[:] = indented(lines)


def skip(app: Sphinx, what: str, name: str, value: object, skipped: bool, options: object) -> bool:
    """Leave out what `NamedTuple` says of its fields: their numbers."""
    return skipped or type(value).__name__ == "_tuplegetter"


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("markdown", Markdown)
    app.connect("autodoc-process-docstring", read)
    app.connect("autodoc-skip-member", skip)
    return {"parallel_read_safe": True}
