"""From settings to a decoder: trees, verification, and who runs the steps.

A GPU replays captured steps (decoding/executors.py). The phases are called one by one if the device
is a CPU, if a model cannot be captured, if verification looks at its tree on the host, if a policy
or rule of the caller's may not be captured, or if a tree is too large. (Of a target that is spread
over devices, all but its passes is captured.)
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from functools import partial

import torch

from dynasurge.decoding.engines import Engines, reads_all
from dynasurge.decoding.executors import Direct, Executor, Replayed
from dynasurge.decoding.latency import load_costs
from dynasurge.decoding.loop import Decoder
from dynasurge.decoding.phases import Judge, Phases, Verify
from dynasurge.decoding.report import Trees
from dynasurge.decoding.tree_room import bounds_of, can_hold, draft_rows, most_nodes, room_for
from dynasurge.drafting.acceptance_estimates import Acceptance, make_acceptance
from dynasurge.drafting.cost_model import Costs
from dynasurge.drafting.growth import growmap_bounds
from dynasurge.drafting.proposals import POLICIES, Policy
from dynasurge.drafting.tree_budget import SizePlanner
from dynasurge.errors import UsageError, first_line
from dynasurge.models.compatibility import readable
from dynasurge.models.failures import shrinking
from dynasurge.models.law import Law
from dynasurge.models.pair import Pair
from dynasurge.settings import Settings
from dynasurge.trees.growmap import Growmap, load_growmap
from dynasurge.verification.prototype import bfs
from dynasurge.verification.rules import RULES, Rule

SIZES = (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 20, 24, 32, 48, 64, 96, 128)  # of a direct step


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Parts that a session takes instead of those of its settings; None takes the settings'
    part. likely: see `Phases`."""

    costs: Costs | None = None
    acceptance: Acceptance | None = None
    policy: Policy | None = None
    rule: Rule | None = None
    verify: Verify | None = None
    law: Law | None = None
    likely: int = 0

    @property
    def uncapturable(self) -> str:
        """The name of a part that cannot be captured; empty if there is none."""
        parts = {
            "verify": self.verify,
            "policy": self.policy,
            "rule": self.rule,
        }
        own = (name for name, part in parts.items() if part is not None)
        return next((name for name in own if not getattr(parts[name], "capturable", False)), "")


def make_decoder(
    pair: Pair, settings: Settings, engines: Engines, longest: int, parts: Parts
) -> Decoder:
    """A decoder for prompts of up to `longest` tokens. Warns if the draft reads fewer positions
    than the text has, and if a step that should be captured cannot be."""
    parts = _with_costs(settings, engines, parts)
    if most_nodes(settings):
        limit = readable(pair.draft.config, longest)
        if limit < longest + settings.new_tokens:
            said = f"reads {limit} positions; after these nothing is drafted"
            warnings.warn(f"--draft {pair.draft_name}: {said}", stacklevel=4)
    judge = _make_judge(settings, parts)
    if engines.captures and parts.uncapturable:
        said = "this part cannot be captured; the step runs uncaptured, which is slower"
        warnings.warn(f"{parts.uncapturable}: {said}", stacklevel=4)
    elif _captures(pair, settings, engines, longest) and judge.verify is None:
        try:
            if not judge.captures:
                said = "the law looks at the text; verification runs uncaptured, which is slower"
                warnings.warn(f"{settings.law}: {said}", stacklevel=4)
            return Decoder(_executor(pair, settings, engines, parts, judge, captured=True))
        except RuntimeError as error:
            # a capture raises this if the model reads values on the host
            if isinstance(error, torch.OutOfMemoryError):
                raise
            _give_up(pair, engines, error)
    return Decoder(_executor(pair, settings, engines, parts, judge, captured=False))


def _captures(pair: Pair, settings: Settings, engines: Engines, longest: int) -> bool:
    """Whether steps of these settings can be captured with these engines, which may have been made
    for another plan."""
    captures = engines.captures and reads_all(pair, settings, longest) and can_hold(settings)
    text, nodes = longest + settings.new_tokens, most_nodes(settings)
    if captures and nodes and engines.draft is not None:
        fits = text + room_for(nodes)[-1] <= engines.target.max_length
        return fits and text + draft_rows(settings, padded=True) <= engines.draft.max_length
    return captures


def _with_costs(settings: Settings, engines: Engines, parts: Parts) -> Parts:
    if not settings.pays or parts.costs is not None:
        return parts
    return replace(parts, costs=load_costs(engines))


