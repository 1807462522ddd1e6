"""What benchmarks of many runs share: rows in a file a process, a killed run that goes on,
intervals over prompts."""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dynasurge.cli.main import guarded
from dynasurge.errors import UsageError
from dynasurge.experiments.provenance import git_commit, processor
from dynasurge.files import write_whole

RESAMPLES = 4000


class Shard:
    """One of `parts` processes: its share of the prompts, and its rows in `rows-I-of-N.jsonl`."""

    def __init__(self, args: argparse.Namespace, key: Sequence[str]) -> None:
        """key: the fields that tell rows apart."""
        names = [Path(data).stem for data in args.data]
        for data, name in zip(args.data, names, strict=True):
            if names.count(name) > 1:
                raise UsageError(
                    "--data",
                    data,
                    "rows go by the file's name, which another has, too",
                    "rename one",
                )
        self._part, self._parts = args.shard
        self._key, self._seconds, self._end = key, args.seconds, math.inf
        args.output.mkdir(parents=True, exist_ok=True)
        _agree(args)
        self.name = f"{self._part}-of-{self._parts}"
        self._path = args.output / f"rows-{self.name}.jsonl"
        if self._path.exists():
            whole = self._path.read_bytes()
            os.truncate(self._path, whole.rfind(b"\n") + 1)  # a kill may have torn the last line
        self._done = (
            {self._name(row) for row in read_rows(self._path)} if self._path.exists() else set()
        )

    def numbers(self, count: int) -> Iterator[int]:
        """This process's part of 0 .. count - 1, while there is time, which begins now."""
        self._end = time.monotonic() + self._seconds
        return (n for n in range(self._part, count, self._parts) if time.monotonic() < self._end)

    def wants(self, **key: Hashable) -> bool:
        """Whether the row is still to be made and there is time for it."""
        return self._name(key) not in self._done and time.monotonic() < self._end

    def append(self, row: dict[str, Any]) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def _name(self, row: Any) -> tuple[Hashable, ...]:
        return tuple(row[name] for name in self._key)


def _agree(args: argparse.Namespace) -> None:
    """All rows of a folder are made alike: `run.json` says how."""
    own = [
        "shard",
        "seconds",
        "output",
        "action",
        "prompts",
        "data",
        "T",
        "methods",
        "few",
        "chosen",
    ]  # what may differ
    how = {name: str(value) for name, value in sorted(vars(args).items()) if name not in own}
    if hasattr(args, "chosen"):  # by what it says, wherever it lies
        there = args.chosen.exists()
        how["chosen"] = (
            hashlib.sha256(args.chosen.read_bytes()).hexdigest()[:16] if there else "none"
        )
    how |= {"torch": torch.__version__, "commit": str(git_commit()), "threads": str(args.threads)}
    how["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else processor()
    path = args.output / "run.json"
    if not path.exists():
        with write_whole(path) as partial:
            partial.write_text(json.dumps(how, indent=1) + "\n")
    try:
        before = json.loads(path.read_text())
    except ValueError as error:
        raise UsageError(
            "--output", path, f"is damaged ({error})", "name another folder"
        ) from error
    for name, value in before.items():
        if value != how.get(name):
            raise UsageError(
                "--output",
                path,
                f"made with {name} {value}, not {how.get(name)}",
                "name another folder",
            )


def read_rows(*paths: Path) -> list[dict[str, Any]]:
    """The rows of files; a last line that a kill tore is left out. Raises UsageError if there is no
    file."""
    if not paths:
        raise UsageError("output", "folder", "holds no rows", "make some with `run`")
    rows = []
    for path in paths:
        for line in path.read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                continue
    return rows


def shard(text: str) -> tuple[int, int]:
    """The part and the number of parts that `--shard` names."""
    part, parts = map(int, text.split("/"))
    if not 0 <= part < parts:
        raise ValueError
    return part, parts


def positive(text: str) -> int:
    """A number of at least 1, of a flag."""
    if int(text) < 1:
        raise ValueError
    return int(text)


def known(flag: str, names: Sequence[str], there: Sequence[str]) -> None:
    """Raise UsageError if one of these names is not one of those that there are."""
    for name in names:
        if name not in there:
            raise UsageError(
                flag, name, "is none of these", f"choose among {', '.join(map(repr, there))}"
            )


def run_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of a benchmark's `run`."""
    parser.add_argument("--data", nargs="+", required=True, help="JSONL files of prompts")
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--draft", default="demo")
    parser.add_argument("--target", default="demo")
    parser.add_argument(
        "--shard",
        type=shard,
        default=(0, 1),
        metavar="I/N",
        help="do every N-th prompt, from the I-th",
    )
    parser.add_argument(
        "--seconds", type=float, default=math.inf, help="stop after so long; run again to go on"
    )
    parser.add_argument("--threads", type=positive, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, required=True)


def run_command(
    parser: argparse.ArgumentParser,
    commands: Any,
    table: Callable[[argparse.Namespace], None],
    argv: Sequence[str] | None = None,
    **switches: str,
) -> None:
    """Add the `table` of a benchmark, which prints what was recorded in a folder, and do what is
    asked. switches: of `table`, with their help."""
    add = commands.add_parser("table", help="print what was recorded")
    add.add_argument("output", type=Path)
    for name, what in switches.items():
        add.add_argument(f"--{name}", action="store_true", help=what)
    add.set_defaults(action=table)
    args = parser.parse_args(argv)
    guard(lambda: args.action(args), "rows so far are kept; the same command goes on")


def guard(work: Callable[[], object], stopped: str = "nothing was written") -> None:
    """Do it; what a user can mend costs one line and exit code 2, Ctrl-C a line that says what is
    left."""

    def run() -> int:
        work()
        return 0

    code = guarded(run, stopped)
    if code:
        sys.exit(code)


def gain(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    """rate(b) / rate(a) - 1 and its 95% bootstrap interval over prompts; a, b paired, as for
    `rate`."""
    draws = np.random.default_rng(0).integers(len(a), size=(RESAMPLES, len(a)))
    low, high = np.percentile(rate(b[draws], b.ndim) / rate(a[draws], a.ndim) - 1, [2.5, 97.5])
    return float(rate(b, b.ndim) / rate(a, a.ndim) - 1), low, high


def rate(of: np.ndarray, dimensions: int) -> np.ndarray:
    """The mean of [..., prompts] (1 dimension); of [..., prompts, 2] (2), amounts and what they are
    counted by (steps, seconds), the sum of the ones by that of the others: a prompt weighs as much
    as there is of it."""
    if dimensions == 1:
        return of.mean(-1)
    total = of.sum(-2)
    return total[..., 0] / total[..., 1]


def gained(a: np.ndarray, b: np.ndarray) -> str:
    """`gain`, for a table."""
    return "{:+.1%} [{:+.1%}, {:+.1%}]".format(*gain(a, b))
