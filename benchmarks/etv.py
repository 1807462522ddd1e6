"""What Enhanced Tree Verification gains: accepted tokens per step with and without it, paired by prompt.

    python benchmarks/etv.py run --data cnn_dailymail.jsonl c4_en.jsonl --prompts 100 --output runs/etv
    python benchmarks/etv.py table runs/etv

Every prompt is decoded once top-down and once with ETV, for every tree shape and temperature. Besides what each run really
accepted, every step records the expected accepted length of *all* rules on the tree that was drawn there, exact given the
tree: that comparison is free of the luck of coins and of trees. `--shard 0/8` does every eighth prompt, so that several
processes share a machine; a killed run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dynasurge import Settings, load_pair
from dynasurge.analysis import mean_depth
from dynasurge.data import load_prompts
from dynasurge.generation import Session, make_engines
from dynasurge.verification import RULES, Verdict, draw_verdict

STATIC = {"4x8": "growmaps/4x8-tree.pt", "8x8": "growmaps/8x8-tree.pt"}
BUDGETS = (16, 32, 64)


def shapes(growmaps: list[str], policies: list[str]) -> dict[str, dict[str, Any]]:
    """Tree shapes by label."""
    static = STATIC | {Path(path).stem: path for path in growmaps}
    plan: dict[str, dict[str, Any]] = {
        label: {"mode": "sTree", "growmap": path, "policy": "sampled"} for label, path in static.items()
    }
    for policy in policies:
        plan |= {f"dTree B={B} {policy}": {"mode": "dTree", "B": B, "policy": policy, "fill": True} for B in BUDGETS}
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
    common = {"new_tokens": args.new_tokens, "M": 1024, "draft": args.draft, "target": args.target}
    settings = {(T, label): Settings(T=T, **common, **own) for T in args.T for label, own in plan.items()}
    engines = make_engines(pair, list(settings.values()))
    part, parts = map(int, args.shard.split("/"))
    args.output.mkdir(parents=True, exist_ok=True)
    path = args.output / f"rows-{part}-of-{parts}.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    done = {(row["data"], row["index"], row["T"], row["shape"], row["rule"]) for row in rows}
    start = time.monotonic()
    with path.open("a") as file:
        for number in range(args.prompts):
            if number % parts != part:
                continue
            for data in args.data:
                prompt = load_prompts(data, number, number + 1)[0]
                for (T, label), own in settings.items():
                    rules = ["topdown", "traversal"] + (["reserved"] if "optimal" in label else [])
                    for rule in ("topdown", "traversal"):
                        if (Path(data).stem, number, T, label, rule) in done:
                            continue
                        if time.monotonic() - start > args.seconds:
                            return
                        watch = Watch(rule, rules)
                        session = Session(pair, own, engines=engines, verify=watch)
                        result = session.generate(session.encode(prompt.text), index=number)
                        row = {
                            "data": Path(data).stem,
                            "index": number,
                            "T": T,
                            "shape": label,
                            "rule": rule,
                            "steps": len(result.steps),
                            "tokens": len(result.output_ids),
                            "accepted": sum(step.accepted for step in result.steps),
                            "nodes": sum(step.tree.size for step in result.steps),
                            "expected": dict(watch.expected),
                            "seconds": result.seconds,
                        }
                        file.write(json.dumps(row) + "\n")
                        file.flush()


def table(args: argparse.Namespace) -> None:
    """Means over prompts with 95% bootstrap intervals of the paired ratio, as Markdown."""
    rows = [json.loads(line) for path in sorted(args.output.glob("rows-*.jsonl")) for line in path.open()]
    runs = {(r["data"], r["T"], r["shape"], r["index"], r["rule"]): r for r in rows}
    groups: dict[tuple[str, float, str], list[int]] = defaultdict(list)
    for data, T, shape, index, rule in runs:
        if rule == "topdown" and (data, T, shape, index, "traversal") in runs:
            groups[data, T, shape].append(index)
    print(
        "| data | T | tree | prompts | top-down | ETV | gain [95%] | same trees: top-down | ETV | gain [95%] | reserved |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    generator = np.random.default_rng(0)
    for (data, T, shape), prompts in sorted(groups.items()):
        pairs = [[runs[data, T, shape, index, rule] for rule in ("topdown", "traversal")] for index in prompts]
        real = np.array([[r["accepted"] / r["steps"] for r in both] for both in pairs])
        # Trees of both runs count: which rule moved the text on does not matter to a comparison on the same tree.
        same = np.array(
            [
                [sum(r["expected"].get(rule, math.nan) for r in both) / sum(r["steps"] for r in both) for rule in RULES]
                for both in pairs
            ]
        )
        draws = generator.integers(len(pairs), size=(4000, len(pairs)))
        cells = [data, f"{T:g}", shape, str(len(pairs))]
        for values in (real, same[:, :2]):
            down, etv = values.mean(0)
            means = values[draws].mean(1)
            low, high = np.percentile(means[:, 1] / means[:, 0] - 1, [2.5, 97.5])
            cells += [f"{down:.3f}", f"{etv:.3f}", f"{etv / down - 1:+.1%} [{low:+.1%}, {high:+.1%}]"]
        reserved = same[:, 2].mean()
        cells.append("-" if math.isnan(reserved) else f"{reserved:.3f} ({reserved / same[:, 0].mean() - 1:+.1%})")
        print("| " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    add = commands.add_parser("run", help="decode and record")
    add.add_argument("--data", nargs="+", required=True, help="JSONL files of prompts")
    add.add_argument("--prompts", type=int, default=100)
    add.add_argument("--T", type=float, nargs="+", default=[0.6, 0.9, 1.0])
    add.add_argument("--growmap", nargs="*", default=[], help="further static trees")
    add.add_argument("--policy", nargs="+", default=["sampled", "hybrid"], help="of the dynamic trees")
    add.add_argument("--new-tokens", type=int, default=128)
    add.add_argument("--draft", default="demo")
    add.add_argument("--target", default="demo")
    add.add_argument("--shard", default="0/1", metavar="I/N")
    add.add_argument("--seconds", type=float, default=math.inf, help="stop after so long; run again to go on")
    add.add_argument("--threads", type=int, default=torch.get_num_threads())
    add.add_argument("--output", type=Path, required=True)
    add.set_defaults(action=run)
    add = commands.add_parser("table", help="print what was recorded")
    add.add_argument("output", type=Path)
    add.set_defaults(action=table)
    args = parser.parse_args()
    args.action(args)


if __name__ == "__main__":
    main()
