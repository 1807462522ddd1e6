"""Dynasurge: tree-speculative decoding that fits the tree to the prompt and never changes what the target says.

Reading order: tree, growmap, optimal, sampling, policies, lookup, acceptance, latency, shapes, drafting, verification,
bound, cache, engine, graphs, decoding, generation, analysis.

The public names below are imported when first used, so that `dynasurge --help` and a mistyped flag answer at once
instead of after torch and transformers have loaded.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dynasurge.config import Settings
    from dynasurge.errors import UsageError
    from dynasurge.generation import Generation, Session, generate
    from dynasurge.growmap import Growmap, build_growmap, load_growmap, save_growmap
    from dynasurge.models import Pair, load_pair
    from dynasurge.optimal import SizedGrowmap, best_size, expected_accepted, optimal_growmap
    from dynasurge.tree import TokenTree

__version__ = "0.1.0"

_HOME = {
    "Settings": "config",
    "UsageError": "errors",
    "Generation": "generation",
    "Session": "generation",
    "generate": "generation",
    "Growmap": "growmap",
    "build_growmap": "growmap",
    "load_growmap": "growmap",
    "save_growmap": "growmap",
    "Pair": "models",
    "load_pair": "models",
    "SizedGrowmap": "optimal",
    "best_size": "optimal",
    "expected_accepted": "optimal",
    "optimal_growmap": "optimal",
    "TokenTree": "tree",
}

__all__ = [
    "Generation",
    "Growmap",
    "Pair",
    "Session",
    "Settings",
    "SizedGrowmap",
    "TokenTree",
    "UsageError",
    "best_size",
    "build_growmap",
    "expected_accepted",
    "generate",
    "load_growmap",
    "load_pair",
    "optimal_growmap",
    "save_growmap",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'dynasurge' has no attribute '{name}'")
    return getattr(importlib.import_module(f"dynasurge.{_HOME[name]}"), name)
