"""What Enhanced Tree Verification gains: accepted tokens per step with and without it, paired by
prompt.

    python benchmarks/etv.py run --data cnn_dailymail.jsonl c4_en.jsonl --prompts 100 --output runs/etv
    python benchmarks/etv.py table runs/etv

Every prompt is decoded once top-down and once with ETV, for every tree shape and temperature.
Besides what each run really accepted, every step records the expected accepted length of *all*
rules on the tree that was drawn there, exact given the tree: that comparison is free of the luck of
coins and of trees. `--shard 0/8` does every eighth prompt, so that several processes share a
machine; a killed run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from shards import Shard, gained, read_rows, run_command, run_flags

from dynasurge import Settings, load_pair
from dynasurge.decoding.session import Session, make_engines
from dynasurge.experiments.datasets import load_prompts
from dynasurge.experiments.text_distributions import mean_depth
from dynasurge.verification.rules import RULES, Verdict, draw_verdict

STATIC = {"4x8": "growmaps/4x8-tree.pt", "8x8": "growmaps/8x8-tree.pt"}
BUDGETS = (16, 32, 64)


def shapes(growmaps: list[str], policies: list[str]) -> dict[str, dict[str, Any]]:
    """Tree shapes by label."""
    static = STATIC | {Path(path).stem: path for path in growmaps}
    plan: dict[str, dict[str, Any]] = {
        label: {"mode": "sTree", "growmap": path, "policy": "sampled"}
        for label, path in static.items()
    }
    for policy in policies:
        plan |= {
            f"dTree B={B} {policy}": {"mode": "dTree", "B": B, "policy": policy, "fill": True}
            for B in BUDGETS
        }
    return plan


class Watch:
    """Verifies by one rule and adds up what each rule would have accepted on the same trees."""

    def __init__(self, rule: str, rules: list[str]) -> None:
        self.rule, self.rules = rule, rules
        self.expected: dict[str, float] = defaultdict(float)

    def __call__(self, tree: Any, p: Any, q: Any, generator: torch.Generator) -> Verdict:
        rows = p[torch.arange(tree.size + 1, device=p.device)]
        laws = {name: RULES[name](tree, rows, q) for name in self.rules}
        for name, law in laws.items():
            self.expected[name] += mean_depth(law, tree)
        return draw_verdict(laws[self.rule], tree, generator)


def run(args: argparse.Namespace) -> None:
    """Decode; one JSON line a (data, prompt, T, shape, rule)."""
    torch.set_num_threads(args.threads)
    pair = load_pair(args.draft, args.target)
    plan = shapes(args.growmap, args.policy)
    common = {
        "new_tokens": args.new_tokens,
        "prompt_len": 128,
        "draft": args.draft,
        "target": args.target,
    }
    settings = {
        (T, label): Settings(T=T, **common, **own) for T in args.T for label, own in plan.items()
    }
    engines = make_engines(pair, list(settings.values()))
    shard = Shard(args, ("data", "index", "T", "shape", "rule"))
    for number in shard.numbers(args.prompts):
        for data in args.data:
            prompt = load_prompts(data, number, number + 1)[0]
            for ((T, label), own), rule in product(settings.items(), ("topdown", "traversal")):
                key = {
                    "data": Path(data).stem,
                    "index": number,
                    "T": T,
                    "shape": label,
                    "rule": rule,
                }
                if not shard.wants(**key):
                    continue
                watch = Watch(
                    rule, ["topdown", "traversal"] + (["reserved"] if "optimal" in label else [])
                )
                session = Session(pair, own, engines=engines, verify=watch)
                result = session.generate(session.encode(prompt.text), index=number)
                shard.append(
                    key
                    | {
                        "steps": len(result.steps),
                        "tokens": len(result.output_ids),
                        "accepted": sum(step.accepted for step in result.steps),
                        "nodes": sum(step.tree.size for step in result.steps),
                        "expected": dict(watch.expected),
                        "seconds": result.seconds,
                    }
                )


def table(args: argparse.Namespace) -> None:
    """Means over prompts with 95% bootstrap intervals of the paired ratio, as Markdown."""
    rows = read_rows(*sorted(args.output.rglob("rows-*.jsonl")))
    runs = {(r["data"], r["T"], r["shape"], r["index"], r["rule"]): r for r in rows}
    groups: dict[tuple[str, float, str], list[int]] = defaultdict(list)
    for data, T, shape, index, rule in runs:
        if rule == "topdown" and (data, T, shape, index, "traversal") in runs:
            groups[data, T, shape].append(index)
    print(
        "| data | T | tree | prompts | top-down | ETV | gain [95%] | same trees: top-down | ETV | gain [95%] | reserved |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for (data, T, shape), prompts in sorted(groups.items()):
        pairs = [
            [runs[data, T, shape, index, rule] for rule in ("topdown", "traversal")]
            for index in prompts
        ]
        real = np.array([[r["accepted"] / r["steps"] for r in both] for both in pairs])
        # Trees of both runs count: which rule moved the text on does not matter to a comparison on
        # the same tree.
        same = np.array(
            [
                [
                    sum(r["expected"].get(rule, math.nan) for r in both)
                    / sum(r["steps"] for r in both)
                    for rule in RULES
                ]
                for both in pairs
            ]
        )
        cells = [data, f"{T:g}", shape, str(len(pairs))]
        for values in (real, same[:, :2]):
            down, etv = values.T
            cells += [f"{down.mean():.3f}", f"{etv.mean():.3f}", gained(down, etv)]
        reserved = same[:, 2].mean()
        cells.append(
            "-"
            if math.isnan(reserved)
            else f"{reserved:.3f} ({reserved / same[:, 0].mean() - 1:+.1%})"
        )
        print("| " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    add = commands.add_parser("run", help="decode and record")
    run_flags(add)
    add.add_argument("--T", type=float, nargs="+", default=[0.6, 0.9, 1.0])
    add.add_argument("--growmap", nargs="*", default=[], help="further static trees")
    add.add_argument(
        "--policy", nargs="+", default=["sampled", "hybrid"], help="of the dynamic trees"
    )
    add.set_defaults(action=run)
    run_command(parser, commands, table)


if __name__ == "__main__":
    main()
