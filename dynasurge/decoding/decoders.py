"""From settings to a decoder. Its steps are captured if possible; otherwise it decodes directly.

A GPU runs captured steps, for the rules in CAPTURED_RULES and the parts that settings name. The
loop calls every phase directly in three cases: the caller replaces the shape, the policy or the
rule; a model cannot be captured; or the device is a CPU.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import partial

import torch

from dynasurge.decoding.assembly import (
    CAPTURED_RULES,
    can_hold,
    make_policy,
    make_shape,
    make_trees,
    make_verify,
)
from dynasurge.decoding.captured_loop import CapturedDecoder
from dynasurge.decoding.engines import Engines, reads_all
from dynasurge.decoding.latency import load_costs
from dynasurge.decoding.loop import Decoder, Verify
from dynasurge.drafting.acceptance_estimates import Acceptance, make_acceptance
from dynasurge.drafting.cost_model import Costs
from dynasurge.drafting.growth import Drafter
from dynasurge.drafting.prompt_lookup import Lookup
from dynasurge.drafting.proposals import Policy
from dynasurge.drafting.tree_budget import Shape
from dynasurge.models.compatibility import readable
from dynasurge.models.failures import shrinking
from dynasurge.models.pair import Pair
from dynasurge.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Parts that a session takes instead of those of its settings; None takes the settings'
    part."""

    costs: Costs | None
    acceptance: Acceptance | None
    shape: Shape | None
    policy: Policy | None
    verify: Verify | None

    @property
    def capturable(self) -> bool:
        """Whether a captured step would do the same: shape, policy and rule are the settings'."""
        return self.shape is None and self.policy is None and self.verify is None


def make_decoder(
    pair: Pair, settings: Settings, engines: Engines, longest: int, parts: Parts
) -> Decoder | CapturedDecoder:
    """A decoder for prompts of up to `longest` tokens. Warns if the draft reads fewer positions
    than the text has, and if a step that should be captured cannot be."""
    shape, costs, acceptance = parts.shape, parts.costs, parts.acceptance
    if shape is None and settings.pays:
        costs = costs or load_costs(engines)
        shape = make_shape(settings, costs)
    shape = shape or make_shape(settings)
    if shape is not None:
        acceptance = acceptance or make_acceptance(
            settings.values, settings.rule, settings.T, settings.priors
        )
        limit = readable(pair.draft.config, longest)
        if limit < longest + settings.new_tokens:
            said = f"reads {limit} positions; after these nothing is drafted"
            warnings.warn(f"--draft {pair.draft_name}: {said}", stacklevel=4)
    captures = parts.capturable and settings.rule in CAPTURED_RULES and engines.captures
    captures = captures and reads_all(pair, settings, longest)
    if captures and (shape is None or can_hold(settings, shape)):
        try:
            return _captured(settings, engines, shape, acceptance, costs)
        except RuntimeError as error:
            # a capture raises this if the model reads values on the host
            if isinstance(error, torch.OutOfMemoryError):
                raise
            _give_up(pair, engines, error)
    return _direct(pair, settings, engines, shape, acceptance, parts)


def _captured(
    settings: Settings,
    engines: Engines,
    shape: Shape | None,
    acceptance: Acceptance | None,
    costs: Costs | None,
) -> CapturedDecoder:
    target, draft = engines.target, engines.draft
    trees = (
        None
        if shape is None or not shape.max_nodes
        else make_trees(settings, shape, acceptance, costs, target.device)
    )
    rule = settings.rule if settings.T > 0 else "topdown"  # at T = 0 the rules are one
    with shrinking("tree"):
        return CapturedDecoder(
            target, draft if trees else None, trees, rule=rule, T=settings.T, P=settings.P
        )


def _give_up(pair: Pair, engines: Engines, error: RuntimeError) -> None:
    """Stop capturing steps of these engines, and warn why."""
    target = engines.target
    if target.device.type == "cuda":
        torch.cuda.synchronize(target.device)
    engines.decode_uncaptured()
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    lacks = "torch.compile and CUDA graphs" if target.compiled else "CUDA graphs"
    names = f"{pair.target_name}, {pair.draft_name}"
    warnings.warn(f"{names}: decoding without {lacks}, which is slower: {reason}", stacklevel=5)


def _direct(
    pair: Pair,
    settings: Settings,
    engines: Engines,
    shape: Shape | None,
    acceptance: Acceptance | None,
    parts: Parts,
) -> Decoder:
    drafter = None
    if shape is not None:
        assert engines.draft is not None
        assert acceptance is not None
        drafter = Drafter(
            engines.draft,
            shape,
            parts.policy or make_policy(settings),
            acceptance,
            Lookup() if settings.mode == "dTree" and settings.lookup else None,
            T=settings.T,
            P=settings.P,
            readable=partial(readable, pair.draft.config),
        )
    verify = parts.verify or make_verify(settings)
    return Decoder(engines.target, drafter, verify, T=settings.T, P=settings.P)
