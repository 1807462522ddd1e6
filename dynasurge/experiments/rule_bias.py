"""How far a verification rule changes a real model's text: the next token's distribution after one
step.

At each context (the tokens of a prompt) one step is made many times, with new trees and new draws,
and the first emitted token is counted. Total variation from the target's distribution is measured
over its BINS likeliest tokens and one bin for the rest, which can only make it smaller. Counting
noise makes it positive even for a lossless rule. So lossless rules are measured the same way, on
the same trees, and the difference counts. Logits are stored by context, so thousands of steps need
few passes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import pandas as pd
import torch
from transformers import PreTrainedModel

from dynasurge import probabilities
from dynasurge.drafting.acceptance_estimates import make_acceptance
from dynasurge.drafting.growth import Drafter
from dynasurge.drafting.proposals import POLICIES
from dynasurge.drafting.tree_budget import StaticShape
from dynasurge.models.engine import Engine
from dynasurge.models.pair import Pair
from dynasurge.probabilities import Chance, Random
from dynasurge.trees.growmap import build_growmap
from dynasurge.trees.token_tree import TokenTree
from dynasurge.verification.prototype import bfs
from dynasurge.verification.rules import RULES, Verdict, verify

BINS = 30
AHEAD = 96  # how many first tokens one pass reads
JUDGES: Mapping[str, Callable[..., Verdict]] = {
    "topdown": partial(verify, RULES["topdown"]),
    "traversal": partial(verify, RULES["traversal"]),
    "bfs (lossy)": bfs,
}


class Remembering:
    """A model at the end of one prompt. It computes the logits of each first token once."""

    def __init__(self, model: PreTrainedModel, prompt: Sequence[int], vocab: int) -> None:
        self._engine = Engine(model, len(prompt) + AHEAD, vocab=vocab)
        self._root = self._engine.extend(prompt).float()
        self.device, self.length = self._engine.device, len(prompt) - 1
        self._known: dict[int, torch.Tensor] = {}
        self._read(self._root.topk(AHEAD).indices.tolist())

    def extend(self, tokens: Sequence[int]) -> torch.Tensor:
        """The logits [V] after the prompt: the text never goes on."""
        return self._root

    def forward(self, tokens: Sequence[int], parents: Sequence[int]) -> torch.Tensor:
        """Logits [n, V] after each of these first tokens."""
        assert all(parent < 0 for parent in parents), "only first tokens are remembered"
        self._read([token for token in dict.fromkeys(tokens) if token not in self._known])
        return torch.stack([self._known[token] for token in tokens])

    def rows(self, tree: TokenTree) -> torch.Tensor:
        """Logits by node. Nodes below the first level get the root's, because they cannot change
        the first token."""
        first = {node: tree.tokens[node] for node in tree.children[0]}
        self.forward(list(first.values()), [-1] * len(first))
        return torch.stack(
            [self._known[first[u]] if u in first else self._root for u in range(tree.size + 1)]
        )

    def commit(self, nodes: Sequence[int]) -> None:
        """Do nothing: no token is ever committed."""

    def _read(self, tokens: Sequence[int]) -> None:
        for at in range(0, len(tokens), AHEAD):
            some = tokens[at : at + AHEAD]
            self._known |= dict(
                zip(some, self._engine.forward(some, [-1] * len(some)).float(), strict=True)
            )
            self._engine.commit([])


def first_token_bias(
    pair: Pair,
    prompts: Mapping[int, Sequence[int]],
    *,
    T: float = 0.9,
    shape: str = "4x2",
    samples: int = 1000,
    on_context: Callable[[], object] = lambda: None,
) -> pd.DataFrame:
    """One table row a (prompt, rule of JUDGES): `total_variation` between the first emitted token's
    distribution and the target's.

    prompts: token ids by number. shape: a growmap's name, with at most two levels, because deeper
    trees would need deeper logits; otherwise raises ValueError. Calls on_context after each prompt.
    """
    tree = StaticShape(build_growmap(shape))
    if tree.max_depth > 2:
        raise ValueError(f"{shape} has {tree.max_depth} levels, only two can be measured")
    chance = Random.seeded(0)
    lines = []
    for index, ids in prompts.items():
        counts, expected = _count(pair, ids, tree, T, samples, chance)
        for rule, count in counts.items():
            distance = float((count / samples - expected).abs().sum() / 2)
            lines.append({"index": index, "rule": rule, "total_variation": distance})
        on_context()
    return pd.DataFrame(lines).assign(T=T, shape=shape, samples=samples)


def _count(
    pair: Pair,
    ids: Sequence[int],
    shape: StaticShape,
    T: float,
    samples: int,
    chance: Chance,
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """How often each bin was emitted first, by rule, and the target's distribution of bins; float64
    [BINS + 1] each."""
    vocab = pair.target.config.get_text_config().vocab_size
    target, draft = (Remembering(model, ids, vocab) for model in (pair.target, pair.draft))
    drafter = Drafter(
        draft, shape, POLICIES["sampled"], make_acceptance("fixed", "topdown", T), T=T, P=1.0
    )
    law = probabilities.to_probs(target.extend([])[None], T)[0].double().cpu()
    bins = law.topk(BINS).indices
    number = {token: place for place, token in enumerate(bins.tolist())}
    expected = torch.cat([law[bins], 1.0 - law[bins].sum(0, keepdim=True)])
    counts = {rule: torch.zeros(BINS + 1, dtype=torch.float64) for rule in JUDGES}
    for _ in range(samples):
        grown = drafter.grow(list(ids), chance, 2)
        p = probabilities.to_probs(target.rows(grown.tree), T)
        for rule, judge in JUDGES.items():
            verdict = judge(grown.tree, p, grown.q, chance)
            first = grown.tree.tokens[verdict.path[0]] if verdict.path else verdict.bonus
            counts[rule][number.get(first, BINS)] += 1
    return counts, expected
