"""Flags that several commands share. Their names are the fields of `Settings`; a mistake costs one
line."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Collection
from typing import Any, NoReturn

from dynasurge.errors import UsageError, meant
from dynasurge.experiments.datasets import DEFAULT_ROWS, HUB_DATASETS
from dynasurge.settings import (
    AUTO_DEPTH,
    DEMO,
    DTYPES,
    ETVS,
    POLICIES,
    STUDY_PROMPT,
    STUDY_ROWS,
    VALUES,
    WIDE,
    Settings,
)

GROWMAP = "growmaps/4x8-tree.pt"
DEFAULTS = {
    field.name: field.default
    for field in dataclasses.fields(Settings)
    if field.name != "method"  # --methods gives it
} | {"prompt_len": STUDY_PROMPT, "M": STUDY_ROWS}


class Parser(argparse.ArgumentParser):
    """argparse with two changes: a mistake costs one line, and flags are never abbreviated."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(
            allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs
        )

    def error(self, message: str) -> NoReturn:
        field, _, reason = message.partition(": ")
        remedy = f"see {self.prog} --help"
        if field == "unrecognized arguments":
            flag = reason.split()[0].partition("=")[0]
            flags = self._option_string_actions if flag.startswith("--") else ()
            remedy = meant(flag, flags, remedy)
        raise UsageError(self.prog, field, reason or "cannot be understood", remedy)


def model_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `load_pair`."""
    add, default = parser.add_argument, "(default: %(default)s)"
    wide = f"{', '.join(WIDE)} (the demo model's function as wide as a LLaMA of that size)"
    own = f"hub name (NAME@REVISION), folder, {DEMO}, {wide} {default}"
    draft = f"draft model, or a head that reads the target (EAGLE-3): {own}"
    add("--draft", default=DEFAULTS["draft"], metavar="NAME", help=draft)
    add("--target", default=DEFAULTS["target"], metavar="NAME", help=f"target model: {own}")
    add(
        "--trust-remote-code",
        action="store_true",
        help="run the code next to a model's weights, if the model needs it",
    )
    add(
        "--self-test",
        action=argparse.BooleanOptionalAction,
        default=True,
        help=f"test after loading whether both models read a tree as they read text {default}",
    )
    dtype = f"auto: bfloat16 if the hardware has it {default}"
    add("--dtype", choices=DTYPES, default=DEFAULTS["dtype"], help=dtype)
    device = "auto (cuda if there is one), cpu, cuda, cuda:1, ..."
    add("--device", default=DEFAULTS["device"], metavar="NAME", help=device)


def pair_options(args: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments of `load_pair` from parsed `model_flags`. (Several processes each
    replace the device.)"""
    names = ("draft", "target", "dtype", "device", "trust_remote_code", "self_test")
    return {name: getattr(args, name) for name in names}


