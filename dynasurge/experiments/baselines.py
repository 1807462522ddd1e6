"""Other systems' trees as settings of this package: `dynasurge sweep --methods` runs them next to
ours.

The code of other systems does not run these weights. So their rules run in our engine, with our
kernels: only the trees differ. Each is verified top-down, as its authors do it, and with
`--use_bfs` also by our rule.

- `chain3`, `chain5`, `chain8`: speculative decoding (Leviathan et al., arXiv 2211.17192);
- `Sequoia` (arXiv 2402.12374): the optimal static tree of B nodes and at most 8 levels, with
  sampled children; its acceptance by rank was measured on the bundled prompts at the same
  temperature;
- `EAGLE-2` (arXiv 2406.16858): the 10 likeliest tokens a node, 6 levels, then the B best by the
  draft's probabilities;
- `OPT-Tree` (arXiv 2406.17276): the likeliest tokens, best-first by the draft's probabilities, of
  any depth;
- `DySpec` (arXiv 2410.11744): the same with sampled children;
- `prototype`: the tree of this project's first version, 2 to 4 sampled children a node, left to
  right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dynasurge.decoding.session import Session
from dynasurge.errors import UsageError
from dynasurge.experiments.datasets import load_prompts
from dynasurge.experiments.text_distributions import rank_acceptance, text_distributions
from dynasurge.models.pair import Pair
from dynasurge.probabilities import Random
from dynasurge.settings import BASELINES, Settings
from dynasurge.trees.growmap import Growmap, build_growmap, save_growmap
from dynasurge.trees.optimal_growmap import optimal_growmap
from dynasurge.verification.prototype import prototype_growmap

LEVELS, RANKS = 8, 16  # the most levels of Sequoia's trees, and the most siblings
PROMPTS, TOKENS = 14, 64  # acceptance is measured on so many bundled prompts, so many tokens each
OWN: dict[str, Any] = {"mode": "dTree", "fill": True, "values": "own", "lookup": False}
DYNAMIC: dict[str, dict[str, Any]] = {
    "EAGLE-2": OWN | {"policy": "topk", "max_depth": 6, "max_children": 10},
    "OPT-Tree": OWN | {"policy": "topk"},
    "DySpec": OWN | {"policy": "sampled"},
}


def baselines(
    pair: Pair,
    methods: Sequence[str],
    plan: Sequence[Settings],
    folder: Path,
) -> list[Settings]:
    """Settings of these methods (names of BASELINES) for every temperature, top-p, seed, numbered
    budget and rule of a plan. Static trees that are not yet in `folder` are made there. Raises
    UsageError."""
    budgets = list(dict.fromkeys(s.B for s in plan if s.mode == "dTree" and s.B != "auto"))
    for method in methods:
        if method not in BASELINES:
            remedy = f"choose among {', '.join(BASELINES)}"
            raise UsageError("--methods", method, "is unknown", remedy)
        if not budgets and not method.startswith("chain"):
            reason = "needs a budget, and --B has no number"
            raise UsageError("--methods", method, reason, "add one, as in --B 64 auto")
    found: dict[Settings, None] = {}
    for base in plan:
        common = {
            name: getattr(base, name)
            for name in ("draft", "target", "T", "P", "M", "seed", "prompt_len", "new_tokens")
        }
        common |= {
            name: getattr(base, name) for name in ("dtype", "device", "device_map", "compile")
        }
        common |= {"widen": base.widen, "trust_remote_code": base.trust_remote_code}
        if base.mode != "auto":
            common |= {"use_bfs": base.use_bfs, "etv": base.etv}
        for method in methods:
            for name, own in _trees(pair, method, budgets, base.T, folder):
                found[Settings(**(common | own | {"method": name}))] = None
    return list(found)


def _trees(
    pair: Pair, method: str, budgets: Sequence[int], T: float, folder: Path
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The name and the fields of Settings of each tree of a method."""
    if method.startswith("chain"):
        path = _made(folder / f"{method}.pt", partial(build_growmap, method))
        yield method, {"mode": "sTree", "growmap": path}
        return
    for B in budgets:
        name = f"{method} B={B}"
        if method in DYNAMIC:
            own = DYNAMIC[method] | {"B": B}
            yield name, own | ({"policy": "topk"} if T == 0 else {})
            continue
        if method == "prototype":
            path = _made(folder / f"prototype-B{B}.pt", partial(prototype_growmap, B))
        else:
            path = _made(folder / f"sequoia-T{T:g}-B{B}.pt", partial(sequoia, pair, T, B))
        yield name, {"mode": "sTree", "growmap": path}


def _made(path: Path, make: Callable[[], Growmap]) -> str:
    """The path of a growmap, which is made if the file does not exist."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        save_growmap(make(), path)
    return str(path)


def sequoia(pair: Pair, T: float, B: int) -> Growmap:
    """Sequoia's tree of B nodes for this pair at this temperature."""
    return optimal_growmap(acceptance_by_rank(pair, T), B, LEVELS)


def acceptance_by_rank(pair: Pair, T: float, ranks: int = RANKS) -> list[float]:
    """How often the child of each rank is accepted top-down, on text that the target wrote after
    the bundled prompts."""
    settings = Settings(mode="auto", T=T, prompt_len=128, new_tokens=TOKENS)
    session, chance = Session(pair, settings), Random.seeded(0)
    total, count = torch.zeros(ranks), 0
    for prompt in load_prompts("demo", 0, PROMPTS):
        ids = session.encode(prompt.text)
        text = session.generate(ids, index=prompt.index).output_ids
        p, q = text_distributions(pair, ids, text, T=T)
        accepted, _ = rank_acceptance(p, q, "sampled" if T else "topk", ranks, chance)
        total, count = total + accepted.sum(0).cpu(), count + len(accepted)
    return [round(float(x), 4) for x in total / count]
