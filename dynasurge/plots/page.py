"""Generations as one HTML file: the explorer where no kernel runs, offline, in any browser.

The page has the explorer's own views (assets/tree.js) and one row of controls for all of them. What
the kernel would send, a step's text, tree and bars, is in the page, compressed. `beside_widget`
is the same page inside a notebook's output: it stands in for the widget wherever that is dead.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from dynasurge.decoding.trace import StepView
from dynasurge.files import ASSETS
from dynasurge.plots.tree_svg import (
    STYLE,
    palette_rules,
    spoken,
    step_svg,
    strip_svg,
    text_html,
    timed,
)

BUTTONS = {"first": "|◀", "previous": "◀", "next": "▶", "last": "▶|"}
HEIGHT = 740  # pixels of a page inside a notebook
# JupyterLab has the widget (a panel) and then the page, each in an output of its own. Whichever is
# alive is shown. A widget without a kernel is a message, or says itself that it is dead.
SWITCH = (
    ".jp-OutputArea-child:has(.dynasurge:not(.dead)) + .jp-OutputArea-child:has(.dynasurge-page), "
    '.jp-OutputArea-child:has(> .jp-OutputArea-output.lm-Panel, .jupyter-widgets, [type*="widget-view"])'
    ":has(+ .jp-OutputArea-child .dynasurge-page):not(:has(.dynasurge:not(.dead))) "
    "{ display: none; } .dynasurge-still { display: none; }"
)


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One generation on a page. title: its settings in words."""

    title: str
    prompt: str
    steps: Sequence[StepView]


def style() -> str:
    """The CSS of a view: its palette, light and dark, the tree and the frame around it."""
    files = (STYLE, STYLE.with_name("widget.css"))
    return palette_rules() + "".join(file.read_text("utf-8") for file in files)


def code_of(settings: str) -> str:
    """The line of Python that makes the same steps. settings: as keyword arguments."""
    return f"dynasurge.trace(pair, prompt, {settings})" if settings else ""


def page(sides: Sequence[Shown], now: int = 0) -> str:
    """An HTML document that shows these generations beside each other, at step `now` first."""
    steps = {"now": now, "sides": [_side(side) for side in sides]}
    packed = base64.b64encode(gzip.compress(json.dumps(steps).encode(), mtime=0)).decode()
    code = "".join((ASSETS / name).read_text("utf-8") for name in ("tree.js", "page.js"))
    buttons = "".join(
        f'<button data-go="{where}" aria-label="{where} step" title="{where} step">{sign}</button>'
        for where, sign in BUTTONS.items()
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>A generation with token trees</title><style>{style()}</style></head>"
        f'<body><main class="dynasurge page"><nav>{buttons}'
        '<label>step <input type="range" min="0"> <output></output></label></nav>'
        '<div class="sides"></div></main>'
        f'<script type="application/octet-stream" id="steps">{packed}</script>'
        f'<script type="module">{code}</script></body></html>'
    )


def _side(side: Shown) -> dict[str, object]:
    numbers = range(len(side.steps))
    return {
        "code": code_of(side.title),
        "status": [timed(step) for step in side.steps],
        "text": [text_html(side.prompt, side.steps, number) for number in numbers],
        "tree": [step_svg(step, standalone=False) for step in side.steps],
        "strip": strip_svg(side.steps, speed=True),
    }


def beside_widget(sides: Sequence[Shown], picture: bytes, now: int = 0) -> str:
    """HTML for the output after a widget's, empty without steps. picture: a PNG of step `now`; it
    is what is left in a notebook that is not trusted, which loses its style and its frames."""
    if not all(side.steps for side in sides):
        return ""
    still = f'src="data:image/png;base64,{base64.b64encode(picture).decode()}"'
    said = escape("; ".join(spoken(side.steps[min(now, len(side.steps) - 1)]) for side in sides))
    frame = (
        f'style="width: 100%; height: {HEIGHT}px; border: 0" title="A generation with token trees"'
    )
    return (
        f'<style>{SWITCH}</style><div class="dynasurge-page">'
        f'<img class="dynasurge-still" alt="{said}" {still}/>'
        f'<iframe {frame} srcdoc="{escape(page(sides, now))}"></iframe></div>'
    )
