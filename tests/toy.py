"""Models small enough to enumerate: tables of probabilities behind the engine's interface, and
scripted chance.

`enumerate_runs` runs a function once for every sequence of random outcomes it can meet and yields
each result with its exact probability. Whatever draws in the library is handed a `Chance`; here that
is a `Script`, which knows which outcome comes next.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from dynasurge.drafting import captured_proposals, proposals
from dynasurge.trees.token_tree import TokenTree
from dynasurge.verification.rules import Rule, path_to

VOCAB = 3
Table = Callable[[tuple[int, ...]], list[float]]
Law = dict[tuple[int, ...], float]


def random_table(
    seed: int, vocab: int = VOCAB, sharpness: float = 1.5, zeros: bool = False
) -> Table:
    """A language model: next-token probabilities for every context, different for each, float64."""
    rows: dict[tuple[int, ...], list[float]] = {}

    def table(context: tuple[int, ...]) -> list[float]:
        if context not in rows:
            generator = torch.Generator().manual_seed(hash((seed, *context)) % 2**31)
            logits = sharpness * torch.randn(vocab, generator=generator, dtype=torch.float64)
            if zeros:  # as top-p leaves them; never all
                logits[int(torch.randint(vocab, (), generator=generator))] = -torch.inf
            rows[context] = torch.softmax(logits, 0).tolist()
        return rows[context]

    return table


class TableEngine:
    """An engine whose model is a table. Logits are log-probabilities, so T = 1 gives the table
    back."""

    device = torch.device("cpu")

    def __init__(self, table: Table) -> None:
        self._table, self._text, self._pending, self.passes = table, (), [], 0

    @property
    def length(self) -> int:
        return len(self._text)

    def extend(self, tokens: Sequence[int]) -> torch.Tensor:
        logits = self.forward(tokens, range(-1, len(tokens) - 1))
        self.commit(range(len(tokens)))
        return logits[-1]

    def forward(self, tokens: Sequence[int], parents: Sequence[int]) -> torch.Tensor:
        self.passes += 1
        first = len(self._pending)
        for token, parent in zip(tokens, parents, strict=True):
            before = self._text if parent < 0 else self._pending[parent]
            self._pending.append((*before, token))
        rows = [self._table(context) for context in self._pending[first:]]
        return torch.tensor(rows, dtype=torch.float64).log()

    def commit(self, nodes: Sequence[int]) -> None:
        if len(nodes):
            self._text = self._pending[list(nodes)[-1]]
        self._pending = []


class Script:
    """A `Chance` that replays a prefix of outcomes, then takes the first possible one."""

    def __init__(self, prefix: Sequence[int]) -> None:
        self._prefix, self.taken, self.options, self.weight = list(prefix), [], [], 1.0

    def choose(self, weights: Sequence[float]) -> int:
        possible = [i for i, w in enumerate(weights) if w > 0]
        at = len(self.taken)
        pick = self._prefix[at] if at < len(self._prefix) else possible[0]
        self.taken.append(pick)
        self.options.append(possible)
        self.weight *= weights[pick]
        return pick

    def draw(self, probs: torch.Tensor, k: int) -> torch.Tensor:
        """See `dynasurge.probabilities.Chance`."""
        tokens = torch.full((len(probs), k), -1)
        for row, left in enumerate(probs.tolist()):
            for j in range(k):
                total = sum(left)
                if total <= 0:
                    break
                token = self.choose([x / total for x in left])
                tokens[row, j] = token
                left[token] = 0.0
        return tokens


def enumerate_runs(run: Callable[[Any], Any]) -> Iterator[tuple[float, Any]]:
    """(probability, result) for every path of outcomes through `run(script)`."""
    todo: list[list[int]] = [[]]
    while todo:
        prefix = todo.pop()
        script = Script(prefix)
        result = run(script)
        for at in range(len(prefix), len(script.taken)):
            later = script.options[at][script.options[at].index(script.taken[at]) + 1 :]
            todo.extend([*script.taken[:at], option] for option in later)
        yield script.weight, result


def copy_anything(monkeypatch: Any) -> None:
    """Where children are sampled, only what the draft hardly thinks of is copied, after a long
    match: lower both bars."""
    monkeypatch.setattr(proposals, "LONG", 2)
    for module in (proposals, captured_proposals):
        monkeypatch.setattr(module, "AGREES", 2.0)


def target_law(target: Table, prompt: tuple[int, ...], length: int, vocab: int = VOCAB) -> Law:
    """The target's own law of the next `length` tokens."""
    law: Law = {}
    for tokens in itertools.product(range(vocab), repeat=length):
        law[tokens] = continuation(target, prompt, tokens)
    return law


def continuation(target: Table, prompt: tuple[int, ...], tokens: Sequence[int]) -> float:
    """The probability that the target follows `prompt` by `tokens`."""
    mass, context = 1.0, prompt
    for token in tokens:
        mass *= target(context)[token]
        context = (*context, token)
    return mass


def emitted_law(
    outcomes: Iterator[tuple[float, tuple[int, ...], torch.Tensor]],
    target: Table,
    prompt: tuple[int, ...],
    length: int,
    vocab: int = VOCAB,
) -> Law:
    """The law of `length` tokens when (weight, accepted tokens, bonus distribution) are completed
    by the target."""
    prefixes: dict[tuple[int, ...], float] = defaultdict(float)
    for weight, accepted, bonus in outcomes:
        for token, mass in enumerate(bonus.tolist()):
            prefixes[(*accepted, token)] += weight * mass
    law: Law = defaultdict(float)
    for prefix, weight in prefixes.items():
        for rest in itertools.product(range(vocab), repeat=length - len(prefix)):
            law[prefix + rest] += weight * continuation(target, prompt + prefix, rest)
    return law


def total_variation(a: Law, b: Law) -> float:
    """Half the l1 distance between two laws."""
    return sum(abs(a.get(key, 0.0) - b.get(key, 0.0)) for key in a.keys() | b.keys()) / 2


def verify_law(
    trees: Iterator[tuple[float, TokenTree, Any]],
    rule: Rule,
    target: Table,
    prompt: tuple[int, ...],
    length: int,
) -> Law:
    """The emitted law of trees [(weight, tree, q)] verified by `rule`; equal trees are merged
    first."""
    merged: dict[Any, list[Any]] = {}
    for weight, tree, q in trees:
        entry = merged.setdefault((tree.tokens, tree.parents, tree.point), [0.0, tree, q])
        entry[0] += weight

    def outcomes() -> Iterator[tuple[float, tuple[int, ...], torch.Tensor]]:
        for weight, tree, q in merged.values():
            p = target_rows(tree, target, prompt)
            law = rule(tree, p, q)
            for node, chance in enumerate(law.stop.tolist()):
                if chance > 0:
                    yield (
                        weight * chance,
                        path_tokens(tree, node),
                        law.bonus(torch.tensor([node]))[0],
                    )

    return emitted_law(outcomes(), target, prompt, length)


def path_tokens(tree: TokenTree, node: int) -> tuple[int, ...]:
    """The drafted tokens from the root's child down to a node."""
    return tuple(tree.tokens[accepted] for accepted in path_to(tree, node))


def target_rows(tree: TokenTree, target: Table, prompt: tuple[int, ...]) -> torch.Tensor:
    """p[u] for every node; the prompt ends with the root's token."""
    contexts = [prompt]
    for node in range(1, len(tree.tokens)):
        contexts.append((*contexts[tree.parents[node]], tree.tokens[node]))
    return torch.tensor([target(c) for c in contexts], dtype=torch.float64)
