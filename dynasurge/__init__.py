"""Dynasurge: tree-speculative decoding that fits the tree to the prompt and never changes what the target says.

Reading order: tree, growmap, optimal, sampling, policies, lookup, acceptance, costs, latency, shapes, drafting,
verification, bound, cache, packing, engine, decoding; of captured steps graphs, regions, forest, proposing, settling,
kernels, judge, pace, exchange, captured, captured_costs; parts, generation, ecosystem; rows, records, processes,
evaluation, grid, sweep, study, steps, analysis, bias, probes, evidence; style, plotting, charts, rulecharts, notebooks,
figures, tracing, layout, svg, background, widgets.

The public names below are imported when first used, so that `dynasurge --help` and a mistyped flag answer at once
instead of after torch and transformers have loaded.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dynasurge.settings import Settings
    from dynasurge.decoding.transformers_adapter import custom_generate
    from dynasurge.errors import UsageError
    from dynasurge.decoding.session import Generation, Session, generate
    from dynasurge.trees.growmap import Growmap, build_growmap, load_growmap, save_growmap
    from dynasurge.models.pair import Pair, load_pair
    from dynasurge.trees.optimal_growmap import SizedGrowmap, best_size, expected_accepted, optimal_growmap
    from dynasurge.decoding.trace import Trace, trace
    from dynasurge.trees.token_tree import TokenTree

__version__ = "0.1.0"

_HOME = {
    "Settings": "config",
    "UsageError": "errors",
    "custom_generate": "ecosystem",
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
    "Trace": "tracing",
    "trace": "tracing",
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
    "Trace",
    "UsageError",
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
