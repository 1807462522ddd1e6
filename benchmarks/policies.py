"""Which child policy decodes fastest: sampled, topk or hybrid, on static and dynamic trees, with
ETV.

    python benchmarks/policies.py --data cnn_dailymail.jsonl --prompts 12 --output runs/policies

All policies take the same prompt before any takes the next (see experiments/runner.py). Prints
tokens per step and the speed-up over `auto`, by temperature and tree; a killed run goes on where it
stopped.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from tqdm import tqdm

from dynasurge import load_pair
from dynasurge.cli.flags import budget
from dynasurge.experiments.datasets import load_prompts
from dynasurge.experiments.grid import grid
from dynasurge.experiments.results_frame import results
from dynasurge.experiments.sweep import sweep
from dynasurge.settings import POLICIES


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="demo")
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--T", type=float, nargs="+", default=[0.6, 0.8, 1.0])
    parser.add_argument("--B", type=budget, nargs="+", default=["auto"])
    parser.add_argument("--growmap", nargs="+", default=["growmaps/2x2.pt"])
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    pair, prompts = load_pair(), load_prompts(args.data, 0, args.prompts)
    device = f"{pair.target.device.type}, {torch.get_num_threads()} threads"
    print(f"{len(prompts)} prompts of {Path(args.data).stem}, {pair.target.dtype}, {device}")
    print(
        "| T | tree | "
        + " | ".join(f"{policy}: tokens/step, speed-up" for policy in POLICIES)
        + " |"
    )
    print("|---|---|" + "---|" * len(POLICIES))
    plan = grid(growmap=args.growmap, B=args.B, use_bfs=[True], policy=POLICIES, T=args.T)
    with tqdm(total=len(plan) * len(prompts), disable=None) as bar:
        frame = sweep(pair, plan, {args.data: prompts}, args.output, on_row=lambda _: bar.update())
    table = results(frame).set_index(["T", "label", "policy"])
    for T, label in dict.fromkeys((T, label) for T, label, _ in table.index if label != "auto"):
        cells = [table.loc[T, label, policy] for policy in POLICIES]
        texts = [f"{run['tokens_per_step']:.2f}, {run['speedup']:.2f}x" for run in cells]
        print(f"| {T:g} | {label} | " + " | ".join(texts) + " |")


if __name__ == "__main__":
    main()
