"""Which trees are best? Static ones chosen on other prompts, dynamic ones of the literature, ours, and what is left.

    python benchmarks/trees.py choose --output runs/chosen
    python benchmarks/trees.py run --data cnn_dailymail.jsonl c4_en.jsonl spec_bench.jsonl --prompts 100 --output runs/trees
    python benchmarks/trees.py table runs/trees
    python benchmarks/trees.py run ... --every 4 --output runs/places
    python benchmarks/trees.py run ... --every 4 --shape 7b --compile --output runs/speeds
    python benchmarks/trees.py table runs/speeds --speeds
    python benchmarks/trees.py table runs/places --kinds

Everything runs in this package's engine and is verified by the same rule (ETV; at T = 0 all rules are one), so that only
the trees differ:

- `static`: of the `k x d` trees and the optimal trees of at most B nodes, whichever accepts most on the bundled prompts
  (`choose`, which takes half an hour on two CPU cores);
- `fast static`: of the same trees the one that is fastest, by what it accepts and by this machine's latency curves;
- `prototype`: 2 to 4 sampled children a node by budget, left to right (prototype.py);
- `DySpec` (arXiv 2410.11744): sampled children, best-first by the draft's own probabilities;
- `OPT-Tree` (arXiv 2406.17276): the likeliest tokens, best-first by the draft's own probabilities;
- `fixed`, `learned`: best-first by the calibrated slot values, without and with learning from the prompt;
- `copies`: `learned`, and the text's own continuations: the package's default, filled to its budget;
- `default`: the same as it ships: at most B nodes, and of them the nodes and levels that pay on this machine;
- `auto`: `--B auto`, as many as pay;
- `hindsight`: the best B nodes of a tree of 256, by what verification turned out to accept. No method can know that; it
  bounds what better slot values could still win on these draws. Its large trees slow a shared cache down for all, so
  where speed counts it runs by itself: `--methods hindsight`.

What a step is counted as is its expected accepted length under the rule, exact given the tree: no luck of coins. But which
text is decoded is luck, and texts differ far more than methods do. So with `--every 4` all methods grow a tree behind every
fourth token of the same text, which the target wrote by itself, and learn on the way: the same places for all. With
`--shard 0/8` every eighth prompt is done, so that several processes share a machine (on a GPU, each method holds half a
gigabyte there: give each process one T and one B, and a folder within the same one). `--speeds` are tokens a second: those
that were decoded, or at given places those to be expected (drafted and bonus) over the time of drafting, target pass and
verification. They want one process alone; `--shape` widens the target (widen.py), on a GPU, for the cost of a large one.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from shards import Shard, gained, known, rate, read_rows, run_command, run_flags
from widen import SHAPES, load_wide

from dynasurge import Settings, load_pair
from dynasurge.analysis import rank_acceptance, text_distributions
from dynasurge.costs import Costs
from dynasurge.data import load_prompts
from dynasurge.errors import UsageError, at_least
from dynasurge.generation import Session, follow, make_engines
from dynasurge.growmap import Growmap, build_growmap, save_growmap
from dynasurge.latency import load_costs
from dynasurge.models import Pair
from dynasurge.optimal import optimal_growmap
from dynasurge.prototype import prototype_growmap
from dynasurge.tree import TokenTree
from dynasurge.verification import RULES, Verdict, draw_verdict, reach

BUDGETS = (16, 32, 64)
TEMPERATURES = (0.0, 0.6, 0.9)
NAMED = ("2x8", "4x4", "4x8", "8x4", "8x8", "4x16")
SIZES = {4: (4,), 8: (4, 6), 16: (4, 6, 8, 12), 32: (4, 6, 8, 12), 64: (4, 6, 8, 12)}  # of optimal trees: nodes, levels
LARGE = 256
METHODS: dict[str, dict[str, Any]] = {
    "DySpec": {"policy": "sampled", "values": "own", "lookup": False},
    "OPT-Tree": {"policy": "topk", "values": "own", "lookup": False},
    "fixed": {"values": "fixed", "lookup": False},
    "learned": {"lookup": False},
    "copies": {},
    "default": {"fill": False},
}
NAMES = ("static", "fast static", "prototype", *METHODS)  # of trees of at most B nodes
MAKE = "make it with: trees.py choose --output FOLDER"
ALL = ["no tree", *NAMES, "auto", "hindsight"]
RIVALS = ("static", "fast static", "prototype", "DySpec", "OPT-Tree")


class Chosen(TypedDict):
    """What `choose` found at a temperature: how often the child of each rank is accepted, and what trees of these names
    accept a step."""

    vector: list[float]
    accepted: dict[str, float]


class Hindsight:
    """Verifies by ETV and adds up what the best nodes of each large tree could be expected to have accepted."""

    def __init__(self) -> None:
        self.sums: dict[int, float] = defaultdict(float)

    def __call__(self, tree: TokenTree, p: Any, q: Any, generator: torch.Generator) -> Verdict:
        law = RULES["traversal"](tree, p, q)
        best = np.sort(_capped(tree, np.array(reach(tree, law.stop.tolist()))))[::-1]
        for budget in BUDGETS:
            self.sums[budget] += float(best[:budget].sum())
        return draw_verdict(law, tree, generator)


def _capped(tree: TokenTree, reached: np.ndarray) -> np.ndarray:
    """The reach of drafted nodes, none above its elder sibling's: a tree cannot have the younger alone."""
    capped = reached.copy()
    for family in tree.children:
        for elder, younger in pairwise(family):
            capped[younger] = min(capped[younger], capped[elder])
    return capped[1:]


