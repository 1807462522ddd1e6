"""What an audit says (verification/audit.py): a report, with the smallest case that it found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from dynasurge.trees.token_tree import TokenTree

ROUNDING = 1e-6  # a smaller total variation may be float32's


@dataclass(frozen=True, kw_only=True)
class Counterexample:
    """The smallest case found. models, shape: where. tokens: the emitted tokens whose probability is
    furthest from the target's; expected, found: both probabilities. tree: a drawn tree after which
    they can be emitted, if known. p, q: both distributions after each prefix of the tokens. edge:
    whether they need a uniform number that is exactly 0."""

    models: str
    shape: str
    distance: float
    tokens: tuple[int, ...]
    expected: float
    found: float
    tree: TokenTree | None
    p: tuple[tuple[float, ...], ...]
    q: tuple[tuple[float, ...], ...]
    edge: bool = False

    def __str__(self) -> str:
        where = f", tree {self.shape}" if self.shape else ""
        said = f"{self.models}{where}: the tokens {list(self.tokens)} have probability"
        lines = [f"{said} {self.expected:.6g}, and are emitted with {self.found:.6g}"]
        if self.edge:
            lines = [
                f"{self.models}{where}: the tokens {list(self.tokens)} have probability 0, and are"
                " emitted when a uniform number is exactly 0"
            ]
        for depth, (p, q) in enumerate(zip(self.p, self.q, strict=True)):
            after = f"after {list(self.tokens[:depth])}" if depth else "at the root"
            lines.append(f"  {after}: target {_numbers(p)}, draft {_numbers(q)}")
        if self.tree is not None:
            lines.append(f"  drawn: {_outline(self.tree)}")
        return "\n".join(lines)


def _numbers(probs: Sequence[float]) -> str:
    return "(" + ", ".join(f"{p:.4g}" for p in probs) + ")"


def _outline(tree: TokenTree, node: int = 0) -> str:
    """A tree as text: root -> 1 [-> 0], 2."""
    own = [_outline(tree, child) for child in tree.children[node]]
    name = "root" if node == 0 else str(tree.tokens[node])
    return name + (f" -> ({', '.join(own)})" if own else "")


@dataclass(frozen=True, kw_only=True)
class AuditReport:
    """What an audit found. kind: rule, drawing or step. cases, paths: how many pairs of models and
    trees, and how many paths of outcomes in all. distance: the largest total variation from the
    target's law. condition: which condition of "properly drawn" a drawing breaks at the root.
    accepted: the mean number of accepted tokens, by case, and that of `traversal` on the same trees
    (NaN for steps, whose trees are not known, and for trees of a policy of one's own)."""

    name: str
    kind: str
    cases: int
    paths: int
    distance: float
    seconds: float
    counterexample: Counterexample | None = None
    condition: str = ""
    accepted: dict[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def lossless(self) -> bool:
        """Whether no case was found in which the law differs."""
        return self.counterexample is None

    def __str__(self) -> str:
        size = f"{self.cases} cases, {self.paths} paths of outcomes"
        if self.lossless:
            said = f"{self.name}: lossless on all of {size}; total variation {self.distance:.1e}"
            own = [pair for pair in self.accepted.values() if pair[1] == pair[1]]
            if own:
                mine, ours = (sum(pair[side] for pair in own) / len(own) for side in (0, 1))
                said += (
                    f"\n  accepts {mine:.3f} tokens a step, traversal {ours:.3f} of the same trees"
                )
            return said
        lines = [f"{self.name}: NOT lossless ({size}); total variation up to {self.distance:.2g}"]
        if self.distance < ROUNDING:
            lines.append(
                "  perhaps rounding: is something computed in float32? the audit gives float64"
            )
        if self.condition:
            lines.append(f"  not properly drawn: {self.condition}")
        return "\n".join([*lines, "  " + str(self.counterexample).replace("\n", "\n  ")])
