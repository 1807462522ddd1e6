"""Measures the prior of drafting/acceptance_estimates.py: how often each kind of child is accepted.

    dynasurge calibrate acceptance FILE [--draft NAME --target NAME]

Prompts are decoded with sampled and with hybrid children, with the present prior. T = 0, where all
rules are the same, is calibrated alone, and so are two temperatures above it. A `Recorder` takes
the place of the estimate. By kind and bin of the feature, it adds up the probabilities with which
children were tried and accepted. Verification knows both exactly, so the sums are far less noisy
than counts. Curves rise with their feature, so isotonic regression (weighted by trials) removes the
rest of the noise. A kind with too few trials keeps its present curve. The curves also change the
trees on which they are measured, so a second round starts from the first one's file.

The curves that ship are of the demo pair: two rounds on two CPU cores, each on half of the bundled
prompts, 2026-11-30. The curves of `blind` copies were counted once on the target's own text without a
tree.
"""

from __future__ import annotations

import bisect
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy.optimize import isotonic_regression

from dynasurge.decoding.engines import make_engines
from dynasurge.decoding.session import Session
from dynasurge.drafting.acceptance_estimates import (
    TEXTS,
    Acceptance,
    Curve,
    Priors,
    curves_at,
)
from dynasurge.drafting.child_kinds import Class
from dynasurge.experiments.datasets import Prompt
from dynasurge.models.pair import Pair
from dynasurge.settings import STUDY_PROMPT, Policy, Settings

PROBABILITIES = (0.003, 0.01, 0.03, 0.06, 0.1, 0.2, 0.3, 0.45, 0.6, 0.75, 0.9, 0.97)
COUNTS = (1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 7.5)
TEMPERATURES = (0.6, 1.0)
BUDGET = 48
LEAST = 20.0  # how many trials a knot needs
Knots = dict[str, dict[str, list[float]]]  # by name of a `Class`: `x`, and `acceptance` at each


class Recorder(Acceptance):
    """Estimates with a fixed prior, and keeps the sums of all observations."""

    def __init__(self, prior: Mapping[Class, Curve]) -> None:
        super().__init__(prior, learn=False)
        self._sums: dict[Class, dict[int, list[float]]] = defaultdict(
            lambda: defaultdict(lambda: [0.0, 0.0, 0.0])
        )

    def observe(self, of: Class, x: float, tried: float, accepted: float) -> None:
        sums = self._sums[of][bisect.bisect(COUNTS if of.kind.counted else PROBABILITIES, x)]
        for number, amount in enumerate((tried, tried * x, accepted)):
            sums[number] += amount

    def curves(self) -> Knots:
        """By kind: knots `x`, the mean feature of each bin, and the `acceptance` at each. A kind
        with too few trials has the prior's curve."""
        out: Knots = {
            of.name: {"x": list(xs), "acceptance": list(ys)}
            for of, (xs, ys) in self._curves.items()
        }
        for of in self._sums:
            bins = _pooled([sums for _, sums in sorted(self._sums[of].items())])
            if bins:
                tried, x, accepted = np.array(bins).T
                # more of a feature is never worse: a fall is noise
                rising = isotonic_regression(accepted / tried, weights=tried).x
                out[of.name] = {
                    "x": (x / tried).round(5).tolist(),
                    "acceptance": rising.clip(0.0, 1.0).round(5).tolist(),
                }
        return dict(sorted(out.items()))


def _pooled(bins: Sequence[list[float]]) -> list[list[float]]:
    """Sums of neighbouring bins, added up until each has LEAST trials; [] if there are fewer in
    all."""
    out: list[list[float]] = []
    for sums in bins:
        if out and out[-1][0] < LEAST:
            out[-1] = [a + b for a, b in zip(out[-1], sums, strict=True)]
        else:
            out.append(sums)
    if len(out) > 1 and out[-1][0] < LEAST:
        few = out.pop()
        out[-1] = [a + b for a, b in zip(out[-1], few, strict=True)]
    return [sums for sums in out if sums[0] >= LEAST]


def rounds() -> list[tuple[str, float]]:
    """The texts and temperatures that are measured, each alone."""
    return [(text, T) for text in TEXTS for T in ((0.0,) if text == "greedy" else TEMPERATURES)]


def calibrate(
    pair: Pair,
    prompts: Sequence[Prompt],
    start: Priors,
    on_prompt: Callable[[], object] = lambda: None,
) -> dict[str, dict[str, Knots]]:
    """The curves by text and temperature, measured on trees that `start` values. Calls on_prompt
    once a prompt in each of `rounds`."""
    out: dict[str, dict[str, Knots]] = {text: {} for text in TEXTS}
    for text, T in rounds():
        out[text][f"{T:g}"] = _curves(pair, prompts, text, T, curves_at(start[text], T), on_prompt)
    return out


def _curves(
    pair: Pair,
    prompts: Sequence[Prompt],
    text: str,
    T: float,
    prior: Mapping[Class, Curve],
    on_prompt: Callable[[], object],
) -> Knots:
    recorder = Recorder(prior)
    policies: tuple[Policy, ...] = ("topk",) if text == "greedy" else ("sampled", "hybrid")
    plan = [
        Settings(
            T=T,
            P=1.0,
            B=BUDGET,
            fill=True,
            policy=policy,
            use_bfs=text == "traversal",
            prompt_len=STUDY_PROMPT,
            new_tokens=64,
        )
        for policy in policies
    ]
    engines = make_engines(pair, plan)
    sessions = [Session(pair, settings, engines=engines, acceptance=recorder) for settings in plan]
    # encode all now: a prompt without tokens fails at once, not in an hour
    encoded = [sessions[0].encode(prompt.text) for prompt in prompts]
    for prompt, ids in zip(prompts, encoded, strict=True):
        for session in sessions:
            session.generate(ids, index=prompt.index)
        on_prompt()
    return recorder.curves()
