"""The prior of acceptance.py: how often each kind of child is accepted, measured by decoding.

    python -m dynasurge.calibration dynasurge/assets/acceptance.json

Prompts are decoded with both sampled and hybrid children, with the prior there is; a `Recorder` stands in for the estimate
and adds up, by kind and bin of the feature, with what probability children were tried and accepted. Verification knows both
exactly, so the sums are far less noisy than counts. The curves that ship are of the demo pair on its bundled prompts; trees
grown with them are what they were measured on, so two rounds settle them.
"""

from __future__ import annotations

import argparse
import bisect
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from dynasurge.acceptance import Acceptance, load_priors
from dynasurge.config import Policy, Settings
from dynasurge.data import Prompt, load_prompts
from dynasurge.files import write_whole
from dynasurge.generation import Session, make_engines
from dynasurge.models import Pair, load_pair

PROBABILITIES = (0.003, 0.01, 0.03, 0.06, 0.1, 0.2, 0.3, 0.45, 0.6, 0.75, 0.9, 0.97)
COUNTS = (1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 7.5)
EDGES = {
    "point": PROBABILITIES,
    "tail": PROBABILITIES,
    "first": PROBABILITIES,
    "later": COUNTS,
    "echo": COUNTS,
    "lookup": COUNTS,
    "blind": COUNTS,
}
LEAST = 2.0  # trials that a bin needs to be a knot
Curves = dict[str, dict[str, list[float]]]


class Recorder(Acceptance):
    """Estimates by a fixed prior, and remembers every observation."""

    def __init__(self, prior: str) -> None:
        super().__init__(load_priors()[prior], learn=False)
        self._sums: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(lambda: [0.0, 0.0, 0.0]))

    def observe(self, kind: str, x: float, tried: float, accepted: float) -> None:
        sums = self._sums[kind][bisect.bisect(EDGES[kind.rstrip("+")], x)]
        for number, amount in enumerate((tried, tried * x, accepted)):
            sums[number] += amount

    def curves(self) -> Curves:
        """By kind: knots `x`, the mean feature of each bin, and the mean `acceptance` there."""
        out: Curves = {}
        for kind in sorted(self._sums):
            bins = [sums for _, sums in sorted(self._sums[kind].items()) if sums[0] >= LEAST]
            if bins:
                out[kind] = {
                    "x": [round(x / tried, 5) for tried, x, _ in bins],
                    "acceptance": [round(accepted / tried, 5) for tried, _, accepted in bins],
                }
        return out


def calibrate(pair: Pair, prompts: Sequence[Prompt], rule: str, temperatures: Sequence[float], B: int = 48) -> Curves:
    """The curves of one rule, over all temperatures. T = 0 is calibrated by itself: every rule is the same there."""
    greedy = list(temperatures) == [0.0]
    recorder = Recorder("greedy" if greedy else rule)
    policies: tuple[Policy, ...] = ("topk",) if greedy else ("sampled", "hybrid")
    plan = [
        Settings(T=T, B=B, M=512, fill=True, policy=policy, use_bfs=rule == "traversal", new_tokens=64)
        for T in temperatures
        for policy in policies
    ]
    engines = make_engines(pair, plan)
    sessions = [Session(pair, settings, engines=engines, acceptance=recorder) for settings in plan]
    for prompt in tqdm(prompts, desc="greedy" if greedy else rule, disable=None):
        for session in sessions:
            session.generate(session.encode(prompt.text), index=prompt.index)
    return recorder.curves()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="where to write the curves")
    parser.add_argument("--draft", default="demo")
    parser.add_argument("--target", default="demo")
    parser.add_argument("--data", default="demo")
    args = parser.parse_args()
    pair, prompts = load_pair(args.draft, args.target), load_prompts(args.data)
    curves = {rule: calibrate(pair, prompts, rule, [0.6, 0.9]) for rule in ("topdown", "traversal")}
    curves["greedy"] = calibrate(pair, prompts, "topdown", [0.0])
    with write_whole(args.file) as partial:
        partial.write_text(json.dumps(curves, indent=1) + "\n")


if __name__ == "__main__":
    main()