def choose(args: argparse.Namespace) -> None:
    """How many tokens static trees accept on the bundled prompts, by temperature; growmaps into the output folder."""
    torch.set_num_threads(args.threads)
    pair = load_pair(args.draft, args.target)
    prompts = load_prompts("demo", 0, args.prompts)
    args.output.mkdir(parents=True, exist_ok=True)
    chosen: dict[str, Chosen] = {}
    for T in TEMPERATURES:
        vector = acceptance_vector(pair, prompts, T)
        plan = {}
        for name in [*NAMED, *(f"optimal {n} nodes {d} levels" for n, depths in SIZES.items() for d in depths)]:
            path = args.output / f"T{T:g}-{name.replace(' ', '-')}.pt"
            save_growmap(static_tree(name, vector), path)
            plan[name] = _settings(args, T, mode="sTree", growmap=str(path))
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
    session, generator = Session(pair, Settings(mode="auto", T=T, new_tokens=64)), torch.Generator().manual_seed(0)
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
    lacking = [f"T{T:g}" for T in args.T if f"T{T:g}" not in chosen]
    if lacking:
        raise UsageError("--chosen", args.chosen, f"has no {lacking[0]}", MAKE)
    return chosen


def static_tree(name: str, vector: list[float]) -> Growmap:
    """A tree that `choose` tried."""
    if not name.startswith("optimal"):
        return build_growmap(name)
    return optimal_growmap(vector, int(name.split()[1]), int(name.split()[3]))


def best_static(chosen: Chosen, budget: int, costs: Costs | None = None) -> Growmap:
    """Of the trees of at most `budget` nodes the one that accepts most, or, at these costs, is fastest."""

    def worth(name: str, tree: Growmap) -> float:
        accepted = chosen["accepted"][name]
        return accepted if costs is None else (1.0 + accepted) / costs.step(tree.size - 1, tree.depth)

    trees = {name: static_tree(name, chosen["vector"]) for name in chosen["accepted"]}
    fitting = {name: tree for name, tree in trees.items() if tree.size - 1 <= budget}
    return fitting[max(fitting, key=lambda name: worth(name, fitting[name]))]


