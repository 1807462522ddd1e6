"""Faster than what? Everything a user of the same weights could run instead, in one process, prompt
by prompt.

    python benchmarks/peers.py run --data cnn_dailymail.jsonl --prompts 20 --B 8 --output runs/peers
    python benchmarks/peers.py run --data cnn_dailymail.jsonl --B 64 --shape 7b --compile --output runs/peers-7b
    python benchmarks/peers.py table runs/peers

`--shape` widens the target (widen.py), on a GPU: the text is the demo target's, the cost that of
the large model. All methods take the same prompt, at the same temperature and without top-k, before
any takes the next.

transformers' own, through `model.generate`:

- `generate`: its default, a cache that grows; `generate, compiled`: torch.compile and one static
  cache for all prompts (a new one for each would have its CUDA graphs recorded anew), on a GPU;
- `assisted k`: assisted generation with the same draft, k tokens a pass; `assisted default`: up to
  20, until the draft is less sure than 0.4. Of these the table's reader should take the best.
  (transformers applies the temperature to its draft twice, which is lossless but costs acceptance
  at T < 1; `chain k` is the same method without that);
- `lookup k`: prompt lookup, k tokens copied from the text.

The rules of other systems, whose code cannot run on these weights, within our engine, with our
kernels, verified top-down as they do it:

- `chain k`: speculative decoding (arXiv 2211.17192), our own;
- `Sequoia` (arXiv 2402.12374): the optimal static tree of B nodes and 8 levels for acceptance by
  rank, measured before on bundled prompts at the same temperature, sampled children;
- `EAGLE-2` (arXiv 2406.16858): the 10 likeliest tokens a node, 6 levels, then the B best by the
  draft's probabilities;
- `OPT-Tree` (arXiv 2406.17276): the likeliest tokens, best-first by the draft's probabilities,
  depth free;
- `DySpec` (arXiv 2410.11744): the same with sampled children.

Ours: `auto` (no tree), and `dTree` with ETV, of at most B nodes, and of as many as pay here.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from shards import Shard, gain, known, read_rows, run_command, run_flags
from statics import acceptance_vector
from transformers import StaticCache
from transformers.generation.streamers import BaseStreamer
from widen import SHAPES, load_wide

from dynasurge import Settings
from dynasurge.decoding.latency import load_costs
from dynasurge.decoding.session import Session, make_engines
from dynasurge.experiments.datasets import load_prompts
from dynasurge.models.pair import Pair
from dynasurge.trees.growmap import save_growmap
from dynasurge.trees.optimal_growmap import optimal_growmap

TEMPERATURES = (0.0, 0.6, 1.0)
CHAINS = (3, 5, 8)
LOOKUPS = (3, 5, 10)
COMPILED = "generate, compiled"
THEIRS: dict[str, dict[str, Any]] = {  # transformers' own, by name: arguments of `theirs`
    "generate": {},
    COMPILED: {},
    **{f"assisted {k or 'default'}": {"assistant": k} for k in (*CHAINS, None)},
    **{f"lookup {k}": {"prompt_lookup_num_tokens": k} for k in LOOKUPS},
}
MEASURED_ON = 14  # bundled prompts, for the acceptance vector of `Sequoia`


@dataclass(frozen=True, kw_only=True)
class Timed:
    """One request. passes: of the target, the prompt's not counted; first: tokens that came with
    the prompt's own pass; prefill_seconds: until those were there; phases: of our own steps, means:
    milliseconds, draft passes and nodes."""

    output_ids: list[int]
    passes: int
    first: int
    prefill_seconds: float
    seconds: float
    phases: dict[str, float] = field(default_factory=dict)


Method = Callable[[list[int], int], Timed]  # of a prompt's tokens and a seed


class Clock(BaseStreamer):
    """Notes when the first tokens arrive: what comes before is the prompt's."""

    def __init__(self) -> None:
        self.puts = 0

    def put(self, value: torch.Tensor) -> None:
        self.puts += 1
        if self.puts == 2:  # the first is the prompt
            self.time, self.count = time.perf_counter(), value.numel()

    def end(self) -> None:
        pass


