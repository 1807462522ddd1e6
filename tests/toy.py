"""Models small enough to enumerate: tables of probabilities behind the engine's interface, and
scripted chance.

`enumerate_runs` runs a function once for every sequence of random outcomes it can meet
(dynasurge/verification/enumeration.py) and yields each result with its exact probability.

`Steps` makes steps of the real loop with such models: growth, rule and all, with exact or with
padded tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from dynasurge.decoding.assembly import static_trees
from dynasurge.decoding.executors import Direct
from dynasurge.decoding.loop import Decoder, StepRecord
from dynasurge.decoding.phases import Judge, Phases
from dynasurge.decoding.report import Trees
from dynasurge.drafting import proposals
from dynasurge.drafting.acceptance_estimates import Acceptance, make_acceptance
from dynasurge.drafting.child_kinds import CLASSES, Class, Kind
from dynasurge.drafting.growth import TreeBounds
from dynasurge.drafting.proposals import POLICIES, Limits, Proposed, weighed, with_copies, without
from dynasurge.drafting.tree_budget import Size, SizePlanner
from dynasurge.trees.growmap import Growmap
from dynasurge.trees.token_tree import TokenTree
from dynasurge.verification import enumeration
from dynasurge.verification.enumeration import (
    Law,
    Table,
    completed_law,
    continuation,
    random_table,
    target_law,
    total_variation,
)
from dynasurge.verification.rules import RULES, Rule, tokens_to

__all__ = ["Law", "Table", "continuation", "random_table", "target_law", "total_variation"]

VOCAB = 3
PROMPT = (0, 2, 1)


class TableEngine:
    """An engine whose model is a table. Logits are log-probabilities, so T = 1 gives the table
    back. What a token sees, and in which order, it learns from the pass's tensors alone."""

    device, static_length = torch.device("cpu"), 64
    compiled = spread = rereads = False

    def __init__(self, table: Table, vocab: int = VOCAB) -> None:
        self._table, self.vocab, self.length, self.passes = table, vocab, 0, 0
        self._cache: dict[int, tuple[int, int]] = {}  # by row: position, token

    def reset(self) -> None:
        self.length = 0
        self._cache.clear()

    def prepare(self) -> None: ...

    def extend(self, tokens: Sequence[int]) -> torch.Tensor:
        places = torch.arange(self.length, self.length + len(tokens))
        hidden = torch.arange(self.length + len(tokens)) > places[:, None]
        logits = self.score(torch.tensor(tokens), places, places, hidden)
        self.length += len(tokens)
        return logits[-1]

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
        self.passes += 1
        places = positions.tolist()
        self._cache |= dict(
            zip(rows.tolist(), zip(places, tokens.tolist(), strict=True), strict=True)
        )
        out = []
        for place, unseen in zip(places, hidden.tolist(), strict=True):
            seen = sorted(
                self._cache[row] for row, no in enumerate(unseen) if not no and row in self._cache
            )
            if [position for position, _ in seen] == [*range(place + 1)]:
                out.append(self._table(tuple(token for _, token in seen)))
            else:  # a row to spare: nothing to enumerate
                out.append([1.0] + [0.0] * (self.vocab - 1))
        return torch.tensor(out, dtype=torch.float64).log()

    def move(self, rows: torch.Tensor, to: torch.Tensor) -> None:
        moved = {b: self._cache.get(a) for a, b in zip(rows.tolist(), to.tolist(), strict=True)}
        self._cache |= {row: entry for row, entry in moved.items() if entry is not None}