def _make_judge(settings: Settings, parts: Parts) -> Judge:
    verify = bfs if settings.rule == "bfs" else None
    dynamic = settings.mode == "dTree" or settings.policy != "sampled"
    if parts.rule is not None and parts.rule.fixed and (dynamic or parts.policy is not None):
        reason = "needs sampled children, whose numbers are fixed before drawing"
        raise UsageError("rule", "of this kind", reason, "use --mode sTree --policy sampled")
    if settings.rule == "reserved" and parts.policy is not None and parts.policy.points:
        reason, remedy = "proposes points; reserved needs sampled children", "use another rule"
        raise UsageError("policy", "of this kind", reason, remedy)
    assert settings.T is not None
    assert settings.P is not None
    law = parts.law or Law(settings.T, settings.P)
    name = "topdown" if law.T == 0 or verify else settings.rule  # at T = 0 the rules are one
    return Judge(
        rule=parts.rule or RULES[name],
        T=law.T,
        P=law.P,
        verify=None if parts.rule is not None else parts.verify or verify,
        processors=law.processors,
    )


def _executor(
    pair: Pair,
    settings: Settings,
    engines: Engines,
    parts: Parts,
    judge: Judge,
    *,
    captured: bool,
) -> Executor:
    trees = make_trees(settings, parts, engines.target.device, captured=captured)
    if trees is not None:
        trees = replace(trees, readable=partial(readable, pair.draft.config))
    draft = engines.draft if trees is not None else None
    with shrinking("tree"):
        models = (engines.target, draft, trees, judge)
        phases = Phases(*models, padded=captured, captured=captured, likely=parts.likely)
        return Replayed(phases) if captured else Direct(phases)


def _give_up(pair: Pair, engines: Engines, error: RuntimeError) -> None:
    """Stop capturing the steps of these engines, and warn why."""
    target = engines.target
    if target.device.type == "cuda":
        torch.cuda.synchronize(target.device)
    engines.decode_uncaptured()
    lacks = "torch.compile and CUDA graphs" if target.compiled else "CUDA graphs"
    names = f"{pair.target_name}, {pair.draft_name}"
    warnings.warn(
        f"{names}: decoding without {lacks}, which is slower: {first_line(error)}", stacklevel=5
    )


def make_trees(
    settings: Settings, parts: Parts, device: torch.device, *, captured: bool
) -> Trees | None:
    """The trees of a decoder under these settings; None if nothing is drafted."""
    most, bounds = most_nodes(settings), bounds_of(settings)
    if bounds is None:
        return None
    assert settings.T is not None
    policy = parts.policy or POLICIES[settings.policy if settings.T > 0 else "topk"]
    acceptance = parts.acceptance or make_acceptance(
        settings.values, settings.rule, settings.T, settings.priors
    )
    sizes: list[int] = room_for(most) if captured else [n for n in SIZES if n < most] + [most]
    lag = 2 if captured else 1
    if settings.mode == "sTree":
        assert settings.growmap is not None
        growmap = load_growmap(settings.growmap)
        return static_trees(growmap, policy, acceptance, device, nodes=sizes[-1], lag=lag)
    costs = parts.costs if settings.pays else None
    return Trees(
        bounds=bounds,
        policy=policy,
        budget=most,
        planner=SizePlanner(
            sizes=sizes if costs is not None else sizes[-1:],
            budget=most,
            max_depth=bounds.depth,
            lag=lag,
            costs=costs,
        ),
        acceptance=acceptance,
        copies=settings.lookup,
        own=settings.values == "own",
        most=settings.max_children,
    )


def static_trees(
    growmap: Growmap,
    policy: Policy,
    acceptance: Acceptance,
    device: torch.device,
    *,
    nodes: int | None = None,
    lag: int = 1,
) -> Trees:
    """Trees of a growmap's shape. nodes: what the target's pass has room for; None: as many nodes
    as the growmap has."""
    bounds = growmap_bounds(growmap.children, growmap.depths)
    numbers = torch.full((growmap.size + 1, bounds.children), -1)
    for node, own in enumerate(growmap.children):
        numbers[node, : len(own)] = torch.tensor(own, dtype=torch.int64)
    planner = SizePlanner(
        sizes=[nodes or growmap.size - 1],
        budget=growmap.size - 1,
        max_depth=bounds.depth,
        lag=lag,
        fixed=True,
    )
    return Trees(
        bounds=bounds,
        policy=policy,
        budget=growmap.size - 1,
        planner=planner,
        acceptance=acceptance,
        growmap=numbers.to(device),
    )
