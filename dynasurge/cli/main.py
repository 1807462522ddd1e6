"""The command: `main.py`, `python -m dynasurge` and `dynasurge` all end up in `main`.

    dynasurge [flags]                 decode a dataset in one mode
    dynasurge compare [flags]         the same prompts through auto, sTree and dTree, interleaved
    dynasurge sweep [flags]           a grid of settings, temperatures, seeds and datasets (cli/sweep.py)
    dynasurge growmap SHAPE FILE      write a static tree shape; optimise, show and draw one (cli/growmap.py)
    dynasurge calibrate               measure what dynamic trees go by on this machine, or for a pair (cli/calibrate.py)

Exit codes: 0 done; 2 something the user can mend, said in one line; 130 stopped by Ctrl-C (run again to go on).
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynasurge.settings import MODES, Settings
from dynasurge.errors import UsageError
from dynasurge.cli.flags import DEFAULTS, Parser, common_flags, growmaps_flag, pair_options
from dynasurge.experiments.grid import AXES, grid

if TYPE_CHECKING:
    from dynasurge.experiments.runner import Evaluation

    Close = Callable[[argparse.Namespace, Evaluation, dict[str, Any]], list[Path]]

RESUME = "finished prompts are kept, run the same command to go on"
LOST = "nothing was kept; with --output DIR a stopped run goes on where it was"
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
  dynasurge calibrate            measure this machine's passes anew: what --B auto goes by
  dynasurge calibrate acceptance FILE   measure a pair's acceptance, for --priors

example:
  dynasurge --mode dTree --B 4 --T 0.6 --start 0 --end 14 --output runs/first
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    word, rest = next(iter(arguments), ""), arguments[1:]
    if word in ("growmap", "calibrate"):
        return guarded(lambda: _other(word, rest), "nothing was written")
    if word == "sweep":
        from dynasurge.cli.sweep import sweep_command

        return guarded(lambda: sweep_command(rest), RESUME)
    kept = any(argument.partition("=")[0] == "--output" for argument in arguments)
    return guarded(lambda: _compare(rest) if word == "compare" else _decode(arguments), RESUME if kept else LOST)


def guarded(command: Callable[[], int], stopped: str) -> int:
    """Run a command and return its exit code. What the user can mend costs one line, and so does Ctrl-C: `stopped` says
    what that left behind."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _note
            code = command()
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever read the output has enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nstopped; {stopped}", file=sys.stderr)
        return 130


def _note(message: Warning | str, *_: object, **__: object) -> None:
    """A warning costs one line, too."""
    print(f"note: {message}", file=sys.stderr)


def _other(word: str, arguments: list[str]) -> int:
    """A command with a module of its own, imported only now: both load torch."""
    if word == "growmap":
        from dynasurge.cli.growmap import growmap_command as command
    else:
        from dynasurge.cli.calibrate import calibrate_command as command
    return command(arguments)


def _decode(arguments: list[str]) -> int:
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
    args = parser.parse_args(arguments)
    settings = Settings(**{name: getattr(args, name) for name in DEFAULTS})
    return evaluate(args, [settings], [plain_name(args.dataset)], _summary)


def _compare(arguments: list[str]) -> int:
    parser = Parser(
        prog="dynasurge compare",
        description="The same prompts through auto, sTree and dTree, interleaved; with --output also a figure.\n"
        "With --use_bfs each tree runs twice: verified top-down, and by ETV (at T = 0 once: all rules are then the same).",
        epilog="example:\n  dynasurge compare --end 7 --B 4 8 --growmap growmaps/2x2.pt --output runs/compare",
    )
    common_flags(parser, several=("B",))
    growmaps_flag(parser)
    args = parser.parse_args(arguments)
    one = {name: [getattr(args, name)] for name in ("policy", "T", "seed")}
    return evaluate(args, plan_of(args, **one), [plain_name(args.dataset)], _compared)


def plain_name(dataset: str) -> str:
    """A dataset's name in records: ./prompts.jsonl and prompts.jsonl are one file."""
    return os.path.normpath(dataset)


