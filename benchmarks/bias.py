"""How far the prototype's rule bends a real model's text: the next token's distribution after one step.

    python benchmarks/bias.py --data cnn_dailymail.jsonl --contexts 10 --samples 1000

At each context (the first 128 tokens of a prompt) one step is taken `samples` times, trees and coins drawn afresh, and the
first emitted token is counted. Total variation from the target's distribution is measured over its 30 likeliest tokens and
one bin for the rest, which can only make it smaller. Counting noise makes it positive even for a lossless rule, so topdown
and traversal are measured the same way beside it, and what counts is the difference. Logits are remembered by context, so
that thousands of steps cost few passes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from tqdm import tqdm

from dynasurge import load_pair, sampling
from dynasurge.acceptance import make_acceptance
from dynasurge.data import load_prompts
from dynasurge.drafting import Drafter
from dynasurge.growmap import build_growmap
from dynasurge.policies import POLICIES
from dynasurge.prototype import bfs
from dynasurge.shapes import StaticShape
from dynasurge.verification import RULES, Verdict, verify

BINS = 30


class Remembering:
    """A `TreeEngine` over a plain model that computes the logits of each continuation of one prompt once."""

    def __init__(self, model: torch.nn.Module, prompt: Sequence[int]) -> None:
        self._model, self._prompt = model, list(prompt)
        self._known: dict[tuple[int, ...], torch.Tensor] = {}
        self._pending: list[tuple[int, ...]] = []
        self.length, self.device = len(prompt) - 1, torch.device("cpu")

    def extend(self, tokens: Sequence[int]) -> torch.Tensor:
        return self._logits(())

    def forward(self, tokens: Sequence[int], parents: Sequence[int]) -> torch.Tensor:
        first = len(self._pending)
        for token, parent in zip(tokens, parents, strict=True):
            self._pending.append((*(self._pending[parent] if parent >= 0 else ()), token))
        return torch.stack([self._logits(path) for path in self._pending[first:]])

    def target_rows(self, paths: Sequence[tuple[int, ...]]) -> torch.Tensor:
        return torch.stack([self._logits(path) for path in paths])

    def commit(self, nodes: Sequence[int]) -> None:
        self._pending = []

    @torch.inference_mode()
    def _logits(self, path: tuple[int, ...]) -> torch.Tensor:
        if path not in self._known:
            self._known[path] = self._model(torch.tensor([[*self._prompt, *path]])).logits[0, -1].float()
        return self._known[path]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="demo")
    parser.add_argument("--contexts", type=int, default=10)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--T", type=float, default=0.9)
    parser.add_argument("--shape", default="2x2")
    args = parser.parse_args()
    pair, generator = load_pair(), torch.Generator().manual_seed(0)
    rules: dict[str, Callable[..., Verdict]] = {name: partial(verify, RULES[name]) for name in ("topdown", "traversal")}
    rules["bfs (lossy)"] = bfs
    distances: dict[str, list[float]] = {name: [] for name in rules}
    for prompt in tqdm(load_prompts(args.data, 0, args.contexts), disable=None):
        ids = pair.tokenizer(prompt.text).input_ids[:128]
        target, draft = Remembering(pair.target, ids), Remembering(pair.draft, ids)
        acceptance = make_acceptance("fixed", "topdown", args.T)
        shape = StaticShape(build_growmap(args.shape))
        depth = shape.max_depth
        drafter = Drafter(draft, shape, POLICIES["sampled"], acceptance, T=args.T, P=1.0)
        law = sampling.to_probs(target.target_rows([()]), args.T)[0].double()
        bins = law.topk(BINS).indices.tolist()
        expected = np.array([*law[bins].tolist(), 1.0 - float(law[bins].sum())])
        counts = {name: np.zeros(BINS + 1) for name in rules}
        for _ in range(args.samples):
            grown = drafter.grow(ids, generator, depth)
            draft.commit([])
            paths: list[tuple[int, ...]] = [()]
            for node in range(1, grown.tree.size + 1):
                paths.append((*paths[grown.tree.parents[node]], grown.tree.tokens[node]))
            # What the target says below the last level can only change what follows the first token.
            p = sampling.to_probs(target.target_rows([path if len(path) < depth else () for path in paths]), args.T)
            for name, rule in rules.items():
                verdict = rule(grown.tree, p, grown.q, generator)
                first = grown.tree.tokens[verdict.path[0]] if verdict.path else verdict.bonus
                counts[name][bins.index(first) if first in bins else BINS] += 1
        for name in rules:
            distances[name].append(float(np.abs(counts[name] / args.samples - expected).sum() / 2))
    print(f"{args.shape} tree, T = {args.T:g}, {args.contexts} contexts, {args.samples} steps each")
    null = np.array(distances["topdown"])
    for name, values in distances.items():
        more = np.array(values) - null
        error = more.std(ddof=1) / len(more) ** 0.5
        print(f"{name:12s} total variation {np.mean(values):.4f}, above topdown {more.mean():+.4f} +- {error:.4f}")


if __name__ == "__main__":
    main()
