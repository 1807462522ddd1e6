"""What a law costs and what it does to acceptance: a step's time and accepted tokens under several
laws of one pair.

    python benchmarks/bench_laws.py --dataset prompts.jsonl --end 40 --chat
    python benchmarks/bench_laws.py --target demo-7b --dataset prompts.jsonl --end 40 --B 64

Every prompt is decoded under all laws before the next, so machine noise meets them alike. Times are
medians over prompts of a step's mean time, in milliseconds; `over the first` compares a step's time
with that of the table's first law on the same prompt (median and 95% interval). docs/results/laws.md has
results.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from tqdm import tqdm

from dynasurge import Settings, load_pair
from dynasurge.cli.flags import DEFAULTS, Parser, common_flags, pair_options
from dynasurge.cli.main import guarded
from dynasurge.experiments.datasets import load_prompts
from dynasurge.experiments.runner import Evaluation
from dynasurge.experiments.schema import Row
from dynasurge.settings import PHASES

QWEN = {"T": 0.7, "P": 0.8, "top_k": 20}  # with the penalty: many instruct models' own config
LAWS: tuple[dict[str, Any], ...] = (
    {"T": 0.7, "P": 1.0},
    QWEN,
    QWEN | {"repetition_penalty": 1.05},
    {"T": 0.0, "P": 1.0},
    {"T": 0.0, "P": 1.0, "repetition_penalty": 1.05},
)


def table(rows: dict[str, list[Row]]) -> str:
    """Markdown: one row a law. rows: by law, in the same order of prompts."""
    phases = " | ".join(PHASES)
    lines = [f"| law | accepted a step | ms a step | {phases} | over the first |"]
    lines.append("|---" * (len(PHASES) + 4) + "|")
    times = {
        law: np.array([1e3 * row.decode_seconds / len(row.accepted) for row in own])
        for law, own in rows.items()
    }
    first = next(iter(times.values()))
    for law, own in rows.items():
        steps = np.array([len(row.accepted) for row in own])
        accepted = sum(row.accepted_tokens for row in own) / steps.sum()
        cells = [f"{accepted:.2f}", f"{np.median(times[law]):.2f}"]
        for phase in PHASES:
            seconds = np.array([getattr(row, f"{phase}_seconds") for row in own])
            cells.append(f"{1e3 * np.median(seconds / steps):.2f}")
        ratios = times[law] / first
        drawn = np.random.default_rng(0).choice(ratios, size=(2000, len(ratios)))
        low, high = np.percentile(np.median(drawn, axis=1), (2.5, 97.5))
        cells.append(f"{np.median(ratios):.2f}x [{low:.2f}, {high:.2f}]")
        lines.append(f"| {law} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    parser = Parser(prog="bench_laws", description=__doc__)
    common_flags(parser)
    parser.set_defaults(dataset="demo", end=14)
    args = parser.parse_args()
    shared = {name: getattr(args, name) for name in DEFAULTS if hasattr(args, name)}
    plan = [Settings(**shared | law) for law in LAWS]
    data = {args.dataset: load_prompts(args.dataset, args.start, args.end, chat=args.chat)}
    pair = load_pair(**pair_options(args), device_map=args.device_map)
    with Evaluation(pair, plan, data, None, min_prompt_len=args.min_prompt_len) as evaluation:
        for _ in tqdm(evaluation.run(), total=len(evaluation), unit="run"):
            pass
        rows: dict[str, list[Row]] = {}
        for row in evaluation.rows():
            rows.setdefault(Settings(**row.settings).law, []).append(row)
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main, "nothing was kept"))
