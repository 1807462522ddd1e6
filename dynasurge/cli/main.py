"""The command: `main.py`, `python -m dynasurge` and `dynasurge` all call `main`.

    dynasurge [flags]                 decode a dataset in one mode (decode.py)
    dynasurge compare [flags]         the same prompts through auto, sTree and dTree, interleaved (decode.py)
    dynasurge sweep [flags]           a grid of settings, temperatures, seeds and datasets (sweep.py)
    dynasurge growmap SHAPE FILE      write a static tree shape; optimise, show and draw one (growmap.py)
    dynasurge calibrate               measure the curves of dynamic trees, here or for a pair (calibrate.py)
    dynasurge audit RULE              is a rule, a drawing or a step lossless? (audit.py)
    dynasurge table FOLDER            print records as Markdown (table.py)
    dynasurge publish FOLDER          measure what figures need, publish the numbers (publish.py)
    dynasurge figures FOLDER          run the notebooks on published numbers (figures.py)
    dynasurge info                    versions, device, caches: for an issue report (info.py)
    dynasurge --version               the version

Exit codes: 0 done; 1 an audit found a difference; 2 a mistake that the user can correct, reported in
one line; 130 stopped by Ctrl-C (run again to go on).
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import NoReturn

from dynasurge.errors import UsageError
from dynasurge.settings import VERSION

RESUME = "finished prompts are kept, run the same command to go on"
LOST = "nothing was kept; with --output DIR a stopped run goes on where it was"
# The word: its module, and the line after Ctrl-C (None: it depends on --output). A module is
# imported only if its command runs, because some load torch.
COMMANDS = {
    "compare": ("decode", None),
    "sweep": ("sweep", RESUME),
    "growmap": ("growmap", "nothing was written"),
    "calibrate": ("calibrate", "nothing was written"),
    "audit": ("audit", "nothing was printed"),
    "table": ("table", "nothing was printed"),
    "publish": ("publish", "nothing was written"),
    "figures": ("figures", "figures drawn so far are kept"),
    "info": ("info", "nothing was printed"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments == ["--version"]:
        print(f"dynasurge {VERSION}")
        return 0
    word = next(iter(arguments), "")
    if word and not word.startswith("-") and word not in COMMANDS:
        return guarded(lambda: _unknown(word), "nothing was done")
    word, arguments = (word, arguments[1:]) if word in COMMANDS else ("decode", arguments)
    module, stopped = COMMANDS.get(word, ("decode", None))
    if stopped is None:
        stopped = RESUME if any(a.partition("=")[0] == "--output" for a in arguments) else LOST
    command = getattr(import_module(f"dynasurge.cli.{module}"), f"{word}_command")
    return guarded(lambda: command(arguments), stopped)


def _unknown(word: str) -> NoReturn:
    raise UsageError("command", word, "unknown", f"choose one of {', '.join(COMMANDS)}")


def guarded(command: Callable[[], int], stopped: str) -> int:
    """Run a command and return its exit code. A mistake that the user can fix costs one line, and
    so does Ctrl-C: `stopped` says what was kept."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _note
            code = command()
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader of the output stopped, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nstopped; {stopped}", file=sys.stderr)
        return 130


def _note(message: Warning | str, *_: object, **__: object) -> None:
    """Print a warning in one line too."""
    print(f"note: {message}", file=sys.stderr)
