"""Dynasurge: tree-speculative decoding that fits the tree to the prompt and never changes the
target's text distribution.

A tower of eight rooms over a ground floor. Each room imports only from those below it.

    cli            commands
    plots          figures, the explorer, notebooks as programs
    experiments    prompts x settings -> records -> tables
    decoding       the loop: grow, score, verify, commit, record
    verification   which path of a tree is accepted
    drafting       how a tree is drawn
    models         a pair, its caches, one pass over a tree
    trees          what a tree is
    errors, files, generation_config, settings, probabilities, triton_kernels

Each room's own page says what it is for and in which order to read it. The public names below are
imported at first use, so `dynasurge --help` and a mistyped flag answer at once, before torch and
transformers load.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from dynasurge.settings import VERSION as __version__

if TYPE_CHECKING:
    from dynasurge.decoding.session import Generation, Session, generate
    from dynasurge.decoding.trace import Trace, trace
    from dynasurge.decoding.transformers_adapter import custom_generate
    from dynasurge.errors import UsageError
    from dynasurge.models.pair import Pair, load_pair
    from dynasurge.settings import Settings
    from dynasurge.trees.growmap import Growmap, build_growmap, load_growmap, save_growmap
    from dynasurge.trees.optimal_growmap import (
        SizedGrowmap,
        best_size,
        expected_accepted,
        optimal_growmap,
    )
    from dynasurge.trees.token_tree import TokenTree
    from dynasurge.verification.audit import audit
    from dynasurge.verification.audit_report import AuditReport
    from dynasurge.verification.sampled_audit import audit_samples


_HOME = {
    "Settings": "settings",
    "UsageError": "errors",
    "custom_generate": "decoding.transformers_adapter",
    "Generation": "decoding.session",
    "Session": "decoding.session",
    "generate": "decoding.session",
    "Growmap": "trees.growmap",
    "build_growmap": "trees.growmap",
    "load_growmap": "trees.growmap",
    "save_growmap": "trees.growmap",
    "Pair": "models.pair",
    "load_pair": "models.pair",
    "SizedGrowmap": "trees.optimal_growmap",
    "best_size": "trees.optimal_growmap",
    "expected_accepted": "trees.optimal_growmap",
    "optimal_growmap": "trees.optimal_growmap",
    "Trace": "plots.pictures",  # this module gives a trace its pictures
    "trace": "plots.pictures",
    "TokenTree": "trees.token_tree",
    "AuditReport": "verification.audit_report",
    "audit": "verification.audit",
    "audit_samples": "verification.sampled_audit",
}

__all__ = [
    "AuditReport",
    "Generation",
    "Growmap",
    "Pair",
    "Session",
    "Settings",
    "SizedGrowmap",
    "TokenTree",
    "Trace",
    "UsageError",
    "__version__",
    "audit",
    "audit_samples",
    "best_size",
    "build_growmap",
    "custom_generate",
    "expected_accepted",
    "generate",
    "load_growmap",
    "load_pair",
    "optimal_growmap",
    "save_growmap",
    "trace",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'dynasurge' has no attribute '{name}'")
    return getattr(importlib.import_module(f"dynasurge.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__  # for completion: names are imported when they are used
