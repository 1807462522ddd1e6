"""Evidence: the data of figures, from a folder of small files, or from a few runs made now.

    dynasurge publish runs/study --output figures/data        # probe a finished sweep and publish its numbers

An evidence folder is a sweep's folder with the probes of measurements.py next to its rows:
`records.parquet` (one row a prompt and setting), `positions.parquet`, `bounds.parquet`,
`bias.parquet`, and `costs.json`, the latency curve. A published folder holds numbers only, no text
and no tokens. The machine, the command and the date are in each file's metadata and in the README.
"""

from __future__ import annotations

import dataclasses
import json
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from dynasurge.decoding.latency import read_costs
from dynasurge.drafting.cost_model import Costs
from dynasurge.errors import UsageError
from dynasurge.experiments import measurements
from dynasurge.experiments.datasets import Prompt
from dynasurge.experiments.intervals import PROMPT
from dynasurge.experiments.results_frame import load_frames
from dynasurge.experiments.sweep import sweep
from dynasurge.files import find_above, write_whole
from dynasurge.models.pair import Pair
from dynasurge.settings import Settings, pair_text

TEXT = ["prompt_ids", "output_ids", "text", "id"]  # other people's texts: measured, never published
UNSHOWN = ["expected", "passes", "tree_width"]  # lists by step that no figure or table shows
TOP_DOWN = ["ranks", "children"]  # lists that figures show of top-down rows alone
PROBES: Mapping[str, Callable[..., pd.DataFrame]] = {
    "positions": measurements.positions,
    "bounds": measurements.bounds,
    "bias": measurements.bias,
}
COMMAND = "dynasurge publish"
PUBLISHED = Path("figures", "data")


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """frame: rows as in experiments/results_frame.py; labels of dynamic trees say if they were
    filled. costs: the latency curve, None if no tree used it. probes: the measured tables, by name
    of PROBES. about: machine, date, ..."""

    frame: pd.DataFrame
    costs: Costs | None = None
    probes: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    about: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, *folders: str | Path) -> Evidence:
        """The evidence of one or more folders. `positions` are those of all; costs, the other
        probes and `about` are the first folder's. Raises UsageError if a folder holds no rows, or
        if two hold the same rows."""
        read = load_frames(folders)
        frame = labelled(read)
        if frame.duplicated(["run", "index"]).any():
            raise UsageError(
                "folders",
                ", ".join(map(str, folders)),
                "hold the same rows",
                "name each folder once",
            )
        home, probes = Path(folders[0]), {}
        for name in PROBES:
            places = map(Path, folders if name == "positions" else [home])
            files = [place / f"{name}.parquet" for place in places if place.is_dir()]
            tables = [_probe(name, file) for file in files if file.exists()]
            if tables:
                probes[name] = _kinds(pd.concat(tables, ignore_index=True))
        costs = read_costs(home / "costs.json")
        return cls(frame=frame, costs=costs, probes=probes, about=dict(read.attrs))

    @classmethod
    def published(cls) -> Evidence:
        """The evidence of the published figures: figures/data of the clone around the current
        folder. Raises UsageError."""
        if (records := find_above(PUBLISHED / "records.parquet")) is not None:
            return cls.read(records.parent)
        raise UsageError(
            "records",
            PUBLISHED,
            "is not in this folder or above",
            "run from a clone, or name your own",
        )

    @classmethod
    def measure(
        cls,
        pair: Pair,
        plan: Sequence[Settings],
        data: Mapping[str, Sequence[Prompt]],
        *,
        every: int = 0,
        **wanted: Mapping[str, Any],
    ) -> Evidence:
        """Run a small sweep now, then probe its texts. every: see experiments/runner.py. wanted: the
        keyword arguments of each probe, by name of PROBES."""
        prompts = sum(map(len, data.values()))
        with (
            tempfile.TemporaryDirectory() as folder,
            tqdm(total=len(plan) * prompts, unit="run") as bar,
        ):
            frame = labelled(
                sweep(pair, plan, data, Path(folder), every=every, on_row=lambda done: bar.update())
            )
            costs = read_costs(Path(folder) / "costs.json")
        tables = {name: PROBES[name](pair, frame, **how) for name, how in wanted.items()}
        about = {"date": str(frame["date"].max())}
        return cls(frame=frame, costs=costs, probes=tables, about=about)

    def probe(self, name: str) -> pd.DataFrame:
        """A table, by name of PROBES. Raises UsageError if it was not measured."""
        if name not in self.probes:
            raise UsageError(
                "records", name, "was not measured there", f"make such a folder with {COMMAND}"
            )
        return self.probes[name]

    def curve(self) -> Costs:
        """The latency curve. Raises UsageError if none was measured."""
        if self.costs is None:
            raise UsageError(
                "records", "costs.json", "was not measured there", "also sweep dTree without --fill"
            )
        return self.costs

    def at(self, T: float) -> Evidence:
        """The evidence at the temperature nearest to T."""
        nearest = min(self.frame["T"].unique(), key=lambda t: abs(t - T))
        tables = {
            name: table[table["T"] == nearest] if nearest in set(table["T"]) else table
            for name, table in self.probes.items()
            if name != "positions" or nearest in set(table["T"])  # those of other texts say nothing
        }
        return dataclasses.replace(
            self, frame=self.frame[self.frame["T"] == nearest], probes=tables
        )

    def caption(self, frame: pd.DataFrame | None = None, shown: str = "") -> str:
        """Pair, machine, dtype, date, datasets, number of prompts and temperatures of these rows
        (all rows if None or empty). shown: text in place of the last three, if the picture shows
        something else."""
        rows = self.frame if frame is None or frame.empty else frame
        first = rows.iloc[0]
        target = str(first["target"])
        if isinstance(first.get("widen"), str):  # records before 2026-12 name the shape apart
            target = f"{target}-{first['widen']}"
        pair = pair_text(str(first["draft"]), target)
        made = [
            pair,
            self.about.get("machine", first["device"]),
            first["dtype"],
            self.about.get("date", ""),
        ]
        n = len(rows[PROMPT].drop_duplicates())
        degrees = ", ".join(f"{t:g}" for t in sorted(rows["T"].unique()))
        shown = shown or f"prompts: {measurements.dataset_names(rows)}, n = {n}; T = {degrees}"
        return f"{', '.join(filter(None, made))}; {shown}"

    def write(self, folder: Path) -> None:
        """Publish numbers only, every file whole or not at all, with `about` in its metadata.
        Raises UsageError if the folder cannot be made."""
        made(folder)
        numbers = _numbers(self.frame)
        for name, table in {"records": numbers, **self.probes}.items():
            table.attrs = dict(self.about)
            if name == "positions":
                names = table["dataset"].map(lambda path: Path(path).name)
                table = table.assign(dataset=names).round(2)  # many thousands, drawn as means
            with write_whole(folder / f"{name}.parquet") as partial:
                table.to_parquet(partial, index=False, compression="zstd", compression_level=19)
        if self.costs is not None:
            with write_whole(folder / "costs.json") as partial:
                partial.write_text(json.dumps(dataclasses.asdict(self.costs)) + "\n")
        for name in ("costs.json", *(f"{name}.parquet" for name in PROBES)):
            if name.partition(".")[0] not in ({"costs"} if self.costs else set()) | {*self.probes}:
                (folder / name).unlink(missing_ok=True)  # of what was published there before
        about = "\n".join(f"- {name}: {value}" for name, value in self.about.items())
        size = f"{len(numbers)} rows. {self.caption()}."
        with write_whole(folder / "README.md") as partial:
            partial.write_text(f"# Published numbers\n\n{size}\n\n{about}\n", encoding="utf-8")


