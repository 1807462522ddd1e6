"""The work that all commands that decode share: check all that is cheap, load, run with a progress
bar, close.

`evaluate` does this for a plan of settings. A command adds its flags, its plan, and what it prints
and writes at the end. torch and transformers are imported only after the flags were found right.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynasurge.cli.flags import DEFAULTS, pair_options
from dynasurge.errors import UsageError
from dynasurge.experiments.grid import AXES, distinct, grid
from dynasurge.settings import MODES, Settings

if TYPE_CHECKING:
    from dynasurge.experiments.runner import Evaluation

    Close = Callable[[argparse.Namespace, Evaluation, dict[str, Any]], list[Path]]


def plain_name(dataset: str) -> str:
    """A dataset's name in records: ./prompts.jsonl and prompts.jsonl are one file."""
    return os.path.normpath(dataset)


def plan_of(args: argparse.Namespace, **axes: Any) -> list[Settings]:
    """The grid of the parsed flags. axes: values for those of grid.AXES that are not lists in
    `args`."""
    axes |= {"use_bfs": [False, True] if args.use_bfs else [False]}
    lists: dict[str, Any] = {
        name: axes[name] if name in axes else getattr(args, name, MODES) for name in AXES
    }
    return grid(
        **lists,
        etv=args.etv,
        **{name: getattr(args, name) for name in DEFAULTS if name not in (*AXES, "etv")},
    )


def with_laws(args: argparse.Namespace, plan: list[Settings]) -> tuple[list[Settings], str]:
    """The settings with whole laws, different ones, and where the law is from, in words. Raises
    UsageError."""
    own, source = {}, ""
    if args.generation_config:
        source = f" (what no flag says: {args.generation_config})"
    elif any(settings.T is None or settings.P is None for settings in plan):
        from dynasurge.models.loading import load_generation_config

        own = load_generation_config(args.target, trust_remote_code=args.trust_remote_code)
        source = " (what no flag says: the target's generation config)"
    plan = [settings.under(own) for settings in plan]
    return (distinct(plan) if len(plan) > 1 else plan), source


def evaluate(
    args: argparse.Namespace,
    plan: list[Settings],
    datasets: list[str],
    close: Close,
    *,
    prompt: str | None = None,
    methods: Sequence[str] = (),
    every: int = 0,
) -> int:
    """Check all that is cheap before anything slow, load, run with a progress bar. Returns the exit
    code.

    `close` prints and writes the results: it gets the flags, the finished evaluation and where its
    numbers come from, and returns the files that it wrote. prompt: the only text of the only
    dataset. methods: see experiments/baselines.py. every: see experiments/runner.py. Raises
    UsageError.
    """
    from dynasurge.decoding.tree_room import most_nodes
    from dynasurge.drafting.acceptance_estimates import load_priors
    from dynasurge.experiments.datasets import load_prompts, one_prompt
    from dynasurge.experiments.launch import join
    from dynasurge.experiments.records import RecordFile
    from dynasurge.experiments.row_maker import run_name

    plan, source = with_laws(args, plan)
    for settings in plan:
        settings.check_room(args.prompt_len, most_nodes(settings))
        load_priors(settings.priors)
    if not 1 <= args.min_prompt_len <= args.prompt_len:
        reason = f"outside 1 .. --prompt-len {args.prompt_len}, to which prompts are cut"
        raise UsageError(
            "--min-prompt-len",
            args.min_prompt_len,
            reason,
            f"try --min-prompt-len {args.prompt_len}",
        )
    processes, device = join(args.device, args.device_map)
    output = Path(args.output) if args.output else None
    if processes.count > 1 and output is None:
        raise UsageError(
            "--output",
            None,
            "several processes put their rows in one folder",
            "try --output runs/mine",
        )
    if output is not None and _exists(output) and processes.main and not methods:
        # check the folder before anything is loaded
        runs = {run_name(settings, name, every) for settings in plan for name in datasets}
        RecordFile(output, runs).close()
    processes.wait()
    if prompt is not None:
        data = {name: [one_prompt(prompt)] for name in datasets}
    else:
        data = {name: load_prompts(name, args.start, args.end, chat=args.chat) for name in datasets}

    from tqdm import tqdm

    from dynasurge.experiments import summary
    from dynasurge.experiments.runner import Evaluation
    from dynasurge.experiments.timing import Passes
    from dynasurge.models.pair import load_pair
    from dynasurge.models.threads import Watch

    tell = print if processes.main else _silent
    tell(f"loading target {args.target} and draft {args.draft}", file=sys.stderr)
    pair = load_pair(**pair_options(args) | {"device": device}, device_map=args.device_map)
    if methods:
        from dynasurge.experiments.baselines import baselines

        if not processes.main:  # the first process makes the growmaps that the others read
            processes.wait()
        rules = [False, True] if args.use_bfs else [False]
        plan = [*plan, *baselines(pair, methods, plan, args.B, rules)]
        if processes.main:
            processes.wait()
    tell("preparing steps, and measuring what passes cost, if that is not known", file=sys.stderr)
    how: dict[str, Any] = {"min_prompt_len": args.min_prompt_len, "processes": processes}
    with Evaluation(pair, plan, data, output, every=every, **how) as evaluation:
        silent = None if processes.main else True
        tell(f"law: {evaluation.law}{source}")
        tell(summary.memory(evaluation.engines, evaluation.capture_seconds))
        watch, passes, kept = Watch(), Passes(), 0
        with tqdm(total=len(evaluation), unit="run", disable=silent, dynamic_ncols=True) as bar:
            for done in evaluation.run():
                bar.update()
                if done.result is None:
                    kept += 1
                else:
                    passes.add(done.result.steps)
                bar.set_postfix_str(
                    f"{done.row.label}: {summary.tokens_per_step(done.row):.2f} tokens/step"
                )
                if args.verbose:
                    bar.write(summary.verbose(done.row), file=sys.stdout)
        if not processes.main:
            return 0
        if processes.count == 1 and (line := passes.warning(watch)) is not None:
            print(f"warning: {line}", file=sys.stderr)
        if kept:
            print(f"{kept} of {len(evaluation)} runs were done before, see {output}")
        for line in summary.skipped(evaluation.skipped, data, args.min_prompt_len):
            print(line)
        for line in summary.cut(evaluation.cut, data, args.prompt_len):
            print(line)
        written = close(
            args, evaluation, summary.about(pair, ", ".join(datasets), evaluation.skipped)
        )
    if output is not None:
        print("written: " + ", ".join(str(path) for path in [output / "records.jsonl", *written]))
    return 0


def _silent(*_: object, **__: object) -> None:
    """Print nothing: another process reports."""


def _exists(folder: Path) -> bool:
    try:
        return folder.exists()
    except (OSError, ValueError):  # not a valid name
        return True
