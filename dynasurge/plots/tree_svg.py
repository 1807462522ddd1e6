"""Steps as SVG and HTML, for the widget and for a page without widgets.

The widget and the static picture are the same drawing (plots/tree_layout.py) with the same style
(assets/tree.css). The widget adds what needs a page: zoom, pan and hover. A static picture contains
its style, light or dark as the reader's browser is, and every node's numbers as a `<title>`. A
browser shows the title on hover if the file is opened directly, but not if a page, such as a
notebook, shows it as an image.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cache
from html import escape

from dynasurge.decoding.trace import StepView
from dynasurge.files import ASSETS
from dynasurge.plots.tree_layout import BOX, PAD, Layout, visible

STYLE = ASSETS / "tree.css"
# Blue, vermilion and orange of Okabe and Ito's palette: most colour-blind readers distinguish them.
# In grey print the accepted path is dark, the bonus token grey, the rest white with full or dotted
# borders.
LIGHT = {
    "paper": "#ffffff",
    "ink": "#222222",
    "faint": "#6b7177",
    "line": "#a9afb5",
    "root": "#e6e8ea",
    "accepted": "#0072b2",
    "on_accepted": "#ffffff",
    "rejected": "#d55e00",
    "bonus": "#e69f00",
    "on_bonus": "#1b1b1b",
}
DARK = {
    "paper": "#111111",
    "ink": "#e8e8e8",
    "faint": "#9aa0a6",
    "line": "#5f666d",
    "root": "#34393e",
    "accepted": "#56b4e9",
    "on_accepted": "#101010",
    "rejected": "#ff8a4c",
    "bonus": "#f0b429",
    "on_bonus": "#101010",
}
FATES = {
    "root": "the last token of the text",
    "accepted": "accepted",
    "cut": "accepted, but the text had ended",
    "rejected": "rejected",
    "untried": "never looked at",
}
CAPTION, LETTER = 22.0, 6.6  # pixels: the caption's line, and about a letter of it
BAR, STRIP = 46.0, 116.0  # pixels: the height of a row of bars, and of the strip


def step_layout(step: StepView) -> Layout:
    """The tree of a step. The bonus token, if there is one, is one more node, below the node where
    verification stopped."""
    parents, labels = step.tree.parents, tuple(visible(text) for text in step.texts)
    if step.bonus is None:
        return Layout(parents=parents, labels=labels)
    return Layout(parents=(*parents, step.stop), labels=(*labels, visible(step.bonus)))


def headline(step: StepView) -> str:
    """One line about a step."""
    if not step.tree.size:
        return f"step {step.number} · no tree drafted"
    rule = f"{step.rule}, lossy" if step.rule == "bfs" else step.rule
    return f"step {step.number} · {step.tree.size} drafted, {len(step.path)} accepted ({rule})"


def timed(step: StepView) -> str:
    """One line about a step, with its time by phase."""
    if not step.seconds:
        return headline(step)
    phases = ", ".join(f"{phase} {1e3 * taken:.1f}" for phase, taken in step.seconds.items())
    return f"{headline(step)} · {1e3 * sum(step.seconds.values()):.1f} ms: {phases}"


def spoken(step: StepView) -> str:
    """A step in words, for readers who see no picture."""
    path = "".join(step.texts[node] for node in step.path)
    said = f"; accepted: {path!r}" if path else ""
    return f"{headline(step)}{said}" + (f"; bonus token: {step.bonus!r}" if step.bonus else "")


def step_svg(step: StepView, *, standalone: bool = True) -> str:
    """The tree of a step. standalone: with its own style and a caption, for a file or a page of its
    own."""
    layout = step_layout(step)
    drawn = "".join([*_edges(step, layout), *_nodes(step, layout)])
    width, height = layout.width, layout.height
    if standalone:
        caption = headline(step)
        width, height = max(width, LETTER * len(caption) + 2 * PAD), height + CAPTION
        drawn = (
            f'<style>{_static_style()}</style><rect class="paper" width="{width:g}" height="{height:g}"/>{drawn}'
            f'<text class="caption" x="12" y="{height - 10:g}">{escape(caption)}</text>'
        )
    size = f'width="{width:g}" height="{height:g}" viewBox="0 0 {width:g} {height:g}"'
    said = f'role="img" aria-label="{escape(spoken(step))}"'
    said += "" if standalone else f' data-likely="{_likely(step)}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" class="tree" {said} {size}>{drawn}</svg>'


def above_one_another(pictures: Sequence[str]) -> str:
    """Several standalone pictures as one."""
    sizes = [
        re.match(r'<svg [^>]*width="([\d.e+]+)" height="([\d.e+]+)"', picture)
        for picture in pictures
    ]
    widths, heights = zip(
        *[(float(size[1]), float(size[2])) for size in sizes if size], strict=True
    )
    placed = [
        picture.replace("<svg ", f'<svg y="{sum(heights[:number]):g}" ', 1)
        for number, picture in enumerate(pictures)
    ]
    size = f'width="{max(widths):g}" height="{sum(heights):g}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{"".join(placed)}</svg>'


def _edges(step: StepView, layout: Layout) -> list[str]:
    out = []
    kinds = [*step.fates, "bonus"]
    # The accepted path is drawn last, on top of the curves that start at the same place.
    for node in sorted(
        range(1, len(layout.parents)), key=lambda node: kinds[node] in ("accepted", "bonus")
    ):
        a, b, c, d, e = (f"{x:g},{y:g}" for x, y in layout.edge(node))
        out.append(f'<path class="{kinds[node]}" d="M{a}L{b}C{c} {d} {e}"/>')
    return out


def _nodes(step: StepView, layout: Layout) -> list[str]:
    out = []
    kinds, tokens = [*step.fates, "bonus"], (*step.tree.tokens, *step.emitted[-1:])
    for node, label in enumerate(layout.labels):
        x, y, width = layout.left[node], layout.y[node] - BOX / 2, layout.widths[node]
        sampled = node <= step.tree.size and not step.tree.point[node]
        box = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{BOX:g}" rx="{BOX / 2 if sampled else 3:g}"'
        ring = ""
        if node == step.stop and step.tree.size:
            ring = (
                f'<rect class="stop" x="{x - 3:g}" y="{y - 3:g}" width="{width + 6:g}" height="{BOX + 6:g}" '
                f'rx="{BOX / 2 + 3 if sampled else 6:g}"/>'
            )
        out.append(
            f'<g class="node {kinds[node]}" data-parent="{layout.parents[node]}" data-token="{tokens[node]}">'
            f"<title>{escape(describe(step, node))}</title>"
            f'<rect class="box" {box}/>{ring}'
            f'<text x="{x + PAD:g}" y="{y + 14:g}" xml:space="preserve">{escape(label)}</text></g>'
        )
    return out


def _likely(step: StepView) -> str:
    """What both models thought likely after each node, for a page that shows it at a click on one
    of the node's children."""
    lists = [
        {
            title: [[visible(text, 24), _number(chance), token] for text, chance, token in guesses]
            for title, guesses in (("target, p", own.target), ("draft, q", own.draft))
        }
        for own in step.likely
    ]
    return escape(json.dumps(lists, ensure_ascii=False))


