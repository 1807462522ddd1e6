"""How far the prototype's rule bends a real model's text: the next token's distribution after one
step.

    python benchmarks/bias.py --data cnn_dailymail.jsonl --contexts 10 --samples 1000

At each context (the first 128 tokens of a prompt) one step is taken `samples` times and the first
emitted token is counted; dynasurge/experiments/rule_bias.py says how. Counting noise makes a
distance positive even for a lossless rule, so what counts is how much a rule is above topdown.
"""

from __future__ import annotations

import argparse

from tqdm import tqdm

from dynasurge import load_pair
from dynasurge.experiments.datasets import load_prompts
from dynasurge.experiments.rule_bias import first_token_bias


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="demo")
    parser.add_argument("--contexts", type=int, default=10)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--T", type=float, default=0.9)
    parser.add_argument("--shape", default="2x2")
    args = parser.parse_args()
    pair, prompts = load_pair(), load_prompts(args.data, 0, args.contexts)
    ids = {prompt.index: pair.tokenizer(prompt.text).input_ids[:128] for prompt in prompts}
    with tqdm(total=len(ids), disable=None) as bar:
        table = first_token_bias(
            pair, ids, T=args.T, shape=args.shape, samples=args.samples, on_context=bar.update
        )
    print(f"{args.shape} tree, T = {args.T:g}, {args.contexts} contexts, {args.samples} steps each")
    distances = table.pivot(index="index", columns="rule", values="total_variation")
    for name in table["rule"].unique():
        more = distances[name] - distances["topdown"]
        error = more.std() / len(more) ** 0.5
        mean = distances[name].mean()
        print(
            f"{name:12s} total variation {mean:.4f}, above topdown {more.mean():+.4f} +- {error:.4f}"
        )


if __name__ == "__main__":
    main()
