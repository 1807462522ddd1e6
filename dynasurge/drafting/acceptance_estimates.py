"""How likely is a proposed child to be accepted? Values of slots in dynamic trees, learned while
decoding.

A tree under a budget ranks slots by the probability that the accepted path contains them. This is
the parent's value times an estimate for the child, given that the path reaches the parent. Each
estimate is a *prior* curve over one feature, measured once on a calibration run, times a
*correction* that this prompt teaches:

    estimate(kind, x) = prior_kind(x) * (s + accepted) / (s + predicted)

`accepted` counts the acceptances of this kind and bin of x so far in this prompt. `predicted` is
the number that the prior predicted. The prior counts as s (STRENGTH) acceptances. Every step
observes all children, each weighted by the probability that the path reached its parent.
Verification knows these probabilities exactly, so one step teaches more than its one outcome.
Decoding stays lossless: past steps may always be used.

drafting/child_kinds.py has the kinds and their features. Each kind has one curve for each of three
depth classes. Every rule has its own prior, measured at more than one temperature; between
temperatures curves are interpolated. (At a low temperature distributions are sharper, and agree
less where the draft is unsure.)

The draft's own probability is a poor estimate: unlikely tokens are accepted far more often than the
draft draws them, likely tokens less often. (`own` uses that estimate, as DySpec, arXiv 2410.11744,
and OPT-Tree, arXiv 2406.17276, do. `fixed` is the prior without learning.)
"""

from __future__ import annotations

import bisect
import functools
import json
import math
import os
from collections.abc import Mapping
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import torch

from dynasurge.drafting.child_kinds import CLASSES, DEPTHS, Class, Kind
from dynasurge.errors import UsageError
from dynasurge.files import ASSETS

PRIORS = ASSETS / "acceptance.json"
STRENGTH = 8.0
UNKNOWN = 0.1
CELLS = 256  # of a table, for each kind
TEXTS = (
    "topdown",
    "traversal",
    "greedy",
)  # sampled text by rule, and T = 0, where all rules are one
Curve = tuple[tuple[float, ...], tuple[float, ...]]  # knots x, rising, and the acceptance at each
Curves = dict[Class, Curve]
Priors = dict[str, dict[float, Curves]]  # by text, then by temperature


def load_priors(path: str | os.PathLike[str] | None = None) -> Priors:
    """Read the curves of a file that `dynasurge calibrate acceptance` wrote; None reads the file
    that ships with the package. Raises UsageError."""
    return _shipped() if path is None else _read(path)


@functools.cache
def _shipped() -> Priors:
    return _read(PRIORS)


def _read(path: str | os.PathLike[str]) -> Priors:
    remedy = "make one with: dynasurge calibrate acceptance FILE"
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError("--priors", path, f"cannot be read ({error})", remedy) from error
    if not isinstance(data, dict) or data.keys() != set(TEXTS):
        raise UsageError("--priors", path, f"its entries are not {', '.join(TEXTS)}", remedy)
    try:
        return {text: _by_temperature(text, data[text]) for text in TEXTS}
    except (AttributeError, LookupError, TypeError, ValueError, OverflowError) as error:
        raise UsageError("--priors", path, f"is no calibration ({error})", remedy) from error


def _by_temperature(text: str, entries: Any) -> dict[float, Curves]:
    out = {
        float(T): dict(_curve(text, name, knots) for name, knots in entries[T].items())
        for T in entries
    }
    if not out or not all(math.isfinite(T) for T in out):
        raise ValueError(f"{text}: is of no temperature")
    return out


def _curve(text: str, name: str, knots: Any) -> tuple[Class, Curve]:
    xs, ys = (tuple(map(float, knots[field])) for field in ("x", "acceptance"))
    try:
        known = Class.named(name)
    except ValueError as error:
        raise ValueError(f"{text}: {error}") from error
    rising = all(map(math.isfinite, xs)) and all(a <= b for a, b in pairwise(xs))
    if not xs or len(xs) != len(ys) or not rising or not all(0 <= y <= 1 for y in ys):
        raise ValueError(f"{text}, {name}: not rising knots and a probability at each")
    if not known.kind.counted and not 0 <= xs[0] <= xs[-1] <= 1:
        raise ValueError(f"{text}, {name}: its knots are no probabilities")
    return known, (xs, ys)


