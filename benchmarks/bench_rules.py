"""Which rule accepts most? Rules beside each other on the same static trees.

    python benchmarks/bench_rules.py cnn_dailymail.jsonl --end 100 --T 0.6 0.9 1 --shapes chain4 2ary3 4x4 optimal15

At some places of each text a static tree of sampled children is drawn, and scored by the target. The
expected number of accepted tokens of each rule is exact, given the tree, so only the trees are luck,
and they are the same for all. One line a tree shape and temperature: the mean of `topdown`, and the
others over `traversal` (ratios of sums, 95% intervals over texts). A killed run is to be run again.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import dynasurge
from dynasurge import Growmap, Pair, probabilities
from dynasurge.cli.main import guarded
from dynasurge.decoding.engines import engines_of
from dynasurge.experiments.datasets import load_prompts
from dynasurge.experiments.intervals import of_ratio
from dynasurge.experiments.text_distributions import mean_accepted
from dynasurge.models.engine import Engine
from dynasurge.probabilities import Random
from dynasurge.trees.token_tree import TokenTree
from dynasurge.verification.lookahead import expected_length
from dynasurge.verification.rules import RULES

PLACES = (64, 96, 128)
NAMES = ("topdown", "traversal", "reserved", "lookahead")
Scored = tuple[TokenTree, torch.Tensor, list[torch.Tensor]]


def scored_tree(
    target: Engine, draft: Engine, growmap: Growmap, root: int, T: float, chance: Random
) -> Scored:
    """A tree below the text that both engines have read and a root, with p and q."""
    tokens, q = [root] + [0] * (growmap.size - 1), [torch.empty(0)] * growmap.size
    proposal = [1.0] * growmap.size
    for depth in range(growmap.depth):
        nodes = [u for u in range(growmap.size) if growmap.depths[u] <= depth]
        logits = draft.forward([tokens[u] for u in nodes], [growmap.parents[u] for u in nodes])
        for row, u in enumerate(nodes):
            if growmap.depths[u] == depth and growmap.children[u]:
                q[u] = probabilities.to_probs(logits[row].float(), T).double()
                drawn = chance.draw(q[u][None], len(growmap.children[u]))[0].tolist()
                for child, token in zip(growmap.children[u], drawn, strict=True):
                    tokens[child], proposal[child] = token, float(q[u][token])
    p = probabilities.to_probs(target.forward(tokens, growmap.parents).float(), T).double()
    tree = TokenTree(
        tokens=tuple(tokens),
        parents=tuple(growmap.parents),
        proposal=tuple(proposal),
        point=(True, *[False] * (growmap.size - 1)),
    )
    return tree, p, q


def lengths(tree: TokenTree, p: torch.Tensor, q: list[torch.Tensor]) -> list[float]:
    """Expected accepted tokens, by NAMES."""
    own = [mean_accepted(RULES[name], tree, p, q) for name in NAMES[:-1]]
    return [*own, expected_length(tree, p, q)]


def measure(pair: Pair, texts: list[list[int]], shapes: dict[str, Growmap], T: float) -> None:
    """Print a line for each shape."""
    room = max(PLACES) + max(growmap.size for growmap in shapes.values())
    target, draft = engines_of(pair, room, room, vocab=pair.vocab)
    assert draft is not None
    sums: dict[str, list[np.ndarray]] = defaultdict(list)
    chance = Random.seeded(0)
    for ids in tqdm(texts, desc=f"T = {T:g}", disable=None):
        found = {name: np.zeros(len(NAMES)) for name in shapes}
        for engine in (target, draft):
            engine.reset()
        for place in [place for place in PLACES if place <= len(ids)]:
            for engine in (target, draft):
                engine.extend(ids[engine.length : place - 1])
            for name, growmap in shapes.items():
                scored = scored_tree(target, draft, growmap, ids[place - 1], T, chance)
                found[name] += lengths(*scored)
        for name, own in found.items():
            sums[name].append(own)
    for name, rows in sums.items():
        table = np.stack(rows)
        base = table[:, NAMES.index("traversal")]
        cells = [f"{table[:, 0].sum() / (len(PLACES) * len(table)):.2f}"]
        for number in range(len(NAMES)):
            if NAMES[number] != "traversal":
                low, high = of_ratio(np.stack([table[:, number], base], axis=1))
                ratio = table[:, number].sum() / base.sum()
                cells.append(f"{ratio:.3f} [{low:.3f}, {high:.3f}]")
        print(f"| {T:g} | {name} | {' | '.join(cells)} |", flush=True)


@torch.inference_mode()
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset")
    parser.add_argument("--end", type=int, default=100)
    parser.add_argument("--T", type=float, nargs="+", default=[0.6, 0.9, 1.0])
    parser.add_argument("--shapes", nargs="+", default=["chain4", "2ary3", "4x4", "optimal15"])
    args = parser.parse_args(argv)
    pair = dynasurge.load_pair()
    texts = [pair.encode(prompt.text)[:128] for prompt in load_prompts(args.dataset, 0, args.end)]
    folder = Path(__file__).parents[1] / "growmaps"
    shapes = {
        name: dynasurge.load_growmap(folder / f"{name}.pt")
        if (folder / f"{name}.pt").exists()
        else dynasurge.build_growmap(name)
        for name in args.shapes
    }
    others = " | ".join(f"{name} over traversal" for name in NAMES if name != "traversal")
    print(f"| T | tree | topdown accepts | {others} |\n|{'---|' * 6}")
    for T in args.T:
        measure(pair, texts, shapes, T)
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main, "nothing is kept"))
