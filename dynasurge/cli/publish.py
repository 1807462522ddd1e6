"""`dynasurge publish`: measure what figures need in addition to a finished sweep, and publish the
numbers.

    dynasurge publish runs/study --output figures/data
    dynasurge publish figures/data runs/more --output runs/both       # a study that is made in parts

The new folder holds numbers only, no text and no tokens (experiments/published_records.py). Probes
need the texts of the first folder; if that was published, its probes are taken as they are.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from dynasurge.cli.flags import Parser
from dynasurge.errors import UsageError, at_least
from dynasurge.experiments import measurements
from dynasurge.experiments.published_records import (
    COMMAND,
    PROBES,
    TEXT,
    Evidence,
    labelled,
    made,
)
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
        help="folders of `dynasurge sweep` or of this command; the first gives costs, bounds, bias",
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
    evidence = Evidence.read(*args.folders)
    if evidence.frame["every"].any():
        reason, remedy = "has rows of --every, which decode nothing", "name sweeps without it"
        raise UsageError("folder", ", ".join(args.folders), reason, remedy)
    new = not output.exists()
    made(output)
    try:
        evidence = dataclasses.replace(evidence, probes=_probes(args, evidence))
        _finish(args, arguments, evidence, output)
    except BaseException:
        if new:
            with contextlib.suppress(OSError):  # it holds something
                output.rmdir()
        raise
    return 0


def _finish(
    args: argparse.Namespace, arguments: Sequence[str], evidence: Evidence, output: Path
) -> None:
    """Write the evidence, with what is said about it."""
    frame, own = evidence.frame, [*map(_command, args.folders)]
    about = {
        "machine": args.machine or evidence.about.get("machine") or str(frame["device"].iloc[0]),
        "date": str(frame["date"].max()),
        "commit": ", ".join(frame["commit"].dropna().unique()),
        "commands": "; ".join(filter(None, [*own, shlex.join([*COMMAND.split(), *arguments])])),
    }
    dataclasses.replace(evidence, about=about).write(output)
    print(f"written: {output}")


def _probes(args: argparse.Namespace, evidence: Evidence) -> dict[str, pd.DataFrame]:
    """The tables of PROBES: `positions` of every folder with texts, the others of the first one, if
    that has texts; else what was published there. Raises UsageError if one is missing."""
    tables, parts = dict(evidence.probes), []
    for number, folder in enumerate(args.folders):
        frame = labelled(load_frame(folder))
        if set(TEXT) <= set(frame):
            measured = _measured(args, frame, ["positions"] if number else list(PROBES))
            parts.append(measured.pop("positions"))
            tables |= measured
    if parts:
        published = [evidence.probes["positions"]] if "positions" in evidence.probes else []
        tables["positions"] = pd.concat([*published, *parts], ignore_index=True)
    if missing := ", ".join(sorted(set(PROBES) - set(tables))):
        reason = f"holds no texts, it was published, and lacks {missing}"
        raise UsageError("folder", args.folders[0], reason, "name the sweep's own folder")
    return tables


def _measured(
    args: argparse.Namespace, frame: pd.DataFrame, names: Sequence[str]
) -> dict[str, pd.DataFrame]:
    """Tables of PROBES, measured on the texts of a sweep's rows, with a bar for the slow ones."""
    options: dict[str, Any] = {
        name: frame[name].iloc[0] for name in ("draft", "target", "dtype", "device_map")
    }
    if not isinstance(options["device_map"], str):  # a table's missing value is not None
        options["device_map"] = None
    for flag in ("draft", "target"):
        if options[flag] in WIDE:  # the demo model has its function, and is small
            options |= {flag: DEMO, "dtype": "auto"}
    pair = load_pair(**options)
    prompts = len(frame.drop_duplicates(["dataset", "index"]))
    tables = {}
    with tqdm(total=len(measurements.texts(frame)), desc="positions", disable=None) as bar:
        tables["positions"] = measurements.positions(pair, frame, on_text=bar.update)
    if "bounds" not in names:
        return tables
    with tqdm(total=args.nodes * frame["T"].nunique(), desc="bounds", disable=None) as bar:
        tables["bounds"] = measurements.bounds(pair, frame, nodes=args.nodes, on_node=bar.update)
    with tqdm(total=min(args.contexts, prompts), desc="bias", disable=None) as bar:
        how = {"contexts": args.contexts, "samples": args.samples, "on_context": bar.update}
        tables["bias"] = measurements.bias(pair, frame, **how)
    return tables


def _command(folder: str) -> str | None:
    """The command that made a folder: the indented line of a sweep's results.md, or what a published
    folder says; None if neither is there."""
    try:
        lines = (Path(folder) / "results.md").read_text(encoding="utf-8").splitlines()
    except OSError:
        command: str | None = load_frame(folder).attrs.get("commands")
        return command
    return next((line.strip() for line in lines if line.startswith("    dynasurge ")), None)
