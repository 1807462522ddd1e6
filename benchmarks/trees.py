"""Which trees are best? Static ones chosen on other prompts, dynamic ones of the literature, ours,
and what is left.

    python benchmarks/trees.py choose --output runs/chosen
    python benchmarks/trees.py run --data cnn_dailymail.jsonl c4_en.jsonl spec_bench.jsonl --prompts 100 --output runs/trees
    python benchmarks/trees.py table runs/trees
    python benchmarks/trees.py run ... --every 4 --output runs/places
    python benchmarks/trees.py run ... --every 4 --shape 7b --compile --output runs/speeds
    python benchmarks/trees.py table runs/speeds --speeds
    python benchmarks/trees.py table runs/places --kinds

Everything runs in this package's engine and is verified by the same rule (ETV; at T = 0 all rules
are one), so that only the trees differ:

- `static`: of the `k x d` trees and the optimal trees of at most B nodes, whichever accepts most on
  the bundled prompts (`choose`, which takes half an hour on two CPU cores);
- `fast static`: of the same trees the one that is fastest, by what it accepts and by this machine's
  latency curves;
- `prototype`: 2 to 4 sampled children a node by budget, left to right (verification/prototype.py);
- `DySpec` (arXiv 2410.11744): sampled children, best-first by the draft's own probabilities;
- `OPT-Tree` (arXiv 2406.17276): the likeliest tokens, best-first by the draft's own probabilities;
- `fixed`, `learned`: best-first by the calibrated slot values, without and with learning from the
  prompt;
- `copies`: `learned`, and the text's own continuations: the package's default, filled to its
  budget;
- `default`: the same as it ships: at most B nodes, and of them the nodes and levels that pay on
  this machine;
- `auto`: `--B auto`, as many as pay;
- `hindsight`: the B nodes of a tree of 256 that verification turned out most likely to go through.
  No method can know that; it bounds what better slot values could still win on these draws. Its
  large trees slow a shared cache down for all, so where speed counts it runs by itself: `--methods
  hindsight`.

What a step is counted as is its expected accepted length under the rule, exact given the tree: no
luck of coins. But which text is decoded is luck, and texts differ far more than methods do. So with
`--every 4` all methods grow a tree behind every fourth token of the same text, which the target
wrote by itself, and learn on the way: the same places for all. With `--shard 0/8` every eighth
prompt is done, so that several processes share a machine (on a GPU, each method holds half a
gigabyte there: give each process one T and one B, and a folder within the same one). `--speeds` are
tokens a second: those that were decoded, or at given places those to be expected (drafted and
bonus) over the time of drafting, target pass and verification. They want one process alone;
`--shape` widens the target (widen.py), on a GPU, for the cost of a large one.
"""

from __future__ import annotations

import argparse
import itertools
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from shards import Shard, known, positive, run_command, run_flags
from statics import TEMPERATURES, best_static, choose, read_chosen, settings_of
from treetables import BUDGETS, NAMES, table
from widen import SHAPES, load_wide

from dynasurge import Settings
from dynasurge.decoding.latency import load_costs
from dynasurge.decoding.session import Session, follow, make_engines
from dynasurge.errors import at_least
from dynasurge.experiments.datasets import load_prompts
from dynasurge.trees.growmap import Growmap, save_growmap
from dynasurge.trees.token_tree import TokenTree
from dynasurge.verification.prototype import prototype_growmap
from dynasurge.verification.rules import RULES, Verdict, draw_verdict, reach

LARGE = 256  # nodes, of which `hindsight` chooses
METHODS: dict[str, dict[str, Any]] = {
    "DySpec": {"policy": "sampled", "values": "own", "lookup": False},
    "OPT-Tree": {"policy": "topk", "values": "own", "lookup": False},
    "fixed": {"values": "fixed", "lookup": False},
    "learned": {"lookup": False},
    "copies": {},
    "default": {"fill": False},
}
ALL = ["no tree", *NAMES, "auto", "hindsight"]


class Hindsight:
    """Verifies by ETV and adds up how likely the path went through the likeliest nodes of each
    large tree. (Not all of their elder siblings need be among them, without which none could draw
    them: it is a bound, not a tree.)"""

    def __init__(self) -> None:
        self.sums: dict[int, float] = defaultdict(float)

    def __call__(self, tree: TokenTree, p: Any, q: Any, generator: torch.Generator) -> Verdict:
        law = RULES["traversal"](tree, p, q)
        best = np.sort(reach(tree, law.stop.tolist())[1:])[::-1]
        for budget in BUDGETS:
            self.sums[budget] += float(best[:budget].sum())
        return draw_verdict(law, tree, generator)


