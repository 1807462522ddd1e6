"""Is it lossless? The audit enumerates a verification rule, a way to draw trees, or a whole step, on
small vocabularies, and compares what it emits with the target's law.

    report = dynasurge.audit("traversal")
    report = dynasurge.audit(my_rule)                    # def my_rule(tree, p, q, chance)
    report = dynasurge.audit(my_drawing)                 # def my_drawing(q, chance)
    report = dynasurge.audit(my_step)                    # def my_step(p, q, chance)
    print(report)

Which of the three a function is, the names of its arguments say:

- a *rule* gets a drawn tree (`TokenTree`), the target's distributions p[u] at its nodes, the
  distributions q[u] that the sampled children of u were drawn from, and a source of chance. It
  returns the accepted nodes, from the root's child downwards, and the bonus token. Without `chance`
  it returns its stop law (verification/rules.py);
- a *drawing* gets the draft, q(tokens) -> distribution after these tokens, and returns a `TokenTree`
  whose root has the token -1. It is verified by our own rules;
- a *step* gets target and draft as such functions, and returns the emitted tokens, at least one.

All randomness must come from `chance` (verification/enumeration.py): `chance.token(probs)` draws a
token, `chance.coin(t)` is True with probability t, `chance.uniform()` is a number that can only be
compared. Every draw and every coin is followed, over pairs of models and trees, the smallest first.
The emitted tokens, completed by the target, must have the target's law: the report gives the largest
total variation, and the first, so the smallest, case in which it is not zero.

A drawing is also compared with what "properly drawn" demands (docs/concepts/verification.md), and
the report names the condition that it breaks.
"""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import index
from typing import Any

import torch

from dynasurge.drafting.child_kinds import Kind
from dynasurge.drafting.proposals import POLICIES, Limits, Policy
from dynasurge.errors import UsageError
from dynasurge.trees.growmap import Growmap, build_growmap
from dynasurge.trees.token_tree import TokenTree
from dynasurge.verification.audit_report import AuditReport, Counterexample
from dynasurge.verification.enumeration import (
    EXACT,
    Law,
    Outcome,
    Script,
    Table,
    as_model,
    completed_law,
    outcomes,
    random_table,
    target_law,
    total_variation,
)
from dynasurge.verification.properly_drawn import CONDITIONS, broken_condition
from dynasurge.verification.prototype import bfs
from dynasurge.verification.rules import RULES, Rule, StopLaw, Verdict, path_to, tokens_to

SHAPES = ("2x1", "chain2", "3x1", "2x2", "chain3")
FORK = Growmap(parents=(-1, 0, 1, 1))  # siblings below the root
MOST = 100_000  # paths of outcomes in one case
LONGEST = 10  # tokens that a step may emit: the law is of all sequences of that length
KINDS = {
    "rule": ("tree", "p", "q", "chance"),
    "drawing": ("q", "chance"),
    "step": ("p", "q", "chance"),
}
SIGNATURES = "rule(tree, p, q[, chance]), drawing(q, chance) or step(p, q, chance)"

Drawn = tuple[TokenTree, list[torch.Tensor]]
"""A tree, and what each node's sampled children were drawn from."""
Emitted = tuple[tuple[int, ...], TokenTree | None]
"""The tokens that a step emits, and the tree that it drew, if that is known."""


@dataclass(frozen=True, kw_only=True)
class Models:
    """A target and a draft on a small vocabulary."""

    name: str
    p: Table
    q: Table
    vocab: int


def fixed(*probs: float) -> Table:
    """A model that says the same everywhere."""
    return lambda context: list(probs)


def models() -> list[Models]:
    """The pairs that an audit goes through, the smallest first."""
    pairs = [
        ("a draft that is too sure", (0.5, 0.5), (0.9, 0.1)),
        ("a draft without one of the tokens", (0.3, 0.7), (1.0, 0.0)),
        ("a target without one of the tokens", (0.0, 1.0), (0.4, 0.6)),
        ("a draft that is right", (0.25, 0.75), (0.25, 0.75)),
        ("three tokens", (0.2, 0.3, 0.5), (0.5, 0.3, 0.2)),
        ("one token that only the draft has", (0.6, 0.4, 0.0), (0.2, 0.3, 0.5)),
        ("a token that half precision rounds to zero", (0.5, 0.3, 0.2), (0.6, 0.4 - 2e-8, 2e-8)),
    ]
    own = [Models(name=n, p=fixed(*p), q=fixed(*q), vocab=len(p)) for n, p, q in pairs]
    for seed in range(3):
        for zeros in (False, True):
            name = f"random distributions {seed}" + (", with zeros" if zeros else "")
            tables = [random_table(2 * seed + side, zeros=zeros) for side in (0, 1)]
            own.append(Models(name=name, p=tables[0], q=tables[1], vocab=3))
    return own


