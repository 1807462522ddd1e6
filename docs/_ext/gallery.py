"""The gallery: generations of the demo pair from the bundled prompts, each as the explorer's page.

DYNASURGE_GALLERY=off leaves it out, for a machine without the demo target.
"""

from __future__ import annotations

import os
import re
from html import escape
from itertools import groupby, islice
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util import logging

import dynasurge
from dynasurge.experiments.datasets import load_prompts
from dynasurge.models.pair import Pair

PAGES = Path("build/extra/gallery")
MARK = "<!-- gallery -->"
OF_A_KIND = 2
SETTINGS = {
    "mode": "dTree",
    "B": 16,
    "fill": True,
    "T": 0.6,
    "P": 1.0,
    "prompt_len": 96,
    "new_tokens": 40,
}


def make(app: Sphinx) -> None:
    """Decode each prompt once, unless its page is newer than the package."""
    if os.environ.get("DYNASURGE_GALLERY") == "off":
        logging.getLogger(__name__).info("gallery: left out (DYNASURGE_GALLERY=off)")
        return
    newest = max(file.stat().st_mtime for file in Path("dynasurge").rglob("*.*"))
    pair: Pair | None = None
    for name, _kind, text in chosen():
        page = PAGES / f"{name}.html"
        if page.exists() and page.stat().st_mtime > newest:
            continue
        try:
            pair = pair or dynasurge.load_pair(device="cpu")
        except dynasurge.UsageError as error:
            raise ExtensionError(
                f"gallery: {error}; or DYNASURGE_GALLERY=off leaves it out"
            ) from error
        dynasurge.trace(pair, text, **SETTINGS).to_html(page)


def chosen() -> list[tuple[str, str, str]]:
    """(name of the page, kind, text) of the first prompts of every kind."""
    prompts = sorted(load_prompts(), key=lambda prompt: prompt.kind)
    return [
        (f"{kind}-{number}", kind, str(prompt.text))
        for kind, some in groupby(prompts, key=lambda prompt: prompt.kind)
        for number, prompt in enumerate(islice(some, OF_A_KIND), 1)
    ]


def read(app: Sphinx, docname: str, source: list[str]) -> None:
    """Put the pages that there are in the place of the mark."""
    if MARK not in source[0]:
        return
    shown = ""
    for name, kind, text in chosen():
        if (PAGES / f"{name}.html").exists():
            words = escape(" ".join(re.sub(r"[`|]|-{3,}", " ", text[:110]).split()))
            shown += (
                f'<details class="gallery"><summary><b>{kind}</b> {words} …</summary>'
                f'<iframe src="../gallery/{name}.html" loading="lazy" title="{kind}: {words}"></iframe></details>\n'
            )
    source[0] = source[0].replace(MARK, shown or "*This build has no gallery.*")


def setup(app: Sphinx) -> dict[str, bool]:
    PAGES.mkdir(parents=True, exist_ok=True)  # now, because Sphinx wants html_extra_path to exist
    app.connect("builder-inited", make)
    app.connect("source-read", read)
    return {"parallel_read_safe": True}
