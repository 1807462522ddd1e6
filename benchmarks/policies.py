"""Which child policy decodes fastest: sampled, topk or hybrid, on static and dynamic trees, with ETV.

    python benchmarks/policies.py --data cnn_dailymail.jsonl --prompts 12 --output runs/policies

All policies take the same prompt before any takes the next (see evaluation.py). Prints tokens per step and the speed-up
over `auto`, by temperature and tree; a killed run goes on where it stopped.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from dynasurge import Settings, load_pair
from dynasurge.config import POLICIES
from dynasurge.data import load_prompts
from dynasurge.evaluation import Evaluation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="demo")
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--T", type=float, nargs="+", default=[0.6, 0.8, 1.0])
    parser.add_argument("--B", nargs="+", default=["auto"])
    parser.add_argument("--growmap", nargs="+", default=["growmaps/2x2.pt"])
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    pair, prompts = load_pair(), load_prompts(args.data, 0, args.prompts)
    trees: dict[str, dict[str, Any]] = {
        f"dTree B={B}": {"mode": "dTree", "B": B if B == "auto" else int(B)} for B in args.B
    }
    trees |= {f"sTree {Path(path).stem}": {"mode": "sTree", "growmap": path} for path in args.growmap}
    device = f"{pair.target.device.type}, {torch.get_num_threads()} threads"
    print(f"{len(prompts)} prompts of {Path(args.data).stem}, {pair.target.dtype}, {device}")
    print("| T | tree | " + " | ".join(f"{policy}: tokens/step, speed-up" for policy in POLICIES) + " |")
    print("|---|---|" + "---|" * len(POLICIES))
    for T in args.T:
        plan = {"auto": Settings(mode="auto", T=T)}
        for name, own in trees.items():
            plan |= {f"{name} {policy}": Settings(T=T, policy=policy, use_bfs=True, **own) for policy in POLICIES}
        evaluation = Evaluation(pair, plan, args.data, prompts, args.output / f"T{T:g}")
        for _ in tqdm(evaluation.run(), total=len(evaluation), disable=None):
            pass
        runs = {summary.label: summary for summary in evaluation.summaries()}
        base = runs["auto"].tokens_per_second
        for name in trees:
            cells = [runs[f"{name} {policy}"] for policy in POLICIES]
            texts = [f"{run.tokens_per_step:.2f}, {run.tokens_per_second / base:.2f}x" for run in cells]
            print(f"| {T:g} | {name} | " + " | ".join(texts) + " |", flush=True)


if __name__ == "__main__":
    main()