class FeatureTableEngine(TableEngine):
    """A table that also looks at which tokens were read as text, with the target's features, and
    which as nodes, without. Nothing of a tree may be seen later as if it were text."""

    rereads = True

    def __init__(self, table: Table, vocab: int = VOCAB) -> None:
        super().__init__(lambda tokens: table((*tokens, vocab + self._known)), vocab)

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
        if parents is None:
            self._known = int(positions[-1])  # tokens that have features
            assert torch.equal(rows, positions)
        else:
            before = [self._cache[row] for row in parents.tolist()]
            spare = [
                place - 1 != at for place, (at, _) in zip(positions.tolist(), before, strict=True)
            ]
            assert not any(spare[: self.sure])
        logits = super().score(tokens, positions, rows, hidden, captured=captured)
        return logits[-1:] if parents is None else logits

    sure = 1  # rows of a level that are certainly no spare ones

    def move(self, rows: torch.Tensor, to: torch.Tensor) -> None: ...


class Script(enumeration.Script):
    """A script that is also a `Source`: it makes the draws of a step. Of rows to spare (phases:
    where they are) it takes any children."""

    def __init__(self, prefix: Sequence[int] = (), phases: Phases | None = None) -> None:
        super().__init__(prefix)
        self._phases, self._rows = phases, slice(0)

    def draw(self, probs: torch.Tensor, k: int) -> torch.Tensor:
        """See `dynasurge.probabilities.Chance`."""
        tokens = torch.full((len(probs), k), -1)
        for row, exists in enumerate(self._exist(probs)):
            if exists:
                tokens[row] = super().draw(probs[row : row + 1], k)[0]
        return tokens

    def step(self, numbers: torch.Tensor, prepared: object) -> Script:
        """See `dynasurge.probabilities.Source`."""
        return self

    def rows(self, rows: Any) -> Any:
        """See `dynasurge.probabilities.StepChance`."""
        self._rows = rows
        return self

    def _exist(self, probs: torch.Tensor) -> list[bool]:
        """Which of these rows of the growing tree exist."""
        rows, self._rows = self._rows, slice(0)
        if self._phases is None or not isinstance(rows, slice) or rows == slice(0):
            return [True] * len(probs)
        growing = self._phases._growing
        frontier = self._phases._proposer.frontier(growing)
        return (frontier[growing.row_slot[rows]] > 0).tolist()

    @property
    def end(self) -> Script:
        return self

    @property
    def bonus(self) -> Any:
        return self


class Growing(Script):
    """A script that enumerates the growth only: the path ends at the root."""

    @property
    def end(self) -> Any:
        return _Root()

    bonus = end


class _Root:
    def pick(self, weights: torch.Tensor) -> torch.Tensor:
        return torch.zeros(1, dtype=torch.int64)

    def draw(self, probs: torch.Tensor, k: int) -> torch.Tensor:
        return torch.zeros(1, 1, dtype=torch.int64)


def enumerate_runs(
    run: Callable[[Any], Any], script_of: Callable[[Sequence[int]], Any] = Script
) -> Iterator[tuple[float, Any]]:
    """(probability, result) for every path of outcomes through `run(script)`."""
    return map(tuple, enumeration.outcomes(run, script_of))


def copy_anything(monkeypatch: Any) -> None:
    """Where children are sampled, only what the draft hardly thinks of is copied, after a long
    match: lower both bars."""
    monkeypatch.setattr(proposals, "LONG", 2)
    monkeypatch.setattr(proposals, "AGREES", 2.0)


def propose(
    policy: str,
    q: torch.Tensor,
    k: int,
    chance: Any,
    limits: Limits | None = None,
    found: tuple[list[int], list[int]] | None = None,
) -> tuple[torch.Tensor, Proposed]:
    """What nodes with the draft distributions q [m, V] propose, and what sampled children were
    drawn from (q without them). found: the nodes' copies and the lengths of their matches."""
    own, copies = POLICIES[policy], None
    if found is not None:
        tokens, matches = (torch.tensor(numbers) for numbers in found)
        copies = weighed(q, (tokens, matches), echoes=own.points)
        q = without(q, copies)
    base, drawn = own.draw(q, chance, k, limits or Limits())
    made = own.propose(drawn)
    if copies is not None:
        made = with_copies(made, copies, drawn, points=own.points)
    return base if base is not None else q, made


