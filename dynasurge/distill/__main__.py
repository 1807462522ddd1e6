"""Command line of the distillation: ``python -m dynasurge.distill {sample,train,evaluate}``.

``sample`` and ``train`` resume by themselves when they are started again with the same arguments. Bad input ends with
one line on standard error and exit code 2.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch

from dynasurge.distill.settings import DistillSettings
from dynasurge.files import write_whole

log = logging.getLogger("dynasurge.distill")


class Parser(argparse.ArgumentParser):
    """Argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """One line on standard error, exit code 2."""
        self.exit(2, f"{self.prog}: {message}\n")


def build_parser() -> Parser:
    """All commands and flags; every field of ``DistillSettings`` that a command uses is a flag with the same name."""
    parser = Parser(prog="python -m dynasurge.distill", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)
    defaults = DistillSettings()
    for name, help_line in (
        ("sample", "let the target write the training sequences"),
        ("train", "train a draft on them"),
        ("evaluate", "measure a draft's overlap with the target"),
    ):
        command = commands.add_parser(name, help=help_line, allow_abbrev=False)
        command.add_argument(
            "--target", default="demo", help="demo, or folder or hub name of the target (default: demo)"
        )
        command.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
        command.add_argument(
            "--compile", action=argparse.BooleanOptionalAction, help="torch.compile (default: on CUDA)"
        )
        command.add_argument("--seed", type=int, default=defaults.seed)
        if name == "sample":
            command.add_argument("--out", type=Path, required=True, help="folder for the shards")
            flags: tuple[str, ...] = ("sample_tokens", "rows", "length")
        elif name == "train":
            command.add_argument("--samples", type=Path, required=True, help="folder that `sample` wrote")
            command.add_argument("--out", type=Path, required=True, help="folder for checkpoint, log and draft")
            command.add_argument("--save-every", type=int, default=1000, help="steps between checkpoints")
            command.add_argument("--eval-every", type=int, default=0, help="steps between evaluations; 0: never")
            command.add_argument(
                "--cache-target", action="store_true", help="keep the target's hidden states in memory"
            )
            flags = ("max_tokens", "batch_rows", "hidden", "layers", "heads", "kv_heads", "mlp", "warmup_steps")
            for rate in ("muon_lr", "adam_lr", "tv_start", "tv_end_weight", "decay_share"):
                command.add_argument("--" + rate.replace("_", "-"), type=float, default=getattr(defaults, rate))
        else:
            command.add_argument("--draft", type=Path, required=True, help="folder with the draft")
            command.add_argument("--out", type=Path, help="write the numbers as JSON here too")
            flags = ()
        if name != "sample":
            command.add_argument("--prompts", type=Path, nargs="+", default=[], help="JSONL files with text or ids")
            command.add_argument("--temperatures", type=float, nargs="+", default=[0.6, 1.0])
            command.add_argument("--prompt-tokens", type=int, default=128)
            command.add_argument("--new-tokens", type=int, default=64)
        for flag in flags:
            command.add_argument("--" + flag.replace("_", "-"), type=int, default=getattr(defaults, flag))
    return parser


def settings_of(args: argparse.Namespace, **extra: Any) -> DistillSettings:
    """The settings named on the command line."""
    names = {field for field in DistillSettings.__dataclass_fields__ if hasattr(args, field)}
    return DistillSettings(**{name: getattr(args, name) for name in names}, **extra)


def check(args: argparse.Namespace) -> None:
    """Refuse what can be refused before anything is loaded."""
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"--device is {args.device}, but no CUDA device is visible: give --device cpu")
    for path in getattr(args, "prompts", []):
        if not path.is_file():
            raise ValueError(f"--prompts is {path}, which does not exist: give a JSONL file")
    for temperature in getattr(args, "temperatures", []):
        if temperature <= 0:
            raise ValueError(f"--temperatures is {temperature:g}: give values above 0")
    for flag in ("prompt_tokens", "new_tokens", "save_every"):
        if getattr(args, flag, 1) < 1:
            raise ValueError(f"--{flag.replace('_', '-')} is {getattr(args, flag)}: give a whole number of at least 1")
    if args.command == "train" and not list(args.samples.glob("shard-*.npy")):
        raise ValueError(f"--samples is {args.samples}, which holds no shard-*.npy: run the sample command first")
    if args.command == "evaluate" and not args.prompts:
        raise ValueError("--prompts is missing: give at least one JSONL file")
    if args.command == "evaluate" and not (args.draft / "config.json").is_file():
        raise ValueError(f"--draft is {args.draft}, which holds no config.json: give a folder that train wrote")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 on success, 2 on bad input."""
    args = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    from dynasurge.distill import commands

    try:
        check(args)
        settings = settings_of(args)
        results = getattr(commands, args.command)(args, settings)
    except (ValueError, FileNotFoundError) as error:
        message = str(error).splitlines()[0] if str(error) else type(error).__name__
        sys.stderr.write(f"python -m dynasurge.distill {args.command}: {message}\n")
        return 2
    if args.command == "evaluate":
        text = json.dumps(results, indent=1)
        sys.stdout.write(text + "\n")
        if args.out is not None:
            args.out.parent.mkdir(parents=True, exist_ok=True)
            with write_whole(args.out) as partial:
                partial.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
