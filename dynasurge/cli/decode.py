"""`dynasurge` without another word decodes in one mode; `dynasurge compare` runs all three. Both take
a dataset or one prompt."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynasurge.cli.flags import DEFAULTS, Parser, common_flags, growmaps_flag
from dynasurge.cli.run import evaluate, plain_name, plan_of
from dynasurge.errors import UsageError, flag_of
from dynasurge.settings import DEMO, MODES, Settings

if TYPE_CHECKING:
    from dynasurge.experiments.runner import Evaluation

DESCRIPTION = """\
Decode prompts with a token tree: a small draft model proposes a tree, the target scores it in one pass, and a
verification rule accepts a path. The text is distributed exactly as the target's own; only the speed differs.
"""
EPILOG = """\
other commands (each has its own --help):
  dynasurge compare ...          the same prompts through auto, sTree and dTree, interleaved
  dynasurge sweep ...            a grid: modes, trees, rules, policies, temperatures, seeds, datasets
  dynasurge growmap SHAPE FILE   write a static tree shape: 4x8, chain8, 2ary4
  dynasurge growmap optimise ... write the best shape for a measured acceptance vector
  dynasurge growmap show FILE    print a shape; dynasurge growmap draw FILE --output tree.png draws it
  dynasurge calibrate            measure this machine's passes again, for --B auto
  dynasurge calibrate acceptance FILE   measure a pair's acceptance, for --priors
  dynasurge table FOLDER         print records as tables; --trees, --against, --refresh docs/*/*.md
  dynasurge audit RULE           is a rule, a drawing or a step lossless?
  dynasurge publish FOLDER       measure what figures need, keep numbers only
  dynasurge figures FOLDER       run the notebooks on such numbers, write their figures
  dynasurge info                 versions, device, caches: for an issue report; --version prints the version

examples:
  dynasurge --mode dTree --B 4 --T 0.6 --prompt "The harbour council met on Tuesday"
  dynasurge --mode dTree --B 4 --T 0.6 --start 0 --end 14 --output runs/first
"""
OWN = "prompt"  # the name of `--prompt` as a dataset


def decode_command(arguments: list[str]) -> int:
    parser = Parser(prog="dynasurge", description=DESCRIPTION, epilog=EPILOG)
    common_flags(parser)
    parser.add_argument(
        "--mode",
        choices=MODES,
        default=DEFAULTS["mode"],
        help="auto: one token a pass, no tree; sTree: a static tree, its shape from --growmap; dTree: a tree fitted to "
        "each step under the budget --B (default: %(default)s)",
    )
    parser.add_argument(
        "--growmap",
        metavar="FILE",
        help="a .pt tree shape (see growmaps/README.md); needed by sTree; in dTree it is optional and bounds the depth",
    )
    args = _parsed(parser, arguments)
    settings = Settings(**{name: getattr(args, name) for name in DEFAULTS})
    return evaluate(args, [settings], [args.dataset], _summary, prompt=args.prompt)


def compare_command(arguments: list[str]) -> int:
    parser = Parser(
        prog="dynasurge compare",
        description="The same prompts through auto, sTree and dTree, interleaved; with --output also a figure.\n"
        "With --use_bfs each tree runs twice: verified top-down, and by ETV (at T = 0 once: all rules are then the same).",
        epilog="example:\n  dynasurge compare --end 7 --B 4 8 --growmap growmaps/2x2.pt --output runs/compare",
    )
    common_flags(parser, several=("B",))
    growmaps_flag(parser)
    args = _parsed(parser, arguments)
    one = {name: [getattr(args, name)] for name in ("policy", "T", "seed")}
    plan = plan_of(args, **one)
    return evaluate(args, plan, [args.dataset], _compared, prompt=args.prompt)


def _parsed(parser: Parser, arguments: list[str]) -> argparse.Namespace:
    """The flags, with `--prompt`. Raises UsageError if it is given beside a dataset."""
    given = "decode this text instead of a dataset, and print what follows it"
    parser.add_argument("--prompt", metavar="TEXT", default=None, help=given)
    args = parser.parse_args(arguments)
    args.dataset = plain_name(args.dataset)
    if args.prompt is None:
        return args
    for name, default in (("dataset", DEMO), ("start", 0), ("end", None)):
        if (value := getattr(args, name)) != default:
            reason = "chooses rows of a dataset, and --prompt is a text of its own"
            raise UsageError(flag_of(name), value, reason, f"leave out {flag_of(name)} or --prompt")
    args.dataset, args.verbose = OWN, True
    return args


def _summary(args: argparse.Namespace, evaluation: Evaluation, about: dict[str, Any]) -> list[Path]:
    """Print the closing table and write it as summary.json."""
    from dynasurge.experiments import summary

    summaries = evaluation.summaries()
    print(summary.table(summaries))
    return summary.write_summary(Path(args.output), summaries, about) if args.output else []


def _compared(
    args: argparse.Namespace, evaluation: Evaluation, about: dict[str, Any]
) -> list[Path]:
    """Print the closing table, write it, and write a figure of it."""
    written = _summary(args, evaluation, about)
    if not args.output:
        return written

    from dynasurge.experiments import summary
    from dynasurge.experiments.results_frame import to_frame, trees
    from dynasurge.plots.figures import save_figure
    from dynasurge.plots.rule_figures import comparison_figure

    table = trees(to_frame(evaluation.rows()))
    prompts = f"prompts: {Path(args.dataset).stem}, n = {table['prompts'].max()}, {evaluation.law}"
    figure = comparison_figure(table, f"{summary.made_with(about)}, {prompts}")
    return written + save_figure(figure, Path(args.output), "comparison")