def interpolate(curve: Curve, x: float) -> float:
    """The curve's height at x: piecewise linear between the knots, constant outside them."""
    xs, ys = curve
    at = bisect.bisect_right(xs, x)
    if at == 0 or at == len(xs):
        return ys[0 if at == 0 else -1]
    share = (x - xs[at - 1]) / (xs[at] - xs[at - 1])
    return ys[at - 1] + share * (ys[at] - ys[at - 1])


def curves_at(priors: Mapping[float, Curves], T: float) -> Curves:
    """The curves at temperature T: linear between measured temperatures, constant outside them."""
    below = max((t for t in priors if t <= T), default=min(priors))
    above = min((t for t in priors if t >= T), default=max(priors))
    first, second = priors[below], priors[above]
    share = (T - below) / (above - below) if above > below else 0.0
    return {
        kind: _between(first.get(kind), second.get(kind), share)
        for kind in first.keys() | second.keys()
    }


def _between(a: Curve | None, b: Curve | None, share: float) -> Curve:
    """(1 - share) a + share b. If one of them is None, the other stands for both."""
    known = a or b
    assert known is not None
    a, b = a or known, b or known
    xs = tuple(sorted({*a[0], *b[0]}))
    return xs, tuple((1 - share) * interpolate(a, x) + share * interpolate(b, x) for x in xs)


def cells(kind: Kind) -> list[float]:
    """The feature at each cell of a table. Counts stand as they are; probabilities lie closer
    together near 0."""
    return [
        float(cell) if kind.counted else min(1.0, ((cell + 0.5) / (CELLS - 1)) ** 2)
        for cell in range(CELLS)
    ]


class Acceptance:
    """The estimate of acceptance. It starts again with each prompt."""

    def __init__(self, curves: Mapping[Class, Curve], *, learn: bool = True) -> None:
        self._curves, self._learn = dict(curves), learn
        for (
            kind,
            depth,
        ) in CLASSES:  # a depth without a measured curve takes that of the depth above
            above = self._curves.get(Class(kind, depth - 1))
            if above is not None:
                self._curves.setdefault(Class(kind, depth), above)
        # the first of each class's bins
        starts = accumulate((len(of.kind.bins) + 1 for of in CLASSES), initial=0)
        *firsts, self._bins = starts
        self._first = dict(zip(CLASSES, firsts, strict=True))
        # the prior and the bin of each cell of `table`
        self._grid: tuple[torch.Tensor, torch.Tensor] | None = None
        self.reset()

    def reset(self) -> None:
        """Forget what the last prompt taught."""
        self._accepted, self._predicted = ([STRENGTH] * self._bins for _ in range(2))

    def table(self) -> torch.Tensor:
        """All estimates, float64 [depth classes, kinds, CELLS]. drafting/slot_values.py looks them
        up."""
        if self._grid is None:
            rows = [Class(kind, depth) for depth in range(len(DEPTHS)) for kind in Kind]
            cells_of = {kind: cells(kind) for kind in Kind}
            prior = [[self._prior(of, x) for x in cells_of[of.kind]] for of in rows]
            bins = [[self._bin(of, x) for x in cells_of[of.kind]] for of in rows]
            self._grid = torch.tensor(prior, dtype=torch.float64), torch.tensor(bins)
        prior_, bins_ = self._grid
        learned = torch.tensor([self._accepted, self._predicted], dtype=torch.float64)
        ratios = learned[0] / learned[1]
        return (prior_ * ratios[bins_]).clamp_(max=1.0).view(len(DEPTHS), len(Kind), CELLS)

    def observe(self, of: Class, x: float, tried: float, accepted: float) -> None:
        """Learn that a child was verified with probability `tried` and accepted with probability
        `accepted`."""
        if self._learn:
            bin_ = self._bin(of, x)
            self._accepted[bin_] += accepted
            self._predicted[bin_] += tried * self._prior(of, x)

    def _bin(self, of: Class, x: float) -> int:
        return self._first[of] + bisect.bisect(of.kind.bins, x)

    def _prior(self, of: Class, x: float) -> float:
        """The curve's height; UNKNOWN for a kind that the calibration run did not contain."""
        return interpolate(self._curves[of], x) if of in self._curves else UNKNOWN


def make_acceptance(values: str, rule: str, T: float, priors: str | None = None) -> Acceptance:
    """The estimate that the settings name. values: `learned`, `fixed` (the prior without learning)
    or `own` (the draft's probabilities, which need no estimate). priors: a file, or None for the
    one that ships."""
    name = "greedy" if T == 0 else "traversal" if rule == "traversal" else "topdown"
    return Acceptance(curves_at(load_priors(priors)[name], T), learn=values == "learned")
