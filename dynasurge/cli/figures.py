"""`make figures`: notebooks run through papermill and draw from one folder of evidence.

    dynasurge figures figures/data --output figures

The published figures are functions of `figures/data`, so a reader without a GPU draws exactly the
same ones. Another folder (experiments/published_records.py) gives the same figures of other runs.
Notebooks without a `records` parameter have no such figures, and are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import papermill

from dynasurge.cli.flags import Parser
from dynasurge.errors import UsageError
from dynasurge.experiments.published_records import PROBES, Evidence, made
from dynasurge.plots import notebooks


def figures_command(arguments: Sequence[str]) -> int:
    """Run the notebooks of a folder on one folder of evidence; returns the exit code. Raises
    UsageError."""
    parser = Parser(prog="dynasurge figures", description=(__doc__ or "").partition("\n\n")[0])
    add = parser.add_argument
    add(
        "records",
        nargs="?",
        default="figures/data",
        metavar="FOLDER",
        help="evidence (default: %(default)s)",
    )
    add(
        "--output",
        default="figures",
        metavar="DIR",
        help="where PNG and SVG files go (default: %(default)s)",
    )
    add("--notebooks", default="notebooks", metavar="DIR", help="(default: %(default)s)")
    args = parser.parse_args(arguments)
    evidence = Evidence.read(args.records)
    evidence.curve()
    for name in PROBES:
        evidence.probe(name)
    books = sorted(Path(args.notebooks).glob("*.ipynb"))
    if not books:
        raise UsageError(
            "--notebooks", args.notebooks, "holds no notebook", "name the folder that does"
        )
    output = made(Path(args.output)).resolve()
    wanted = {"records": str(Path(args.records).resolve()), "output": str(output)}
    for path in books:
        if "records" in papermill.inspect_notebook(path):
            notebooks.run(path, wanted)
    return 0
