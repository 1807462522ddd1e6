"""Links to files of the repository: to a module's page, or to the highlighted source."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.builders.html import StandaloneHTMLBuilder
from sphinx.transforms import SphinxTransform
from sphinx.util.osutil import relative_uri

SHOWN = {".py": "python", ".sh": "bash", ".yaml": "yaml", ".toml": "toml", ".txt": "text"}
PAGES = "source/"  # where highlighted files are in the site


def module_page(file: Path) -> str:
    """The page of a module of the package, from the repository's root, without its suffix."""
    name = ".".join(file.with_suffix("").parts).removesuffix(".__init__")
    return "docs/reference/public" if name == "dynasurge" else f"docs/reference/api/{name}"


class SourceLinks(SphinxTransform):
    """Replace links that would download a file of the repository."""

    default_priority = 400

    def apply(self, **_: Any) -> None:
        here = self.app.builder.get_target_uri(self.env.docname)
        for link in list(self.document.findall(addnodes.download_reference)):
            path, _full = self.env.relfn2path(link["reftarget"], self.env.docname)
            file = Path(path)
            if file.suffix not in SHOWN or not file.is_file():
                continue
            if file.suffix == ".py" and file.parts[0] == "dynasurge":
                page = module_page(file)
            else:
                page = PAGES + path
                vars(self.env).setdefault("shown_sources", set()).add(path)
            uri = relative_uri(here, f"{page}.html")
            link.replace_self(nodes.reference("", "", *link.children, refuri=uri, internal=True))


def shown(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    """A page for every file that a link leads to."""
    if not isinstance(app.builder, StandaloneHTMLBuilder):
        return
    for path in sorted(getattr(app.env, "shown_sources", ())):
        text, language = Path(path).read_text("utf-8"), SHOWN[Path(path).suffix]
        code = app.builder.highlighter.highlight_block(text, language, linenos="inline")
        yield PAGES + path, {"title": path, "body": f"<h1>{path}</h1>{code}"}, "page.html"


def front(app: Sphinx, error: Exception | None) -> None:
    """index.html leads to the front page."""
    if not error:
        to = "docs/index.html"
        text = f'<!doctype html><meta http-equiv="refresh" content="0; url={to}"><a href="{to}">Docs</a>'
        (Path(app.outdir) / "index.html").write_text(text, "utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_transform(SourceLinks)
    app.connect("html-collect-pages", shown)
    app.connect("build-finished", front)
    return {"parallel_read_safe": False}
