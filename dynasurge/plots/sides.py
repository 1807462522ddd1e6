"""One setting in the explorer: its controls, and its view of one step.

The controls are ipywidgets. `TreeView`, an anywidget, shows text, tree and bars (assets/tree.js is
its part in the page). Both offer only what can be decoded: see `rules_of`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from dynasurge.decoding.tree_room import most_nodes
from dynasurge.errors import UsageError
from dynasurge.plots.background import Run
from dynasurge.plots.page import code_of
from dynasurge.plots.page import style as view_style
from dynasurge.plots.tree_svg import STYLE, step_svg, strip_svg, text_html, timed
from dynasurge.settings import AUTO_NODES, ETVS, MODES, POLICIES, Settings

try:
    import anywidget
    import ipywidgets as ipw
    import traitlets
except ImportError as error:
    raise ImportError(
        f"dynasurge.plots.explorer needs {error.name}; pip install 'dynasurge[notebooks]'"
    ) from error

BUDGETS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, AUTO_NODES)
GROWMAP = "4x8"  # the first shape of sTree
SHAPES = ("2x2", "4x8", "8x8", "chain8", "2ary4", "optimal15", "optimal31", "optimal63")
RULES = {name: name if name != "bfs" else "bfs (lossy)" for name in ("topdown", *ETVS)}
USED = {
    "growmap": ("sTree",),
    "B": ("dTree",),
    "fill": ("dTree",),
    "policy": ("sTree", "dTree"),
    "rule": ("sTree", "dTree"),
}  # the modes that use each setting


class TreeView(anywidget.AnyWidget):  # type: ignore[misc]
    """One step of one setting on the page, from text that is ready to be shown (plots/tree_svg.py).

    When the reader chooses another step, the page sends a message {"step": "next" | "previous" |
    "first" | "last" | number}. It also asks {"alive": true}: a view that nobody answers has no
    kernel any more, and makes room for the page (plots/page.py).
    """

    _esm = STYLE.with_name("tree.js")
    _css = view_style()
    code = traitlets.Unicode().tag(sync=True)  # the Python that makes these steps
    status = traitlets.Unicode().tag(sync=True)
    text = traitlets.Unicode().tag(sync=True)
    tree = traitlets.Unicode().tag(sync=True)
    strip = traitlets.Unicode().tag(sync=True)
    stale = traitlets.Bool().tag(sync=True)  # the tree is that of an earlier setting
    _painted: tuple[Run, int] | None = (
        None  # the run and the step whose tree and text are on the page
    )

    def paint(self, run: Run, number: int) -> None:
        """Show step `number` of a run, or its last step so far."""
        last = len(run.steps) - 1
        with self.hold_sync():
            self.code = code_of(run.title)
            self.stale = last < 0
            if last < 0:  # what was there stays, dimmed, so that the page does not jump
                self.status, self._painted = run.error or "decoding…", None
                return
            step = run.steps[min(number, last)]
            ended = f", the text ended at step {last}" if run.finished and number > last else ""
            said = [f"{timed(step)}{ended}", run.note, "" if run.finished else "decoding…"]
            self.status = run.error or " · ".join(filter(None, said))
            if self._painted != (run, step.number):
                self.text = text_html(run.prompt, run.steps, step.number)
                self.tree = step_svg(step, standalone=False)
                self._painted = run, step.number
            self.strip = strip_svg(run.steps, step.number, speed=True)


@dataclass(kw_only=True, eq=False)
class Side:
    """One setting: its first settings, its controls by the name of what they set, its view, and its
    present run."""

    settings: Settings
    controls: dict[str, Any]
    view: TreeView = field(default_factory=TreeView)
    run: Run = field(default_factory=lambda: Run(finished=True))

    def chosen(self, seed: int) -> Settings:
        """The settings of the controls. Raises UsageError."""
        values = {name: control.value for name, control in self.controls.items()}
        rule, growmap = values.pop("rule"), values.pop("growmap")
        rule = next(name for name, shown in RULES.items() if shown == rule)
        etv = values["mode"] != "auto" and rule != "topdown"
        values |= {"use_bfs": etv, "etv": rule if etv else "traversal", "seed": seed}
        static, dynamic = values["mode"] == "sTree", values["mode"] == "dTree"
        values["fill"] = values["fill"] and dynamic and values["B"] != "auto"
        # A dynamic tree may also have a growmap, which bounds its depth, but only the one that the
        # side started with.
        values["growmap"] = (
            growmap if static else self.settings.growmap if dynamic and self.bounded else None
        )
        settings = dataclasses.replace(self.settings, **values)
        nodes = most_nodes(settings)
        if nodes > AUTO_NODES:
            flag, value = ("--growmap", growmap) if static else ("--B", settings.B)
            raise UsageError(flag, value, f"has {nodes} nodes", f"use at most {AUTO_NODES}")
        return settings

    @property
    def bounded(self) -> bool:
        """Whether the side started with a dynamic tree whose depth a growmap bounds."""
        return self.settings.mode == "dTree" and self.settings.growmap is not None


def rules_of(mode: str, policy: str) -> list[str]:
    """The rules that trees of a mode and a policy may have, as the page shows them."""
    fixed = mode == "sTree" and policy == "sampled"  # child counts, and no points: for `reserved`
    return [shown for name, shown in RULES.items() if name != "reserved" or fixed]


def make_side(settings: Settings, on_choice: Callable[[Side], None]) -> Side:
    """A side whose controls begin with these settings. A changed control calls `on_choice`."""

    def style(width: str) -> dict[str, Any]:
        return {"layout": {"width": width}, "style": {"description_width": "initial"}}

    budgets = sorted({*BUDGETS, settings.budget} if settings.B != "auto" else BUDGETS)
    own = settings.growmap or GROWMAP
    controls = {
        "mode": ipw.Dropdown(
            options=MODES, value=settings.mode, description="mode", **style("auto")
        ),
        "growmap": ipw.Combobox(
            value=own,
            options=SHAPES,
            description="growmap",
            continuous_update=False,
            **style("170px"),
        ),
        "B": ipw.Dropdown(
            options=["auto", *budgets], value=settings.B, description="B", **style("auto")
        ),
        "fill": ipw.Checkbox(
            settings.fill, description="fill", indent=False, layout={"width": "60px"}
        ),
        "T": ipw.BoundedFloatText(
            settings.T, min=0, max=100, step=0.1, description="T", **style("90px")
        ),
        "policy": ipw.Dropdown(
            options=POLICIES, value=settings.policy, description="policy", **style("auto")
        ),
        "rule": ipw.Dropdown(
            options=list(RULES.values()),
            value=RULES[settings.rule],
            description="rule",
            **style("auto"),
        ),
    }
    side = Side(settings=settings, controls=controls)

    def offer(_: object = None) -> None:
        """Disable what the mode does not use, and offer the rules that its trees may have."""
        mode, policy, rule = (controls[name] for name in ("mode", "policy", "rule"))
        for name, modes in USED.items():
            controls[name].disabled = mode.value not in modes
        rules = rules_of(mode.value, policy.value)
        if (mode.value, policy.value) == (settings.mode, settings.policy):
            rules = list(dict.fromkeys([*rules, RULES[settings.rule]]))  # greedy trees have any
        if list(rule.options) != rules:
            kept = rule.value if rule.value in rules else rules[0]
            rule.options = rules  # which chooses the first
            rule.value = kept

    offer()
    for name in ("mode", "policy"):
        controls[name].observe(offer, "value")
    for control in controls.values():
        control.observe(lambda _: on_choice(side), "value")
    return side
