"""`dynasurge table`: the tables of the documentation, printed from records.

    dynasurge table figures/data
    dynasurge table --refresh docs/*/*.md README.md

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

from dynasurge.cli.flags import Parser
from dynasurge.errors import UsageError
from dynasurge.experiments.per_step import predictions_by_depth
from dynasurge.experiments.results_frame import load_frames
from dynasurge.experiments.tables import (
    SIDE_BY_SIDE,
    against_table,
    markdown_table,
    results_table,
    rules_table,
    trees_table,
)
from dynasurge.files import write_whole
from dynasurge.settings import POLICIES

BEGIN, END = re.compile(r"<!-- dynasurge table (.*?) -->"), "<!-- end -->"
NARROW = {"labels": "label", "T": "T", "policy": "policy"}  # flags, and the columns they choose by


def table_command(arguments: Sequence[str]) -> int:
    """Print a table, or refresh those of pages; returns the exit code. Raises UsageError."""
    args = _parser().parse_args(arguments)
    if not args.refresh:
        print(table(arguments))
        return 0
    if len(arguments) != 1 + len(args.refresh):
        raise UsageError(
            "--refresh", "and more", "pages name their own commands", "give pages only"
        )
    texts = {page: refreshed(page) for page in args.refresh}  # all, before any is written
    for page, text in texts.items():
        try:
            with write_whole(page) as partial:
                partial.write_text(text, encoding="utf-8")
        except OSError as error:
            reason = f"cannot be written ({error})"
            raise UsageError("--refresh", page, reason, "name a page of yours") from error
    print(f"written: {', '.join(args.refresh)}")
    return 0


def refreshed(page: str | Path) -> str:
    """The text of a page with its tables as their commands print them now. Raises UsageError."""
    try:
        text = Path(page).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UsageError("--refresh", page, f"cannot be read ({error})", "name a page") from error
    out, at = "", 0
    for found in BEGIN.finditer(text):
        end, following = text.find(END, found.end()), BEGIN.search(text, found.end())
        if end < 0 or (following is not None and following.start() < end):
            reason = f"has no {END} behind {found[0]}"
            raise UsageError("--refresh", page, reason, "put it behind the table")
        try:
            printed = table(shlex.split(found[1]))
        except (ValueError, SystemExit) as error:
            if isinstance(error, UsageError):
                raise
            reason = f"names no table: {found[0]}"
            raise UsageError("--refresh", page, reason, "correct it") from error
        out += f"{text[at : found.end()]}\n\n{printed}\n\n"
        at = end
    return out + text[at:]


def table(arguments: Sequence[str]) -> str:
    """The table that these arguments of `dynasurge table` print. Raises UsageError."""
    args = _parser().parse_args(arguments)
    if not args.folders:
        reason = "a table is printed from a folder of records"
        raise UsageError("FOLDER", None, reason, "name one, as figures/data")
    frame = load_frames(args.folders)
    if frame["every"].nunique() > 1:
        reason = "hold rows of --every beside rows that were decoded"
        raise UsageError("FOLDER", ", ".join(args.folders), reason, "print each on its own")
    for flag, column in NARROW.items():
        wanted = getattr(args, flag)
        missing = [value for value in wanted or [] if value not in set(frame[column])]
        if missing:
            known = ", ".join(map(str, frame[column].unique()))
            raise UsageError(f"--{flag}", missing[0], "is in no row", f"choose among: {known}")
        frame = frame[frame[column].isin(wanted)] if wanted else frame
    if args.predictions:
        return markdown_table(predictions_by_depth(frame, ["T", "label"]).round(2))
    if args.rules:
        return rules_table(frame)
    if args.trees:
        return trees_table(frame, args.trees)
    if args.against:
        return against_table(frame, args.against)
    return results_table(frame).rstrip()


def _parser() -> Parser:
    parser = Parser(
        prog="dynasurge table",
        description="Print records as a table in Markdown.",
        epilog="examples:\n  dynasurge table figures/data\n  dynasurge table docs/data/7b --against auto",
    )
    add = parser.add_argument
    folders = "what `dynasurge sweep` or `dynasurge publish` wrote; several are put together"
    add("folders", nargs="*", metavar="FOLDER", help=folders)
    add("--T", nargs="+", type=float, metavar="X", help="only these temperatures")
    labels = "only these settings, by the names that the table prints"
    add("--labels", nargs="+", metavar="LABEL", help=labels)
    add("--policy", nargs="+", choices=POLICIES, help="only these child policies")
    kind = parser.add_mutually_exclusive_group()
    against = "how many times as fast every setting is as these, paired by prompt (ratio of sums)"
    kind.add_argument("--against", nargs="+", default=[], metavar="LABEL", help=against)
    trees = "trees side by side by dataset, T and budget, by this measure (default: %(const)s)"
    kind.add_argument("--trees", nargs="?", const=SIDE_BY_SIDE[0], choices=SIDE_BY_SIDE, help=trees)
    rules = "what ETV gains: every tree top-down and with ETV"
    kind.add_argument("--rules", action="store_true", help=rules)
    honest = "by depth: what slots were predicted to be worth, how likely paths were to reach them"
    kind.add_argument("--predictions", action="store_true", help=honest)
    refresh = "print the tables of these pages anew, in place"
    kind.add_argument("--refresh", nargs="+", metavar="PAGE", help=refresh)
    return parser