def theirs(pair: Pair, T: float, new_tokens: int, **how: Any) -> Method:
    """`model.generate` with these arguments. assistant: k tokens drafted a pass, or None for its
    default schedule."""
    sampling = (
        {"do_sample": True, "temperature": T, "top_p": 1.0, "top_k": 0}
        if T
        else {"do_sample": False}
    )
    target, draft, passes = pair.target, pair.draft, [0]

    def count(*_: Any) -> None:
        passes[0] += 1

    assisted = "assistant" in how
    k = how.pop("assistant", None)
    if assisted:
        how["assistant_model"] = draft
    cache = how.get("past_key_values")

    def run(ids: list[int], seed: int) -> Timed:
        torch.manual_seed(seed)
        if assisted:
            draft.generation_config.num_assistant_tokens = (
                k or 20
            )  # 20 and 0.4 are transformers' defaults
            draft.generation_config.num_assistant_tokens_schedule = "constant"
            draft.generation_config.assistant_confidence_threshold = 0.0 if k else 0.4
        clock, passes[0] = Clock(), 0
        prompt = torch.tensor([ids], device=target.device)
        if cache is not None:
            cache.reset()
        handle = (
            target.register_forward_pre_hook(count) if cache is None else None
        )  # a hook would break the graph
        start = time.perf_counter()
        out = target.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=new_tokens,
            streamer=clock,
            pad_token_id=0,
            **sampling,
            **how,
        )[0, len(ids) :].tolist()
        seconds = time.perf_counter() - start
        if handle is not None:
            handle.remove()
        made = passes[0] - 1 if handle is not None else len(out) - 1
        return Timed(
            output_ids=out,
            passes=made,
            first=clock.count,
            prefill_seconds=clock.time - start,
            seconds=seconds,
        )

    return run


def ours(session: Session) -> Method:
    """A session of this package."""

    def run(ids: list[int], seed: int) -> Timed:
        result = session.generate(ids, index=seed)
        return Timed(
            output_ids=result.output_ids,
            passes=len(result.steps),
            first=0,
            prefill_seconds=result.prefill_seconds,
            seconds=result.seconds,
            phases={
                "draft": 1e3 * _mean(step.draft_seconds for step in result.steps),
                "target": 1e3 * _mean(step.target_seconds for step in result.steps),
                "verify": 1e3 * _mean(step.verify_seconds for step in result.steps),
                "other": 1e3 * _mean(step.other_seconds for step in result.steps),
                "passes": _mean(step.passes for step in result.steps),
                "nodes": _mean(step.tree.size for step in result.steps),
            },
        )

    return run


def _mean(numbers: Iterable[float]) -> float:
    return round(float(np.mean(list(numbers))), 4)


def trees(B: int, sequoia: str) -> dict[str, dict[str, Any]]:
    """What runs in our engine, by name: fields of Settings. sequoia: its growmap."""
    literature: dict[str, Any] = {
        "mode": "dTree",
        "B": B,
        "fill": True,
        "values": "own",
        "lookup": False,
    }
    methods: dict[str, dict[str, Any]] = {"auto": {"mode": "auto"}}
    methods |= {f"chain {k}": {"mode": "sTree", "growmap": f"chain{k}"} for k in CHAINS}
    methods["Sequoia"] = {"mode": "sTree", "growmap": sequoia}
    methods["EAGLE-2"] = literature | {"policy": "topk", "max_depth": 6, "max_children": 10}
    methods["OPT-Tree"] = literature | {"policy": "topk"}
    methods["DySpec"] = literature | {"policy": "sampled"}
    methods[f"dTree B={B} +ETV"] = {"mode": "dTree", "B": B, "use_bfs": True}
    methods["dTree B=auto +ETV"] = {"mode": "dTree", "use_bfs": True}
    return methods


