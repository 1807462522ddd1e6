"""The results of a sweep, as functions on a DataFrame with one row a (settings, prompt).

    frame = load_frame("runs/study")
    print(results_table(frame))
    paired(frame, "dTree B=32", "dTree B=32 +ETV", "accepted_per_step", rng=numpy.random.default_rng(0))

Settings are compared on the same prompts. Intervals are those of experiments/intervals.py. All
seeds of a prompt are drawn together.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dynasurge.errors import UsageError, first_line
from dynasurge.experiments.intervals import ENDS, ENOUGH, NONE, PROMPT, of_median, of_ratio, redrawn
from dynasurge.experiments.per_step import COLUMN as LINE
from dynasurge.experiments.per_step import acceptance_by_confidence as acceptance_by_confidence
from dynasurge.experiments.per_step import acceptance_by_depth as acceptance_by_depth
from dynasurge.experiments.per_step import acceptance_by_position as acceptance_by_position
from dynasurge.experiments.per_step import acceptance_by_rank as acceptance_by_rank
from dynasurge.experiments.per_step import complexity as complexity
from dynasurge.experiments.per_step import complexity_along as complexity_along
from dynasurge.experiments.per_step import predictions_by_depth as predictions_by_depth
from dynasurge.experiments.records import record_files
from dynasurge.experiments.schema import FIELDS, Row
from dynasurge.generation_config import law_text
from dynasurge.settings import PHASES

PAIRING = [
    "dataset",
    "T",
    "law",
    "index",
    "seed",
]  # two rows may be compared if they agree in these
COLUMN = list(LINE)
THIRDS = ("hardest third", "middle third", "easiest third")
# A measure is the ratio of two sums over rows.
MEASURES = {
    "tokens_per_second": ("tokens", "decode_seconds"),
    "tokens_per_step": ("tokens_of_steps", "steps"),
    "accepted_per_step": ("accepted_tokens", "steps"),
    "latency_per_token_s": ("decode_seconds", "tokens"),
    "latency_per_request_s": ("seconds", "requests"),
}


def to_frame(rows: Iterable[Row]) -> pd.DataFrame:
    """Rows as columns. `settings` and `about` are spread out, B is text ("auto", "16"). New columns
    hold the law in words and the sums that measures need: tokens, steps, accepted_tokens, tokens_of_steps (accepted and
    bonus), decode_seconds (without prefill). Raises UsageError without rows."""
    frame = pd.DataFrame([_flat(row) for row in rows])
    if frame.empty:
        raise UsageError(
            "records", "no rows", "nothing is finished yet", "wait for the first prompt"
        )
    frame["B"] = frame["B"].astype(str)
    return frame


def _flat(row: Row) -> dict[str, Any]:
    flat = {field.name: getattr(row, field.name) for field in FIELDS}
    settings, about = flat.pop("settings"), flat.pop("about")
    out: dict[str, Any] = about | settings | flat
    return out | {
        "law": law_text(settings),
        "requested_device": settings["device"],
        "requested_dtype": settings["dtype"],
        "device": about["device"],
        "dtype": about["dtype"],
        "requests": 1,
        "tokens": row.tokens,
        "steps": len(row.accepted),
        "accepted_tokens": row.accepted_tokens,
        "tokens_of_steps": row.accepted_tokens + len(row.accepted),
        "decode_seconds": row.decode_seconds,
    }


def load_frame(path: str | Path) -> pd.DataFrame:
    """The rows of a finished sweep's parquet, or those that an unfinished one has written so far.
    path: the folder or a file. Raises UsageError."""
    path = Path(path)
    try:
        if path.is_file():
            return _parquet(path) if path.suffix == ".parquet" else to_frame(_rows([path]))
        finished, files = (
            path / "records.parquet",
            [file for file in record_files(path) if file.exists()],
        )
        if finished.exists() and all(
            finished.stat().st_mtime >= file.stat().st_mtime for file in files
        ):
            return _parquet(finished)
        return to_frame(_rows(files or [path / "records.jsonl"]))
    except UsageError:
        raise
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        reason = f"cannot be read ({first_line(error)})"
        raise UsageError(
            "records", path, reason, "name a folder that `dynasurge sweep` wrote"
        ) from error


def load_frames(paths: Sequence[str | Path]) -> pd.DataFrame:
    """The rows of several folders or files, with what is said about the first, see `load_frame`.
    Raises UsageError if they were made on different devices or with different models: their times
    do not compare."""
    frames = [load_frame(path) for path in paths]
    frame = pd.concat(frames, ignore_index=True)
    frame.attrs = dict(frames[0].attrs)
    for name in ("device", "dtype", "draft", "target") if len(frames) > 1 else ():
        found = [str(value) for value in frame[name].unique()]
        if len(found) > 1:
            reason = f"have different values of {name}: {', '.join(found)}"
            raise UsageError(
                "FOLDER", ", ".join(map(str, paths)), reason, "name one kind at a time"
            )
    return frame


def _parquet(path: Path) -> pd.DataFrame:
    frame = pd.read_parquet(path)
    needed = {"label", "P", *PAIRING, *(name for pair in MEASURES.values() for name in pair)}
    missing = sorted(needed - {"law"} - set(frame))  # files had T and P only
    if missing:
        raise ValueError(f"has no column {', '.join(missing)}")
    frame = frame if "every" in frame else frame.assign(every=0)
    laws = frame[["T", "P"]].to_dict(orient="records") if "law" not in frame else []
    return frame.assign(law=[law_text(law) for law in laws]) if laws else frame


def _rows(files: Iterable[Path]) -> Iterator[Row]:
    """Each row once, without a last line that is incomplete."""
    seen: set[tuple[str, int]] = set()
    for file in files:
        for line in file.read_text(encoding="utf-8").splitlines(keepends=True):
            if line.endswith("\n"):
                row = Row.from_json(line)
                if (key := (row.run, row.index)) not in seen:
                    seen.add(key)
                    yield row


@dataclass(frozen=True, kw_only=True)
class Paired:
    """A measure of two settings on the same prompts. ratio: b / a. low, high: its 95% interval, NaN
    with fewer than ENOUGH prompts."""

    a: float
    b: float
    ratio: float
    low: float
    high: float
    prompts: int


def paired(
    frame: pd.DataFrame, a: str, b: str, measure: str, *, rng: np.random.Generator
) -> Paired:
    """Compare the settings labelled `a` and `b` by a name of MEASURES, on the prompts (and laws and
    seeds) that both have.

    If a frame has several policies, choose one first. Raises UsageError if the two share no prompt,
    or if a label names several settings.
    """
    over, under = MEASURES[measure]
    sides = [frame[frame["label"] == label].set_index(PAIRING)[[over, under]] for label in (a, b)]
    for label, side in zip((a, b), sides, strict=True):
        if side.index.has_duplicates:
            raise UsageError(
                "label",
                label,
                "names several settings",
                "narrow the frame, to one policy for instance",
            )
    both = sides[0].join(sides[1], lsuffix="_a", rsuffix="_b", how="inner")
    if both.empty:
        raise UsageError(
            "labels",
            f"{a}, {b}",
            "share no prompt",
            f"choose from {', '.join(frame['label'].unique())}",
        )
    # [prompts, 4]: sums `over` and `under` of a, then of b
    sums = both.groupby(PROMPT).sum().to_numpy()
    n = len(sums)
    low, high = np.nanpercentile(_ratio(redrawn(sums, rng)), ENDS) if n >= ENOUGH else NONE
    total = sums.sum(0)
    return Paired(
        a=total[0] / total[1],
        b=total[2] / total[3],
        ratio=float(_ratio(total[None])[0]),
        low=float(low),
        high=float(high),
        prompts=n,
    )


def rule_gains(frame: pd.DataFrame, by: Sequence[str] = ("dataset", "T", "policy")) -> pd.DataFrame:
    """What ETV gains in accepted tokens a step: a row a tree that ran top-down and with ETV in the
    same group of `by`. Columns: by, tree (its label), and the fields of `Paired`, a being top-down.
    Columns alone if there is no such tree."""
    rng, lines = np.random.default_rng(0), list[dict[str, Any]]()
    for key, rows in frame.groupby(list(by), sort=False):
        labels = rows["label"].unique()
        for label in [label for label in labels if f"{label} +ETV" in labels]:
            found = paired(rows, label, f"{label} +ETV", "accepted_per_step", rng=rng)
            lines.append(dict(zip(by, key, strict=True)) | {"tree": label} | asdict(found))
    return pd.DataFrame(lines, columns=[*by, "tree", *(field.name for field in fields(Paired))])


def _ratio(sums: np.ndarray) -> np.ndarray:
    """b over a of sums [m, 4]; NaN where a is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio: np.ndarray = (sums[:, 2] / sums[:, 3]) / (sums[:, 0] / sums[:, 1])
    return np.where(np.isfinite(ratio), ratio, np.nan)


