"""Analysis: acceptance of a pair, a policy and a rule, computed exactly wherever chance can be
integrated out.

There are two kinds of numbers. `mean_accepted` is the mean accepted length of a rule on one drawn
tree, exact over the rule's draws: comparing rules on the same trees needs no luck.
`rank_acceptance` takes nodes with given distributions and computes how often children of each
sibling rank are accepted there. These acceptance vectors are what static trees are optimised for,
and the prior that dynamic trees start from. `text_distributions` provides such nodes from text that
the target wrote, because an accepted path looks like it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import LogitsProcessorList

from dynasurge import probabilities
from dynasurge.decoding.engines import engines_of
from dynasurge.drafting.child_kinds import Kind
from dynasurge.drafting.proposals import POLICIES, Limits
from dynasurge.models.pair import Pair
from dynasurge.models.processors import drafted, processed
from dynasurge.probabilities import Chance
from dynasurge.trees.token_tree import TokenTree
from dynasurge.verification.rules import RULES, Rule, StopLaw, first_weights


def mean_accepted(rule: Rule, tree: TokenTree, p: torch.Tensor, q: Sequence[torch.Tensor]) -> float:
    """The mean number of drafted tokens that a rule accepts of this tree. Arguments: see
    verification/rules.py."""
    return mean_depth(rule(tree, p, q), tree)


def mean_depth(law: StopLaw, tree: TokenTree) -> float:
    """The mean depth at which the path ends."""
    depths = torch.tensor(tree.depths, dtype=law.stop.dtype).to(law.stop.device, non_blocking=True)
    return float(law.stop @ depths)


def rank_acceptance(
    p: torch.Tensor, q: torch.Tensor, policy: str, k: int, chance: Chance
) -> tuple[torch.Tensor, torch.Tensor]:
    """At m nodes, draw up to k children each and verify them top-down.

    p, q: float [m, V]. Returns (accepted, proposal), both float [m, k]. accepted: the probability
    that child j is the accepted one, exact for the drawn children. proposal: the probability with
    which its token was drawn (1 for points). Both are 0 where there is no child.
    """
    own = POLICIES[policy]
    base, drawn = own.draw(q, chance, k, Limits())
    made = own.propose(drawn)
    base = base if base is not None else torch.zeros_like(q)
    point = made.kind >= Kind.POINT
    weights = first_weights(RULES["topdown"], p, base, made.token, point, made.exists)
    before = torch.nn.functional.pad((1.0 - weights).cumprod(-1)[:, :-1], (1, 0), value=1.0)
    proposal = torch.where(made.exists, made.proposal, 0.0)
    return (weights * before).to(p.dtype), proposal.to(p.dtype)


def text_distributions(
    pair: Pair,
    prompt: Sequence[int],
    output: Sequence[int],
    *,
    T: float,
    P: float = 1.0,
    processors: LogitsProcessorList | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(p, q), float32 [len(output), V] each: the target's distribution and the draft's proposal
    before every token of `output`. T, P, processors: see models/law.py."""
    p, q = level_distributions(pair, prompt, output, 1, T=T, P=P, processors=processors)
    return p, q[0]


@torch.inference_mode()
def level_distributions(
    pair: Pair,
    prompt: Sequence[int],
    output: Sequence[int],
    levels: int,
    *,
    T: float,
    P: float = 1.0,
    processors: LogitsProcessorList | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`text_distributions` with the draft's proposals at nodes of every level of a tree, [levels,
    len(output), V]. A draft that reads the target's hidden states knows less deeper down; to
    another all levels are the same."""
    text, vocab = [*prompt, *output[:-1]], pair.target.config.get_text_config().vocab_size
    readers = engines_of(pair, len(text), len(text) + levels, vocab=vocab)
    target, *drafted_by = (engine for engine in readers if engine is not None)
    theirs = target.along(text, len(output))[0]
    mine = drafted_by[0].along(text, len(output), levels)
    if processors is not None:
        before, path = (torch.tensor(part, device=theirs.device) for part in (prompt, output))
        depth = torch.arange(len(output), device=theirs.device)
        path = path.expand(len(output), -1)
        theirs = processed(processors, before, path, depth, theirs)
        mine = torch.stack([drafted(processors, before, path, depth, one) for one in mine])
        T, P = (1.0 if T > 0 else 0.0), 1.0
    return probabilities.to_probs(theirs, T, P), probabilities.to_proposal(mine, T, P)
