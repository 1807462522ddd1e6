"""The time of a few settings on one prompt: in turn, several times, with the spread. And whether
the times of a longer run can be trusted.

One run says little: another process, a warmer chip or a first use can change it by half. So every
setting takes its turn in every round, a ratio is taken within a round, and what is shown is the
median of the rounds with the lowest and the highest. (A difference between texts is another matter:
that takes many prompts, `dynasurge sweep`.)
"""

from __future__ import annotations

import statistics
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from dynasurge.decoding.loop import StepRecord
from dynasurge.decoding.session import generate
from dynasurge.models.pair import Pair
from dynasurge.models.prompts import Prompt
from dynasurge.models.threads import Watch

WARM_UP_TOKENS = 8
ENOUGH = 10  # passes of one size, to say how far they scatter
SCATTER = 0.5  # of the median: from here on times scatter more than on a quiet machine


def time_settings(
    pair: Pair, prompt: Prompt, settings: Mapping[str, Mapping[str, Any]], *, rounds: int = 5
) -> pd.DataFrame:
    """Milliseconds a token of each setting (the prompt's pass aside), and how many times as fast as
    the first one it is: medians over `rounds`, with `_low` and `_high`, the lowest and the highest.
    `tokens_per_step`: tokens that a target pass gave, the same in every round.

    settings: the keyword arguments of `generate`, by name. Warns if other processes were busy.
    """
    for own in settings.values():
        generate(pair, prompt, **{**own, "new_tokens": WARM_UP_TOKENS})
    names, watch = list(settings), Watch()
    ms, lengths = np.zeros((rounds, len(names))), dict[str, float]()
    for turn in range(rounds):
        for place in range(len(names)):
            number = (place + turn) % len(names)
            done = generate(pair, prompt, **settings[names[number]])
            seconds = done.seconds - done.prefill_seconds
            ms[turn, number] = 1e3 * seconds / len(done.output_ids)
            lengths[names[number]] = len(done.output_ids) / len(done.steps)
    if (line := watch.warning()) is not None:
        warnings.warn(line, stacklevel=2)
    out = pd.DataFrame({"tokens_per_step": [lengths[name] for name in names]}, index=names)
    for title, values in {"ms_a_token": ms, "speedup": ms[:, :1] / ms}.items():
        out[title] = np.median(values, axis=0)
        out[f"{title}_low"], out[f"{title}_high"] = values.min(axis=0), values.max(axis=0)
    return out


class Passes:
    """The seconds of target passes so far, by the size of their trees."""

    def __init__(self) -> None:
        self._seconds: dict[int, list[float]] = defaultdict(list)

    def add(self, steps: Iterable[StepRecord]) -> None:
        """Note the passes of these steps, without the first, which may warm something up."""
        for step in [*steps][1:]:
            self._seconds[step.tree.size].append(step.target_seconds)

    @property
    def scatter(self) -> float:
        """How far the middle 80% of passes over equally large trees lie apart, over their median:
        the mean over sizes, weighted by passes; 0 if no size has ENOUGH."""
        apart, passes = 0.0, 0
        for own in self._seconds.values():
            if len(own) >= ENOUGH:
                tenths = statistics.quantiles(own, n=10)
                apart += len(own) * (tenths[-1] - tenths[0]) / statistics.median(own)
                passes += len(own)
        return apart / passes if passes else 0.0

    def warning(self, watch: Watch) -> str | None:
        """A line if the times cannot be trusted, because other processes were busy or because times
        scatter."""
        if (line := watch.warning()) is not None or self.scatter < SCATTER:
            return line
        return (
            f"times scatter: the middle 80% of passes over equally large trees lie {self.scatter:.0%} "
            "of their median apart: measure again, with more prompts"
        )
