"""`dynasurge publish`: measure what figures need in addition to a finished sweep, and publish the
numbers.

    dynasurge publish runs/study --output figures/data

The new folder holds numbers only, no text and no tokens (experiments/published_records.py).
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dynasurge.cli.flags import Parser
from dynasurge.errors import UsageError, at_least
from dynasurge.experiments import measurements
from dynasurge.experiments.published_records import COMMAND, TEXT, Evidence, labelled, made
from dynasurge.experiments.results_frame import load_frame
from dynasurge.models.pair import load_pair
from dynasurge.settings import DEMO, WIDE

SIZES = (
    ("nodes", 32, "positions at which bounds are computed, a temperature"),
    ("contexts", 8, "prompts at which the bias is measured"),
    ("samples", 1000, "steps at each of these prompts"),
)


def publish_command(arguments: Sequence[str]) -> int:
    """Probe finished sweeps and publish their numbers; returns the exit code. Raises UsageError."""
    parser = Parser(prog=COMMAND, description=(__doc__ or "").partition("\n\n")[0])
    add = parser.add_argument
    add(
        "folders",
        nargs="+",
        metavar="FOLDER",
        help="folders of `dynasurge sweep`; the first gives costs and texts",
    )
    add(
        "--output",
        required=True,
        metavar="DIR",
        help="where the numbers go; figures/data holds the published ones",
    )
    add("--machine", help="the machine's name in captions (default: the rows' device)")
    for name, default, what in SIZES:
        add(
            f"--{name}", type=int, default=default, metavar="N", help=f"{what} (default: {default})"
        )
    args = parser.parse_args(arguments)
    for name, default, _ in SIZES:
        at_least(name, getattr(args, name), 1, default)
    output = Path(args.output)
    if output.resolve() in [Path(folder).resolve() for folder in args.folders]:
        raise UsageError(
            "--output", output, "is the sweep's own folder", f"try --output {output}-numbers"
        )
    made(output)
    evidence = Evidence.read(*args.folders)
    first = labelled(load_frame(args.folders[0]))
    if (first["every"] > 0).any():
        reason = "holds trees at places of given texts"
        remedy = "name a sweep without --every first"
        raise UsageError("folder", args.folders[0], reason, remedy)
    if not set(TEXT) <= set(first):
        raise UsageError(
            "folder",
            args.folders[0],
            "holds no texts, it was published",
            "name the sweep's own folder",
        )
    names = {
        name: str(first[name].iloc[0]) for name in ("draft", "target", "device", "dtype", "commit")
    }
    spread = first["device_map"].iloc[0]
    device_map = spread if isinstance(spread, str) else None  # a table's missing value is not None
    models: dict[
        str, Any
    ] = {  # a widened model has the demo model's function: what is probed is the same
        flag: DEMO if names[flag] in WIDE[f"--{flag}"] else names[flag]
        for flag in ("draft", "target")
    }
    pair = load_pair(**models, dtype=names["dtype"], device_map=device_map)
    prompts = len(first.drop_duplicates(["dataset", "index"]))
    tables = {"positions": measurements.positions(pair, first)}
    with tqdm(total=args.nodes * first["T"].nunique(), desc="bounds", disable=None) as bar:
        tables["bounds"] = measurements.bounds(pair, first, nodes=args.nodes, on_node=bar.update)
    with tqdm(total=min(args.contexts, prompts), desc="bias", disable=None) as bar:
        how = {"contexts": args.contexts, "samples": args.samples, "on_context": bar.update}
        tables["bias"] = measurements.bias(pair, first, **how)
    about = {
        "machine": args.machine or names["device"],
        "date": str(first["date"].max()),
        "commit": names["commit"],
        "commands": "; ".join(
            filter(None, [*map(_command, args.folders), shlex.join([*COMMAND.split(), *arguments])])
        ),
    }
    dataclasses.replace(evidence, probes=tables, about=about).write(output)
    print(f"written: {output}")
    return 0


def _command(folder: str) -> str | None:
    """The command that made a sweep: the indented line of its results.md; None without one."""
    try:
        lines = (Path(folder) / "results.md").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((line.strip() for line in lines if line.startswith("    dynasurge ")), None)
