"""Command line of the distillation: ``python -m tools.train_draft {sample,train,evaluate}``.

``sample`` and ``train`` resume when they are started again with the same arguments. Bad input ends
with one line on standard error and exit code 2.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dynasurge.cli.flags import Parser
from dynasurge.cli.main import guarded
from dynasurge.errors import UsageError, at_least, flag_of
from dynasurge.files import write_whole
from dynasurge.models.pair import resolve_device
from tools.train_draft.settings import DistillSettings


def build_parser() -> Parser:
    """All commands and flags. Every field of ``DistillSettings`` that a command uses is a flag with
    the same name."""
    parser = Parser(prog="python -m tools.train_draft", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)
    defaults = DistillSettings()
    for name, help_line in (
        ("sample", "let the target write the training sequences"),
        ("train", "train a draft on them"),
        ("evaluate", "measure a draft's overlap with the target"),
    ):
        command = commands.add_parser(name, help=help_line)
        command.add_argument(
            "--target",
            default="demo",
            help="demo, or folder or hub name of the target (default: demo)",
        )
        command.add_argument(
            "--device", default="auto", help="auto (cuda if there is one), cpu, cuda, cuda:1, ..."
        )
        command.add_argument(
            "--compile",
            action=argparse.BooleanOptionalAction,
            help="torch.compile (default: on CUDA)",
        )
        command.add_argument("--seed", type=int, default=defaults.seed)
        if name == "sample":
            command.add_argument("--out", type=Path, required=True, help="folder for the shards")
            flags: tuple[str, ...] = ("sample_tokens", "rows", "length")
        elif name == "train":
            command.add_argument(
                "--samples", type=Path, required=True, help="folder that `sample` wrote"
            )
            command.add_argument(
                "--out", type=Path, required=True, help="folder for checkpoint, log and draft"
            )
            command.add_argument(
                "--save-every", type=int, default=1000, help="steps between checkpoints"
            )
            command.add_argument(
                "--eval-every", type=int, default=0, help="steps between evaluations; 0: never"
            )
            command.add_argument(
                "--cache-target",
                action="store_true",
                help="keep the target's hidden states in memory",
            )
            flags = (
                "max_tokens",
                "batch_rows",
                "hidden",
                "layers",
                "heads",
                "kv_heads",
                "mlp",
                "warmup_steps",
            )
            for rate in ("muon_lr", "adam_lr", "tv_start", "tv_end_weight", "decay_share"):
                command.add_argument(flag_of(rate), type=float, default=getattr(defaults, rate))
        else:
            command.add_argument("--draft", type=Path, required=True, help="folder with the draft")
            command.add_argument(
                "--out", type=Path, help="also write the numbers to this file, as JSON"
            )
            flags = ()
        if name != "sample":
            command.add_argument(
                "--prompts",
                type=Path,
                nargs="+",
                default=[],
                required=name == "evaluate",
                help="JSONL files with text or ids",
            )
            command.add_argument("--temperatures", type=float, nargs="+", default=[0.6, 1.0])
            command.add_argument("--prompt-tokens", type=int, default=128)
            command.add_argument("--new-tokens", type=int, default=64)
        for flag in flags:
            command.add_argument(flag_of(flag), type=int, default=getattr(defaults, flag))
    return parser


def settings_of(args: argparse.Namespace, **extra: Any) -> DistillSettings:
    """The settings of the command line. Raises UsageError."""
    names = {field for field in DistillSettings.__dataclass_fields__ if hasattr(args, field)}
    return DistillSettings(**{name: getattr(args, name) for name in names}, **extra)


def check(args: argparse.Namespace) -> None:
    """Raise UsageError for mistakes that can be found before anything is loaded."""
    for temperature in getattr(args, "temperatures", []):
        if temperature <= 0:
            raise UsageError(
                "--temperatures", temperature, "is not above 0", "try --temperatures 0.6 1"
            )
    for name, example in (("prompt_tokens", 128), ("new_tokens", 64), ("save_every", 1000)):
        at_least(name, getattr(args, name, example), 1, example)
    for path in getattr(args, "prompts", []):
        if not path.is_file():
            raise UsageError("--prompts", path, "does not exist", "give a JSONL file")
    if args.command == "evaluate" and not (args.draft / "config.json").is_file():
        raise UsageError(
            "--draft", args.draft, "holds no config.json", "give a folder that train wrote"
        )


def run(argv: Sequence[str] | None) -> int:
    """Run one command. Returns the exit code."""
    args = build_parser().parse_args(argv)
    check(args)
    settings = settings_of(args)
    args.device = str(resolve_device(args.device))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    from tools.train_draft import commands  # slow to import

    results = getattr(commands, args.command)(args, settings)
    if args.command == "evaluate":
        text = json.dumps(results, indent=1)
        print(text)
        if args.out is not None:
            args.out.parent.mkdir(parents=True, exist_ok=True)
            with write_whole(args.out) as partial:
                partial.write_text(text + "\n", encoding="utf-8")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 2 bad input, 130 stopped."""
    return guarded(
        lambda: run(argv), "shards and checkpoints are kept, run the same command to go on"
    )


if __name__ == "__main__":
    sys.exit(main())
