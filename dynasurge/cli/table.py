"""`dynasurge table`: the tables of the documentation, printed from records.

    dynasurge table figures/data

Folders are those of `dynasurge sweep` or `dynasurge publish`; the rows of several are put together.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from dynasurge.cli.flags import Parser
from dynasurge.experiments.per_step import predictions_by_depth
from dynasurge.experiments.results_frame import MEASURES, load_frame
from dynasurge.experiments.tables import against_table, results_table, trees_table


def table_command(arguments: Sequence[str]) -> int:
    """Print a table; returns the exit code. Raises UsageError."""
    parser = Parser(prog="dynasurge table", description=(__doc__ or "").partition("\n\n")[0])
    add = parser.add_argument
    add("folders", nargs="+", metavar="FOLDER", help="records")
    add(
        "--against",
        nargs="+",
        default=[],
        metavar="LABEL",
        help="how many times as fast as these, paired by prompt",
    )
    trees = "trees side by side by dataset, T and budget, by this measure (default: %(const)s)"
    add("--trees", nargs="?", const="accepted_per_step", choices=MEASURES, help=trees)
    honest = "by depth: predicted slot values, and the probabilities that paths reached the slots"
    add("--predictions", action="store_true", help=honest)
    args = parser.parse_args(arguments)
    frame = pd.concat([load_frame(folder) for folder in args.folders], ignore_index=True)
    if args.predictions:
        print(predictions_by_depth(frame, ["T"]).round(3).to_string(index=False))
    elif args.trees:
        print(trees_table(frame, args.trees))
    elif args.against:
        print(against_table(frame, args.against))
    else:
        print(results_table(frame))
    return 0