def speedup_by_prompt(frame: pd.DataFrame, measure: str = "tokens_per_second") -> pd.DataFrame:
    """Every tree's row with `speedup`: its measure over that of `auto` on the same prompt,
    temperature and seed. Rows without an `auto` are left out. Raises UsageError if a prompt has
    several rows of `auto`."""
    over, under = MEASURES[measure]
    value = frame[over] / frame[under]
    base = frame.assign(base=value)[frame["label"] == "auto"][[*PAIRING, "base"]]
    if base.duplicated(PAIRING).any():
        raise UsageError(
            "label",
            "auto",
            "has several rows a prompt",
            "narrow the frame, to one sweep for instance",
        )
    trees = frame.assign(value=value)[frame["label"] != "auto"].merge(base, on=PAIRING)
    return trees.assign(speedup=trees["value"] / trees["base"]).drop(columns=["value", "base"])


def time_breakdown(frame: pd.DataFrame, by: Sequence[str] = tuple(COLUMN)) -> pd.DataFrame:
    """Milliseconds a step by phase (draft, target, verify, other) of every group."""
    sums = frame.groupby(list(by), sort=False)[
        [*(f"{phase}_seconds" for phase in PHASES), "steps"]
    ].sum()
    out = pd.DataFrame({phase: 1e3 * sums[f"{phase}_seconds"] / sums["steps"] for phase in PHASES})
    return out.reset_index()