def common_flags(parser: argparse.ArgumentParser, several: Collection[str] = ()) -> None:
    """Add the flags of every command that decodes. Those named in `several` take several values, as
    a list."""

    def add(flag: str, **options: Any) -> None:
        if flag.removeprefix("--") in several:
            first = options["default"]
            many = (
                options["help"]
                .replace("%(default)s", str(first))
                .replace(" (default", "; one or more (default")
            )
            options |= {"default": [first], "nargs": "+", "help": many}
        parser.add_argument(flag, **options)

    number: dict[str, Any] = {"type": int, "metavar": "N"}
    default = "(default: %(default)s)"
    model_flags(parser)
    add(
        "--device-map",
        metavar="HOW",
        help="auto, balanced or sequential: spread a target that is too large for one GPU over this machine's GPUs",
    )
    add(
        "--compile",
        action="store_true",
        help="on a GPU: torch.compile fuses small kernels before steps are captured, which takes two to four minutes",
    )
    own = "(default: as the target's generation config says)"
    add(
        "--T",
        type=float,
        default=DEFAULTS["T"],
        metavar="X",
        help=f"temperature; 0 is greedy; --T with --P overrides the target's config {own}",
    )
    add(
        "--P",
        type=float,
        default=DEFAULTS["P"],
        metavar="X",
        help=f"top-p, in (0, 1]; 1 keeps every token {own}",
    )
    add(
        "--top-k", default=None, help=f"the N likeliest tokens; 0 keeps every token {own}", **number
    )
    least = f"tokens of at least X times the likeliest one's probability; 0 keeps every token {own}"
    add("--min-p", type=float, default=None, metavar="X", help=least)
    penalty = f"divide the scores of tokens that the text has; 1 for none {own}"
    add("--repetition-penalty", type=float, default=None, metavar="X", help=penalty)
    add(
        "--generation-config",
        default=None,
        metavar="FILE",
        help="a generation_config.json in place of the target's own (docs/guides/law.md)",
    )
    add(
        "--chat",
        action="store_true",
        help="prompts are chats: apply the target's chat template to a row's messages, or to its text as the user's turn",
    )
    add(
        "--dataset",
        default="demo",
        metavar="NAME",
        help=f"demo (bundled), {', '.join(HUB_DATASETS)} (streamed from the hub), or a .txt (one prompt a line), .jsonl, "
        f".csv or .parquet file {default}",
    )
    add("--start", default=0, help=f"first prompt, counted from 0 {default}", **number)
    add(
        "--end",
        default=None,
        help=f"one past the last prompt (default: at most {DEFAULT_ROWS} prompts)",
        **number,
    )
    add(
        "--prompt-len",
        default=DEFAULTS["prompt_len"],
        help=f"prompts are cut to N tokens {default}",
        **number,
    )
    short = f"leave out prompts of fewer than N tokens, and count them {default}"
    add("--min-prompt-len", default=1, help=short, **number)
    add(
        "--new-tokens",
        default=DEFAULTS["new_tokens"],
        help=f"generate up to N tokens {default}",
        **number,
    )
    add(
        "--M",
        default=DEFAULTS["M"],
        help=f"cache length: prompt + new tokens + tree must fit {default}",
        **number,
    )
    add(
        "--B",
        type=budget,
        metavar="N",
        default=DEFAULTS["B"],
        help="dTree: at most N drafted nodes a tree, root not counted; auto: as many as pay for their time on this machine "
        f"{default}",
    )
    add(
        "--fill",
        action="store_true",
        help="dTree: use the whole budget, even if a node does not pay for its time",
    )
    add(
        "--values",
        choices=VALUES,
        default=DEFAULTS["values"],
        help="dTree: how slots are valued: learned: from this prompt's own steps; fixed: by the prior that learning starts "
        f"from; own: the draft's probabilities {default}",
    )
    add(
        "--priors",
        metavar="FILE",
        help="dTree: the prior of --values, from `dynasurge calibrate acceptance`; for pairs other than the demo pair "
        "(default: the demo pair's)",
    )
    add(
        "--lookup",
        action=argparse.BooleanOptionalAction,
        default=DEFAULTS["lookup"],
        help=f"dTree: also propose what followed the last tokens earlier in the text {default}",
    )
    add(
        "--max-depth",
        default=None,
        help=f"dTree: at most N levels (default: {AUTO_DEPTH})",
        **number,
    )
    add(
        "--max-children",
        default=DEFAULTS["max_children"],
        help=f"dTree: at most N children a node {default}",
        **number,
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
    add(
        "--seed",
        default=DEFAULTS["seed"],
        help=f"the same seed gives the same text {default}",
        **number,
    )
    add(
        "--output",
        metavar="DIR",
        help="write records.jsonl and the results to this folder; run again to resume",
    )
    add(
        "--verbose",
        action="store_true",
        help="print each prompt's text and acceptance when it is done",
    )


def growmaps_flag(parser: argparse.ArgumentParser) -> None:
    """Add `--growmap` for the commands that run several static trees."""
    shapes = f"sTree's tree shapes, one or more (default: {GROWMAP})"
    parser.add_argument("--growmap", metavar="FILE", nargs="+", default=[GROWMAP], help=shapes)


def budget(text: str) -> int | str:
    """Read a --B: a whole number, or auto."""
    if text != "auto" and not text.lstrip("-").isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is neither a whole number nor auto")
    return text if text == "auto" else int(text)
