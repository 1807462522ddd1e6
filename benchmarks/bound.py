"""How much is left on the table at one node: what the rules accept there, and what no lossless rule
could beat.

    python benchmarks/bound.py --data cnn_dailymail.jsonl --prompts 12

Nodes are positions of text that the target wrote itself. At each, k children are proposed by every
policy; top-down acceptance is exact given the children, the bound is exact given the node
(dynasurge/verification/single_node_bound.py). At one node traversal and reserved do as top-down
does: what they gain, they gain on paths.
"""

from __future__ import annotations

import argparse

import torch
from tqdm import tqdm

from dynasurge import Settings, load_pair
from dynasurge.decoding.session import Session
from dynasurge.experiments.datasets import load_prompts
from dynasurge.experiments.text_distributions import rank_acceptance, text_distributions
from dynasurge.settings import POLICIES
from dynasurge.verification.single_node_bound import acceptance_bound

EVERY = 8  # positions between nodes, so that they differ
DRAWS = 32  # sets of children drawn at each node


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="demo")
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--T", type=float, nargs="+", default=[0.6, 1.0])
    parser.add_argument("--k", type=int, nargs="+", default=[1, 2, 4, 8])
    args = parser.parse_args()
    pair, generator = load_pair(), torch.Generator().manual_seed(0)
    print(
        "| T | k | "
        + " | ".join(f"{policy}: top-down, bound" for policy in POLICIES)
        + " | nodes |"
    )
    print("|---|---|" + "---|" * (len(POLICIES) + 1))
    for T in args.T:
        session = Session(pair, Settings(mode="auto", T=T, prompt_len=128))
        nodes: list[tuple[torch.Tensor, torch.Tensor]] = []
        for prompt in tqdm(load_prompts(args.data, 0, args.prompts), disable=None):
            result = session.generate(session.encode(prompt.text), index=prompt.index)
            p, q = text_distributions(pair, result.prompt_ids, result.output_ids, T=T)
            nodes.append((p[::EVERY].cpu(), q[::EVERY].cpu()))
        p, q = (torch.cat(rows) for rows in zip(*nodes, strict=True))
        for k in args.k:
            cells = []
            for policy in POLICIES:
                reached = [
                    float(rank_acceptance(p, q, policy, k, generator)[0].sum(1).mean())
                    for _ in range(DRAWS)
                ]
                bound = sum(
                    acceptance_bound(p[row], q[row], k, policy) for row in range(len(p))
                ) / len(p)
                cells.append(f"{sum(reached) / DRAWS:.3f}, {bound:.3f}")
            print(f"| {T:g} | {k} | " + " | ".join(cells) + f" | {len(p)} |", flush=True)


if __name__ == "__main__":
    main()
