"""What audits found, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from dynasurge.plots.style import INK, LOSSY, PLAIN, new_figure, say, styled
from dynasurge.plots.style import LINES as COLOURS
from dynasurge.verification.audit_report import AuditReport
from dynasurge.verification.enumeration import EXACT

LEAST = 1e-17  # where a total variation of 0 stands


@styled
def audit_figure(reports: Mapping[str, AuditReport], caption: str) -> Figure:
    """The largest total variation of each audit from the target's law, on a logarithmic scale. A
    hatched bar is a rule that is not lossless; a plain one is rounding."""
    figure = new_figure(6.4, 0.6 + 0.24 * len(reports))
    axes = figure.subplots()
    for place, report in enumerate(reports.values()):
        off = not report.lossless
        width = max(report.distance, LEAST)
        how: dict[str, Any] = {
            "color": COLOURS[1] if off else PLAIN,
            "edgecolor": INK,
            "linewidth": 0.6,
        }
        axes.barh(place, width - LEAST, 0.7, left=LEAST, hatch=LOSSY if off else "", **how)
        example = report.counterexample
        said = f"{report.distance:.1g}"
        if example is not None and example.edge:
            said = "only if a random number is exactly 0"
        axes.text(width * 2, place, said, va="center", fontsize=7, color=INK)
    axes.axvline(EXACT, color=INK, linestyle=":", linewidth=0.9)
    axes.set_xscale("log")
    axes.set_xlim(LEAST, 3e2)
    axes.set_xticks([1e-16, 1e-12, 1e-8, 1e-4, 1])
    axes.set_yticks(range(len(reports)), list(reports))
    axes.set_xlabel("largest total variation from the target's law")
    axes.set_ylim(len(reports) - 0.4, -0.6)
    say(figure, caption)
    return figure
