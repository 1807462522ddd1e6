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
from transformers import PreTrainedModel

from dynasurge import load_pair, sampling
from dynasurge.acceptance import make_acceptance
from dynasurge.data import load_prompts
from dynasurge.drafting import Drafter
from dynasurge.engine import Engine
from dynasurge.growmap import build_growmap
from dynasurge.policies import POLICIES
from dynasurge.prototype import bfs
from dynasurge.shapes import StaticShape
from dynasurge.tree import TokenTree
from dynasurge.verification import RULES, Verdict, verify

BINS = 30
AHEAD = 96  # first tokens whose logits are computed at once


class Remembering:
    """A `TreeEngine` that stands at the end of one prompt and computes the logits of each first token once."""

    device = torch.device("cpu")

    def __init__(self, model: PreTrainedModel, prompt: Sequence[int]) -> None:
        self._engine = Engine(model, len(prompt) + AHEAD)
        self._root = self._engine.extend(prompt).float()
        self.length = len(prompt) - 1
        self._known: dict[int, torch.Tensor] = {}
        self._read(self._root.topk(AHEAD).indices.tolist())

    def extend(self, tokens: Sequence[int]) -> torch.Tensor:
        return self._root

    def forward(self, tokens: Sequence[int], parents: Sequence[int]) -> torch.Tensor:
        assert all(parent < 0 for parent in parents), "only first tokens are remembered"
        self._read([token for token in tokens if token not in self._known])
        return torch.stack([self._known[token] for token in tokens])

    def rows(self, tree: TokenTree) -> torch.Tensor:
        """Logits by node; those below the first level are the root's, as they cannot change the first token."""
        first = {node: tree.tokens[node] for node in tree.children[0]}
        self.forward(list(first.values()), [-1] * len(first))
        return torch.stack([self._known[first[u]] if u in first else self._root for u in range(tree.size + 1)])

    def commit(self, nodes: Sequence[int]) -> None: ...

    def _read(self, tokens: Sequence[int]) -> None:
        if tokens:
            logits = self._engine.forward(tokens, [-1] * len(tokens)).float()
            self._known |= dict(zip(tokens, logits, strict=True))
            self._engine.commit([])


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
        assert shape.max_depth <= 2, "deeper trees would need deeper logits"
        drafter = Drafter(draft, shape, POLICIES["sampled"], acceptance, T=args.T, P=1.0)
        law = sampling.to_probs(target.extend([])[None], args.T)[0].double()
        bins = law.topk(BINS).indices.tolist()
        expected = np.array([*law[bins].tolist(), 1.0 - float(law[bins].sum())])
        counts = {name: np.zeros(BINS + 1) for name in rules}
        for _ in range(args.samples):
            grown = drafter.grow(ids, generator, 2)
            p = sampling.to_probs(target.rows(grown.tree), args.T)
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
