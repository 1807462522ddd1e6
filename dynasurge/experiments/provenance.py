"""Where numbers come from: the versions, the machine and the commit that made a row. A reader needs
them to repeat or to doubt it."""

from __future__ import annotations

import datetime
import functools
import importlib.metadata
import platform
import subprocess
from pathlib import Path

import torch

from dynasurge.models.memory_floor import floor_seconds
from dynasurge.models.pair import Pair
from dynasurge.settings import VERSION

PACKAGES = ("torch", "transformers")


def provenance(pair: Pair) -> dict[str, str | None]:
    """device, dtype, floor_ms, date, python, the versions of dynasurge and of each of PACKAGES, and
    commit (see `git_commit`). floor_ms: a token's milliseconds at the memory floor of the target
    (models/memory_floor.py)."""
    device = pair.target.device
    count = torch.get_num_threads()
    threads = f"{count} thread{'s' * (count > 1)} of {processor()}"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else threads
    return {
        "device": name,
        "dtype": str(pair.target.dtype).removeprefix("torch."),
        "floor_ms": f"{1e3 * floor_seconds(pair.target):.4g}",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "python": platform.python_version(),
        "dynasurge": VERSION,  # a clone may not be installed
        **{package: importlib.metadata.version(package) for package in PACKAGES},
        "commit": git_commit(),
    }


@functools.cache
def processor() -> str:
    """The name of this machine's processor, or its type if it has no name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(filter(None, named), platform.processor() or platform.machine())


@functools.cache
def git_commit() -> str | None:
    """The commit of the clone that this package runs from, with `-dirty` after it if files differ;
    None without a clone."""
    try:
        _git(
            "ls-files", "--error-unmatch", __file__
        )  # an installed package may be inside another project's clone
        return _git("describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*arguments: str) -> str:
    folder = Path(__file__).parent
    done = subprocess.run(
        ["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=30, check=True
    )
    return done.stdout.strip()
