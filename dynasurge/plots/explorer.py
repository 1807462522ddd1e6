"""The tree explorer: watch one prompt's trees grow, step by step, under any settings, in
JupyterLab.

    from dynasurge.plots.explorer import Explorer
    Explorer(pair, mode="dTree", B=16, T=0.6)                       # one setting
    Explorer(pair, mode="dTree", B=16, compare={"T": 1.0})          # two, on the same prompt and seed

The page never waits for decoding. One background thread decodes ahead, one prompt at a time, and
every step appears as soon as it is decoded. When a setting changes, its side starts again, and its
present decoding stops.

A setting's controls and its view are in plots/sides.py. Where no kernel runs, the explorer is a
page of all the steps that it decoded last (plots/page.py), or a picture of one.
"""

from __future__ import annotations

import dataclasses
import os
import re
from base64 import b64encode
from collections.abc import Iterable, Mapping
from typing import Any

from dynasurge.decoding.trace import StepView
from dynasurge.errors import UsageError
from dynasurge.experiments.datasets import load_prompts
from dynasurge.models.pair import Pair, load_pair
from dynasurge.plots.background import Background, Run
from dynasurge.plots.page import Shown, beside_widget, page
from dynasurge.plots.pictures import png, write_file
from dynasurge.plots.sides import Side, TreeView, make_side
from dynasurge.plots.tree_svg import above_one_another, step_svg
from dynasurge.settings import AUTO_DEPTH, AUTO_NODES, Settings, settings_of

try:
    import ipywidgets as ipw
    from IPython import display as ipython
except ImportError as error:
    raise ImportError(
        f"dynasurge.plots.explorer needs {error.name}; pip install 'dynasurge[notebooks]'"
    ) from error

LARGEST_SEED = 2**53 - 1  # the largest whole number that a page can count
BUTTONS = {
    "first": "fast-backward",
    "previous": "step-backward",
    "next": "step-forward",
    "last": "fast-forward",
}


