"""The command: `main.py`, `python -m dynasurge` and `dynasurge` all end up in `main`.

    dynasurge [flags]                 decode a dataset in one mode
    dynasurge compare [flags]         the same prompts through auto, sTree and dTree, interleaved
    dynasurge growmap SHAPE FILE      write a static tree shape; optimise, show and draw one (growmap_cli.py)
    dynasurge calibrate               measure what dynamic trees go by on this machine, or for a pair (calibrate_cli.py)

Exit codes: 0 done; 2 something the user can mend, said in one line; 130 stopped by Ctrl-C (run again to go on).
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from dynasurge.config import AUTO_DEPTH, DEMO, DTYPES, ETVS, MODES, POLICIES, VALUES, Settings
from dynasurge.data import DEFAULT_ROWS, HUB_DATASETS
from dynasurge.errors import UsageError

DEFAULTS = {field.name: field.default for field in dataclasses.fields(Settings)}
COMPARE_GROWMAP = "growmaps/4x8-tree.pt"
DESCRIPTION = """\
Decode prompts with a token tree: a small draft model proposes a tree, the target scores it in one pass, and a
verification rule accepts a path. The text is distributed exactly as the target's own; only the speed differs.
"""
EPILOG = """\
other commands (each has its own --help):
  dynasurge compare ...          the same prompts through auto, sTree and dTree, interleaved
  dynasurge growmap SHAPE FILE   write a static tree shape: 4x8, chain8, 2ary4
  dynasurge growmap optimise ... write the best shape for a measured acceptance vector
  dynasurge growmap show FILE    print a shape; dynasurge growmap draw FILE --output tree.png draws it
  dynasurge calibrate            measure this machine's passes anew: what --B auto goes by
  dynasurge calibrate acceptance FILE   measure a pair's acceptance, for --priors

example:
  dynasurge --mode dTree --B 4 --T 0.6 --start 0 --end 14 --output runs/first
"""


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake costs one line and flags are never abbreviated."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)

    def error(self, message: str) -> NoReturn:
        raise UsageError("dynasurge:", message, "cannot be understood", f"see {self.prog} --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    word, rest = next(iter(arguments), ""), arguments[1:]
    if word in ("growmap", "calibrate"):
        return guarded(lambda: _other(word, rest), "nothing was written")
    resume = "finished prompts are kept, run the same command to go on"
    return guarded(lambda: _compare(rest) if word == "compare" else _decode(arguments), resume)


def guarded(command: Callable[[], int], stopped: str) -> int:
    """Run a command and return its exit code. What the user can mend costs one line, and so does Ctrl-C: `stopped` says
    what that left behind."""
    try:
        return command()
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nstopped; {stopped}", file=sys.stderr)
        return 130


def _other(word: str, arguments: list[str]) -> int:
    """A command with a module of its own, imported only now: both load torch."""
    if word == "growmap":
        from dynasurge.growmap_cli import growmap_command as command
    else:
        from dynasurge.calibrate_cli import calibrate_command as command
    return command(arguments)


def _decode(arguments: list[str]) -> int:
    parser = Parser(prog="dynasurge", description=DESCRIPTION, epilog=EPILOG)
    _common_flags(parser)
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
    own = {"mode": args.mode, "growmap": args.growmap, "B": args.B, "use_bfs": args.use_bfs, "etv": args.etv}
    settings = _settings(args, **own)
    return _evaluate(args, {f"{args.mode}{_suffix(settings)}": settings})


def _compare(arguments: list[str]) -> int:
    parser = Parser(
        prog="dynasurge compare",
        description="The same prompts through auto, sTree and dTree, interleaved; with --output also a figure.\n"
        "With --use_bfs each tree runs twice: verified top-down, and by ETV.",
        epilog="example:\n  dynasurge compare --end 7 --B 4 8 --growmap growmaps/2x2.pt --output runs/compare",
    )
    _common_flags(parser, several=True)
    parser.add_argument(
        "--growmap",
        metavar="FILE",
        nargs="+",
        default=[COMPARE_GROWMAP],
        help=f"sTree's tree shapes, a column each (default: {COMPARE_GROWMAP})",
    )
    args = parser.parse_args(arguments)
    plan = {"auto": _settings(args, mode="auto", B=args.B[0])}
    trees: dict[str, dict[str, Any]] = {}
    stems = [Path(path).stem for path in args.growmap]
    for path in args.growmap:
        if stems.count(Path(path).stem) > 1:
            raise UsageError("--growmap", path, "two files of one name make one column", "rename one, or give it once")
        trees[f"sTree {Path(path).stem.removesuffix('-tree')}"] = {"mode": "sTree", "growmap": path, "B": args.B[0]}
    for budget in args.B:
        trees[f"dTree B={budget}"] = {"mode": "dTree", "B": budget}
    for label, own in trees.items():
        plan[label] = _settings(args, **own)
        if args.use_bfs:
            settings = _settings(args, use_bfs=True, etv=args.etv, **own)
            plan[f"{label}{_suffix(settings)}"] = settings
    return _evaluate(args, plan, figure=True)


def model_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `load_pair`."""
    add, default = parser.add_argument, "(default: %(default)s)"
    add("--draft", default=DEFAULTS["draft"], metavar="NAME", help=f"draft model: hub name or folder {default}")
    add("--target", default=DEFAULTS["target"], metavar="NAME", help=f"target model: hub name or folder {default}")
    dtype = f"auto: bfloat16 where the hardware has it {default}"
    add("--dtype", choices=DTYPES, default=DEFAULTS["dtype"], help=dtype)
    device = "auto (cuda if there is one), cpu, cuda, cuda:1, ..."
    add("--device", default=DEFAULTS["device"], metavar="NAME", help=device)