def run(args: argparse.Namespace) -> None:
    """Decode; one JSON line a (data, prompt, T, method)."""
    known("--methods", args.methods or [], [*THEIRS, *trees(args.B, "")])
    shard, warm = Shard(args, ("data", "index", "T", "method")), set()
    torch.set_num_threads(args.threads)
    pair = load_wide(args.draft, args.target, args.shape)
    shared = {"new_tokens": args.new_tokens, "prompt_len": args.prompt_len, "compile": args.compile}
    settings = {}
    for T in args.T:
        growmap = args.output / f"sequoia-T{T:g}-B{args.B}.pt"
        if not growmap.exists():
            vector = acceptance_vector(pair, load_prompts("demo", 0, MEASURED_ON), T)
            growmap.parent.mkdir(parents=True, exist_ok=True)
            save_growmap(optimal_growmap(vector, args.B, 8), growmap)
        methods = trees(args.B, str(growmap))
        settings |= {(T, name): Settings(T=T, **(shared | own)) for name, own in methods.items()}
    engines = make_engines(pair, list(settings.values()))
    calls: dict[tuple[float, str], Method] = {}
    for T, (name, how) in itertools.product(args.T, THEIRS.items()):
        if name == COMPILED:
            if pair.target.device.type != "cuda":
                continue
            cache = StaticCache(
                config=pair.target.config, max_cache_len=args.prompt_len + args.new_tokens
            )
            how = {"past_key_values": cache}
        calls[T, name] = theirs(pair, T, args.new_tokens, **how)
    if args.methods:
        calls = {key: method for key, method in calls.items() if key[1] in args.methods}
        settings = {key: own for key, own in settings.items() if key[1] in args.methods}
    for (T, name), own in settings.items():
        calls[T, name] = ours(Session(pair, own, engines=engines))
    if pair.target.device.type == "cuda" and engines.draft is not None:
        costs = load_costs(engines.target, engines.draft)
        (args.output / "costs.json").write_text(json.dumps(dataclasses.asdict(costs)) + "\n")
    short = 0
    for number in shard.numbers(args.prompts):
        for data in args.data:
            ids = pair.tokenizer(load_prompts(data, number, number + 1)[0].text).input_ids[
                : args.prompt_len
            ]
            if len(ids) < args.prompt_len:  # a static cache is compiled for one length
                short += 1
                continue
            turns = list(calls.items())
            first = number % len(turns)  # so that no method always follows the same other
            for (T, name), method in turns[first:] + turns[:first]:
                few = args.few is not None and number >= args.few
                if few and name.startswith(("generate", "assisted", "lookup")):
                    continue
                key = {"data": Path(data).stem, "index": number, "T": T, "method": name}
                if not shard.wants(**key):
                    continue
                if (T, name) not in warm:
                    method(ids, number)
                    warm.add((T, name))
                shard.append(key | dataclasses.asdict(method(ids, number)))
    if short:
        print(
            f"{short} prompts of fewer than {args.prompt_len} tokens were left out", file=sys.stderr
        )


