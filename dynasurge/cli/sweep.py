"""The `dynasurge sweep` command: a grid of settings over datasets, and its results.

The folder of `--output` gets `records.jsonl` during the run, and at its end `records.parquet`,
`results.md` and a figure a dataset. `eval.sh` is the study of the original prototype, as one such
command.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynasurge.cli.flags import Parser, common_flags, growmaps_flag
from dynasurge.cli.run import evaluate, plain_name, plan_of
from dynasurge.errors import UsageError, at_least
from dynasurge.experiments.grid import check_methods
from dynasurge.settings import BASELINES, MODES

if TYPE_CHECKING:
    from dynasurge.experiments.runner import Evaluation

SEVERAL = ("T", "B", "policy", "seed", "dataset")
DESCRIPTION = """\
Every combination of --mode, --growmap, --B, --policy, --T, --seed and --dataset, and with --use_bfs every tree without and
with ETV. All take the same prompt before any takes the next. Run the same command again to go on with a stopped sweep.
"""
EPILOG = """\
on several GPUs or machines, with the same flags (see docs/guides/gpus.md):
  accelerate launch --num_processes 2 -m dynasurge sweep ...

example:
  dynasurge sweep --T 0 0.6 --B 4 8 --growmap growmaps/2x2.pt --use_bfs --end 7 --output runs/sweep
"""


def sweep_command(arguments: Sequence[str]) -> int:
    """Run `dynasurge sweep` with the arguments after that word; returns the exit code."""
    args = sweep_parser().parse_args(arguments)
    if not args.output:
        raise UsageError(
            "--output", None, "a sweep is a folder of records", "try --output runs/sweep"
        )
    datasets = list(dict.fromkeys(map(plain_name, args.dataset)))
    names = [Path(dataset).stem for dataset in datasets]
    for dataset, name in zip(datasets, names, strict=True):
        if names.count(name) > 1:
            raise UsageError(
                "--dataset", dataset, "two files of one name make one table", "rename one of them"
            )
    if args.every:
        at_least("every", args.every, 1, 4)
        if args.every > args.new_tokens:
            reason = f"a text has no more than --new-tokens {args.new_tokens}"
            raise UsageError("--every", args.every, reason, "try --every 4")
        if args.use_bfs and args.etv == "bfs":
            reason = "this rule's mean acceptance is not known, only what one draw accepted"
            raise UsageError("--etv", "bfs", reason, "leave out one of --every and --etv bfs")
    check_methods(args.methods, args.B)
    options = {"methods": args.methods, "every": args.every}
    return evaluate(args, plan_of(args), datasets, _results, **options)


def sweep_parser() -> Parser:
    """The flags of `dynasurge sweep`."""
    parser = Parser(prog="dynasurge sweep", description=DESCRIPTION, epilog=EPILOG)
    common_flags(parser, several=SEVERAL)
    growmaps_flag(parser)
    modes = "auto, sTree, dTree; one or more (default: all)"
    parser.add_argument("--mode", choices=MODES, nargs="+", default=list(MODES), help=modes)
    methods = f"also run other systems' trees, for each number of --B; one or more of {', '.join(BASELINES)}"
    parser.add_argument(
        "--methods", choices=BASELINES, nargs="+", default=[], metavar="NAME", help=methods
    )
    every = "compare trees at the same places: after every N-th token of the target's own text"
    parser.add_argument("--every", type=int, default=0, metavar="N", help=every)
    return parser


def _results(args: argparse.Namespace, evaluation: Evaluation, about: dict[str, Any]) -> list[Path]:
    """Print the results table, and write it, the parquet and the figures."""
    from dynasurge.experiments import summary
    from dynasurge.experiments.records import write_output
    from dynasurge.experiments.results_frame import rule_gains, trees
    from dynasurge.experiments.sweep import write_frame
    from dynasurge.experiments.tables import results_table
    from dynasurge.plots.figures import save_figure
    from dynasurge.plots.rule_figures import comparison_figure

    output = Path(args.output)
    frame = write_frame(evaluation, output)
    table = results_table(frame)
    print(table)
    made = summary.made_with(about)
    short = [
        f"{name}: rows {', '.join(map(str, rows))}"
        for name, rows in about["skipped"].items()
        if rows
    ]
    left_out = (
        f"Left out, fewer than {args.min_prompt_len} tokens: {'; '.join(short)}.\n\n"
        if short
        else ""
    )
    mixed = summary.origins(frame)
    print(mixed, end="")
    body = (
        f"{table}\n{left_out}{mixed}{made}, commit {about['commit']}:\n\n    {about['command']}\n"
    )
    with write_output(output / "results.md") as partial:
        partial.write_text(body, encoding="utf-8")
    written = [output / "records.parquet", output / "results.md"]
    drawn, gains = trees(frame), rule_gains(frame)
    for dataset, group in drawn[drawn["mode"] != "auto"].groupby("dataset", sort=False):
        name = Path(str(dataset)).stem
        caption = f"{made}, prompts: {name}, n = {group['prompts'].max()}"
        figure = comparison_figure(drawn[drawn["dataset"] == dataset], caption, gains)
        written += save_figure(figure, output, f"comparison-{name}")
    return written