def audit(
    what: str | Rule | Callable[..., Any],
    *,
    policy: str | Policy = "sampled",
    shapes: Sequence[str | Growmap] | None = None,
    zoo: Sequence[Models] | None = None,
    stop: bool = False,
) -> AuditReport:
    """Audit a rule, a drawing or a step (see above).

    what: also the name of a rule, or a `Rule`. policy, shapes: how the trees of a rule are drawn, a
    `Policy` or the name of one, and growmaps or their names (default: SHAPES and FORK); a drawing
    and a step draw their own. zoo: pairs of models (default: `models()`). stop: whether to end with
    the first counterexample. Raises UsageError for what is none of these, for a result of another
    form, and for what has too many outcomes.
    """
    kind, name = _kind(what), _name(what)
    if not isinstance(policy, Policy):
        if policy not in POLICIES:
            raise UsageError("policy", policy, "is unknown", f"choose among: {', '.join(POLICIES)}")
        policy = POLICIES[policy]
    trees = [
        (s, build_growmap(s)) if isinstance(s, str) else (f"parents {s.parents}", s)
        for s in (SHAPES if shapes is None else shapes)
    ]
    if shapes is None:
        trees.append(("fork", FORK))
    tried = trees if kind == "rule" else [("", None)]
    began, paths, worst, example, accepted = time.perf_counter(), 0, 0.0, None, {}
    broken, cases = {""}, 0
    for pair in zoo if zoo is not None else models():
        for shape, growmap in tried:
            found, ours = _everything(what, kind, pair, policy, growmap)
            cases, paths = cases + 1, paths + len(found)
            case = ", ".join(filter(None, [pair.name, shape]))
            mine = sum(one.weight * (len(one.result[0]) - 1) for one in found)
            accepted[case] = mine, mine if ours is None else ours
            length = max((len(one.result[0]) for one in found), default=1)
            if length > LONGEST:
                remedy = f"let a step emit at most {LONGEST}"
                raise UsageError("audit", name, f"emits {length} tokens in {case}", remedy)
            law = target_law(pair.p, (), length, pair.vocab)
            emitted = [(one.weight, one.result[0]) for one in found]
            got = completed_law(emitted, pair.p, (), length, pair.vocab)
            distance = total_variation(got, law)
            worst = max(worst, distance)
            edges = [one for one in found if one.edge and _impossible(pair.p, one.result[0])]
            if example is None and (not distance <= EXACT or edges):
                example = _example(pair, shape, law, got, distance, found, edges)
            if kind == "drawing":
                broken.add(broken_condition(what, pair.q))  # type: ignore[arg-type]
        if stop and example is not None:
            break
    if not cases:
        raise UsageError("audit", name, "no case was left to look at", "give shapes and a zoo")
    return AuditReport(
        name=name,
        kind=kind,
        cases=cases,
        paths=paths,
        distance=worst,
        seconds=time.perf_counter() - began,
        counterexample=example,
        condition=max(broken, key=CONDITIONS.index) if example is not None else "",
        accepted=accepted,
    )


def _kind(what: Any) -> str:
    if isinstance(what, str) and what not in (*RULES, "bfs"):
        remedy = f"choose among: {', '.join((*RULES, 'bfs'))}"
        raise UsageError("rule", what, "is unknown", remedy)
    if isinstance(what, str | Rule):
        return "rule"
    try:
        parameters = inspect.signature(what).parameters
    except (TypeError, ValueError):
        parameters = {}  # type: ignore[assignment]
    for kind, own in KINDS.items():
        if tuple(parameters)[: len(own)] == own:
            return kind
    # what must be given of a rule that returns its law
    needed = [name for name, one in parameters.items() if one.default is one.empty]
    if tuple(needed) == KINDS["rule"][:3]:
        return "rule"
    raise UsageError("audit", _name(what), "is no rule, drawing or step", f"write {SIGNATURES}")


def _name(what: Any) -> str:
    return what if isinstance(what, str) else getattr(what, "__name__", type(what).__name__)