def run(args: argparse.Namespace) -> None:
    """Decode; one JSON line a (data, prompt, T, method, B)."""
    known("--methods", args.methods, ALL)
    if args.every:
        at_least("every", args.every, 1, 4)
    chosen = read_chosen(args)
    shard = Shard(args, ("data", "index", "T", "method", "B"))
    torch.set_num_threads(args.threads)
    pair = load_wide(args.draft, args.target, args.shape)
    alone = {T: settings_of(args, T, mode="auto", use_bfs=False) for T in args.T}
    plan: dict[tuple[float, str, int], Settings] = {}
    growmaps: dict[tuple[float, str, int], Growmap] = {}
    for T, budget in itertools.product(args.T, args.B):
        growmaps[T, "prototype", budget] = prototype_growmap(budget)
        if chosen:
            growmaps[T, "static", budget] = best_static(chosen[f"T{T:g}"], budget)
    if "fast static" in args.methods:
        probe = make_engines(pair, [settings_of(args, 0.0, mode="dTree")])
        assert probe.draft is not None
        costs = load_costs(probe.target, probe.draft)
        del probe
        for T, budget in itertools.product(args.T, args.B):
            growmaps[T, "fast static", budget] = best_static(chosen[f"T{T:g}"], budget, costs)
    for key, growmap in growmaps.items():
        T, method, budget = key
        path = args.output / f"{method.replace(' ', '-')}-T{T:g}-B{budget}-{shard.name}.pt"
        save_growmap(growmap, path)
        plan[key] = settings_of(args, T, mode="sTree", growmap=str(path))
    for T in args.T:
        for budget in args.B:
            for method, own in METHODS.items():
                plan[T, method, budget] = settings_of(
                    args, T, **({"mode": "dTree", "B": budget, "fill": True} | own)
                )
        plan[T, "auto", 0] = settings_of(args, T, mode="dTree")
        plan[T, "no tree", 0] = alone[T]
        plan[T, "hindsight", LARGE] = settings_of(
            args, T, mode="dTree", B=LARGE, fill=True, lookup=False
        )
    plan = {key: settings for key, settings in plan.items() if key[1] in args.methods}
    engines = make_engines(pair, [*plan.values(), *alone.values()])
    hindsight = Hindsight()
    writers = {
        T: Session(pair, settings, engines=engines) for T, settings in alone.items() if args.every
    }
    sessions = {
        key: Session(
            pair, settings, engines=engines, verify=hindsight if key[1] == "hindsight" else None
        )
        for key, settings in plan.items()
    }
    for number in shard.numbers(args.prompts):
        prompts = {data: load_prompts(data, number, number + 1)[0] for data in args.data}
        for (data, prompt), T in itertools.product(prompts.items(), args.T):
            own = {"data": Path(data).stem, "index": number, "T": T}
            keys = {
                (t, method, B): own | {"method": method, "B": B} for t, method, B in plan if t == T
            }
            wanted = [name for name, key in keys.items() if shard.wants(**key)]
            if not wanted:
                continue
            ids = sessions[wanted[0]].encode(prompt.text)
            hindsight.sums.clear()
            if args.every:
                text = writers[T].generate(ids, index=number).output_ids
                together = [sessions[name] for name in wanted]
                walks = iter(follow(together, ids, text, index=number, every=args.every))
            for name in wanted:
                if args.every:
                    steps = next(walks)
                    tokens = sum(1 + step.expected for step in steps)
                    seconds = sum(
                        step.draft_seconds + step.target_seconds + step.verify_seconds
                        for step in steps
                    )
                else:
                    result = sessions[name].generate(ids, index=number)
                    steps, tokens = result.steps, len(result.output_ids)
                    seconds = result.seconds - result.prefill_seconds
                shard.append(
                    keys[name]
                    | {
                        "kind": prompt.kind,
                        "tokens": round(tokens, 4),
                        "accepted": sum(step.accepted for step in steps),
                        "expected": [round(step.expected, 4) for step in steps],
                        "hindsight": dict(hindsight.sums) if name[1] == "hindsight" else {},
                        "size": [step.tree.size for step in steps],
                        "depth": [step.tree.depth for step in steps],
                        "passes": [step.passes for step in steps],
                        "confidence": [
                            step.confidence if step.tree.size else None for step in steps
                        ],
                        "seconds": round(seconds, 6),
                    }
                )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    add = commands.add_parser("choose", help="the best static trees, on the bundled prompts")
    add.add_argument("--prompts", type=int, default=14)
    add.add_argument("--new-tokens", type=int, default=64)
    add.add_argument("--draft", default="demo")
    add.add_argument("--target", default="demo")
    add.add_argument("--threads", type=positive, default=torch.get_num_threads())
    add.add_argument("--output", type=Path, required=True)
    add.set_defaults(action=choose)
    add = commands.add_parser("run", help="decode and record")
    run_flags(add)
    add.add_argument("--T", type=float, nargs="+", default=list(TEMPERATURES))
    add.add_argument(
        "--B", type=int, nargs="+", choices=BUDGETS, default=list(BUDGETS), help="(default: all)"
    )
    add.add_argument(
        "--every",
        type=int,
        default=0,
        metavar="N",
        help="at every N-th token of the target's own text",
    )
    add.add_argument("--shape", choices=SHAPES, help="widen the demo target")
    add.add_argument("--compile", action="store_true", help="torch.compile passes")
    add.add_argument(
        "--chosen", type=Path, default=Path("runs/chosen/chosen.json"), help="what `choose` wrote"
    )
    add.add_argument(
        "--methods",
        nargs="+",
        default=[name for name in ALL if name not in ("fast static", "hindsight")],
        help="only these (default: all but fast static, hindsight)",
    )
    add.set_defaults(action=run)
    run_command(
        parser,
        commands,
        table,
        argv,
        speeds="and tokens a second",
        kinds="and what copies bring, by kind of prompt",
    )


if __name__ == "__main__":
    main()