def results(frame: pd.DataFrame) -> pd.DataFrame:
    """Every measure by dataset, temperature, policy and label, in the order of the rows, with the
    number of prompts.

    Tokens are pooled. Times are medians over prompts, so one stalled run does not change them. A
    request's time is what all its `new_tokens` would have taken, so texts that ended early can be
    compared. `speedup`: tokens per second over those of `auto` on the same prompt, the median, with
    its 95% interval `speedup_low`, `speedup_high` (NaN without `auto`, or with fewer than ENOUGH
    prompts). over_floor: the speed over that of reading the weights once a token (NaN for records
    without floor_ms). draft, target, verify, other: milliseconds a step, pooled. Raises UsageError if a
    setting has several rows a prompt and seed.
    """
    again = frame[frame.duplicated([*COLUMN, "index", "seed"])]
    if len(again):
        label = again["label"].iloc[0]
        raise UsageError(
            "label",
            label,
            "has several rows a prompt",
            "narrow the frame, to one sweep and P for instance",
        )
    sums = frame.groupby(COLUMN, sort=False)[
        sorted({name for pair in MEASURES.values() for name in pair})
    ].sum()
    out = pd.DataFrame({name: sums[over] / sums[under] for name, (over, under) in MEASURES.items()})
    rates = _times(frame).groupby(level=COLUMN, sort=False).median()
    out[rates.columns] = rates
    floors = frame.assign(floor_ms=pd.to_numeric(frame.get("floor_ms", np.nan)))
    floor = floors.groupby(COLUMN, sort=False)["floor_ms"].median() / 1e3
    out["over_floor"] = floor / out["latency_per_token_s"]
    out["prompts"] = frame.groupby(COLUMN, sort=False)["index"].nunique()
    out["lossless"] = frame.groupby(COLUMN, sort=False)["lossless"].first()
    by_prompt = (
        speedup_by_prompt(frame).groupby([*COLUMN, "index"])["speedup"].mean()
    )  # the mean over its seeds
    own = by_prompt.groupby(level=COLUMN)
    medians = {
        key: (values[np.isfinite(values)].median(), *of_median(values)) for key, values in own
    }
    for place, name in enumerate(("speedup", "speedup_low", "speedup_high")):
        out[name] = [medians.get(key, (np.nan,) * 3)[place] for key in out.index]
    out.loc[out.index.get_level_values("label") == "auto", "speedup"] = 1.0
    return out.reset_index().merge(time_breakdown(frame), on=COLUMN)


