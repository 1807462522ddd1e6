"""The `dynasurge growmap` commands: make a static tree shape, read it, draw it.

dynasurge growmap SHAPE FILE          a named shape: 4x8, chain8, 2ary4
dynasurge growmap optimise ... FILE   the best shape for a measured acceptance vector
dynasurge growmap show FILE           sizes by level, and the tree as text
dynasurge growmap draw FILE ...       the tree as a picture
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path

from dynasurge.cli.flags import Parser
from dynasurge.errors import UsageError
from dynasurge.trees.growmap import SPEC_HELP, Growmap, build_growmap, load_growmap, save_growmap
from dynasurge.trees.optimal_growmap import Acceptance, expected_accepted, optimal_growmap

ACCEPTANCE_HELP = (
    "entry j: P(the accepted path goes on to the child of rank j | it reaches the parent); numbers with commas between, or "
    'a .json file with a list or {"acceptance": list}; a list of lists has a vector for each level, the last for all deeper'
)
EPILOG = """\
other forms (each has its own --help):
  dynasurge growmap optimise --acceptance 0.6,0.2,0.1 --nodes 63 --depth 10 FILE
  dynasurge growmap show FILE
  dynasurge growmap draw FILE --output tree.png
"""
LEGEND = "a - b: b is a's only child; a..b: siblings; a..b alike: siblings with the same tree below, shown for a"
LONGEST_CHAIN = 10


def growmap_command(arguments: Sequence[str]) -> int:
    """Run `dynasurge growmap` with the arguments after that word; returns the exit code."""
    form = FORMS.get(arguments[0]) if arguments else None
    if form:
        form(arguments[1:])
    else:
        _build(arguments)
    return 0


def _build(arguments: Sequence[str]) -> None:
    parser = Parser(
        prog="dynasurge growmap",
        description="Write a static tree shape in the field's .pt format.",
        epilog=EPILOG,
    )
    parser.add_argument("shape", metavar="SHAPE", help=SPEC_HELP)
    parser.add_argument("file", metavar="FILE", help="the .pt file to write")
    args = parser.parse_args(arguments)
    growmap = build_growmap(args.shape)
    save_growmap(growmap, args.file)
    print(f"{args.file}: {_size(growmap)}")


def _optimise(arguments: Sequence[str]) -> None:
    parser = Parser(
        prog="dynasurge growmap optimise",
        description="Write the tree shape with the most expected accepted tokens a step, if acceptance depends on\n"
        "sibling rank (and level) only. Nodes that add nothing are left out.",
        epilog="example:\n  dynasurge growmap optimise --acceptance 0.6,0.2,0.1 --nodes 63 --depth 10 tree.pt",
    )
    parser.add_argument("--acceptance", metavar="LIST", required=True, help=ACCEPTANCE_HELP)
    parser.add_argument(
        "--nodes", type=int, metavar="N", required=True, help="at most N nodes, root not counted"
    )
    parser.add_argument(
        "--depth", type=int, metavar="N", required=True, help="at most N levels below the root"
    )
    parser.add_argument("file", metavar="FILE", help="the .pt file to write")
    args = parser.parse_args(arguments)
    acceptance = read_acceptance(args.acceptance)
    growmap = optimal_growmap(acceptance, args.nodes, args.depth)
    save_growmap(growmap, args.file)
    expected = expected_accepted(growmap, acceptance)
    print(f"{args.file}: {_size(growmap)}, expected accepted per step {expected:.4f}")


def _show(arguments: Sequence[str]) -> None:
    parser = Parser(
        prog="dynasurge growmap show",
        description="Print a growmap: its levels, and the tree as text.",
    )
    parser.add_argument("file", metavar="FILE", help="a .pt growmap")
    parser.add_argument(
        "--acceptance",
        metavar="LIST",
        help=f"also print the expected accepted length. {ACCEPTANCE_HELP}",
    )
    args = parser.parse_args(arguments)
    growmap = load_growmap(args.file)
    widths = [len(level) for level in growmap.levels]
    lines = [f"{args.file}: {_size(growmap)}, width {max(widths)}"]
    if args.acceptance is not None:
        expected = expected_accepted(growmap, read_acceptance(args.acceptance))
        lines.append(f"expected accepted per step {expected:.4f}")
    lines += ["", "level  nodes  children of each"]
    for number, level in enumerate(growmap.levels):
        branching = _runs([len(growmap.children[u]) for u in level])
        lines.append(f"{number:5}  {len(level):5}  {branching}")
    print("\n".join([*lines, "", sketch(growmap), "", LEGEND]))


def _draw(arguments: Sequence[str]) -> None:
    parser = Parser(
        prog="dynasurge growmap draw",
        description="Draw a growmap: root on top, siblings in drawing order.",
    )
    parser.add_argument("file", metavar="FILE", help="a .pt growmap")
    parser.add_argument(
        "--output", metavar="PICTURE", required=True, help="the .png or .svg file to write"
    )
    args = parser.parse_args(arguments)
    growmap = load_growmap(args.file)

    from dynasurge.plots.figures import tree_figure, write_figure  # matplotlib is slow to import

    caption = f"{Path(args.file).stem}: {growmap.size - 1} nodes drafted, depth {growmap.depth}"
    write_figure(tree_figure(growmap.parents, caption=caption), args.output)
    print(f"written: {args.output}")


FORMS: dict[str, Callable[[Sequence[str]], None]] = {
    "optimise": _optimise,
    "show": _show,
    "draw": _draw,
}


def read_acceptance(text: str) -> Acceptance:
    """`0.6,0.2,0.1`, or the list in a .json file. Raises UsageError without one; its numbers are
    not checked here."""
    remedy = 'write 0.6,0.2,0.1 or name a .json file with a list or {"acceptance": list}'
    if not text.endswith(".json"):
        try:
            return [float(entry) for entry in text.split(",")]
        except ValueError as error:
            raise UsageError(
                "--acceptance", text, "not numbers with commas between", remedy
            ) from error
    try:
        data = json.loads(Path(text).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError("--acceptance", text, f"cannot be read ({error})", remedy) from error
    acceptance = data.get("acceptance") if isinstance(data, dict) else data
    if not isinstance(acceptance, list):
        raise UsageError("--acceptance", text, "holds no list", remedy)
    return acceptance


def sketch(growmap: Growmap) -> str:
    """The tree as indented ASCII: a chain on one line; siblings with the same tree below them drawn
    once."""
    children = growmap.children
    shapes = [0] * growmap.size
    known: dict[tuple[int, ...], int] = {}
    for u in reversed(range(growmap.size)):
        shapes[u] = known.setdefault(tuple(shapes[child] for child in children[u]), len(known))

    lines: list[str] = []
    waiting = [
        ("", "", [0])
    ]  # text before the line, text before the lines below it, siblings that are alike
    while waiting:
        mark, indent, alike = waiting.pop()
        chain = alike[:1]
        while len(children[chain[-1]]) == 1:
            chain += children[chain[-1]]
        names = [str(u) for u in chain]
        if len(chain) > LONGEST_CHAIN:
            names = [*names[:3], "...", f"{names[-1]} ({len(chain)} nodes)"]
        text = " - ".join(names)
        if len(alike) > 1:  # a range, because numbers are breadth first
            siblings = f"{alike[0]}..{alike[-1]}"
            text = f"{siblings} alike: {text}" if children[alike[0]] else siblings
        lines.append(mark + text)
        groups = [list(group) for _, group in groupby(children[chain[-1]], key=lambda u: shapes[u])]
        below = [(f"{indent}|-- ", f"{indent}|   ", group) for group in groups[:-1]]
        below += [(f"{indent}`-- ", f"{indent}    ", group) for group in groups[-1:]]
        waiting += reversed(below)
    return "\n".join(lines)


def _runs(counts: Sequence[int]) -> str:
    """Shorten equal counts: `3 1 1 0 0 0 0` becomes `3 1 1 0(x4)`."""
    runs = [(count, len(list(run))) for count, run in groupby(counts)]
    return " ".join(f"{count}(x{n})" if n > 2 else " ".join([str(count)] * n) for count, n in runs)


def _size(growmap: Growmap) -> str:
    return f"{growmap.size} nodes with the root, depth {growmap.depth}"