def describe(step: StepView, node: int) -> str:
    """The text that hovering over a node shows, one fact a line. A node after the last drafted one
    is the bonus token."""
    tree = step.tree
    if node > tree.size:
        return f"{visible(step.bonus or '', 60)}\nthe bonus token, drawn from what the target has left here"
    lines = [visible(step.texts[node], 60)]
    if node:
        how = (
            "chosen outright"
            if tree.point[node]
            else f"drawn with probability {tree.proposal[node]:.3g}"
        )
        q = step.q[node]
        drafted = "copied, not read by the draft" if q != q else f"q {_number(q)} (draft), {how}"
        lines += [f"p {_number(step.p[node])} (target)", drafted]
        if tree.value:
            lines.append(f"slot value {_number(tree.value[node])}")
        lines.append(f"{FATES[step.fates[node]]}; its chance was {_number(step.reach[node])}")
    else:
        lines.append(FATES["root"])
    if node == step.stop and tree.size:
        lines.append("verification stopped here")
    return "\n".join([*lines, f"node {node}, token {tree.tokens[node]}"])


def strip_svg(
    steps: Sequence[StepView],
    now: int | None = None,
    *,
    width: float = 640.0,
    standalone: bool = False,
    speed: bool = False,
) -> str:
    """Tokens and tree size of every step so far, as two rows of bars. now: the step to mark.
    standalone: with its own style. speed: whether to say the milliseconds a token. `data-step`
    names the step of each column."""
    longest, largest = (
        max(numbers)
        for numbers in zip(*((len(s.emitted), s.tree.size) for s in steps), strict=True)
    )
    wide = min(18.0, width / len(steps))
    out = []
    for number, step in enumerate(steps):
        x, thin = number * wide, f'width="{max(1.0, 0.8 * wide):g}"'
        for kind, below, count in (
            ("accepted", 0, len(step.path)),
            ("bonus", len(step.path), step.bonus is not None),
        ):
            top, tall = BAR * (1 - (below + count) / longest) + 14, BAR * count / longest
            out.append(f'<rect class="{kind}" x="{x:g}" y="{top:g}" {thin} height="{tall:g}"/>')
        tall = (BAR - 14) * step.tree.size / max(1, largest)
        out.append(f'<rect class="size" x="{x:g}" y="{STRIP - tall:g}" {thin} height="{tall:g}"/>')
        shown = " now" if number == now else ""
        out.append(
            f'<rect class="step{shown}" data-step="{number}" x="{x:g}" y="0" width="{wide:g}" height="{STRIP:g}">'
            f"<title>{escape(headline(step))}</title></rect>"
        )
    tokens = sum(len(step.emitted) for step in steps)
    taken = 1e3 * sum(sum(step.seconds.values()) for step in steps)
    said = f"; {taken / tokens:.1f} ms a token" if speed and taken else ""
    captions = (
        f'<text x="0" y="10">tokens per step: mean {tokens / len(steps):.2f}, most {longest}{said}</text>'
        f'<text x="0" y="{BAR + 32:g}">nodes drafted: most {largest}</text>'
    )
    style = (
        f'<style>{_static_style()}</style><rect class="paper" width="{width:g}" height="{STRIP:g}"/>'
        if standalone
        else ""
    )
    size = f'width="{width:g}" height="{STRIP:g}" viewBox="0 0 {width:g} {STRIP:g}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" class="strip" {size}>{style}{captions}{"".join(out)}</svg>'