def _common_flags(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    add = parser.add_argument
    number: dict[str, Any] = {"type": int, "metavar": "N"}
    default = "(default: %(default)s)"
    model_flags(parser)
    add("--T", type=float, default=DEFAULTS["T"], metavar="X", help=f"temperature; 0 is greedy {default}")
    add("--P", type=float, default=DEFAULTS["P"], metavar="X", help=f"top-p, in (0, 1]; 1 keeps every token {default}")
    add(
        "--dataset",
        default="demo",
        metavar="NAME",
        help=f"demo (bundled), {', '.join(HUB_DATASETS)} (streamed from the hub), or a .txt (one prompt a line), .jsonl, "
        f".csv or .parquet file {default}",
    )
    add("--start", default=0, help=f"first prompt, counted from 0 {default}", **number)
    add("--end", default=None, help=f"one past the last prompt (default: at most {DEFAULT_ROWS} prompts)", **number)
    add("--prompt-len", default=DEFAULTS["prompt_len"], help=f"prompts are cut to N tokens {default}", **number)
    add("--new-tokens", default=DEFAULTS["new_tokens"], help=f"generate up to N tokens {default}", **number)
    add("--M", default=DEFAULTS["M"], help=f"cache length: prompt + new tokens + tree must fit {default}", **number)
    budget = "dTree: at most N drafted nodes a tree, root not counted; auto: as many as pay for their time here"
    nodes: dict[str, Any] = {"type": _budget, "metavar": "N"}
    if several:
        add(
            "--B",
            default=[DEFAULTS["B"]],
            nargs="+",
            help=f"{budget}; several give a column each (default: {DEFAULTS['B']})",
            **nodes,
        )
    else:
        add("--B", default=DEFAULTS["B"], help=f"{budget} {default}", **nodes)
    add("--fill", action="store_true", help="dTree: spend the whole budget, whether or not a node pays for its time")
    add(
        "--values",
        choices=VALUES,
        default=DEFAULTS["values"],
        help="dTree: what slots are thought worth: learned: from this prompt's own steps; fixed: the prior they start "
        f"from; own: the draft's probabilities {default}",
    )
    add(
        "--priors",
        metavar="FILE",
        help="dTree: the prior of --values, from `dynasurge calibrate acceptance`; it pays for pairs other than the demo's "
        "(default: the demo pair's)",
    )
    add(
        "--lookup",
        action=argparse.BooleanOptionalAction,
        default=DEFAULTS["lookup"],
        help=f"dTree: also propose what followed the last tokens earlier in the text {default}",
    )
    add("--max-depth", default=None, help=f"dTree: at most N levels (default: {AUTO_DEPTH})", **number)
    add(
        "--max-children", default=DEFAULTS["max_children"], help=f"dTree: at most N children a node {default}", **number
    )
    add(
        "--policy",
        choices=POLICIES,
        default=DEFAULTS["policy"],
        help="how a node's children are proposed: sampled: drawn from the draft without replacement; topk: its likeliest "
        f"tokens; hybrid: one sampled, then the likeliest; at T = 0 always topk {default}",
    )
    add(
        "--use_bfs",
        action="store_true",
        help="verify with Enhanced Tree Verification (see --etv) instead of top-down",
    )
    add(
        "--etv",
        choices=ETVS,
        default=DEFAULTS["etv"],
        help="the rule of --use_bfs: traversal; reserved: never shorter than top-down, sampled static trees only; bfs: the "
        f"original prototype's, which changes the text's distribution (lossy) {default}",
    )
    add("--seed", default=DEFAULTS["seed"], help=f"the same seed gives the same text {default}", **number)
    add("--output", metavar="DIR", help="write records.jsonl and summary.json there; run again to resume")
    add("--verbose", action="store_true", help="print each prompt's text and acceptance as it is done")


def _budget(text: str) -> int | str:
    if text != "auto" and not text.lstrip("-").isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is neither a whole number nor auto")
    return text if text == "auto" else int(text)


def _settings(args: argparse.Namespace, **own: Any) -> Settings:
    shared = {n: getattr(args, n) for n in DEFAULTS if n not in ("mode", "growmap", "B", "use_bfs", "etv")}
    return Settings(**shared, **own)


def _suffix(settings: Settings) -> str:
    if not settings.use_bfs:
        return ""
    return " +ETV" if settings.etv == "traversal" else f" +{settings.etv}{'' if settings.lossless else ' (lossy)'}"


def _evaluate(args: argparse.Namespace, plan: dict[str, Settings], *, figure: bool = False) -> int:
    """Check everything cheap before anything slow, load, run with a progress bar, print the closing table."""
    from dynasurge.acceptance import load_priors
    from dynasurge.data import load_prompts
    from dynasurge.generation import make_shape

    for settings in plan.values():
        shape = make_shape(settings)
        settings.check_room(shape.max_nodes if shape else 0)
        load_priors(settings.priors)
    prompts = load_prompts(args.dataset, args.start, args.end)

    from tqdm import tqdm

    from dynasurge import report
    from dynasurge.evaluation import Evaluation
    from dynasurge.models import load_pair

    pair = load_pair(args.draft, args.target, dtype=args.dtype, device=args.device)
    output = Path(args.output) if args.output else None
    evaluation = Evaluation(pair, plan, args.dataset, prompts, output)
    with tqdm(total=len(evaluation), unit="run", disable=None, dynamic_ncols=True) as bar:
        for done in evaluation.run():
            bar.update()
            bar.set_postfix_str(f"{done.row['label']}: {report.tokens_per_step(done.row):.2f} tokens/step")
            if args.verbose:
                bar.write(report.verbose(done.row), file=sys.stdout)
    summaries = evaluation.summaries()
    about = report.about(pair, args.dataset)
    evaluation.records.write_summary(summaries, about)
    print(report.table(summaries))
    if output is not None:
        written = [output / "records.jsonl", output / "summary.json"]
        if figure:
            from dynasurge.plotting import compare_figure, save_figure

            pair_name = "demo pair" if args.draft == args.target == DEMO else f"{args.draft} -> {args.target}"
            caption = f"{pair_name}, prompts: {Path(args.dataset).stem}, n = {len(prompts)}, T = {args.T:g}, "
            caption += f"{about['device']}, {about['date']}"
            written += save_figure(compare_figure(summaries, caption), output, "compare")
        print("written: " + ", ".join(str(path) for path in written))
    return 0