def tokens_of(made: Proposed, row: int) -> list[int]:
    """The tokens of a node's children."""
    return made.token[row][made.exists[row]].tolist()


# --- trees and steps of the real loop


class Fixed(SizePlanner):
    """Always the same size."""

    def __init__(self, size: Size, lag: int = 1) -> None:
        super().__init__(sizes=[size.nodes], budget=size.nodes, max_depth=size.depth, lag=lag)
        self.size = size

    def choose(self) -> Size:
        return self.size

    def learn(self, *_: object) -> None: ...


def dynamic(
    n: int,
    depth: int,
    children: int,
    policy: str = "sampled",
    *,
    values: str = "learned",
    width: int = 32,
    run: int = 0,
    levels: int | None = None,
    least: float = 0.0,
    worth: float = 0.0,
    acceptance: Acceptance | None = None,
    lag: int = 1,
    **other: Any,
) -> Trees:
    """Trees of up to n nodes, each worth more than `worth`, whose levels end where the best slot
    `lag` levels above is worth less than `least`. run: the most nodes of a run. levels: how many
    the draft makes, if not all."""
    return Trees(
        bounds=TreeBounds(depth=depth, width=width, children=children, run=run),
        budget=n,
        policy=POLICIES[policy],
        planner=Fixed(Size(nodes=n, depth=levels or depth, least=least, worth=worth), lag),
        acceptance=acceptance or make_acceptance(values, "topdown", 1.0),
        own=values == "own",
        **{"most": children} | other,
    )


def static(growmap: Growmap, policy: str = "sampled") -> Trees:
    """Trees of a growmap's shape."""
    return static_trees(growmap, POLICIES[policy], Acceptance({}), torch.device("cpu"))


class Grown(NamedTuple):
    """A tree, and what the children of each node were sampled from (empty for a leaf)."""

    tree: TokenTree
    q: list[torch.Tensor]


class Steps:
    """Single steps of the loop after a text, with tables for models. padded: whether all levels and
    the target's pass have fixed shapes. engine: the draft's."""

    def __init__(
        self,
        draft: Table,
        target: Table,
        trees: Trees,
        rule: str | Rule = "topdown",
        *,
        padded: bool = False,
        text: tuple[int, ...] = PROMPT,
        T: float = 1.0,
        vocab: int = VOCAB,
        engine: type[TableEngine] = TableEngine,
        **judge: Any,
    ) -> None:
        self.text, self.trees = list(text), trees
        how = RULES[rule] if isinstance(rule, str) else rule
        self.phases = Phases(
            TableEngine(target, vocab),
            engine(draft, vocab),
            trees,
            Judge(rule=how, T=T, P=1.0, **judge),
            padded=padded,
            dtype=torch.float64,
        )
        self.decoder = Decoder(Direct(self.phases, trees.planner.lag))

    def __call__(self, script: Any) -> StepRecord:
        """One step."""
        for engine in (self.phases.target, self.phases.draft):
            engine.reset()
        self.decoder.prefill(self.text)
        place = len(self.text)
        return next(
            self.decoder.follow(self.text, [place], script, place + self.trees.bounds.depth)
        )

    def grown(self) -> Iterator[tuple[float, Grown]]:
        """Every tree that can be drawn, with its probability."""
        judge = self.phases._judge
        self.phases._judge = replace(judge, rule=Rule(share=lambda *_: None, bottom_up=False))
        yield from enumerate_runs(self._grow, self._growing)
        self.phases._judge = judge

    def _growing(self, prefix: Sequence[int]) -> Script:
        return Growing(prefix, self.phases)

    def _grow(self, script: Any) -> Grown:
        tree = self(script).tree
        growing, nodes = self.phases._growing, self.decoder._run._scored.nodes
        base = {
            int(nodes.number[slot]): growing.base[row].clone()
            for row, slot in enumerate(growing.row_slot[: growing.used_rows].tolist())
        }
        empty = torch.empty(0)
        return Grown(
            tree, [base.get(u, empty) if own else empty for u, own in enumerate(tree.children)]
        )

    def emitted(self, target: Table, length: int) -> Law:
        """The law of `length` tokens that steps emit, completed by the target."""
        return emitted_law(self._outcomes(), target, tuple(self.text), length)

    def _outcomes(self) -> Iterator[tuple[float, tuple[int, ...], torch.Tensor]]:
        for weight, record in enumerate_runs(self, self._growing):
            assert abs(sum(record.stop) - 1.0) < 1e-12
            for node, chance in enumerate(record.stop):
                if chance > 0:
                    bonus = self.phases.left_at(torch.tensor([node]))[0]
                    path = tokens_to(record.tree, node)
                    yield weight * chance, path, bonus / bonus.sum()

    def distance(self, target: Table, length: int) -> float:
        """Total variation between what steps emit and the target's law."""
        law = target_law(target, tuple(self.text), length)
        return total_variation(self.emitted(target, length), law)


