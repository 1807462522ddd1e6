"""Static trees as good as they get: what trees of many shapes accept on the bundled prompts, and
which one is best.

`trees.py choose` decodes with each shape: some `k x d`, and the optimal trees of several sizes and
depths for the acceptance that is measured first (trees/optimal_growmap.py). Of those of at most B
nodes the best is the one that accepts most, or, where speed counts, the one that emits most tokens
in the time of its passes on this machine: what a dynamic tree has to beat.
"""

from __future__ import annotations

import argparse
import json
from typing import Any, TypedDict

import numpy as np
import torch

from dynasurge import Settings, load_pair
from dynasurge.decoding.session import Session, make_engines
from dynasurge.drafting.cost_model import Costs
from dynasurge.errors import UsageError
from dynasurge.experiments.datasets import load_prompts
from dynasurge.experiments.text_distributions import rank_acceptance, text_distributions
from dynasurge.models.pair import Pair
from dynasurge.trees.growmap import Growmap, build_growmap, save_growmap
from dynasurge.trees.optimal_growmap import optimal_growmap

TEMPERATURES = (0.0, 0.6, 0.9)
NAMED = ("2x8", "4x4", "4x8", "8x4", "8x8", "4x16")
SIZES = {
    4: (4,),
    8: (4, 6),
    16: (4, 6, 8, 12),
    32: (4, 6, 8, 12),
    64: (4, 6, 8, 12),
}  # of optimal trees: nodes, levels
MAKE = "make it with: trees.py choose --output FOLDER"


class Chosen(TypedDict):
    """What `choose` found at a temperature: how often the child of each rank is accepted, and what
    trees of these names accept a step."""

    vector: list[float]
    accepted: dict[str, float]


def choose(args: argparse.Namespace) -> None:
    """How many tokens static trees accept on the bundled prompts, by temperature; growmaps into the
    output folder."""
    torch.set_num_threads(args.threads)
    pair = load_pair(args.draft, args.target)
    prompts = load_prompts("demo", 0, args.prompts)
    args.output.mkdir(parents=True, exist_ok=True)
    chosen: dict[str, Chosen] = {}
    for T in TEMPERATURES:
        vector = acceptance_vector(pair, prompts, T)
        plan = {}
        for name in [
            *NAMED,
            *(f"optimal {n} nodes {d} levels" for n, depths in SIZES.items() for d in depths),
        ]:
            path = args.output / f"T{T:g}-{name.replace(' ', '-')}.pt"
            save_growmap(static_tree(name, vector), path)
            plan[name] = settings_of(args, T, mode="sTree", growmap=str(path))
        engines, accepted = make_engines(pair, list(plan.values())), {}
        for name, settings in plan.items():
            session, expected = Session(pair, settings, engines=engines), []
            for prompt in prompts:
                steps = session.generate(session.encode(prompt.text), index=prompt.index).steps
                expected += [step.expected for step in steps]
            accepted[name] = float(np.mean(expected))
            print(f"T = {T:g}: {name} accepts {accepted[name]:.3f}", flush=True)
        chosen[f"T{T:g}"] = {"vector": vector, "accepted": accepted}
    (args.output / "chosen.json").write_text(json.dumps(chosen, indent=1) + "\n")


def acceptance_vector(pair: Pair, prompts: Any, T: float, k: int = 16) -> list[float]:
    """How often the child of each rank is accepted top-down, on text that the target wrote."""
    session, generator = (
        Session(pair, Settings(mode="auto", T=T, prompt_len=128, new_tokens=64)),
        torch.Generator().manual_seed(0),
    )
    total, count = torch.zeros(k), 0
    for prompt in prompts:
        ids = session.encode(prompt.text)
        text = session.generate(ids, index=prompt.index).output_ids
        p, q = text_distributions(pair, ids, text, T=T)
        accepted, _ = rank_acceptance(p, q, "sampled" if T else "topk", k, generator)
        total, count = total + accepted.sum(0).cpu(), count + len(accepted)
    return [round(float(x), 4) for x in total / count]


def read_chosen(args: argparse.Namespace) -> dict[str, Chosen]:
    """What `choose` found, if static trees are wanted."""
    if not {"static", "fast static"} & set(args.methods):
        return {}
    try:
        chosen: dict[str, Chosen] = json.loads(args.chosen.read_text())
    except (OSError, ValueError) as error:
        raise UsageError("--chosen", args.chosen, f"cannot be read ({error})", MAKE) from error
    for name in (f"T{T:g}" for T in args.T):
        try:
            for budget in args.B:
                best_static(chosen[name], budget)
        except (LookupError, TypeError, ValueError, UsageError) as error:
            raise UsageError(
                "--chosen", args.chosen, f"has no trees of {name} ({error})", MAKE
            ) from error
    return chosen


def static_tree(name: str, vector: list[float]) -> Growmap:
    """A tree that `choose` tried."""
    if not name.startswith("optimal"):
        return build_growmap(name)
    return optimal_growmap(vector, int(name.split()[1]), int(name.split()[3]))


def best_static(chosen: Chosen, budget: int, costs: Costs | None = None) -> Growmap:
    """Of the trees of at most `budget` nodes the one that accepts most, or, at these costs, is
    fastest."""

    def worth(name: str, tree: Growmap) -> float:
        accepted = chosen["accepted"][name]
        return (
            accepted if costs is None else (1.0 + accepted) / costs.step(tree.size - 1, tree.depth)
        )

    trees = {name: static_tree(name, chosen["vector"]) for name in chosen["accepted"]}
    fitting = {name: tree for name, tree in trees.items() if tree.size - 1 <= budget}
    return fitting[max(fitting, key=lambda name: worth(name, fitting[name]))]


def settings_of(args: argparse.Namespace, T: float, **own: Any) -> Settings:
    """Settings of a run, at T."""
    shared: dict[str, Any] = {
        "draft": args.draft,
        "target": args.target,
        "prompt_len": 128,
        "new_tokens": args.new_tokens,
    }
    shared |= {"use_bfs": True, "compile": getattr(args, "compile", False)}
    return Settings(T=T, **(shared | own))