def _everything(
    what: Any, kind: str, pair: Models, policy: Policy, growmap: Growmap | None
) -> tuple[list[Outcome[Emitted]], float | None]:
    """Everything that can happen in one step, and how many tokens `traversal` accepts of the same
    trees: NaN if they are not known or none of its own, None if it verified them."""
    p, q = as_model(pair.p), as_model(pair.q)
    found: list[Outcome[Emitted]] = []
    if kind == "step":

        def emitted(chance: Script) -> Emitted:
            return _tokens(what(p, q, chance), pair), None

        for step in outcomes(emitted):
            found.append(step)
            _few(what, found)
        return found, math.nan
    traversal, rule = RULES["traversal"], what
    if kind == "drawing":
        drawn, rule = outcomes(lambda chance: _own(what, q, chance)), traversal
    else:
        assert growmap is not None
        drawn = outcomes(lambda chance: draw_tree(growmap, policy, q, chance))
        rule = RULES.get(what, bfs) if isinstance(what, str) else what
    lawful = isinstance(rule, Rule) or "chance" not in inspect.signature(rule).parameters
    ours = 0.0 if policy in POLICIES.values() else math.nan
    for one in drawn:
        tree, base = one.result
        rows = torch.stack([p(tokens_to(tree, node)) for node in range(tree.size + 1)])
        if rule is not traversal and ours == ours:
            depths = torch.tensor(tree.depths, dtype=torch.float64)
            ours += one.weight * float(traversal(tree, rows, base).stop @ depths)
        found += map(one.then, outcomes(_verification(rule, lawful, tree, rows, base)))
        _few(what, found)
    return found, None if rule is traversal else ours


def _few(what: Any, found: Sequence[Any]) -> None:
    """Raise UsageError if there are too many paths."""
    if len(found) > MOST:
        reason = f"has more than {MOST} paths of outcomes"
        raise UsageError("audit", _name(what), reason, "try smaller shapes, or a smaller step")


def _verification(
    rule: Any, lawful: bool, tree: TokenTree, p: torch.Tensor, q: list[torch.Tensor]
) -> Callable[[Script], Emitted]:
    """What a rule makes of a tree, as a function of chance. lawful: whether it returns its stop law,
    and takes no chance. It may write to its arguments: these are its own."""

    def given() -> tuple[TokenTree, torch.Tensor, list[torch.Tensor]]:
        return tree, p.clone(), [row.clone() for row in q]

    if not lawful:
        return lambda chance: _verified(tree, rule(*given(), chance), p.shape[1])
    law = _checked(rule(*given()), *p.shape)

    def stopped(chance: Script) -> Emitted:
        end = int(chance.pick(law.stop)[0])
        return (*tokens_to(tree, end), int(chance.pick(law.bonus[end])[0])), tree

    return stopped


def _checked(law: Any, nodes: int, vocab: int) -> StopLaw:
    """A rule's stop law. Raises UsageError if it is none."""
    if not isinstance(law, StopLaw):
        raise UsageError("rule", type(law).__name__, "is no StopLaw", "return one, or take chance")
    stop, bonus = (torch.as_tensor(own, dtype=torch.float64) for own in (law.stop, law.bonus))
    shapes = tuple(stop.shape), tuple(bonus.shape)
    if shapes != ((nodes,), (nodes, vocab)):
        reason = f"stop and bonus have the shapes {shapes[0]} and {shapes[1]}"
        remedy = f"return ({nodes},) and ({nodes}, {vocab})"
        raise UsageError("rule", "StopLaw", reason, remedy)
    total, reached = float(stop.sum()), bonus[stop > 0]
    if not abs(total - 1) < 1e-6 or float(stop.min()) < -EXACT:
        reason = f"its stop sums to {total:.6g}, its least number is {float(stop.min()):.3g}"
        raise UsageError("rule", "StopLaw", reason, "return probabilities that sum to 1")
    if not (reached.isfinite().all() and (reached >= 0).all() and (reached.sum(-1) > 0).all()):
        reason = "the bonus of a node where the path can end is no distribution"
        raise UsageError("rule", "StopLaw", reason, "return weights of at least 0, not all 0")
    return StopLaw(stop=stop, bonus=bonus)


def _verified(tree: TokenTree, verdict: Any, vocab: int) -> Emitted:
    try:
        path, bonus = (verdict.path, verdict.bonus) if isinstance(verdict, Verdict) else verdict
        path, bonus = tuple(map(index, path)), index(bonus)
    except (TypeError, ValueError) as error:
        said = " ".join(str(verdict).split())[:60]
        remedy = "return a path of nodes and a bonus token; without chance, a StopLaw"
        raise UsageError("rule", said, "is no verdict", remedy) from error
    end = (0, *path)[-1]
    if not 0 <= end <= tree.size or path_to(tree, end) != path:
        raise UsageError("rule", [*path], "is no path of the tree", "return its nodes in order")
    if not 0 <= bonus < vocab:
        reason = f"the bonus is none of the tokens 0 to {vocab - 1}"
        raise UsageError("rule", bonus, reason, "return a token")
    return (*tokens_to(tree, end), bonus), tree


