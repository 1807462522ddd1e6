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

import pandas as pd
import torch

from dynasurge import probabilities
from dynasurge.decoding.assembly import static_trees
from dynasurge.decoding.engines import engines_of
from dynasurge.decoding.executors import Direct
from dynasurge.decoding.loop import Decoder
from dynasurge.decoding.phases import Judge, Phases
from dynasurge.drafting.acceptance_estimates import Acceptance
from dynasurge.drafting.proposals import POLICIES
from dynasurge.models.engine import Engine
from dynasurge.models.pair import Pair
from dynasurge.probabilities import Random
from dynasurge.trees.growmap import Growmap, build_growmap
from dynasurge.verification.prototype import bfs
from dynasurge.verification.rules import RULES

BINS = 30
AHEAD = 96  # how many first tokens one pass reads
LEVELS = 2  # deeper trees would need deeper logits
NAMES = ("topdown", "traversal", "bfs (lossy)")


class Remembering:
    """A model at the end of one prompt, as an engine. It computes the logits of each first token
    once. Nodes below the first level get the root's, because they cannot change the first token."""

    compiled = spread = rereads = False

    def __init__(self, engine: Engine, prompt: Sequence[int], vocab: int) -> None:
        self._engine = engine
        self.root = self._engine.extend(prompt).float()
        self.device, self.length, self.vocab = self._engine.device, len(prompt) - 1, vocab
        self.static_length = len(prompt)
        self._known: dict[int, torch.Tensor] = {}
        self._read(self.root.topk(AHEAD).indices.tolist())

    def extend(self, tokens: Sequence[int], /) -> torch.Tensor:
        """Do nothing: the text never goes on."""
        return self.root

    def score(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        rows: torch.Tensor,
        hidden: torch.Tensor,
        parents: torch.Tensor | None = None,
        *,
        captured: bool = False,
    ) -> torch.Tensor:
        """Logits [n, V] of the root and of nodes."""
        first = (positions == self.length + 1).tolist()
        own = [token for token, at in zip(tokens.tolist(), first, strict=True) if at]
        self._read([token for token in dict.fromkeys(own) if token not in self._known])
        pairs = zip(tokens.tolist(), first, strict=True)
        return torch.stack([self._known[token] if at else self.root for token, at in pairs])

    def reset(self) -> None:
        """Do nothing."""

    def prepare(self) -> None:
        """Do nothing."""

    def move(self, rows: torch.Tensor, to: torch.Tensor) -> None:
        """Do nothing: no token is ever committed."""

    def _read(self, tokens: Sequence[int]) -> None:
        for at in range(0, len(tokens), AHEAD):
            some = tokens[at : at + AHEAD]
            logits = self._engine.forward(some, [-1] * len(some)).float()
            self._known |= dict(zip(some, logits, strict=True))


def first_token_bias(
    pair: Pair,
    prompts: Mapping[int, Sequence[int]],
    *,
    T: float = 0.9,
    shape: str = "4x2",
    samples: int = 1000,
    on_context: Callable[[], object] = lambda: None,
) -> pd.DataFrame:
    """One table row a (prompt, rule of NAMES): `total_variation` between the first emitted token's
    distribution and the target's.

    prompts: token ids by number. shape: a growmap's name, with at most LEVELS levels; otherwise
    raises ValueError. Calls on_context after each prompt.
    """
    growmap = build_growmap(shape)
    if growmap.depth > LEVELS:
        raise ValueError(f"{shape} has {growmap.depth} levels, only {LEVELS} can be measured")
    lines = []
    for index, ids in prompts.items():
        counts, expected = _count(pair, list(ids), growmap, T, samples)
        for rule, count in counts.items():
            distance = float((count / samples - expected).abs().sum() / 2)
            lines.append({"index": index, "rule": rule, "total_variation": distance})
        on_context()
    return pd.DataFrame(lines).assign(T=T, shape=shape, samples=samples)


def _count(
    pair: Pair, ids: list[int], growmap: Growmap, T: float, samples: int
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """How often each bin was emitted first, by rule, and the target's distribution of bins; float64
    [BINS + 1] each."""
    vocab = pair.target.config.get_text_config().vocab_size
    room = len(ids) + AHEAD
    engines = engines_of(pair, room, room, vocab=vocab)
    target, draft = (Remembering(one, ids, vocab) for one in engines if one is not None)
    law = probabilities.to_probs(target.root[None], T)[0].double().cpu()
    bins = law.topk(BINS).indices
    number = {token: place for place, token in enumerate(bins.tolist())}
    expected = torch.cat([law[bins], 1.0 - law[bins].sum(0, keepdim=True)])
    counts = {rule: torch.zeros(BINS + 1, dtype=torch.float64) for rule in NAMES}
    for name, count in counts.items():
        trees = static_trees(growmap, POLICIES["sampled"], Acceptance({}), target.device)
        rule, verify = (RULES[name], None) if name in RULES else (RULES["topdown"], bfs)
        judge = Judge(rule=rule, T=T, P=1.0, verify=verify)
        decoder = Decoder(Direct(Phases(target, draft, trees, judge, padded=False)))
        decoder.prefill(ids)
        for sample in range(samples):  # the same seed draws the same tree for every rule
            steps = decoder.follow(ids, [len(ids)], Random.seeded(sample), len(ids) + LEVELS)
            count[number.get(next(steps).emitted[0], BINS)] += 1
    return counts, expected