def _numbers(frame: pd.DataFrame) -> pd.DataFrame:
    """What is published of rows, small enough for a repository: no texts, no place of a file on
    that machine, no list by step that nothing shows (empty ones for TOP_DOWN with ETV), and digits
    that a figure can show."""
    out = frame.drop(columns=[*TEXT, *UNSHOWN], errors="ignore")
    for name in TOP_DOWN:
        out[name] = out[name].where(~out["use_bfs"], pd.Series([[]] * len(out), out.index))
    if "growmap" in out:
        out["growmap"] = out["growmap"].map(lambda path: Path(path).name, na_action="ignore")
    names = out["dataset"].map(lambda path: Path(path).name)
    out["run"] = [  # a run's name ends in its dataset
        run.removesuffix(path) + name
        for run, path, name in zip(out["run"], out["dataset"], names, strict=True)
    ]
    out["dataset"] = names
    for name in [name for name in out if name.endswith("_seconds") or name == "seconds"]:
        out[name] = out[name].map(lambda value: float(f"{value:.4g}"))
    for name, digits in {"confidence": 2, "predicted": 1, "reached": 1}.items():
        if name in out:
            out[name] = [[_rounded(value, digits) for value in values] for values in out[name]]
    return out


COLUMNS = {  # what figures need of a probe
    "positions": {"dataset", "index", "T"},
    "bounds": {"T", "k", "policy", "rule", "bound", "accepted", "texts", "nodes"},
    "bias": {"rule", "index", "total_variation", "samples", "shape", "texts"},
}


def _probe(name: str, file: Path) -> pd.DataFrame:
    """A measured table. Raises UsageError if it cannot be read."""
    try:
        table = pd.read_parquet(file)
    except (OSError, ValueError) as error:  # pyarrow's errors are both
        said = " ".join(str(error).split())[:200]
        raise UsageError("folder", file, f"cannot be read ({said})", "publish it again") from error
    missing = sorted(COLUMNS[name] - set(table))
    if missing:
        raise UsageError("folder", file, f"has no column {missing[0]}", "publish it again")
    return table


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None or math.isnan(value) else round(float(value), digits)


def made(folder: Path) -> Path:
    """The folder, made if it does not exist. Raises UsageError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            "--output", folder, f"cannot be made ({error.strerror})", "name another folder"
        ) from error
    return folder


def labelled(frame: pd.DataFrame) -> pd.DataFrame:
    """Add ` filled` to labels of filled dynamic trees. `Settings.label` leaves --fill out, although
    it changes a dynamic tree completely."""
    filled = frame["label"].str.replace(r"^(dTree B=\d+)(?!\d| filled)", r"\1 filled", regex=True)
    return _kinds(frame.assign(label=frame["label"].where(~frame["fill"], filled)))


def _kinds(table: pd.DataFrame) -> pd.DataFrame:
    """Give prompts without a kind the name of their dataset."""
    if "kind" not in table:
        return table
    return table.assign(
        kind=table["kind"].where(
            table["kind"] != "", table["dataset"].map(lambda name: Path(name).stem)
        )
    )