def draw_tree(
    growmap: Growmap, policy: Policy, q: Callable[..., torch.Tensor], chance: Script
) -> Drawn:
    """Draw a static tree's tokens, node by node. Where a distribution has too few tokens, there are
    fewer children."""
    tokens, parents, proposal, point = [-1], [-1], [1.0], [True]
    base: list[torch.Tensor] = [torch.empty(0)]
    todo: list[tuple[int, int]] = [(0, 0)]  # (node of the growmap, node of the tree)
    paths: list[tuple[int, ...]] = [()]
    while todo:
        shape, node = todo.pop(0)
        count = len(growmap.children[shape])
        if not count:
            continue
        row, drawn = policy.draw(q(paths[node])[None], chance, count, Limits())
        made = policy.propose(drawn)
        base[node] = row[0] if row is not None else torch.empty(0)
        for child, place in zip(growmap.children[shape], range(count), strict=True):
            if not made.exists[0, place]:
                continue
            todo.append((child, len(tokens)))
            paths.append((*paths[node], int(made.token[0, place])))
            tokens.append(int(made.token[0, place]))
            parents.append(node)
            proposal.append(float(made.proposal[0, place]))
            point.append(bool(made.kind[0, place] >= Kind.POINT))
            base.append(torch.empty(0))
    tree = TokenTree(
        tokens=tuple(tokens), parents=tuple(parents), proposal=tuple(proposal), point=tuple(point)
    )
    return tree, base


def _own(drawing: Callable[..., Any], q: Callable[..., torch.Tensor], chance: Script) -> Drawn:
    tree = drawing(q, chance)
    if not isinstance(tree, TokenTree):
        raise UsageError("drawing", type(tree).__name__, "is no TokenTree", "return one")
    vocab = len(q(()))
    if not all(0 <= token < vocab for token in tree.tokens[1:]):
        reason = f"are not all tokens, 0 to {vocab - 1}"
        raise UsageError("drawing", [*tree.tokens[1:]], reason, "draw from q")
    for own in tree.children:
        tokens = [tree.tokens[u] for u in own]
        if any(tree.point[u] and tokens.count(tree.tokens[u]) > 1 for u in own):
            remedy = "draw its siblings from what is without it"
            raise UsageError("drawing", tokens, "has a point beside an equal sibling", remedy)
    return tree, [q(tokens_to(tree, node)) for node in range(tree.size + 1)]


def _tokens(tokens: Any, pair: Models) -> tuple[int, ...]:
    try:
        own = tuple(map(index, tokens))
    except (TypeError, ValueError) as error:
        raise UsageError("step", tokens, "are no tokens", "return a list of tokens") from error
    if not own or not set(own) <= set(range(pair.vocab)):
        reason = f"are not one or more of the tokens 0 to {pair.vocab - 1}"
        raise UsageError("step", [*own], reason, "return what the step emits")
    return own


def _impossible(p: Table, tokens: tuple[int, ...]) -> bool:
    return any(p(tokens[:depth])[token] == 0 for depth, token in enumerate(tokens))


def _example(
    pair: Models,
    shape: str,
    law: Law,
    got: Law,
    distance: float,
    found: Sequence[Outcome[Emitted]],
    edges: Sequence[Outcome[Emitted]],
) -> Counterexample:
    edge = distance <= EXACT
    tokens = edges[0].result[0] if edge else _furthest(law, got)
    heads = [tokens[:depth] for depth in range(len(tokens))]
    likely = sorted(edges if edge else found, key=lambda one: -one.weight)
    trees = [one.result[1] for one in likely if one.result[0][: len(tokens)] == tokens]
    return Counterexample(
        models=pair.name,
        shape=shape,
        distance=distance,
        tokens=tokens,
        expected=0.0 if edge else _mass(law, tokens),
        found=0.0 if edge else _mass(got, tokens),
        tree=trees[0] if trees else None,
        p=tuple(tuple(pair.p(head)) for head in heads),
        q=tuple(tuple(pair.q(head)) for head in heads),
        edge=edge,
    )


def _furthest(law: Law, got: Law) -> tuple[int, ...]:
    """The shortest beginning whose probability differs, by most at its length."""
    for length in range(1, len(next(iter(law))) + 1):
        heads = {key[:length] for key in law}
        gap, tokens = max((abs(_mass(law, h) - _mass(got, h)), h) for h in sorted(heads))
        if gap > EXACT:
            break
    return tokens


def _mass(law: Law, head: tuple[int, ...]) -> float:
    return sum(mass for key, mass in law.items() if key[: len(head)] == head)


def first_token(
    drawing: Callable[..., TokenTree], p: Sequence[float], q: Sequence[float]
) -> list[float]:
    """The exact law of the first token that is emitted, if both models say the same everywhere and
    the drawing's trees are verified by our own rule."""
    pair = Models(name="", p=fixed(*p), q=fixed(*q), vocab=len(p))
    law = [0.0] * len(p)
    for one in _everything(drawing, "drawing", pair, POLICIES["sampled"], None)[0]:
        law[one.result[0][0]] += one.weight
    return law
