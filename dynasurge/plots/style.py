"""One style for all figures, so that they fit together in a paper and stay readable in grey print.

Every function that draws is wrapped in `styled`. It sets matplotlib's defaults while the function
runs and leaves the user's own alone. Colours are Okabe and Ito's, which colour-blind readers can
distinguish. What a colour shows is also shown by lightness (`PLAIN` is light, `ETV` dark), a dash
pattern, a marker or a hatch (lossy results), so grey print shows it too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ParamSpec

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import ArrayLike

INK, FAINT = "#222222", "#dddddd"
PLAIN, ETV = "#b9d7ea", "#c8590f"  # without and with Enhanced Tree Verification
LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#222222", "#56b4e9", "#e69f00")
DASHES = ("-", "--", "-.", ":")
MARKERS = "osD^vPX"
LOSSY = "//"  # the hatch of results that change the target's distribution
RC: Any = {  # matplotlib types its keys one by one
    "font.size": 8,
    "font.family": "DejaVu Sans",  # comes with matplotlib, so figures are the same everywhere
    "axes.labelsize": 8,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid.axis": "y",
    "grid.color": FAINT,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "hatch.linewidth": 0.6,
    "lines.linewidth": 1.2,
    "lines.markersize": 4,
    "svg.fonttype": "path",
    "svg.hashsalt": "dynasurge",  # the same figure is the same file
}
P = ParamSpec("P")


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Wrap a drawing function so that it runs with RC."""

    @functools.wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with matplotlib.rc_context(RC):
            return draw(*args, **kwargs)

    return drawn


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches. It needs no display, and matplotlib arranges its panels."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def say(figure: Figure, caption: str) -> None:
    """Write a caption below everything, wrapped to the figure's width."""
    figure.supxlabel(
        caption.replace("$", r"\$"), fontsize=7, color=INK, wrap=True
    )  # escaped: a dollar would begin a formula


def line_style(number: int) -> dict[str, Any]:
    """Colour, dashes and marker of line `number`. Each alone distinguishes lines."""
    return {
        "color": LINES[number % len(LINES)],
        "linestyle": DASHES[number % len(DASHES)],
        "marker": MARKERS[number % len(MARKERS)],
    }


def band(axes: Axes, table: pd.DataFrame, x: str, y: str, number: int, label: str) -> None:
    """Draw line `number` of a table of means with the columns x, y, y_low and y_high: a band for
    the intervals, and open marks where there is none."""
    style = line_style(number)
    axes.plot(table[x], table[y], label=label, **style)
    low, high = table[f"{y}_low"].astype(float), table[f"{y}_high"].astype(float)
    axes.fill_between(table[x], low, high, color=style["color"], alpha=0.18, linewidth=0)
    few = table[low.isna()]
    own = {"color": style["color"], "marker": style["marker"], "linestyle": ""}
    axes.plot(few[x], few[y], markerfacecolor="white", **own)


def across(axes: Axes, heights: ArrayLike) -> None:
    """Draw ordinary decoding, `auto`: a dashed line, and a band for its interval. heights: the value
    and both ends; NaN for no interval."""
    value, low, high = np.asarray(heights, dtype=float)
    axes.axhline(value, color=INK, linestyle="--", linewidth=0.9, label="auto (no tree)")
    if np.isfinite(low):
        axes.axhspan(low, high, color=INK, alpha=0.12, linewidth=0, zorder=0.5)


def whiskers(axes: Axes, x: ArrayLike, heights: ArrayLike) -> None:
    """Draw the intervals of values at x. heights: [3, n], the values and both ends; an end that is
    NaN is not drawn."""
    values = np.asarray(heights, dtype=float)
    ends = np.abs(values[1:] - values[0])
    if np.isfinite(ends).any():
        axes.errorbar(x, values[0], ends, linestyle="", color=INK, linewidth=0.7, zorder=1.5)


def quiet(axes: Axes) -> None:
    """Draw a grid behind the data, and let the y axis start at zero with room for the highest
    mark."""
    axes.grid(visible=True, axis="y")
    axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
