"""How steps and traces show themselves: in a notebook as SVG with a PNG beside it, in files as either,
and a trace as a page of its own.

    dynasurge.trace(pair, prompt, B=16).steps[3]                     # in a notebook: the tree
    save_picture(trace.steps[3], "tree.svg")                         # or .png: for a paper
    trace.to_html("trace.html")                                      # all steps, in any browser

JupyterLab shows no SVG of a notebook that was not run there (it is not trusted yet), but PNG.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import matplotlib

from dynasurge.decoding.trace import PICTURES, StepView, Trace
from dynasurge.decoding.trace import trace as trace
from dynasurge.errors import UsageError
from dynasurge.files import write_whole
from dynasurge.plots.page import Shown, page
from dynasurge.plots.tree_svg import step_svg, strip_svg

FONTS = ("DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSans", "DejaVuSans-Bold")


def png(svg: str, scale: float = 1.0) -> bytes:
    """A drawing as PNG, on white. The letters are matplotlib's, so it is the same everywhere."""
    import resvg_py

    options: dict[str, Any] = {
        "font_files": _fonts(),
        "skip_system_fonts": True,
        "background": "#ffffff",
    }
    return bytes(resvg_py.svg_to_bytes(svg_string=svg, zoom=scale, **options))


@functools.cache
def _fonts() -> list[str]:
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return [str(folder / f"{name}.ttf") for name in FONTS]


def save_picture(shown: StepView | Trace, path: str | os.PathLike[str]) -> None:
    """Write a step's tree, or a trace's bars, to a .svg or .png file, whole or not at all. Raises
    UsageError if it cannot be written, has another suffix, or is something else."""
    kind = Path(path).suffix.lower().removeprefix(".")
    if (type(shown), "svg") not in PICTURES:
        remedy = "give a step of dynasurge.trace"
        raise UsageError(
            "picture", type(shown).__name__, "is neither trace nor step of one", remedy
        )
    if kind not in ("svg", "png"):
        raise UsageError("path", path, "not a .png or .svg file", "name it tree.png")
    svg = PICTURES[type(shown), "svg"](shown)
    write_file(path, png(svg, scale=3.0) if kind == "png" else svg.encode("utf-8"))


def write_file(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file, whole or not at all. Raises UsageError if that fails."""
    try:
        with write_whole(path) as partial:
            partial.write_bytes(content)
    except OSError as error:
        reason = f"cannot be written ({error})"
        raise UsageError("path", path, reason, "name a writable path") from error


def _trace_svg(trace: Trace) -> str:
    return strip_svg(trace.steps, standalone=True)


def _trace_page(trace: Trace, path: str | os.PathLike[str]) -> None:
    side = Shown(title=trace.settings.arguments, prompt=trace.prompt, steps=trace.steps)
    write_file(path, page([side]).encode("utf-8"))


PICTURES[StepView, "svg"] = step_svg
PICTURES[StepView, "png"] = lambda step: png(step_svg(step))
PICTURES[Trace, "svg"] = _trace_svg
PICTURES[Trace, "png"] = lambda trace: png(_trace_svg(trace))
PICTURES[Trace, "html"] = _trace_page
