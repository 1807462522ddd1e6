"""95% intervals: percentile bootstraps over *prompts*, because results differ most from text to
text.

A bootstrap draws the prompts' sums anew, so a ratio is that of pooled tokens to pooled seconds, as a
reader of the table would compute it. With fewer than ENOUGH prompts there is no interval: NaN.
Every function with its own generator gives the same interval each time.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

RESAMPLES = 2000
ENOUGH = 5  # an interval needs so many prompts
PROMPT = ["dataset", "index"]  # the columns that identify a prompt
ENDS = (2.5, 97.5)  # percent
NONE = (float("nan"), float("nan"))


def redrawn(sums: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """[RESAMPLES, m]: the sums over prompts drawn anew. sums: [prompts, m]."""
    n = len(sums)
    drawn: np.ndarray = rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES) @ sums
    return drawn


def of_median(values: pd.Series) -> tuple[float, float]:
    """The interval of the median of a list with one value a prompt. Values that are not finite (a
    text that ended at once has no speed) do not count."""
    values = values[np.isfinite(values)]
    if len(values) < ENOUGH:
        return NONE
    drawn = np.random.default_rng(0).choice(values.to_numpy(), size=(RESAMPLES, len(values)))
    low, high = np.percentile(np.median(drawn, axis=1), ENDS)
    return float(low), float(high)


def of_ratio(sums: np.ndarray) -> tuple[float, float]:
    """The interval of a ratio of sums. sums: [prompts, 2], of numerators and denominators."""
    if len(sums) < ENOUGH:
        return NONE
    drawn = redrawn(sums, np.random.default_rng(0))
    low, high = np.nanpercentile(drawn[:, 0] / drawn[:, 1], ENDS)
    return float(low), float(high)


def means(
    table: pd.DataFrame, by: Sequence[str], columns: Sequence[str], count: str
) -> pd.DataFrame:
    """The mean of each column over all table rows of each group, and its interval in NAME_low and
    NAME_high. `count`: the number of table rows; `prompts`: the number of prompts.

    table: with the columns of PROMPT. Missing values (NaN) do not count.
    """
    lines = []
    for key, group in table.groupby(list(by), sort=True, observed=True):
        prompts = group.groupby(PROMPT)[list(columns)]
        sums, counts = prompts.sum(), prompts.count()
        line = dict(zip(by, key, strict=True))
        line |= {count: len(group), "prompts": len(sums)}
        for name in columns:
            line[name] = group[name].mean()
            known = counts[name] > 0
            pairs = np.column_stack([sums.loc[known, name], counts.loc[known, name]])
            line[f"{name}_low"], line[f"{name}_high"] = of_ratio(pairs.astype(float))
        lines.append(line)
    ends = [f"{name}{end}" for name in columns for end in ("", "_low", "_high")]
    return pd.DataFrame(lines, columns=[*by, count, "prompts", *ends])
