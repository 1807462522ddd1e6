"""Every outcome of a function of chance, with its probability: how exactness is checked.

A function that gets all its randomness from a `Script` is run again and again. Each run follows
another path of outcomes: which token is drawn, whether a coin falls. `outcomes` yields the weight of
each path and what the function returned, so the law of its results is known to the last bit.

    outcomes(lambda chance: first_child(chance, p, q))     # (probability, result) of every path

`uniform()` is a number that is not chosen yet. Only its comparisons with other numbers matter, and
each has two outcomes: `u < t` holds with probability t, and then u is known to lie in [0, t). A
comparison that holds on an edge alone (u <= 0) has an outcome of weight 0. Real generators do return
0, so it is followed too: `edge` says so of a path.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NoReturn, TypeVar

import torch

from dynasurge.errors import UsageError

EXACT = 1e-9  # a larger total variation is no rounding of float64
ENDLESS = 1000  # outcomes of one path
Result = TypeVar("Result")
Later = TypeVar("Later")
Table = Callable[[tuple[int, ...]], Sequence[float]]
"""A language model on a small vocabulary: context -> next-token probabilities."""
Law = dict[tuple[int, ...], float]
"""Probabilities of token sequences of one length."""


class Script:
    """A `Chance` (dynasurge/probabilities.py) that replays a prefix of outcomes, then takes the
    first possible one. weight: the probability of the path so far. taken, options: the outcomes
    taken, and those that were possible."""

    def __init__(self, prefix: Sequence[int] = ()) -> None:
        self._prefix, self.weight, self.edge = list(prefix), 1.0, False
        self.taken: list[int] = []
        self.options: list[list[int]] = []

    def choose(self, weights: Sequence[float], possible: Sequence[int] | None = None) -> int:
        """One place by weight. possible: the places that can be taken; None: those with weight."""
        own = [i for i, w in enumerate(weights) if w > 0] if possible is None else [*possible]
        at = len(self.taken)
        if not own or not abs(sum(weights) - 1) < 1e-6 or min(weights) < -1e-9:
            said = ", ".join(f"{weight:.4g}" for weight in weights)
            reason, remedy = "are no probabilities", "draw from numbers of at least 0, not all 0"
            raise UsageError("chance", f"({said})", reason, remedy)
        if at >= ENDLESS:
            remedy = "let it end after any draws"
            raise UsageError("chance", at, "outcomes were chosen, and the step goes on", remedy)
        pick = self._prefix[at] if at < len(self._prefix) else own[0]
        self.taken.append(pick)
        self.options.append(own)
        self.weight *= weights[pick]
        return pick

    def draw(self, probs: torch.Tensor, k: int) -> torch.Tensor:
        """Up to k different tokens a row, see `dynasurge.probabilities.Chance`."""
        tokens = torch.full((len(probs), k), -1)
        for row, left in enumerate(probs.tolist()):
            for j in range(k):
                total = sum(left)
                if total <= 0:
                    break
                tokens[row, j] = token = self.choose([x / total for x in left])
                left[token] = 0.0
        return tokens

    def pick(self, weights: torch.Tensor) -> torch.Tensor:
        """One place by weight, see `dynasurge.probabilities.Chance`."""
        return self.draw(weights[None] / weights.sum(), 1)[0]

    def token(self, probs: Any) -> int:
        """One token of a distribution, up to a factor."""
        return int(self.pick(torch.as_tensor(probs, dtype=torch.float64))[0])

    def coin(self, chance: float) -> bool:
        """Whether a coin falls that falls with this probability."""
        chance = min(1.0, max(0.0, float(chance)))
        return self.choose([1.0 - chance, chance]) == 1

    def uniform(self) -> Uniform:
        """A number from [0, 1) that is not chosen yet."""
        return Uniform(self)


class Uniform:
    """A uniform number, known to lie in [low, high). It can be compared with numbers, and nothing
    else."""

    def __init__(self, script: Script) -> None:
        self._script, self.low, self.high = script, 0.0, 1.0

    def _below(self, limit: Any, edge: bool) -> bool:
        """Whether the number is below the limit; edge: or equal to it."""
        limit = float(limit)
        if limit >= self.high:
            return True
        if limit <= self.low:
            if not (edge and limit == self.low == 0.0):
                return False
            below = self._script.choose([1.0, 0.0], possible=[0, 1]) == 1
            self._script.edge |= below
            return below
        share = (limit - self.low) / (self.high - self.low)
        below = self._script.choose([1.0 - share, share]) == 1
        self.low, self.high = (self.low, limit) if below else (limit, self.high)
        return below

    def __lt__(self, limit: Any) -> bool:
        return self._below(limit, edge=False)

    def __le__(self, limit: Any) -> bool:
        return self._below(limit, edge=True)

    def __gt__(self, limit: Any) -> bool:
        return not self._below(limit, edge=True)

    def __ge__(self, limit: Any) -> bool:
        return not self._below(limit, edge=False)

    def __float__(self) -> NoReturn:
        raise TypeError("a number of the audit can be compared with < and >, and nothing else")

    __bool__ = __float__


@dataclass(frozen=True, kw_only=True)
class Outcome(Generic[Result]):
    """One path of outcomes. weight: its probability. draws: how many outcomes were chosen. edge:
    whether it needs a uniform number that is exactly 0."""

    weight: float
    draws: int
    edge: bool
    result: Result

    def __iter__(self) -> Iterator[Any]:
        return iter((self.weight, self.result))

    def then(self, later: Outcome[Later]) -> Outcome[Later]:
        """This path, and then that one."""
        return Outcome(
            weight=self.weight * later.weight,
            draws=self.draws + later.draws,
            edge=self.edge or later.edge,
            result=later.result,
        )


def outcomes(
    run: Callable[[Any], Result], script_of: Callable[[Sequence[int]], Script] = Script
) -> Iterator[Outcome[Result]]:
    """Every path of outcomes through `run(script)`."""
    todo: list[list[int]] = [[]]
    while todo:
        prefix = todo.pop()
        script = script_of(prefix)
        result = run(script)
        for at in range(len(prefix), len(script.taken)):
            later = script.options[at][script.options[at].index(script.taken[at]) + 1 :]
            todo.extend([*script.taken[:at], option] for option in later)
        yield Outcome(
            weight=script.weight, draws=len(script.taken), edge=script.edge, result=result
        )


# --- laws


def as_model(table: Table) -> Callable[..., torch.Tensor]:
    """A table as a function of some tokens, by default none: float64 [vocab]."""

    def model(tokens: Sequence[int] = ()) -> torch.Tensor:
        return torch.tensor(table(tuple(map(int, tokens))), dtype=torch.float64)

    return model


def random_table(seed: int, vocab: int = 3, sharpness: float = 1.5, zeros: bool = False) -> Table:
    """A language model: next-token probabilities for every context, different for each, float64.
    zeros: whether one token of each distribution has none, as top-p leaves them."""
    rows: dict[tuple[int, ...], list[float]] = {}

    def table(context: tuple[int, ...]) -> list[float]:
        if context not in rows:
            generator = torch.Generator().manual_seed(hash((seed, *context)) % 2**31)
            logits = sharpness * torch.randn(vocab, generator=generator, dtype=torch.float64)
            if zeros:  # never all
                logits[int(torch.randint(vocab, (), generator=generator))] = -torch.inf
            rows[context] = torch.softmax(logits, 0).tolist()
        return rows[context]

    return table


def continuation(target: Table, prompt: tuple[int, ...], tokens: Sequence[int]) -> float:
    """The probability that the target follows `prompt` by `tokens`."""
    mass, context = 1.0, prompt
    for token in tokens:
        mass *= target(context)[token]
        context = (*context, token)
    return mass


def target_law(target: Table, prompt: tuple[int, ...], length: int, vocab: int = 3) -> Law:
    """The target's own law of the next `length` tokens."""
    every = itertools.product(range(vocab), repeat=length)
    return {tokens: continuation(target, prompt, tokens) for tokens in every}


def completed_law(
    emitted: Iterable[tuple[float, tuple[int, ...]]],
    target: Table,
    prompt: tuple[int, ...],
    length: int,
    vocab: int = 3,
) -> Law:
    """The law of `length` tokens when emitted tokens (weight, tokens), at most as many, are
    completed by the target."""
    prefixes: dict[tuple[int, ...], float] = defaultdict(float)
    for weight, tokens in emitted:
        prefixes[tuple(tokens)] += weight
    law: Law = defaultdict(float)
    for prefix, weight in prefixes.items():
        for rest in itertools.product(range(vocab), repeat=length - len(prefix)):
            law[prefix + rest] += weight * continuation(target, prompt + prefix, rest)
    return law


def total_variation(a: Law, b: Law) -> float:
    """Half the l1 distance between two laws."""
    return sum(abs(a.get(key, 0.0) - b.get(key, 0.0)) for key in a.keys() | b.keys()) / 2