def run(args: argparse.Namespace) -> None:
    """Decode; one JSON line a (data, prompt, T, method, B)."""
    known("--methods", args.methods, ALL)
    if args.every:
        at_least("every", args.every, 1, 4)
    chosen = read_chosen(args)
    shard = Shard(args, ("data", "index", "T", "method", "B"))
    torch.set_num_threads(args.threads)
    pair = load_wide(args.draft, args.target, args.shape)
    alone = {T: _settings(args, T, mode="auto", use_bfs=False) for T in args.T}
    plan: dict[tuple[float, str, int], Settings] = {}
    growmaps: dict[tuple[float, str, int], Growmap] = {}
    for T, budget in itertools.product(args.T, args.B):
        growmaps[T, "prototype", budget] = prototype_growmap(budget)
        if chosen:
            growmaps[T, "static", budget] = best_static(chosen[f"T{T:g}"], budget)
    if "fast static" in args.methods:
        probe = make_engines(pair, [_settings(args, 0.0, mode="dTree")])
        assert probe.draft is not None
        costs = load_costs(probe.target, probe.draft)
        del probe
        for T, budget in itertools.product(args.T, args.B):
            growmaps[T, "fast static", budget] = best_static(chosen[f"T{T:g}"], budget, costs)
    for key, growmap in growmaps.items():
        T, method, budget = key
        path = args.output / f"{method.replace(' ', '-')}-T{T:g}-B{budget}-{shard.name}.pt"
        save_growmap(growmap, path)
        plan[key] = _settings(args, T, mode="sTree", growmap=str(path))
    for T in args.T:
        for budget in args.B:
            for method, own in METHODS.items():
                plan[T, method, budget] = _settings(args, T, **({"mode": "dTree", "B": budget, "fill": True} | own))
        plan[T, "auto", 0] = _settings(args, T, mode="dTree")
        plan[T, "no tree", 0] = alone[T]
        plan[T, "hindsight", LARGE] = _settings(args, T, mode="dTree", B=LARGE, fill=True, lookup=False)
    plan = {key: settings for key, settings in plan.items() if key[1] in args.methods}
    engines = make_engines(pair, [*plan.values(), *alone.values()])
    hindsight = Hindsight()
    writers = {T: Session(pair, settings, engines=engines) for T, settings in alone.items() if args.every}
    sessions = {
        key: Session(pair, settings, engines=engines, verify=hindsight if key[1] == "hindsight" else None)
        for key, settings in plan.items()
    }
    for number in shard.numbers(args.prompts):
        prompts = {data: load_prompts(data, number, number + 1)[0] for data in args.data}
        for (data, prompt), T in itertools.product(prompts.items(), args.T):
            own = {"data": Path(data).stem, "index": number, "T": T}
            keys = {(t, method, B): own | {"method": method, "B": B} for t, method, B in plan if t == T}
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
                    seconds = sum(step.draft_seconds + step.target_seconds + step.verify_seconds for step in steps)
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
                        "confidence": [step.confidence if step.tree.size else None for step in steps],
                        "seconds": round(seconds, 6),
                    }
                )


def _settings(args: argparse.Namespace, T: float, **own: Any) -> Settings:
    shared: dict[str, Any] = {"draft": args.draft, "target": args.target, "M": 1024, "new_tokens": args.new_tokens}
    shared |= {"use_bfs": True, "compile": getattr(args, "compile", False)}
    return Settings(T=T, **(shared | own))


def table(args: argparse.Namespace) -> None:
    """Expected accepted tokens a step, and with --speeds tokens a second, over all steps of all prompts, as Markdown; gains
    are paired by prompt, with 95% bootstrap intervals. With --kinds, what copies bring to which prompts, all B together (in
    runs with --every: at the same places)."""
    rows = read_rows(*sorted(args.output.rglob("rows-*.jsonl")))
    accepted = {_key(row): (sum(row["expected"]), len(row["expected"])) for row in rows}
    for row in rows:
        for budget, total in row["hindsight"].items():
            accepted[(*_key(row)[:3], "hindsight", int(budget))] = (total, len(row["expected"]))
    _compare(accepted, "copies", [*NAMES, "hindsight"], ".3f")
    if args.kinds:
        _by_kind(rows, accepted)
    if args.speeds:
        speeds = {_key(row): (row["tokens"], row["seconds"]) for row in rows if row["seconds"]}
        _compare(speeds, "default", ["no tree", *NAMES], ".0f")
        _adapted(speeds)


Prompt = tuple[str, int]  # data and number
Values = dict[
    tuple[str, int, float, str, int], tuple[float, float]
]  # by data, prompt, T, method, B: amount, counted by


def _key(row: dict[str, Any]) -> tuple[str, int, float, str, int]:
    return row["data"], row["index"], row["T"], row["method"], row["B"]


def _compare(values: Values, ours: str, names: Sequence[str], form: str) -> None:
    """Print a row a (data, T, B): by method, and the gain of `ours` over the static tree and the best of the rest."""
    names = [name for name in names if any(key[3] == name for key in values)]
    rivals = [name for name in names if name in RIVALS] if ours in names else []
    gains = [f"`{ours}` over `static`", "over the best other"] if rivals else []
    print(f"\n| {' | '.join(['prompts', 'T', 'B', 'n', *names, *gains])} |")
    print("|---" * (4 + len(names) + len(gains)) + "|")
    for data, T in _rows(values):
        for budget in BUDGETS:
            found = _paired(values, data, T, {name: (name, budget) for name in names})
            if found is None:
                continue
            cells = [data, f"{T:g}", str(budget), str(len(found[names[0]]))]
            cells += [f"{rate(found[name], 2):{form}}" for name in names]
            if rivals:
                best = max(rivals, key=lambda name: float(rate(found[name], 2)))
                cells += [gained(found[other], found[ours]) for other in ("static", best) if other in found]
                cells[-1] += f" ({best})"
            print(f"| {' | '.join(cells)} |")


