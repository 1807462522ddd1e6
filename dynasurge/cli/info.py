"""`dynasurge info`: what an issue report needs. It loads no model and downloads nothing."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import torch

from dynasurge.cli.flags import Parser
from dynasurge.drafting.acceptance_estimates import load_priors
from dynasurge.experiments.provenance import git_commit, processor
from dynasurge.files import cache_folder
from dynasurge.models.demo_pair import DRAFT, TARGET_HUB, TARGET_WHEEL, find_gguf, unpacked_folder
from dynasurge.models.pair import resolve_device, resolve_dtype
from dynasurge.settings import VERSION

PACKAGES = ("torch", "transformers", "accelerate", "datasets", "numpy", "triton", "jupyterlab")


def info_command(arguments: Sequence[str]) -> int:
    """Print a line for each fact; returns the exit code."""
    about = "Versions, device, the pair that ships, caches and curves: paste them into an issue."
    Parser(prog="dynasurge info", description=about).parse_args(arguments)
    found = [*facts()]
    width = max(len(name) for name, _ in found)
    for name, value in found:
        print(f"{name:<{width}}  {value}")
    return 0


def facts() -> Iterator[tuple[str, str]]:
    """Names and values, in the order in which they are printed."""
    commit = git_commit()
    yield "dynasurge", f"{VERSION} ({commit})" if commit else VERSION
    yield "python", f"{platform.python_version()} on {platform.platform()}"
    for package in PACKAGES:
        yield package, _version(package)
    memory = psutil.virtual_memory().total / 2**30
    yield "processor", f"{processor()}, {os.cpu_count()} cores, {memory:.0f} GiB"
    gpus = [torch.cuda.get_device_properties(n) for n in range(torch.cuda.device_count())]
    for gpu in gpus:
        yield "gpu", f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
    if not gpus:
        yield "gpu", "none that torch can use"
    device = resolve_device("auto")
    yield "auto", f"{device.type}, {str(resolve_dtype('auto', device)).removeprefix('torch.')}"
    yield "demo draft", f"{_size(DRAFT)} in the package"
    yield "demo target", _demo_target()
    for rule, curves in load_priors().items():
        yield f"curves of {rule}", "T = " + ", ".join(f"{T:g}" for T in sorted(curves))
    cache = cache_folder()
    yield "cache", f"{cache}, {_size(cache) if cache.is_dir() else 'not made yet'}"
    for kind in ("latency", "growmaps"):
        files = [*(cache / kind).glob("*")]
        yield f"cached {kind}", str(len(files))


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _demo_target() -> str:
    gguf = find_gguf()
    if gguf is None:
        return f"{TARGET_HUB} of the model hub ({TARGET_WHEEL} is not installed)"
    folder = unpacked_folder(gguf)
    return f"{TARGET_WHEEL}, {'unpacked' if folder.is_dir() else 'to be unpacked'} in {folder}"


def _size(folder: Path) -> str:
    total = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return f"{total / 1e6:,.1f} MB"