def plan_of(args: argparse.Namespace, **axes: Any) -> list[Settings]:
    """The grid that parsed flags span. axes: those of grid.AXES that are not lists in `args`."""
    axes |= {"use_bfs": [False, True] if args.use_bfs else [False]}
    lists: dict[str, Any] = {name: axes[name] if name in axes else getattr(args, name, MODES) for name in AXES}
    return grid(**lists, etv=args.etv, **{name: getattr(args, name) for name in DEFAULTS if name not in (*AXES, "etv")})


def evaluate(args: argparse.Namespace, plan: list[Settings], datasets: list[str], close: Close) -> int:
    """Check everything cheap before anything slow, load, run with a progress bar. `close` says and writes what the rows
    come to: it gets the flags, the finished evaluation and where its numbers come from, and returns the files it wrote."""
    from dynasurge.drafting.acceptance_estimates import load_priors
    from dynasurge.experiments.datasets import load_prompts
    from dynasurge.decoding.assembly import make_shape
    from dynasurge.experiments.workers import join
    from dynasurge.experiments.records import RecordFile
    from dynasurge.experiments.schema import run_name

    for settings in plan:
        shape = make_shape(settings)
        settings.check_room(args.prompt_len, shape.max_nodes if shape else 0)
        load_priors(settings.priors)
    if not 1 <= args.min_prompt_len <= args.prompt_len:
        reason = f"outside 1 .. --prompt-len {args.prompt_len}, what prompts are cut to"
        raise UsageError("--min-prompt-len", args.min_prompt_len, reason, f"try --min-prompt-len {args.prompt_len}")
    processes, device = join(args.device, args.device_map)
    output = Path(args.output) if args.output else None
    if processes.count > 1 and output is None:
        raise UsageError("--output", None, "several processes put their rows in one folder", "try --output runs/mine")
    if output is not None and _exists(output) and processes.main:  # look into it before anything is loaded
        RecordFile(output, {run_name(settings, name) for settings in plan for name in datasets}).close()
    processes.wait()
    data = {dataset: load_prompts(dataset, args.start, args.end) for dataset in datasets}

    from tqdm import tqdm

    from dynasurge.experiments import summary
    from dynasurge.experiments.runner import Evaluation
    from dynasurge.models.pair import load_pair

    pair = load_pair(**pair_options(args) | {"device": device}, device_map=args.device_map)
    with Evaluation(pair, plan, data, output, min_prompt_len=args.min_prompt_len, processes=processes) as evaluation:
        silent = None if processes.main else True
        if processes.main:
            print(summary.memory(evaluation.engines, evaluation.capture_seconds))
        with tqdm(total=len(evaluation), unit="run", disable=silent, dynamic_ncols=True) as bar:
            for done in evaluation.run():
                bar.update()
                bar.set_postfix_str(f"{done.row['label']}: {summary.tokens_per_step(done.row):.2f} tokens/step")
                if args.verbose:
                    bar.write(summary.verbose(done.row), file=sys.stdout)
        if not processes.main:
            return 0
        for line in summary.skipped(evaluation.skipped, data, args.min_prompt_len):
            print(line)
        for line in summary.cut(evaluation.cut, data, args.prompt_len):
            print(line)
        written = close(args, evaluation, summary.about(pair, ", ".join(datasets), evaluation.skipped))
    if output is not None:
        print("written: " + ", ".join(str(path) for path in [output / "records.jsonl", *written]))
    return 0


def _exists(folder: Path) -> bool:
    try:
        return folder.exists()
    except (OSError, ValueError):  # a name that cannot be
        return True


def _summary(args: argparse.Namespace, evaluation: Evaluation, about: dict[str, Any]) -> list[Path]:
    """Print the closing table and write it as summary.json."""
    from dynasurge.experiments import summary

    summaries = evaluation.summaries()
    print(summary.table(summaries))
    return summary.write_summary(Path(args.output), summaries, about) if args.output else []


def _compared(args: argparse.Namespace, evaluation: Evaluation, about: dict[str, Any]) -> list[Path]:
    """The closing table, and a figure of it."""
    written = _summary(args, evaluation, about)
    if not args.output:
        return written

    from dynasurge.experiments import summary
    from dynasurge.plots.figures import compare_figure, save_figure

    summaries = evaluation.summaries()
    prompts = f"prompts: {Path(args.dataset).stem}, n = {summaries[0].prompts}, T = {args.T:g}"
    caption = f"{summary.made_with(about)}, {prompts}"
    return written + save_figure(compare_figure(summaries, caption), Path(args.output), "compare")
