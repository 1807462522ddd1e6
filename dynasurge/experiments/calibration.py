"""The prior of drafting/acceptance_estimates.py: how often each kind of child is accepted, measured
by decoding.

    dynasurge calibrate acceptance FILE [--draft NAME --target NAME]

Prompts are decoded with both sampled and hybrid children, with the prior there is (T = 0, where
every rule is the same, is calibrated by itself, and so are two temperatures above it); a `Recorder`
stands in for the estimate and adds up, by kind and bin of the feature, with what probability
children were tried and accepted. Verification knows both exactly, so the sums are far less noisy
than counts. Curves rise with their feature, so isotonic regression (weighted by trials) takes out
what noise is left. A kind that was hardly ever proposed keeps the curve it came with. Trees grown
with the curves are what they were measured on, so a second round from the first's file settles
them.

The curves that ship are of the demo pair and its bundled prompts: at T > 0 the fourth round of
`calibrate`, each from the last one's file (one H100, 2026-11-26; each temperature and rule in a
process of its own, 2 minutes a round). Those of T = 0 are older: one round on two CPU cores a day
before, by two classes of depth and not made to rise. New ones accept 0.5% less, 3% less without
copies: where copies take the likeliest child's place, what is measured of the other points looks
worse. Those of `blind` copies were counted once on the target's own text with no tree at all.
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
LEAST = 20.0  # trials that a knot needs
Knots = dict[str, dict[str, list[float]]]  # by name of a `Class`: `x`, and the `acceptance` there


class Recorder(Acceptance):
    """Estimates by a fixed prior, and remembers every observation."""

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
        """By kind: knots `x`, the mean feature of each bin, and the `acceptance` there; the prior's
        own curve for a kind with too few trials."""
        out: Knots = {
            of.name: {"x": list(xs), "acceptance": list(ys)}
            for of, (xs, ys) in self._curves.items()
        }
        for of in self._sums:
            bins = _pooled([sums for _, sums in sorted(self._sums[of].items())])
            if bins:
                tried, x, accepted = np.array(bins).T
                # more of any feature is never worse: what falls is chance
                rising = isotonic_regression(accepted / tried, weights=tried).x
                out[of.name] = {
                    "x": (x / tried).round(5).tolist(),
                    "acceptance": rising.clip(0.0, 1.0).round(5).tolist(),
                }
        return dict(sorted(out.items()))


def _pooled(bins: Sequence[list[float]]) -> list[list[float]]:
    """Neighbouring bins' sums added up until each has LEAST trials; none if there are not so
    many."""
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
    """The texts and temperatures that are measured, each by itself."""
    return [(text, T) for text in TEXTS for T in ((0.0,) if text == "greedy" else TEMPERATURES)]


def calibrate(
    pair: Pair,
    prompts: Sequence[Prompt],
    start: Priors,
    on_prompt: Callable[[], object] = lambda: None,
) -> dict[str, dict[str, Knots]]:
    """The curves by text and temperature, measured on trees grown with `start`. on_prompt is called
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
    # a prompt without a token is found now, not in an hour
    encoded = [sessions[0].encode(prompt.text) for prompt in prompts]
    for prompt, ids in zip(prompts, encoded, strict=True):
        for session in sessions:
            session.generate(ids, index=prompt.index)
        on_prompt()
    return recorder.curves()
