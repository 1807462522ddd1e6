"""Where numbers come from: the versions, the machine and the commit that made a row, so that it can be repeated or
distrusted."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
import subprocess
from pathlib import Path

import torch

from dynasurge.models import Pair

PACKAGES = ("dynasurge", "torch", "transformers")


def provenance(pair: Pair) -> dict[str, str | None]:
    """device, dtype, python, the version of each of PACKAGES, and commit (see `git_commit`)."""
    device = pair.target.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    return {
        "device": name,
        "dtype": str(pair.target.dtype).removeprefix("torch."),
        "python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in PACKAGES},
        "commit": git_commit(),
    }


@functools.cache
def git_commit() -> str | None:
    """The commit of the clone that this package runs from, `-dirty` behind it if files differ; None without a clone."""
    try:
        _git("ls-files", "--error-unmatch", __file__)  # an installed package may lie in a clone of something else
        return _git("describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*arguments: str) -> str:
    folder = Path(__file__).parent
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=30, check=True)
    return done.stdout.strip()
