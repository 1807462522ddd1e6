"""Which rule accepts most? Rules beside each other on the same trees.

    python benchmarks/bench_rules.py cnn_dailymail.jsonl --end 100 --T 0.6 0.9 1 --shapes chain4 2ary3 4x4 optimal15 dTree

After some tokens of each text one step is made. Its tree has sampled children, and a static shape or
(`dTree`) that of a dynamic tree of `--B` nodes. The expected number of accepted tokens of each rule is
exact, given the tree, so only the trees are luck, and they are the same for all; but `sorted`
(verification/sorted_siblings.py) and GBV (`greedy`, verification/others.py; shapes such as 4x4) need
siblings that are drawn independently of each other. `nodes`: how many different ones that are. One
line a tree shape and temperature: the mean of `topdown`, and the others over `traversal` (ratios of
sums, 95% intervals over texts). A killed run is to be run again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

import dynasurge
from dynasurge import Pair, Session, Settings
from dynasurge.cli.main import guarded
from dynasurge.experiments.datasets import load_prompts
from dynasurge.experiments.intervals import of_ratio
from dynasurge.experiments.text_distributions import mean_accepted, mean_depth
from dynasurge.trees.token_tree import TokenTree
from dynasurge.verification.others import choose_path
from dynasurge.verification.rules import RULES, Verdict, tokens_to
from dynasurge.verification.sorted_siblings import INDEPENDENT, sorted_siblings

PLACES = (64, 96, 128)
DYNAMIC = "dTree"
ON_ALL, OTHERS = ("topdown", "traversal"), ("topdown", "reserved", "sorted", "greedy")
GROWMAPS = Path(__file__).parents[1] / "growmaps"
Found = dict[str, float]  # expected accepted tokens by rule


class Seen:
    """Stands for a rule: looks at each tree, and accepts nothing."""

    def __init__(self, static: bool) -> None:
        self._static = static
        self.found: Found = {}

    def __call__(
        self, tree: TokenTree, p: torch.Tensor, q: Sequence[torch.Tensor], chance: Any
    ) -> Verdict:
        """Compute what each rule accepts."""
        self.found = {name: mean_accepted(RULES[name], tree, p, q) for name in ON_ALL}
        if self._static:
            self.found["reserved"] = mean_accepted(RULES["reserved"], tree, p, q)
        return self._nothing(tree, p)

    def _nothing(self, tree: TokenTree, p: torch.Tensor) -> Verdict:
        return Verdict(path=(), bonus=int(p[0].argmax()), stop=(1.0,) + (0.0,) * tree.size)


class SeenIndependent(Seen):
    """The same for the rules whose siblings are drawn independently."""

    def __call__(
        self, tree: TokenTree, p: torch.Tensor, q: Sequence[torch.Tensor], chance: Any
    ) -> Verdict:
        """Compute what `sorted` accepts, and GBV if the tree is some chains."""
        after = {tokens_to(tree, node): node for node in range(tree.size + 1)}
        self.found = {
            "sorted": mean_depth(sorted_siblings(tree, p, q), tree),
            "nodes": len(after) - 1,
        }
        if any(len(own) > 1 for own in tree.children[1:]):
            return self._nothing(tree, p)
        leaves = [node for node, own in enumerate(tree.children) if not own]
        paths = [tokens_to(tree, node) for node in leaves]
        best = choose_path(
            paths, lambda head: p[after[tuple(head)]], lambda head: q[after[tuple(head)]]
        )
        self.found["greedy"] = best.expected_length
        return self._nothing(tree, p)


def sessions(pair: Pair, shape: str, T: float, B: int) -> Iterator[tuple[Session, Seen]]:
    """What makes the steps of a shape, and who looks at their trees."""
    common: dict[str, Any] = {"T": T, "P": 1.0, "new_tokens": 16, "prompt_len": max(PLACES)}
    if shape == DYNAMIC:
        seen = Seen(static=False)
        own = Settings(**common, mode="dTree", B=B, fill=True, lookup=False)
        yield Session(pair, own, verify=seen), seen
        return
    file = GROWMAPS / f"{shape}.pt"
    own = Settings(**common, mode="sTree", growmap=str(file) if file.exists() else shape)
    seen = Seen(static=True)
    yield Session(pair, own, verify=seen), seen
    seen = SeenIndependent(static=True)
    yield Session(pair, own, verify=seen, policy=INDEPENDENT), seen


def ratio_cell(sums: np.ndarray) -> str:
    """A ratio of sums and its interval. sums: [texts, 2], of numerators and denominators."""
    (above, below), (low, high) = sums.sum(0), of_ratio(sums)
    return f"{above / below:.3f} [{low:.3f}, {high:.3f}]"


def measure(pair: Pair, texts: list[list[int]], shapes: Sequence[str], T: float, B: int) -> None:
    """Print a line for each shape."""
    for shape in shapes:
        steps = [*sessions(pair, shape, T, B)]
        rows: list[Found] = []
        for number, ids in enumerate(tqdm(texts, desc=f"T = {T:g}, {shape}", disable=None)):
            sums: Found = {}
            for place in [place for place in PLACES if place <= len(ids)]:
                for session, seen in steps:
                    next(session.stream(ids[:place], index=number))
                    for name, length in seen.found.items():
                        sums[name] = sums.get(name, 0.0) + length
            rows.append(sums)
        base = np.array([row["traversal"] for row in rows])
        places = sum(place <= len(ids) for ids in texts for place in PLACES)
        cells = [f"{sum(row['topdown'] for row in rows) / places:.2f}"]
        for name in OTHERS:
            if name not in rows[0]:
                cells.append("")
                continue
            own = np.array([row[name] for row in rows])
            cells.append(ratio_cell(np.stack([own, base], axis=1)))
        cells.append(
            f"{sum(row['nodes'] for row in rows) / places:.1f}" if "nodes" in rows[0] else ""
        )
        label = f"{shape} B={B}" if shape == DYNAMIC else shape
        print(f"| {T:g} | {label} | {' | '.join(cells)} |", flush=True)


@torch.inference_mode()
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset")
    parser.add_argument("--end", type=int, default=100)
    parser.add_argument("--draft", default="demo")
    parser.add_argument("--T", type=float, nargs="+", default=[0.6, 0.9, 1.0])
    parser.add_argument("--B", type=int, default=16)
    shapes = ["chain4", "2ary3", "4x4", "optimal15", DYNAMIC]
    parser.add_argument("--shapes", nargs="+", default=shapes)
    args = parser.parse_args(argv)
    pair = dynasurge.load_pair(args.draft)
    texts = [pair.encode(prompt.text)[:128] for prompt in load_prompts(args.dataset, 0, args.end)]
    others = " | ".join(f"{name} over traversal" for name in OTHERS)
    print(f"| T | tree | topdown accepts | {others} | nodes |\n|{'---|' * 8}")
    for T in args.T:
        measure(pair, texts, args.shapes, T, args.B)
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main, "nothing is kept"))