def _by_kind(rows: Sequence[dict[str, Any]], accepted: Values) -> None:
    """Print a row a (data, kind of prompt, T): what the text's own continuations bring, all B together."""
    kinds = {(row["data"], row["index"]): row["kind"] or "all" for row in rows}
    print("\n| prompts | kind | T | n | steps | learned | copies | gain |\n" + "|---" * 8 + "|")
    for data, T in sorted({(data, T) for data, _, T, _, _ in accepted}):
        for kind in sorted({name for (d, _), name in kinds.items() if d == data}):
            mine = {key: value for key, value in accepted.items() if kinds[key[:2]] == kind}
            wanted = {(name, B): (name, B) for name in ("learned", "copies") for B in BUDGETS}
            found = _paired(mine, data, T, wanted)
            if found is not None:
                a, b = (np.sum([found[name, B] for B in BUDGETS], axis=0) for name in ("learned", "copies"))
                numbers = f"{a[:, 1].sum():.0f} | {rate(a, 2):.3f} | {rate(b, 2):.3f} | {gained(a, b)}"
                print(f"| {data} | {kind} | {T:g} | {len(a)} | {numbers} |")


def _adapted(speeds: Values) -> None:
    """Print a row a (data, T): `auto`, which was told no B, beside the best B."""
    print("\n| prompts | T | n | no tree | best B | its speed | auto | over the best B | over no tree |")
    print("|---" * 9 + "|")
    for data, T in _rows(speeds):
        fixed: dict[Any, tuple[str, int]] = {budget: ("default", budget) for budget in BUDGETS}
        found = _paired(speeds, data, T, fixed | {"auto": ("auto", 0), "no tree": ("no tree", 0)})
        if found is None:
            continue
        best = max(BUDGETS, key=lambda budget: float(rate(found[budget], 2)))
        own, alone = found["auto"], found["no tree"]
        cells = [data, f"{T:g}", str(len(own)), f"{rate(alone, 2):.0f}", str(best), f"{rate(found[best], 2):.0f}"]
        cells += [f"{rate(own, 2):.0f}", gained(found[best], own), gained(alone, own)]
        print(f"| {' | '.join(cells)} |")


def _rows(values: Values) -> list[tuple[str, float]]:
    """Each data and T, and where there are several data, all of them together."""
    single = sorted({(data, T) for data, _, T, _, _ in values})
    several = len({data for data, _ in single}) > 1
    return single + ([("all", T) for T in sorted({T for _, T in single})] if several else [])


def _paired(values: Values, data: str, T: float, wanted: dict[Any, tuple[str, int]]) -> dict[Any, np.ndarray] | None:
    """Amounts and what they are counted by, [prompts, 2], of the prompts that have all that is wanted (by any name: method
    and B; what has no tree has no B); None if there are none."""
    columns: dict[Any, dict[Prompt, tuple[float, float]]] = {
        name: {
            (d, i): value
            for (d, i, t, m, b), value in values.items()
            if data in (d, "all") and (t, m) == (T, method) and b in (budget, 0)
        }
        for name, (method, budget) in wanted.items()
    }
    prompts = sorted(set.intersection(*map(set, columns.values())))
    return {name: np.array([column[i] for i in prompts]) for name, column in columns.items()} if prompts else None


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    add = commands.add_parser("choose", help="the best static trees, on the bundled prompts")
    add.add_argument("--prompts", type=int, default=14)
    add.add_argument("--new-tokens", type=int, default=64)
    add.add_argument("--draft", default="demo")
    add.add_argument("--target", default="demo")
    add.add_argument("--threads", type=int, default=torch.get_num_threads())
    add.add_argument("--output", type=Path, required=True)
    add.set_defaults(action=choose)
    add = commands.add_parser("run", help="decode and record")
    run_flags(add)
    add.add_argument("--T", type=float, nargs="+", default=list(TEMPERATURES))
    add.add_argument("--B", type=int, nargs="+", choices=BUDGETS, default=list(BUDGETS), help="(default: all)")
    add.add_argument("--every", type=int, default=0, metavar="N", help="at every N-th token of the target's own text")
    add.add_argument("--shape", choices=SHAPES, help="widen the demo target")
    add.add_argument("--compile", action="store_true", help="torch.compile passes")
    add.add_argument("--chosen", type=Path, default=Path("runs/chosen/chosen.json"), help="what `choose` wrote")
    add.add_argument(
        "--methods",
        nargs="+",
        default=[name for name in ALL if name not in ("fast static", "hindsight")],
        help="only these (default: all but fast static, hindsight)",
    )
    add.set_defaults(action=run)
    run_command(
        parser, commands, table, argv, speeds="and tokens a second", kinds="and what copies bring, by kind of prompt"
    )


if __name__ == "__main__":
    main()
