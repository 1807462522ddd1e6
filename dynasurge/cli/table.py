"""`dynasurge table`: the tables of the documentation, printed from records.

    dynasurge table figures/data
    dynasurge table --refresh docs/*.md README.md

Folders are what `dynasurge sweep` or `dynasurge publish` wrote; several are put together. A page
names the command of each of its tables, and `--refresh` prints it there anew:

    <!-- dynasurge table docs/data/7b --against auto -->
    ... the table ...
    <!-- end -->
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from dynasurge.cli.flags import Parser
from dynasurge.errors import UsageError
from dynasurge.experiments.per_step import predictions_by_depth
from dynasurge.experiments.results_frame import MEASURES, load_frame
from dynasurge.experiments.tables import (
    against_table,
    markdown_table,
    results_table,
    trees_table,
)
from dynasurge.files import write_whole

MARKED = re.compile(r"(<!-- dynasurge table (.*?) -->\n).*?(<!-- end -->)", re.DOTALL)


def table_command(arguments: Sequence[str]) -> int:
    """Print a table, or refresh those of pages; returns the exit code. Raises UsageError."""
    args = _parser().parse_args(arguments)
    if args.refresh:
        for page in args.refresh:
            text = refreshed(page)
            with write_whole(page) as partial:
                partial.write_text(text, encoding="utf-8")
        print(f"written: {', '.join(args.refresh)}")
    else:
        print(table(arguments))
    return 0


def refreshed(page: str | Path) -> str:
    """The text of a page with its tables as their commands print them now. Raises UsageError."""
    try:
        text = Path(page).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UsageError("--refresh", page, f"cannot be read ({error})", "name a page") from error
    return MARKED.sub(
        lambda found: f"{found[1]}\n{table(shlex.split(found[2]))}\n\n{found[3]}", text
    )


def table(arguments: Sequence[str]) -> str:
    """The table that these arguments of `dynasurge table` print. Raises UsageError."""
    args = _parser().parse_args(arguments)
    if not args.folders:
        raise UsageError("FOLDER", None, "records of what", "name a folder, as figures/data")
    frame = pd.concat([load_frame(folder) for folder in args.folders], ignore_index=True)
    for name, wanted in (("label", args.labels), ("T", args.T)):
        kept = frame[frame[name].isin(wanted)] if wanted else frame
        if kept.empty:
            known = ", ".join(map(str, frame[name].unique()))
            flag = "--T" if name == "T" else "--labels"
            raise UsageError(flag, wanted, "are in no row", f"choose among: {known}")
        frame = kept
    if args.predictions:
        return markdown_table(predictions_by_depth(frame, ["T", "label"]).round(2))
    if args.trees:
        return trees_table(frame, args.trees)
    if args.against:
        return against_table(frame, args.against)
    return results_table(frame).rstrip()


def _parser() -> Parser:
    parser = Parser(prog="dynasurge table", description=(__doc__ or "").partition("\n\n")[0])
    add = parser.add_argument
    add("folders", nargs="*", metavar="FOLDER", help="records")
    add("--T", nargs="+", type=float, metavar="X", help="only these temperatures")
    add("--labels", nargs="+", metavar="LABEL", help="only these settings")
    add("--against", nargs="+", default=[], metavar="LABEL", help="times as fast as these, paired")
    trees = "trees side by side by dataset, T and budget, by this measure (default: %(const)s)"
    add("--trees", nargs="?", const="accepted_per_step", choices=MEASURES, help=trees)
    honest = "by depth: what slots were predicted to be worth, how likely paths were to reach them"
    add("--predictions", action="store_true", help=honest)
    add(
        "--refresh",
        nargs="+",
        metavar="PAGE",
        help="print the tables of these pages anew, in place",
    )
    return parser
