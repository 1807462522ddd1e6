"""Command line of the distillation: ``python -m tools.train_draft COMMAND``.

``sample`` and both ways to train resume when they are started again with the same arguments. Bad
input ends with one line on standard error and exit code 2.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dynasurge.cli.flags import Parser
from dynasurge.cli.main import guarded
from dynasurge.errors import UsageError, at_least, flag_of
from dynasurge.files import write_whole
from dynasurge.models.pair import resolve_device
from tools.train_draft.settings import DistillSettings, FeatureSettings

COMMANDS = {
    "sample": "let the target write the training sequences",
    "train": "train a draft on them",
    "train-features": "train a draft that reads the target's hidden states",
    "evaluate": "measure a draft's overlap with the target",
}
COUNTS = ("layers", "mlp", "max_tokens", "batch_rows", "warmup_steps", "loss_chunk")
SWITCHES = {
    "inject": "the past's keys come from features",
    "carry": "deeper levels read what their parents carried",
    "blind": "features are zeros, as a control",
}
CHOICES = {
    "residual": ("features", "both"),
    "loss": ("tv", "lk"),
    "optimizer": ("muon", "adamw"),
}
RATES = ("muon_lr", "adam_lr", "tv_start", "tv_end_weight", "decay_share")


def build_parser() -> Parser:
    """All commands and flags. Every field of the settings that a command uses is a flag with the
    same name."""
    parser = Parser(prog="python -m tools.train_draft", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)
    for name, help_line in COMMANDS.items():
        command = commands.add_parser(name, help=help_line)
        add = command.add_argument
        defaults = FeatureSettings() if name == "train-features" else DistillSettings()

        def add_fields(*names: str, add: Any = add, defaults: DistillSettings = defaults) -> None:
            for field in names:
                value = getattr(defaults, field)
                add(flag_of(field), type=type(value), default=value)

        add("--target", default="demo", help="demo, or folder or hub name (default: demo)")
        add("--device", default="auto", help="auto (cuda if there is one), cpu, cuda, cuda:1, ...")
        optional = argparse.BooleanOptionalAction
        add("--compile", action=optional, help="torch.compile (default: on CUDA)")
        add_fields("seed")
        if name == "sample":
            add("--out", type=Path, required=True, help="folder for the shards")
            add_fields("sample_tokens", "rows", "length")
            continue
        files = "JSONL files with text or ids"
        required = name == "evaluate"
        add("--prompts", type=Path, nargs="+", default=[], required=required, help=files)
        add("--temperatures", type=float, nargs="+", default=[0.6, 1.0])
        add("--prompt-tokens", type=int, default=128)
        add("--new-tokens", type=int, default=64)
        if name == "evaluate":
            add("--draft", type=Path, required=True, help="folder with the draft")
            add("--out", type=Path, help="also write the numbers to this file, as JSON")
            continue
        add("--samples", type=Path, required=True, help="folder that `sample` wrote")
        add("--out", type=Path, required=True, help="folder for checkpoint, log and draft")
        add("--save-every", type=int, default=1000, help="steps between checkpoints")
        add("--eval-every", type=int, default=0, help="steps between evaluations; 0: never")
        add_fields(*COUNTS, *RATES)
        if isinstance(defaults, FeatureSettings):
            add("--taps", type=int, nargs="+", default=defaults.taps, help="layers that are read")
            for name, what in SWITCHES.items():
                value = getattr(defaults, name)
                add(flag_of(name), action=optional, default=value, help=what)
            for name, names in CHOICES.items():
                add(flag_of(name), choices=names, default=getattr(defaults, name))
            further = "folder of a draft to train further"
            add("--init", type=lambda path: path.rstrip("/"), default="", help=further)
            add_fields("depths", "depth_decay", "draft_vocab", "loss_every")
        else:
            add_fields("hidden", "heads", "kv_heads")
            states = "keep the target's hidden states in memory"
            add("--cache-target", action="store_true", help=states)
    return parser


def settings_of(args: argparse.Namespace) -> DistillSettings:
    """The settings of the command line. Raises UsageError."""
    kind = FeatureSettings if args.command == "train-features" else DistillSettings
    names = {field for field in kind.__dataclass_fields__ if hasattr(args, field)}
    return kind.from_dict({name: getattr(args, name) for name in names})


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
    begun = args.command == "train-features" and (args.out / "checkpoint.pt").exists()
    for name in ("draft",) if begun else ("draft", "init"):
        folder = getattr(args, name, None)
        if folder and not (Path(folder) / "config.json").is_file():
            remedy = "give a folder that a training command wrote"
            raise UsageError(flag_of(name), folder, "holds no config.json", remedy)


def run(argv: Sequence[str] | None) -> int:
    """Run one command. Returns the exit code."""
    args = build_parser().parse_args(argv)
    check(args)
    settings = settings_of(args)
    args.rank, args.world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if args.world > 1 and torch.cuda.is_available():  # launched by torchrun: each has its own GPU
        args.device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(args.device)  # graphs are captured on the current one
    args.device = str(resolve_device(args.device))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    from tools.train_draft import commands  # slow to import

    if args.world > 1 and args.command.startswith("train"):
        torch.distributed.init_process_group()
    results = getattr(commands, args.command.partition("-")[0])(args, settings)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
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
