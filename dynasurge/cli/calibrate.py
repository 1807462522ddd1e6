"""The `dynasurge calibrate` commands: measure what trees are grown or optimised by.

dynasurge calibrate                   this machine's latency curves, again (decoding/latency.py)
dynasurge calibrate acceptance FILE   a pair's acceptance curves (experiments/calibration.py)
dynasurge calibrate ranks FILE        a pair's acceptance by sibling rank, for static trees
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence

from tqdm import tqdm

from dynasurge.cli.flags import Parser, model_flags, pair_options
from dynasurge.decoding.engines import make_engines
from dynasurge.decoding.latency import ROUNDS, cache_file, load_costs, widths_of
from dynasurge.drafting.acceptance_estimates import load_priors
from dynasurge.drafting.cost_model import Costs
from dynasurge.errors import UsageError
from dynasurge.experiments.baselines import PROMPTS, acceptance_by_rank
from dynasurge.experiments.calibration import calibrate, rounds
from dynasurge.experiments.datasets import load_prompts
from dynasurge.experiments.summary import columns
from dynasurge.files import write_whole
from dynasurge.models.pair import Pair, load_pair
from dynasurge.settings import DEMO, STUDY_PROMPT, Settings

EPILOG = """\
other forms (each has its own --help):
  dynasurge calibrate acceptance FILE   measure how often a pair's children are accepted, for --priors
  dynasurge calibrate ranks FILE        the same by sibling rank, for `growmap optimise --acceptance`
"""


def calibrate_command(arguments: Sequence[str]) -> int:
    """Run `dynasurge calibrate` with the arguments after that word; returns the exit code."""
    forms = {"acceptance": _acceptance, "ranks": _ranks}
    word = next(iter(arguments), "")
    if word in forms:
        forms[word](arguments[1:])
    else:
        _latency(arguments)
    return 0


def _latency(arguments: Sequence[str]) -> None:
    parser = Parser(
        prog="dynasurge calibrate",
        description="Measure again how long this machine's passes take, by width. Without --fill, dynamic trees grow\n"
        "while a node pays for its time by these curves. Otherwise they are measured once, before the first tree.",
        epilog=EPILOG,
    )
    model_flags(parser)
    args = parser.parse_args(arguments)
    pair = load_pair(**pair_options(args))
    engines = make_engines(pair, [Settings(prompt_len=STUDY_PROMPT)])
    path = cache_file(engines)
    rounds = 1 if engines.captures else ROUNDS  # captured steps are repeated width by width
    total = rounds * len(widths_of(engines))
    with tqdm(total=total, unit="width", disable=None, leave=False, dynamic_ncols=True) as bar:
        try:
            costs = load_costs(engines, anew=True, on_width=bar.update)
        except OSError as error:
            raise UsageError(
                "DYNASURGE_CACHE", path, f"cannot be written ({error})", "set it to another folder"
            ) from error
    print(f"{_table(costs)}\nwritten: {path}")


def _table(costs: Costs) -> str:
    """The measured passes by width, and the milliseconds that each node since the width before adds
    to a target pass, as tree growth computes it."""
    rows = [("width", "target ms", "draft ms", "ms a node")]
    before = (0, 0.0)
    for width, target, draft in zip(
        costs.widths, costs.target_seconds, costs.draft_seconds, strict=True
    ):
        now = (width, costs.target(width - 1))
        price = f"{1e3 * (now[1] - before[1]) / (now[0] - before[0]):.3f}" if width > 1 else "-"
        rows.append((str(width), f"{1e3 * target:.2f}", f"{1e3 * draft:.2f}", price))
        before = now
    return columns(rows)


def _acceptance(arguments: Sequence[str]) -> None:
    parser = Parser(
        prog="dynasurge calibrate acceptance",
        description="Decode prompts with large trees and write how often each kind of child was accepted, as a prior for\n"
        "dynasurge --priors FILE. Every prompt is decoded nine times, 64 tokens each.",
        epilog="example:\n  dynasurge calibrate acceptance mine.json --draft DRAFT --target TARGET --dataset prompts.jsonl",
    )
    parser.add_argument("file", metavar="FILE", help="the .json file to write")
    model_flags(parser)
    parser.add_argument(
        "--dataset",
        default=DEMO,
        metavar="NAME",
        help="prompts: a name or file, as for decoding (default: %(default)s)",
    )
    parser.add_argument(
        "--priors",
        metavar="FILE",
        help="the prior of the trees; a second round from the first round's FILE is better",
    )
    args = parser.parse_args(arguments)
    start, prompts = load_priors(args.priors), load_prompts(args.dataset)
    _write(
        args,
        len(rounds()) * len(prompts),
        lambda pair, step: calibrate(pair, prompts, start, step),
    )


def _ranks(arguments: Sequence[str]) -> None:
    parser = Parser(
        prog="dynasurge calibrate ranks",
        description="Measure how often the child of each sibling rank is accepted top-down, on text that the target\n"
        f"writes after {PROMPTS} bundled prompts: one list, or one a level if the draft reads the target's hidden states.",
        epilog="example:\n  dynasurge calibrate ranks ranks.json --T 0.9\n"
        "  dynasurge growmap optimise --acceptance ranks.json --nodes 63 --depth 8 best.pt",
    )
    parser.add_argument("file", metavar="FILE", help="the .json file to write")
    model_flags(parser)
    parser.add_argument(
        "--T", type=float, default=0.9, metavar="X", help="temperature (default: %(default)s)"
    )
    args = parser.parse_args(arguments)
    settings = Settings(T=args.T, P=1.0, prompt_len=STUDY_PROMPT)
    _write(
        args,
        PROMPTS,
        lambda pair, step: {"acceptance": acceptance_by_rank(pair, settings, on_prompt=step)},
    )


def _write(
    args: argparse.Namespace, total: int, measure: Callable[[Pair, Callable[[], object]], object]
) -> None:
    """Write what `measure` finds of the pair as JSON. It calls its second argument after each of
    `total` prompts."""
    try:
        with write_whole(args.file) as partial:
            pair = load_pair(**pair_options(args))
            with tqdm(total=total, unit="prompt", disable=None, dynamic_ncols=True) as bar:
                found = measure(pair, bar.update)
            partial.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(
            "FILE", args.file, f"cannot be written ({error})", "name a writable path"
        ) from error
    print(f"written: {args.file}")
