"""How much is left above `traversal`? The best lossless rule over all levels of a tree, on real text.

    python benchmarks/bench_optimum.py cnn_dailymail.jsonl --end 60 --T 0.9 1

The optimum (verification/optimum.py) needs every tree that can be drawn. So both models are cut to the
`--vocab` tokens of each node that are likeliest by p + q, and the trees are small: dynamic ones of
`--B` nodes, grown by the real loop with its learned slot values, and a static shape. At some places
of each text, every tree is drawn, and verified by each rule. One line a tree and temperature: the mean
of `traversal`, and the optimum and `topdown` over it (ratios of sums, 95% intervals over texts).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_rules import ratio_cell
from tqdm import tqdm

import dynasurge
from dynasurge import Pair, probabilities
from dynasurge.cli.main import guarded
from dynasurge.decoding.engines import engines_of
from dynasurge.drafting.acceptance_estimates import make_acceptance
from dynasurge.experiments.datasets import load_prompts
from dynasurge.experiments.text_distributions import mean_accepted
from dynasurge.models.engine import Engine
from dynasurge.trees.growmap import build_growmap
from dynasurge.verification.optimum import best_accepted, drawn_paths
from dynasurge.verification.rules import RULES

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from toy import Steps, dynamic, static, target_rows

PLACES = (64, 128)
NAMES = ("traversal", "best", "topdown")
Head = tuple[int, ...]


class Reader:
    """Reads nodes below a text's last token, level by level, with any engine."""

    def __init__(self, engine: Engine, text: Sequence[int]) -> None:
        engine.reset()
        engine.extend(text[:-1])
        self._engine, self._rows = engine, {(): len(text) - 1}
        root = torch.tensor([len(text) - 1])
        hidden = torch.zeros(1, len(text), dtype=torch.bool)
        self._logits = {(): engine.score(torch.tensor(text[-1:]), root, root, hidden)[-1]}

    def read(self, heads: Sequence[Head]) -> None:
        """Read nodes of one level; their parents were read before."""
        first = len(self._rows) + self._rows[()]
        rows = torch.arange(first, first + len(heads))
        hidden = torch.ones(len(heads), first + len(heads), dtype=torch.bool)
        hidden[:, : self._rows[()]] = False
        for number, head in enumerate(heads):
            self._rows[head] = first + number
            for depth in range(len(head) + 1):
                hidden[number, self._rows[head[:depth]]] = False
        tokens = torch.tensor([head[-1] for head in heads])
        positions = torch.full_like(rows, self._rows[()] + len(heads[0]))
        parents = torch.tensor([self._rows[head[:-1]] for head in heads])
        logits = self._engine.score(tokens, positions, rows, hidden, parents)
        self._logits |= dict(zip(heads, logits, strict=True))

    def law(self, head: Head, T: float) -> torch.Tensor:
        """The distribution after a node, float64 [V]."""
        return probabilities.to_probs(self._logits[head][None].float(), T)[0].double().cpu()


def tables(
    readers: tuple[Reader, Reader], T: float, vocab: int, depth: int
) -> tuple[dict[Head, list[float]], dict[Head, list[float]]]:
    """p and q after each path of cut tokens (numbers below `vocab`)."""
    p: dict[Head, list[float]] = {}
    q: dict[Head, list[float]] = {}
    level: dict[Head, Head] = {(): ()}  # paths of cut tokens, and what they stand for
    for height in range(depth):
        below: dict[Head, Head] = {}
        for path, head in level.items():
            theirs, mine = (reader.law(head, T) for reader in readers)
            kept = (theirs + mine).topk(vocab).indices
            for law, table in ((theirs[kept], p), (mine[kept], q)):
                table[path] = (law / law.sum()).tolist()
            below |= {(*path, n): (*head, token) for n, token in enumerate(kept.tolist())}
        if height + 1 < depth:
            for reader in readers:
                reader.read([*below.values()])
        level = below
    return p, q


def lengths(
    p: dict[Head, list[float]], q: dict[Head, list[float]], trees: Any, vocab: int
) -> list[float]:
    """Expected accepted tokens, by NAMES."""
    text = (0,)
    even = [1.0 / vocab] * vocab  # below the deepest level nothing is accepted
    draft, target = (lambda tokens, t=t: t.get(tuple(tokens[len(text) :]), even) for t in (q, p))
    steps = Steps(draft, target, trees, text=text, vocab=vocab)
    grown = [*steps.grown()]
    best = best_accepted(drawn_paths((w, one.tree) for w, one in grown), lambda path: p[path])
    found = dict.fromkeys(NAMES, 0.0) | {"best": best}
    for weight, (tree, base) in grown:
        rows = target_rows(tree, target, text)
        for name in ("traversal", "topdown"):
            found[name] += weight * mean_accepted(RULES[name], tree, rows, base)
    return [found[name] for name in NAMES]


def measure(pair: Pair, texts: list[list[int]], args: argparse.Namespace, T: float) -> None:
    """Print a line for each kind of tree."""
    room = max(PLACES) + 2 * args.vocab**args.depth
    target, draft = engines_of(pair, room, room, vocab=pair.vocab)
    assert draft is not None
    kinds = {
        f"dynamic, {args.B} nodes": lambda: dynamic(
            args.B, args.depth, 2, acceptance=make_acceptance("fixed", "traversal", T)
        ),
        args.shape: lambda: static(build_growmap(args.shape)),
    }
    sums: dict[str, list[np.ndarray]] = {name: [] for name in kinds}
    overlap = []
    for ids in tqdm(texts, desc=f"T = {T:g}", disable=None):
        found = {name: np.zeros(len(NAMES)) for name in kinds}
        for place in [place for place in PLACES if place <= len(ids)]:
            readers = (Reader(target, ids[:place]), Reader(draft, ids[:place]))
            p, q = tables(readers, T, args.vocab, args.depth)
            overlap.append(sum(map(min, p[()], q[()])))
            for name, trees in kinds.items():
                found[name] += lengths(p, q, trees(), args.vocab)
        for name, own in found.items():
            sums[name].append(own)
    for name, rows in sums.items():
        table = np.stack(rows)
        cells = [f"{table[:, 0].sum() / len(overlap):.2f}"]
        cells += [ratio_cell(table[:, [column, 0]]) for column in range(1, len(NAMES))]
        mean = sum(overlap) / len(overlap)
        print(f"| {T:g} | {name} | {mean:.2f} | {' | '.join(cells)} |", flush=True)


@torch.inference_mode()
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset")
    parser.add_argument("--end", type=int, default=60)
    parser.add_argument("--draft", default="demo")
    parser.add_argument("--T", type=float, nargs="+", default=[0.9, 1.0])
    parser.add_argument("--vocab", type=int, default=3)
    parser.add_argument("--depth", type=int, default=2)
    parser.add_argument("--B", type=int, default=4)
    parser.add_argument("--shape", default="2x2")
    args = parser.parse_args(argv)
    pair = dynasurge.load_pair(args.draft, dtype="float32", device="cpu")
    texts = [pair.encode(prompt.text)[:128] for prompt in load_prompts(args.dataset, 0, args.end)]
    print("| T | tree | overlap | traversal accepts | best | topdown |\n|---|---|---|---|---|---|")
    for T in args.T:
        measure(pair, texts, args, T)
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main, "nothing is kept"))
