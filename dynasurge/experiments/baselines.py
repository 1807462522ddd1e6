"""Other systems' trees as settings of this package: `dynasurge sweep --methods` runs them next to
ours.

The code of other systems does not run these weights. So their rules run in our engine, with our
kernels: only the trees differ. Each is verified top-down, as its authors do it, and with
`--use_bfs` also by our rule.

- `chain3`, `chain5`, `chain8`: speculative decoding (Leviathan et al., arXiv 2211.17192);
- `Sequoia` (arXiv 2402.12374): the optimal static tree of B nodes and at most 8 levels, with
  sampled children; its acceptance by rank (and level, if the draft reads hidden states) was
  measured on the bundled prompts at the same temperature;
- `EAGLE-2` (arXiv 2406.16858): the 10 likeliest tokens a node, 6 levels, then the B best by the
  draft's probabilities;
- `OPT-Tree` (arXiv 2406.17276): the likeliest tokens, best-first by the draft's probabilities, of
  any depth;
- `DySpec` (arXiv 2410.11744): the same with sampled children;
- `prototype`: the tree of this project's first version, 2 to 4 sampled children a node, left to
  right.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from dynasurge.decoding.session import Session
from dynasurge.errors import UsageError
from dynasurge.experiments.datasets import load_prompts
from dynasurge.experiments.grid import check_methods
from dynasurge.experiments.text_distributions import level_distributions, rank_acceptance
from dynasurge.files import cache_folder
from dynasurge.generation_config import LAW_FIELDS
from dynasurge.models.feature_draft import FeatureDraft
from dynasurge.models.law import Asked
from dynasurge.models.pair import Pair
from dynasurge.probabilities import Random
from dynasurge.settings import Settings
from dynasurge.trees.growmap import Growmap, build_growmap, load_growmap, save_growmap
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

SHARED = (
    *("draft", "target", "dtype", "device", "device_map", "compile", "trust_remote_code"),
    *LAW_FIELDS,
    *("chat", "M", "seed", "prompt_len", "new_tokens"),
)  # what a method takes from a plan


def baselines(
    pair: Pair,
    methods: Sequence[str],
    plan: Sequence[Settings],
    budgets: Sequence[int | str],
    rules: Sequence[bool] = (False,),
) -> list[Settings]:
    """Settings of these methods (names of BASELINES) for every temperature, top-p and seed of a
    plan, every numbered budget, and every rule (whether ETV). Their growmaps are kept in the cache
    folder. Raises UsageError."""
    check_methods(methods, budgets)
    numbers = [B for B in dict.fromkeys(budgets) if isinstance(B, int)]
    out = []
    for values in dict.fromkeys(tuple(getattr(base, name) for name in SHARED) for base in plan):
        common = dict(zip(SHARED, values, strict=True))
        measure = functools.cache(partial(acceptance_by_rank, pair, Settings(**common)))
        for method in dict.fromkeys(methods):
            for name, own in _trees(pair, method, numbers, Settings(**common), measure):
                named = common | own | {"method": name}
                # greedy text is the same under every rule
                out += [
                    Settings(**named, use_bfs=etv) for etv in (rules if common["T"] else rules[:1])
                ]
    return out


def _trees(
    pair: Pair,
    method: str,
    budgets: Sequence[int],
    base: Settings,
    measure: Callable[[], list[list[float]]],
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The name and the fields of Settings of each tree of a method. measure: acceptance by rank,
    for Sequoia's trees, if they have to be made."""
    if method.startswith("chain"):
        path = _kept(method, partial(build_growmap, method))
        yield method, {"mode": "sTree", "growmap": path}
        return
    for B in budgets:
        name = f"{method} B={B}"
        if method in DYNAMIC:
            own = DYNAMIC[method] | {"B": B}
            yield name, own | ({"policy": "topk"} if base.T == 0 else {})
            continue
        if method == "prototype":
            path = _kept(f"prototype-B{B}", partial(prototype_growmap, B))
        else:
            path = _kept(
                f"sequoia-B{B}-{_digest(pair, base)}",
                lambda B=B: optimal_growmap(measure(), B, LEVELS),  # type: ignore[misc]
            )
        yield name, {"mode": "sTree", "growmap": path}


def _kept(name: str, make: Callable[[], Growmap]) -> str:
    """The path of a growmap in the cache folder; it is made unless it can be read there."""
    path = cache_folder() / "growmaps" / f"{name}.pt"
    try:
        load_growmap(path)
    except UsageError:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason, remedy = f"cannot be made ({error})", "set it to another folder"
            raise UsageError("DYNASURGE_CACHE", path.parent, reason, remedy) from error
        save_growmap(make(), path)
    return str(path)


def _digest(pair: Pair, base: Settings) -> str:
    """Names all that acceptance by rank depends on."""
    configs = [model.config.to_json_string() for model in (pair.draft, pair.target)]
    names = [pair.draft_name, pair.target_name]
    sizes = [base.law, base.prompt_len, _tokens(base)]
    return hashlib.sha256(str([configs, names, sizes]).encode()).hexdigest()[:12]


def _tokens(base: Settings) -> int:
    """How many tokens acceptance is measured on, after each prompt."""
    return min(TOKENS, base.new_tokens)


def acceptance_by_rank(
    pair: Pair,
    base: Settings,
    ranks: int = RANKS,
    on_prompt: Callable[[], object] = lambda: None,
) -> list[list[float]]:
    """How often the child of each rank is accepted top-down, on text that the target wrote after
    the bundled prompts, cut as the settings' are: one vector, or, if the draft reads the target's
    hidden states, one for each level. on_prompt: called after each of PROMPTS prompts."""
    settings = replace(base, mode="auto", new_tokens=_tokens(base), method=None)
    session, asked, chance = Session(pair, settings), Asked(pair, settings), Random.seeded(0)
    levels = LEVELS if isinstance(pair.draft, FeatureDraft) else 1
    total, count = torch.zeros(levels, ranks), 0
    for prompt in load_prompts("demo", 0, PROMPTS):
        ids = session.encode(prompt.text)
        text = session.generate(ids, index=prompt.index).output_ids
        T, P, processors, _ = asked.after(ids, len(text))
        own: dict[str, Any] = {"T": T, "P": P, "processors": processors}
        p, by_level = level_distributions(pair, ids, text, levels, **own)
        for level, q in enumerate(by_level):
            accepted, _ = rank_acceptance(p, q, "sampled" if T else "topk", ranks, chance)
            total[level] += accepted.sum(0).cpu()
        count += len(text)
        on_prompt()
    return [[round(float(x), 4) for x in row] for row in total / count]
