"""What does the draft know of a child before the target has looked? How much of its acceptance each
feature explains.

    python benchmarks/worth.py --data cnn_dailymail.jsonl c4_en.jsonl spec_bench.jsonl --start 180 --end 200

At every token of texts that the target wrote, a few children are sampled and verified top-down. The
acceptance of the j-th, given that its elder siblings are refused, is known exactly; the table says
which share of its variance a feature explains: R2, means in cells of equally many children, fitted
on the even prompts and judged on the odd ones, and the other way round. A dynamic tree can be as
much better than a static one as such features tell its nodes apart. The `overlap` of draft and
target is what nobody can know: how much is left.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from shards import guard
from tqdm.auto import tqdm

from dynasurge import Settings, load_pair
from dynasurge.decoding.session import Session
from dynasurge.drafting.acceptance_estimates import SAMPLED
from dynasurge.experiments.datasets import load_prompts
from dynasurge.experiments.text_distributions import rank_acceptance, text_distributions
from dynasurge.models.pair import Pair

NAMES = SAMPLED[:3]
DRAWS, CELLS = 8, 12
FEATURES: dict[str, tuple[str, ...]] = {
    "its chance among what is left": ("chance",),
    "its probability": ("probability",),
    "entropy of q": ("entropy",),
    "largest probability in q": ("largest",),
    "chance and entropy": ("chance", "entropy"),
    "chance and largest probability": ("chance", "largest"),
    "chance and overlap (which nobody knows)": ("chance", "overlap"),
}


def measure(pair: Pair, args: argparse.Namespace, T: float) -> list[dict[str, np.ndarray]]:
    """By sibling rank: prompt number, acceptance given the refusal of elder ones, the chance of
    that, and features."""
    generator = torch.Generator().manual_seed(0)
    session = Session(
        pair,
        Settings(
            draft=args.draft,
            target=args.target,
            mode="auto",
            T=T,
            prompt_len=128,
            new_tokens=args.new_tokens,
        ),
    )
    found: list[dict[str, list[torch.Tensor]]] = [defaultdict(list) for _ in NAMES]
    prompts = [prompt for data in args.data for prompt in load_prompts(data, args.start, args.end)]
    for number, prompt in enumerate(tqdm(prompts, desc=f"T = {T:g}", unit="prompt", disable=None)):
        ids = session.encode(prompt.text)
        text = session.generate(ids, index=prompt.index).output_ids
        p, q = text_distributions(pair, ids, text, T=T)
        node = {
            "prompt": torch.full((len(p),), number),
            "entropy": torch.special.entr(q).sum(1),
            "largest": q.amax(1),
            "overlap": torch.minimum(p, q).sum(1),
        }
        for _ in range(DRAWS):
            accepted, chance = rank_acceptance(p, q, "sampled", len(NAMES), generator)
            tried = 1.0 - accepted.cumsum(1) + accepted
            left = torch.cat([torch.ones_like(chance[:, :1]), (1.0 - chance).cumprod(1)[:, :-1]], 1)
            for rank, columns in enumerate(found):
                child = {
                    "tried": tried[:, rank] * (chance[:, rank] > 0),
                    "accepted": accepted[:, rank] / tried[:, rank].clamp(min=1e-9),
                    "chance": chance[:, rank],
                    "probability": chance[:, rank] * left[:, rank],
                }
                for name, values in (node | child).items():
                    columns[name].append(values)
    return [
        {name: torch.cat(parts).double().numpy() for name, parts in columns.items()}
        for columns in found
    ]


def explained(rows: dict[str, np.ndarray], features: Sequence[str]) -> float:
    """R2 of the acceptance, weighted by how likely the child is to be tried."""
    cell = np.zeros(len(rows["prompt"]), dtype=np.int64)
    for name in features:
        edges = np.quantile(rows[name], np.linspace(0, 1, CELLS + 1)[1:-1])
        cell = cell * CELLS + np.searchsorted(edges, rows[name], side="right")
    even, shares = rows["prompt"] % 2 == 0, []
    for fit in (even, ~even):
        y, w = rows["accepted"], rows["tried"]
        mean = np.average(y[fit], weights=w[fit])
        count = np.bincount(cell[fit], w[fit], CELLS ** len(features))
        total = np.bincount(cell[fit], (w * y)[fit], CELLS ** len(features))
        guess = ((total + mean) / (count + 1.0))[cell]  # an empty cell guesses the mean
        off, all_ = (np.average((y - at)[~fit] ** 2, weights=w[~fit]) for at in (guess, mean))
        shares.append(1.0 - off / all_)
    return float(np.mean(shares))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--data",
        nargs="+",
        default=["demo"],
        help="JSONL files of prompts (default: the bundled ones)",
    )
    add("--start", type=int, default=0)
    add("--end", type=int, default=20)
    add("--T", type=float, nargs="+", default=[0.6, 0.9])
    add("--new-tokens", type=int, default=48)
    add("--draft", default="demo")
    add("--target", default="demo")
    args = parser.parse_args(argv)

    pair = load_pair(args.draft, args.target)
    measured = {T: measure(pair, args, T) for T in args.T}
    print(f"| | {' | '.join(f'{name}, T = {T:g}' for T in args.T for name in NAMES)} |")
    print("|---" * (1 + len(NAMES) * len(args.T)) + "|")
    means = [
        np.average(rows["accepted"], weights=rows["tried"])
        for of in measured.values()
        for rows in of
    ]
    print(f"| accepted, if tried | {' | '.join(f'{mean:.2f}' for mean in means)} |")
    for label, features in FEATURES.items():
        shares = [explained(rows, features) for of in measured.values() for rows in of]
        print(f"| {label} | {' | '.join(f'{share:.3f}' for share in shares)} |")


if __name__ == "__main__":
    guard(main)
