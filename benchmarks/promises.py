"""Are slot values honest? What nodes of dynamic trees were thought worth, and how often the path
went through them.

    python benchmarks/promises.py --data cnn_dailymail.jsonl c4_en.jsonl spec_bench.jsonl --start 210 --end 220 --T 0.6 0.9

A tree grown best-first is as good as its slot values (drafting/acceptance_estimates.py): if those
of deep nodes are too low, trees are too bushy, if they are too high, too thin. Filled trees of B
nodes are grown at every few tokens of a text that the target wrote, and verification knows exactly
how likely the path was to go through each node (ETV; top-down with `--topdown`). By depth, and by
what was promised, the table has the sums of both over all nodes: where `accepted / promised` is 1,
growth by slot values is best-first indeed. Another `--priors` file is judged likewise.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from shards import guard
from tqdm.auto import tqdm

from dynasurge import Settings, load_pair
from dynasurge.decoding.session import Session, follow, make_engines
from dynasurge.experiments.datasets import load_prompts
from dynasurge.trees.token_tree import TokenTree
from dynasurge.verification.rules import RULES, Verdict, draw_verdict, reach

DEEP = 12  # this and deeper levels are one row
WORTH = (0.02, 0.05, 0.1, 0.2, 0.4, 0.7)  # edges of what is promised


class Promises:
    """Verifies by a rule and adds up, by depth and by slot value, nodes, their slot values and
    their chances."""

    def __init__(self, rule: str) -> None:
        self._rule = rule
        self.sums: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(3))

    def __call__(self, tree: TokenTree, p: Any, q: Any, generator: torch.Generator) -> Verdict:
        law = RULES[self._rule](tree, p, q)
        chances = reach(tree, law.stop.tolist())
        for value, depth, chance in list(zip(tree.value, tree.depths, chances, strict=True))[1:]:
            level = f"depth {depth}" if depth < DEEP else f"depth {DEEP} or more"
            above = sum(value >= edge for edge in WORTH)
            low, high = ((0.0, *WORTH)[above], (*WORTH, 1.0)[above])
            for name in (level, f"promised {low:g} to {high:g}", "all"):
                self.sums[name] += (1.0, value, chance)
        return draw_verdict(law, tree, generator)


def _order(name: str) -> tuple[str, float]:
    what, _, at = name.partition(" ")
    return what, float(at.split()[0]) if at else 0.0


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--data",
        nargs="+",
        default=["demo"],
        help="prompts, as for --dataset (default: bundled ones)",
    )
    add("--start", type=int, default=0)
    add("--end", type=int, default=10)
    add("--new-tokens", type=int, default=40)
    add(
        "--every",
        type=int,
        default=5,
        metavar="N",
        help="a tree at every N-th token (default: %(default)s)",
    )
    add("--T", type=float, nargs="+", default=[0.6, 0.9])
    add("--B", type=int, default=64)
    add("--topdown", action="store_true", help="verify top-down instead of by ETV")
    add("--draft", default="demo")
    add("--target", default="demo")
    add("--priors", help="judge this file's instead of those that ship")
    args = parser.parse_args(argv)
    pair = load_pair(args.draft, args.target)
    common: dict[str, Any] = {
        "draft": args.draft,
        "target": args.target,
        "prompt_len": 128,
        "new_tokens": args.new_tokens,
    }
    for T in args.T:
        grown = Settings(
            T=T, B=args.B, fill=True, use_bfs=not args.topdown, priors=args.priors, **common
        )
        alone = Settings(T=T, mode="auto", **common)
        engines, promises = make_engines(pair, [grown, alone]), Promises(grown.rule)
        session, writer = (
            Session(pair, grown, engines=engines, verify=promises),
            Session(pair, alone, engines=engines),
        )
        prompts = [
            prompt for data in args.data for prompt in load_prompts(data, args.start, args.end)
        ]
        for prompt in tqdm(prompts, desc=f"T = {T:g}", disable=None):
            ids = session.encode(prompt.text)
            text = writer.generate(ids, index=prompt.index).output_ids
            follow([session], ids, text, index=prompt.index, every=args.every)
        print(f"\n**T = {T:g}**, {len(prompts)} prompts\n")
        print("| | nodes | promised | accepted | accepted / promised |\n|---|---|---|---|---|")
        for name in sorted(promises.sums, key=_order):
            nodes, promised, accepted = promises.sums[name]
            print(
                f"| {name} | {nodes:.0f} | {promised:.1f} | {accepted:.1f} | {accepted / promised:.2f} |"
            )


if __name__ == "__main__":
    guard(main)