def _times(frame: pd.DataFrame) -> pd.DataFrame:
    """The three measures of time by COLUMN and prompt; a prompt's seeds are pooled."""
    names = ["tokens", "decode_seconds", "prefill_seconds", "new_tokens", "requests"]
    sums = frame.groupby([*COLUMN, "index"], sort=False)[names].sum()
    # a text that ended at once took no time to decode, and has no speed
    token = (sums["decode_seconds"] / sums["tokens"]).where(sums["decode_seconds"] > 0)
    request = (sums["prefill_seconds"] + token * sums["new_tokens"]) / sums["requests"]
    return pd.DataFrame(
        {
            "tokens_per_second": 1 / token,
            "latency_per_token_s": token,
            "latency_per_request_s": request,
        }
    )


def trees(frame: pd.DataFrame) -> pd.DataFrame:
    """`results` with columns that describe each row's tree: mode, `tree` (the label without its
    rule), rule ("top-down", "ETV", ...), B, fill, and `nodes`, the mean number of nodes that a step
    drafted; and with 95% intervals NAME_low, NAME_high of the measures NAME of MEASURES (NaN with
    fewer than ENOUGH prompts)."""
    groups = frame.assign(drafted=frame["tree_size"].map(sum)).groupby(COLUMN, sort=False)
    kind = groups[["mode", "B", "fill"]].first()
    sums = groups[["drafted", "steps"]].sum()
    out = results(frame).merge(
        kind.assign(nodes=sums["drafted"] / sums["steps"]).reset_index(), on=COLUMN
    )
    named = out["label"].str.partition(" +")
    out = out.assign(tree=named[0], rule=named[2].where(named[2] != "", "top-down"))
    return out.merge(_intervals(frame), on=COLUMN)


def _intervals(frame: pd.DataFrame) -> pd.DataFrame:
    """NAME_low and NAME_high of every measure, by COLUMN."""
    lines = []
    for key, rows in frame.groupby(COLUMN, sort=False):
        ends = {name: of_median(times) for name, times in _times(rows).items()}
        for name in [name for name in MEASURES if name not in ends]:
            sums = rows.groupby("index")[list(MEASURES[name])].sum()
            ends[name] = of_ratio(sums.to_numpy())
        lines.append(
            dict(zip(COLUMN, key, strict=True))
            | {f"{name}_low": low for name, (low, _) in ends.items()}
            | {f"{name}_high": high for name, (_, high) in ends.items()}
        )
    return pd.DataFrame(lines)


def contrast(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of one static and one dynamic tree, those that draft the most without ETV: enough to
    show the difference."""
    plain = frame[~frame["use_bfs"] & (frame["mode"] != "auto")]
    size = plain["tree_size"].map(sum) / plain["steps"]
    labels = size.groupby([plain["mode"], plain["label"]]).mean().groupby(level=0).idxmax()
    return frame[frame["label"].isin([label for _, label in labels])]


def in_thirds(frame: pd.DataFrame, positions: pd.DataFrame) -> pd.DataFrame:
    """The rows with a column `third`: of the prompts, those where draft and target overlap least are
    the hardest third. Prompts of which `positions` (see experiments/measurements.py) says nothing
    are left out. So what a tree accepted does not decide which prompts count as easy."""
    overlap = positions.groupby(PROMPT)["overlap"].mean().sort_values(kind="stable")
    place = np.arange(len(overlap)) * len(THIRDS) // len(overlap)
    named = pd.Categorical([THIRDS[at] for at in place], THIRDS, ordered=True)
    thirds = pd.Series(named, overlap.index, name="third").reset_index()
    return frame.drop(columns="third", errors="ignore").merge(thirds, on=PROMPT)