def estimate(acceptance: Acceptance, of: Class, x: float) -> float:
    """One estimate, as trees look it up."""
    from dynasurge.drafting.acceptance_estimates import CELLS

    cell = int(x if of.kind.counted else x**0.5 * (CELLS - 1))
    return float(acceptance.table()[of.depth, of.kind, min(cell, CELLS - 1)])


def acceptance_of(curves: dict[Kind, Callable[[float], float]], other: float = 0.3) -> Acceptance:
    """Estimates that do not learn, by functions of the feature, alike at all depths."""
    xs = [i / 400 for i in range(401)]
    return Acceptance(
        {of: (tuple(xs), tuple(map(curves.get(of.kind, lambda x: other), xs))) for of in CLASSES},
        learn=False,
    )


# --- laws


def emitted_law(
    outcomes: Iterator[tuple[float, tuple[int, ...], torch.Tensor]],
    target: Table,
    prompt: tuple[int, ...],
    length: int,
    vocab: int = VOCAB,
) -> Law:
    """The law of `length` tokens when (weight, accepted tokens, bonus distribution) are completed
    by the target."""
    emitted = (
        (weight * mass, (*accepted, token))
        for weight, accepted, bonus in outcomes
        for token, mass in enumerate(bonus.tolist())
    )
    return completed_law(emitted, target, prompt, length, vocab)


def verify_law(
    trees: Iterator[tuple[float, Grown]],
    rule: Rule,
    target: Table,
    prompt: tuple[int, ...],
    length: int,
) -> Law:
    """The emitted law of trees verified by `rule`; equal trees are merged first."""
    merged: dict[Any, list[Any]] = {}
    for weight, (tree, q) in trees:
        entry = merged.setdefault((tree.tokens, tree.parents, tree.point), [0.0, tree, q])
        entry[0] += weight

    def outcomes() -> Iterator[tuple[float, tuple[int, ...], torch.Tensor]]:
        for weight, tree, q in merged.values():
            law = rule(tree, target_rows(tree, target, prompt), q)
            for node, chance in enumerate(law.stop.tolist()):
                if chance > 0:
                    bonus = law.bonus[node]
                    yield weight * chance, tokens_to(tree, node), bonus / bonus.sum()

    return emitted_law(outcomes(), target, prompt, length)


def target_rows(tree: TokenTree, target: Table, prompt: tuple[int, ...]) -> torch.Tensor:
    """p[u] for every node; the prompt ends with the root's token."""
    contexts = [prompt]
    for node in range(1, len(tree.tokens)):
        contexts.append((*contexts[tree.parents[node]], tree.tokens[node]))
    return torch.tensor([target(c) for c in contexts], dtype=torch.float64)