def table(args: argparse.Namespace) -> None:
    """Milliseconds a token after the prompt's pass (medians over prompts, with quartiles), and how
    many times `auto` and `generate` take as long (ratios of mean speeds over the prompts that both
    have, with a 95% interval); then where a step of ours spends its time."""
    rows = read_rows(*sorted(args.output.rglob("rows-*.jsonl")))
    rows = [
        row for row in rows if len(row["output_ids"]) > row["first"]
    ]  # the others ended with their first token
    by: dict[tuple[str, float, str], dict[int, dict[str, Any]]] = defaultdict(dict)
    for row in rows:
        by[row["data"], row["T"], row["method"]][row["index"]] = row
    for data, T in sorted({(r["data"], r["T"]) for r in rows}):
        names = sorted({method for d, t, method in by if (d, t) == (data, T)}, key=_order)
        print(f"\n**{data}, T = {T:g}**\n")
        print(
            "| | n | ms a token (quartiles) | tokens per pass | over `auto` | over `generate` | text of `generate` |"
        )
        print("|---" * 7 + "|")
        for name in names:
            mine = by[data, T, name]
            low, middle, high = np.percentile(
                [1e3 / _speed(row) for row in mine.values()], [25, 50, 75]
            )
            tokens = sum(len(row["output_ids"]) - row["first"] for row in mine.values())
            per_pass = tokens / sum(row["passes"] for row in mine.values())
            cells = [str(len(mine)), f"{middle:.2f} ({low:.2f} - {high:.2f})", f"{per_pass:.2f}"]
            cells += [_ratio(by.get((data, T, other), {}), mine) for other in ("auto", "generate")]
            plain = by.get((data, T, "generate"), {}) if T == 0 else {}
            both = plain.keys() & mine.keys()
            same = sum(plain[i]["output_ids"] == mine[i]["output_ids"] for i in both)
            print(f"| {name} | {' | '.join(cells)} | {f'{same} of {len(both)}' if both else ''} |")
        stepping = [
            name for name in names if all(row.get("phases") for row in by[data, T, name].values())
        ]
        if stepping:
            print(
                "\n| ms a step | nodes | draft (passes) | target | verify | other | all but draft and target |"
            )
            print("|---" * 7 + "|")
        for name in stepping:
            mean = {
                key: float(np.mean([row["phases"][key] for row in by[data, T, name].values()]))
                for key in ("draft", "target", "verify", "other", "passes", "nodes")
            }
            rest = mean["verify"] + mean["other"]
            share = rest / (rest + mean["draft"] + mean["target"])
            cells = [
                f"{mean['nodes']:.1f}",
                f"{mean['draft']:.2f} ({mean['passes']:.1f})",
                f"{mean['target']:.2f}",
            ]
            print(
                f"| {name} | {' | '.join(cells)} | {mean['verify']:.2f} | {mean['other']:.2f} | {share:.1%} |"
            )


def _order(name: str) -> tuple[int, str]:
    """theirs, other systems', ours."""
    words = (
        "generate",
        "assisted",
        "lookup",
        "auto",
        "chain",
        "Sequoia",
        "EAGLE-2",
        "OPT-Tree",
        "DySpec",
        "dTree",
    )
    return next(n for n, word in enumerate(words) if name.startswith(word)), name


def _speed(row: dict[str, Any]) -> float:
    """Tokens a second behind the first, whose pass is the prompt's."""
    return (len(row["output_ids"]) - row["first"]) / (row["seconds"] - row["prefill_seconds"])


def _ratio(a: dict[int, dict[str, Any]], b: dict[int, dict[str, Any]]) -> str:
    """How many times as fast b is, over the prompts that both have."""
    both = sorted(a.keys() & b.keys())
    if not both:
        return ""
    speeds = (np.array([_speed(rows[index]) for index in both]) for rows in (a, b))
    middle, low, high = (1 + x for x in gain(*speeds))
    return f"{middle:.2f}x [{low:.2f}, {high:.2f}]"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    add = commands.add_parser("run", help="decode and record")
    run_flags(add)
    add.add_argument("--prompt-len", type=int, default=128)
    add.add_argument("--T", type=float, nargs="+", default=list(TEMPERATURES))
    add.add_argument("--B", type=int, default=64, help="nodes of trees, but for `auto` ones")
    add.add_argument("--shape", choices=SHAPES, help="widen the demo target")
    add.add_argument("--compile", action="store_true", help="torch.compile our passes, too")
    add.add_argument("--methods", nargs="+", help="only these")
    add.add_argument(
        "--few",
        type=int,
        help="transformers' own methods, slow ones, on the first so many prompts only",
    )
    add.set_defaults(action=run)
    run_command(parser, commands, table, argv)


if __name__ == "__main__":
    main()
