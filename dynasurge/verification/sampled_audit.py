"""Is an engine lossless of which only tokens come out? The audit by samples, with its power stated.

    report = dynasurge.audit_samples(sample, target, vocab=8, length=2, samples=2000)

`sample(seed)` returns the first tokens that the engine writes with this seed, `target(tokens)` the
law that they should have. The statistic is the total variation between the samples' frequencies and
the law of `length` tokens. It is compared with that of samples that do have the law, drawn here; so
the test keeps its level for any number of samples. A sequence of probability zero decides at once.

What can be missed is as important as what is found: a law whose total variation from the target's is
at least `detects` is found with probability 95%. (The frequencies of n samples of any law are within
`spread` of it with that probability, the most for the uniform law. So they are at least `detects` -
`spread` = `limit` from the target's law.) Smaller differences may pass. Where the random numbers can
be injected, `dynasurge.audit` is exact instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from dynasurge.errors import UsageError, at_least
from dynasurge.verification.enumeration import Table, target_law

REPEATS, LEVEL, SURE = 4000, 0.01, 0.95
LARGEST = 100_000  # sequences


@dataclass(frozen=True, kw_only=True)
class SampleReport:
    """distance: total variation between frequencies and law. limit: what samples of the law itself
    exceed in 1% of cases. chance: the share of such samples that are as far from the law. detects:
    see above. impossible: a sequence of probability 0 that was written."""

    samples: int
    sequences: int
    distance: float
    limit: float
    chance: float
    detects: float
    impossible: tuple[int, ...] | None = None

    @property
    def passes(self) -> bool:
        """Whether nothing speaks against losslessness."""
        return self.impossible is None and self.distance <= self.limit

    def __str__(self) -> str:
        size = f"{self.samples} samples, {self.sequences} sequences"
        if self.impossible is not None:
            return f"NOT lossless ({size}): wrote {list(self.impossible)}, which has probability 0"
        said = f"total variation {self.distance:.3f}, of samples of the law itself 99% have at most"
        verdict = "no difference found" if self.passes else "NOT lossless"
        power = f"a difference of {self.detects:.3f} or more is found with probability 95%"
        return f"{verdict} ({size}): {said} {self.limit:.3f} (p = {self.chance:.3g}); {power}"


def audit_samples(
    sample: Callable[[int], Sequence[int]],
    target: Table,
    *,
    vocab: int,
    length: int = 2,
    samples: int = 2000,
    seed: int = 0,
    on_sample: Callable[[], object] = lambda: None,
) -> SampleReport:
    """Compare what an engine writes with the target's law (see above).

    target: tokens written so far -> probabilities of the next. vocab: how many tokens there are.
    seed: of the comparison; the engine gets the seeds 0 to samples - 1. Calls on_sample after each.
    Raises UsageError if there are too many sequences, or if a sample is too short.
    """
    at_least("samples", samples, 100, 2000)
    if vocab**length > LARGEST:
        reason = f"has {vocab**length} sequences of {vocab} tokens"
        raise UsageError("length", length, reason, "use a small model, or a smaller length")
    law = target_law(target, (), length, vocab)
    keys = {key: place for place, key in enumerate(law)}
    expected = np.array([*law.values()])
    counts, impossible = np.zeros(len(law)), None
    for number in range(samples):
        tokens = tuple(int(token) for token in sample(number))[:length]
        if tokens not in keys:
            reason = f"are not {length} of the tokens 0 to {vocab - 1}"
            raise UsageError("sample", [*tokens], reason, "return what the engine writes")
        counts[keys[tokens]] += 1
        if expected[keys[tokens]] <= 0 and impossible is None:
            impossible = tokens
        on_sample()
    rng = np.random.default_rng(seed)
    own = _distances(rng, expected, samples)
    spread = np.quantile(_distances(rng, np.full(len(law), 1 / len(law)), samples), SURE)
    distance = float(np.abs(counts / samples - expected).sum() / 2)
    limit = float(np.quantile(own, 1 - LEVEL))
    return SampleReport(
        samples=samples,
        sequences=len(law),
        distance=distance,
        limit=limit,
        chance=float((own >= distance).mean()),
        detects=limit + float(spread),
        impossible=impossible,
    )


def _distances(rng: np.random.Generator, law: np.ndarray, samples: int) -> np.ndarray:
    """Total variations between `law` and the frequencies of samples of it."""
    drawn = rng.multinomial(samples, law / law.sum(), size=REPEATS)
    distances: np.ndarray = np.abs(drawn / samples - law).sum(1) / 2
    return distances