def text_html(prompt: str, steps: Sequence[StepView], now: int, shown: int = 240) -> str:
    """The text up to and including step `now`: the end of the prompt, accepted tokens and bonus
    tokens. After the accepted tokens of step `now` follow drafted tokens that were not accepted:
    the first child below the node where verification stopped, its first child, and so on."""
    if len(prompt) > shown:
        end = prompt[-shown:]
        prompt = "… " + (end.partition(" ")[2] or end)  # some scripts have no blanks between words
    out = [f'<span class="prompt">{escape(prompt)}</span>']
    for step in steps[: now + 1]:
        here = " now" if step.number == now else ""
        accepted, bonus = step.written[: len(step.path)], step.written[len(step.path) :]
        out += [f'<span class="accepted{here}">{escape(text)}</span>' for text in accepted]
        if here and (vain := _vain(step)):
            on_one_line = "".join(vain).replace("\n", "↵")
            out.append(f'<span class="drafted">{escape(on_one_line)}</span>')
        out += [f'<span class="bonus{here}">{escape(text)}</span>' for text in bonus]
    return "".join(out)


def _vain(step: StepView) -> list[str]:
    node, out = step.stop, []
    while children := step.tree.children[node]:
        node = children[0]
        out.append(step.texts[node])
    return out


def _number(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 or value == 0 else f"{value:.1e}"


def palette_rules() -> str:
    """The palette as CSS variables of `.dynasurge`: light or dark as JupyterLab's or VS Code's
    theme says, otherwise as the browser prefers."""
    light, dark = (
        "".join(f"--{name}: {value}; " for name, value in colours.items())
        for colours in (LIGHT, DARK)
    )
    return (
        f".dynasurge {{ {light}}}\n@media (prefers-color-scheme: dark) {{ .dynasurge {{ {dark}}} }}\n"
        f'[data-jp-theme-light="true"] .dynasurge, .vscode-light .dynasurge {{ {light}}}\n'
        f'[data-jp-theme-light="false"] .dynasurge, .vscode-dark .dynasurge {{ {dark}}}\n'
    )


@cache
def _static_style() -> str:
    rules = re.sub(r"/\*.*?\*/\s*", "", STYLE.read_text(encoding="utf-8"), flags=re.DOTALL)
    light, dark = (_painted(rules, colours) for colours in (LIGHT, DARK))
    return f"{light}@media (prefers-color-scheme: dark) {{{dark}}}".replace("\n", "")


def _painted(rules: str, colours: dict[str, str]) -> str:
    return re.sub(r"var\(--(\w+)\)", lambda variable: colours[variable[1]], rules)