class Explorer:
    """Controls, and one or two views of the same prompt and seed. `box` is the widget, for a page
    of your own.

    pair: the demo pair if None. prompt: a text; the first demo prompt if None. compare: the fields
    in which a second setting differs from the first; None for a single view (the page can add the
    other). T, P: None takes what the target's generation config says. Further keyword arguments are
    fields of `Settings`; with `chat`, prompts are the user's turn. Trees have at most 128 nodes.
    Raises UsageError for a wrong setting; the page shows the error of a setting that is chosen
    there.
    """

    def __init__(
        self,
        pair: Pair | None = None,
        *,
        prompt: str | None = None,
        compare: Mapping[str, Any] | None = None,
        prompt_len: int = 128,
        new_tokens: int = 64,
        T: float | None = 0.6,
        P: float | None = 1.0,
        **settings: Any,
    ) -> None:
        room: dict[str, Any] = {
            "prompt_len": prompt_len,
            "new_tokens": new_tokens,
            "M": prompt_len + new_tokens + AUTO_NODES,
        }
        first = settings_of(room | settings | {"T": T, "P": P})
        for name in (*room, "seed", "draft", "target", "dtype", "device"):
            if name in (compare or {}):
                raise UsageError(
                    "compare", name, "is the same on both sides", "give it to Explorer itself"
                )
        known = {field.name for field in dataclasses.fields(Settings)}
        for name in set(compare or {}) - known:
            raise UsageError("compare", name, "is no field of Settings", "check its name")
        if prompt is not None and not isinstance(prompt, str):
            raise UsageError(
                "prompt", str(prompt)[:40], "is no text", "give the user's turn as text"
            )
        models = pair or load_pair(
            first.draft, first.target, dtype=first.dtype, device=first.device
        )
        first = first.under(models.generation_config)
        most = {"T": 100.0, "seed": LARGEST_SEED}  # what the page can show
        for name, value in most.items():
            if getattr(first, name) > value:
                reason = f"is above {value:g}, the largest that the page can show"
                raise UsageError(name, getattr(first, name), reason, "use a smaller one")
        second = dataclasses.replace(first, **(compare or {}))
        self._sides = [
            make_side(chosen, lambda side: self._start([side])) for chosen in (first, second)
        ]
        deepest = max(first.depth_bound, second.depth_bound, AUTO_DEPTH)
        roomiest = Settings(**room, mode="dTree", B=AUTO_NODES, max_depth=deepest)
        self._background = Background(models, roomiest, self._show)
        wide, demo = {"width": "auto"}, load_prompts()
        bundled = [(f"{p.kind}: {p.text[:70]}…".replace("\n", " "), p.text) for p in demo]
        texts = [p.text for p in demo]

        # a bundled prompt that was cut to its first tokens is still a bundled one
        def cut(text: Any) -> str:
            return str(models.tokenizer.decode(models.encode(text, limit=prompt_len)))

        own = next((text for text in texts if prompt in (text, cut(text))), "") if prompt else ""
        chosen = demo[0].text if prompt is None else own
        self._bundled = ipw.Dropdown(
            options=[("your own prompt", ""), *bundled], value=chosen, layout=wide
        )
        self._prompt = ipw.Textarea(prompt or chosen, continuous_update=False, rows=3, layout=wide)
        self._seed = ipw.BoundedIntText(
            first.seed, max=LARGEST_SEED, description="seed", layout={"width": "170px"}
        )
        self._both = ipw.Checkbox(
            compare is not None, description="compare two settings", indent=False
        )
        wrap, roomy = {"flex_flow": "row wrap"}, {"flex": "1 1 220px", "max_width": "420px"}
        self._step = ipw.IntSlider(0, max=0, description="step", layout=roomy)
        self._paged: list[Run] = []  # the runs that these pages have
        self._pages: list[Any] = []  # displays of the page that stands in for the widget
        self._views = ipw.HBox(layout={"width": "auto", "grid_gap": "16px"} | wrap)
        buttons = map(self._button, BUTTONS)
        row = ipw.HBox([*buttons, self._step, self._seed, self._both], layout=wrap)
        self.box = ipw.VBox([self._bundled, self._prompt, row, self._views])
        self._arrange()
        self._listen()

    @property
    def steps(self) -> list[list[StepView]]:
        """The steps decoded so far, for each setting that is shown."""
        with self._background.changed:
            return [list(side.run.steps) for side in self._shown]

    @property
    def step(self) -> int:
        """The number of the step that is shown, from 0."""
        return int(self._step.value)

    @step.setter
    def step(self, number: int) -> None:
        self._step.value = number

    def wait(self, step: int = 0, timeout: float | None = None) -> bool:
        """Block until every setting has decoded this step, or all its steps. Returns False if
        `timeout` seconds pass first."""
        return self._background.wait([side.run for side in self._shown], step, timeout)

    def close(self) -> None:
        """Stop decoding and remove the widget from its pages."""
        for side in self._sides:
            side.run.cancelled = True
        self._background.close()
        self.box.close()

    def to_html(self, path: str | os.PathLike[str]) -> None:
        """Write the steps decoded so far as one HTML file, which needs neither network nor kernel.
        Raises UsageError if there is no step yet, or if it cannot be written."""
        if not all(self.steps):
            raise UsageError("to_html", path, "no step is decoded yet", "call wait() first")
        write_file(path, page(self._generations(), self.step).encode("utf-8"))

    def _generations(self) -> list[Shown]:
        """What is on the page, with its settings in words."""
        with self._background.changed:
            return [
                Shown(title=side.run.title, prompt=side.run.prompt, steps=list(side.run.steps))
                for side in self._shown
            ]

    def _ipython_display_(self) -> None:
        """Show the widget, and in an output after it the page that stands in for it. The page is
        made again whenever decoding has ended."""
        show: Any = ipython.display
        show(self.box._repr_mimebundle_() | {"text/plain": ""}, raw=True)
        self._pages.append(show(self._page(), raw=True, display_id=True))

    def _repr_mimebundle_(self, **_: object) -> dict[str, Any]:
        """The widget with a picture of the steps that it shows now."""
        widget: dict[str, Any] = self.box._repr_mimebundle_()
        if not all(self.steps):
            return widget
        svg = self._picture()
        return widget | {"image/svg+xml": svg, "image/png": b64encode(png(svg)).decode()}

    def _picture(self) -> str:
        """The steps that are shown now, above one another, as SVG."""
        steps = [side[min(self.step, len(side) - 1)] for side in self.steps]
        return above_one_another([step_svg(step) for step in steps])

    def _page(self) -> dict[str, str]:
        picture = png(self._picture()) if all(self.steps) else b""
        html = beside_widget(self._generations(), picture, self.step)
        return {"text/html": html, "text/plain": ""}

    @property
    def _shown(self) -> list[Side]:
        return self._sides if self._both.value else self._sides[:1]

    def _listen(self) -> None:
        self._bundled.observe(self._take, "value")
        self._prompt.observe(self._typed, "value")
        self._seed.observe(lambda _: self._start(self._shown), "value")
        self._both.observe(lambda _: self._arrange(), "value")
        self._step.observe(lambda _: self._show(), "value")
        for side in self._sides:
            side.view.on_msg(self._heard)

    def _button(self, where: str) -> Any:
        button = ipw.Button(icon=BUTTONS[where], tooltip=f"{where} step", layout={"width": "38px"})
        button.on_click(lambda _: self._go(where))
        return button

    def _take(self, change: Any) -> None:
        """Put a chosen bundled prompt into the prompt field."""
        if change.new:
            self._prompt.value = change.new

    def _typed(self, change: Any) -> None:
        """Decode a changed prompt. It is a bundled one or the reader's own."""
        texts = [text for _, text in self._bundled.options]
        self._bundled.value = change.new if change.new in texts else ""
        self._start(self._shown)

    def _heard(self, view: TreeView, message: dict[str, Any], _: object) -> None:
        if "alive" in message:
            view.send({"alive": True})
        else:
            self._go(message["step"])

    def _go(self, where: str | int) -> None:
        goals = {
            "next": self.step + 1,
            "previous": self.step - 1,
            "first": 0,
            "last": self._step.max,
        }
        self._step.value = (
            goals[where] if isinstance(where, str) else where
        )  # the slider stays in its range

    def _arrange(self) -> None:
        """Put one or two sides on the page, and decode for sides without steps."""
        layout = {"flex": "1 1 420px", "min_width": "0", "overflow": "visible"}
        wrap = {"flex_flow": "row wrap"}
        self._views.children = [
            ipw.VBox(
                [ipw.HBox(list(side.controls.values()), layout=wrap), side.view], layout=layout
            )
            for side in self._shown
        ]
        self._start([side for side in self._sides if side not in self._shown or not side.run.steps])

    def _start(self, sides: Iterable[Side]) -> None:
        """Decode again for these sides, if they are shown."""
        for side in sides:
            with self._background.changed:
                side.run.cancelled = True
                side.run = Run(finished=True)
                if side in self._shown:
                    try:
                        side.run = self._background.start(
                            self._prompt.value, side.chosen(self._seed.value)
                        )
                    except UsageError as mistake:
                        # a page has no flags
                        side.run.error = re.sub(r"--(?=\w)", "", str(mistake))
        self._show()

    def _show(self) -> None:
        """Update what is shown."""
        with self._background.changed:
            runs = [side.run for side in self._shown]
            last = max(len(run.steps) for run in runs) - 1
            # During a run the slider stays where it is, because a reader compares the same step of
            # both sides.
            self._step.max = max(last, 0 if all(run.finished for run in runs) else self._step.max)
            for side in self._shown:
                side.view.paint(side.run, self.step)
            ended = [run for run in runs if run.steps and run.finished and not run.cancelled]
            if len(ended) == len(runs) and self._paged != runs:
                self._paged = runs
                for shown in self._pages:
                    shown.update(self._page(), raw=True)
