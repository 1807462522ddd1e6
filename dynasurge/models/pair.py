"""Pairs: a draft and its target, loaded, tested, and found to fit together.

The demo pair needs no model hub (see models/demo_pair.py). Any other pair is given by hub name or
folder. Both are causal language models that can read a tree, or the draft reads the target's hidden
states (models/feature_draft.py). They are tested (models/compatibility.py,
models/self_test.py), and their vocabularies agree where they overlap (models/vocabulary.py).
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dynasurge.errors import UsageError
from dynasurge.models.compatibility import check_model
from dynasurge.models.draft_loading import load_draft, seat
from dynasurge.models.engine import places
from dynasurge.models.failures import shrinking
from dynasurge.models.loading import load_model
from dynasurge.models.model_changes import pack, restore
from dynasurge.models.prompts import Prompt, chat_ids, is_chat, prompt_ids
from dynasurge.models.self_test import self_test as test_model
from dynasurge.models.threads import choose_threads
from dynasurge.models.vocabulary import shared_tokens
from dynasurge.settings import DEMO, DTYPES

DEVICE_MAPS = (
    "auto",
    "balanced",
    "balanced_low_0",
    "sequential",
)  # maps that transformers knows; it also takes a device


@dataclass(frozen=True, kw_only=True, repr=False)
class Pair:
    """A draft, its target, and the target's tokenizer, both models in one dtype and in eval mode.
    The draft is on the target's device (the first one, if the target is spread over several).
    shared: bool [V], the target's tokens that the draft may propose; None for all."""

    draft: PreTrainedModel
    target: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    draft_name: str
    target_name: str
    shared: torch.Tensor | None = None

    def __repr__(self) -> str:
        sizes = [f"{model.num_parameters() / 1e6:,.1f} M" for model in (self.draft, self.target)]
        dtype = str(self.target.dtype).removeprefix("torch.")
        said = f"{self.draft_name} ({sizes[0]}) -> {self.target_name} ({sizes[1]} parameters)"
        return f"<Pair {said}, {dtype} on {self.target.device}>"

    @property
    def vocab(self) -> int:
        """How many token ids the target knows."""
        return int(self.target.config.get_text_config().vocab_size)

    def encode(self, prompt: Prompt, *, chat: bool = False, limit: int | None = None) -> list[int]:
        """The token ids of one prompt: text, ids, or what a tokenizer returns. chat: whether it is
        messages, or a text as the user's turn, for the target's chat template; token ids are taken as
        they are. limit: how many tokens a text may have; the rest is cut off (in a chat: of the
        last message). Raises UsageError."""
        if chat and (isinstance(prompt, str) or is_chat(prompt)):
            return chat_ids(self.tokenizer, self.target_name, prompt, limit)
        ids = prompt_ids(self.tokenizer, self.vocab, prompt)
        return ids[:limit] if isinstance(prompt, str) else ids

    @property
    def generation_config(self) -> dict[str, Any]:
        """What the target's generation config says: its entries that are not None."""
        config = self.target.generation_config
        entries = config.to_dict() if config is not None else {}
        return {name: value for name, value in entries.items() if value is not None}

    def restore(self) -> None:
        """Undo all lasting changes to both models (models/model_changes.py lists them). After this,
        do not use engines and sessions of this pair."""
        restore(self.target)
        restore(self.draft)

    @property
    def eos(self) -> frozenset[int]:
        """The tokens that end a text, as `target.generate` would read them. Raises UsageError if
        the generation config has no valid ids."""
        ids = self.generation_config.get("eos_token_id")
        return token_ids(ids, f"--target {self.target_name}: eos_token_id")


def load_pair(
    draft: str = DEMO,
    target: str = DEMO,
    *,
    dtype: str | torch.dtype = "auto",
    device: str = "auto",
    device_map: str | None = None,
    trust_remote_code: bool = False,
    self_test: bool = True,
) -> Pair:
    """Load a pair by hub name (also `name@revision`) or folder; `demo` names the pair that ships,
    `demo-7b` its target, or its draft, at the cost of a larger one (models/widened.py).

    dtype: auto, float32, bfloat16 or float16, or torch's own; auto is bfloat16 if the hardware
    computes in it, otherwise float32. device: auto (cuda if there is one, otherwise cpu), cpu,
    cuda, cuda:1, ... device_map: how transformers spreads a target that is too large for one GPU:
    auto, balanced, sequential. trust_remote_code: whether code next to the weights may run.
    self_test: whether both models must read a test tree (models/self_test.py). On a CPU
    the first call chooses the number of threads (models/threads.py). Raises UsageError if a model
    cannot be loaded or cannot read a tree, or if the two do not fit.
    """
    if device_map is not None and device_map not in DEVICE_MAPS:
        resolve_device(device_map, "--device-map")
    where = resolve_device(device)
    if where.type == "cuda" and where.index is not None:
        torch.cuda.set_device(where)  # our own kernels and events use this device
    if where.type == "cpu":
        choose_threads()
    number = resolve_dtype(dtype, where)
    target_model, tokenizer = load_target(
        target, number, device_map, device=where, trust_remote_code=trust_remote_code
    )
    draft_model, draft_tokenizer = load_draft(
        draft, target_model, number, device=where, trust_remote_code=trust_remote_code
    )
    shared = check_pair(draft, draft_model, draft_tokenizer, target, target_model, tokenizer)
    with shrinking("model"):
        if device_map is None:
            torch.nn.Module.to(target_model, where)
        elif len(places(target_model)) > 1 and {"cpu", "disk"} & places(target_model):
            reason = f"{target} does not fit on the GPUs together"
            raise UsageError(
                "--device-map", device_map, reason, "use more or larger GPUs, or --dtype bfloat16"
            )
        reads_features = seat(draft_model, target_model)
        for flag, name, model in (
            ("--draft", draft, draft_model),
            ("--target", target, target_model),
        ):
            model.train(False)
            pack(model)
            if self_test and not (reads_features and model is draft_model):
                test_model(flag, name, model)
    pair = Pair(
        draft=draft_model,
        target=target_model,
        tokenizer=tokenizer,
        draft_name=draft,
        target_name=target,
        shared=shared,
    )
    _ = pair.eos  # so a bad one is refused now
    return pair


def load_target(
    name: str,
    dtype: torch.dtype,
    device_map: str | None = None,
    *,
    device: torch.device | None = None,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a target and its tokenizer. Arguments: see `load_pair`. Raises UsageError, also if there
    is no tokenizer."""
    model, tokenizer = load_model(
        "--target", name, dtype, device_map, device=device, trust_remote_code=trust_remote_code
    )
    if tokenizer is None:
        raise UsageError(
            "--target", name, "has no tokenizer", "use a folder or hub name with tokenizer files"
        )
    return model, tokenizer


def check_pair(
    draft: str,
    draft_model: PreTrainedModel,
    draft_tokenizer: PreTrainedTokenizerBase | None,
    target: str,
    target_model: PreTrainedModel,
    target_tokenizer: PreTrainedTokenizerBase | None,
) -> torch.Tensor | None:
    """The tokens that the draft may propose, bool [V]; None for all (see models/vocabulary.py).
    Embedding tables may differ in size (models/engine.py). Raises UsageError unless both models can
    read trees and their vocabularies agree."""
    check_model("--draft", draft, draft_model)
    check_model("--target", target, target_model)
    sizes = [model.config.get_text_config().vocab_size for model in (draft_model, target_model)]
    return shared_tokens(draft, draft_tokenizer, sizes[0], target, target_tokenizer, sizes[1])


def token_ids(ids: object, field: str) -> frozenset[int]:
    """The token ids that an entry of a generation config names: none, one or several. Raises
    UsageError if it names something else."""
    ends = [] if ids is None else [ids] if isinstance(ids, int) else ids
    if not isinstance(ends, list | tuple) or not all(isinstance(end, int) for end in ends):
        raise UsageError(field, ids, "is no token id", "correct that generation config")
    return frozenset(ends)


def resolve_device(device: str, flag: str = "--device") -> torch.device:
    """The torch device of a name; `auto` is cuda if there is one. Raises UsageError for a device
    that this machine does not have."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        where = torch.device(device)
        torch.zeros(1, device=where).item()
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        raise UsageError(
            flag, device, "not on this machine", f"use {flag} cpu, or leave it out"
        ) from error
    return where


def resolve_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """The torch dtype of a name; `auto` is bfloat16 if the hardware computes in it, otherwise
    float32. Raises UsageError for an unknown name."""
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise UsageError("--dtype", name, "unknown", f"choose one of {', '.join(DTYPES)}")
    if name != "auto":
        chosen: torch.dtype = getattr(torch, name)
        return chosen
    if device.type == "cuda":
        return (
            torch.bfloat16
            if torch.cuda.is_bf16_supported(including_emulation=False)
            else torch.float32
        )
    # oneDNN reports bfloat16 on any x86 processor with AVX-512. Without these it emulates it, three
    # times slower.
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    native |= platform.machine() not in ("x86_64", "AMD64")
    return (
        torch.bfloat16 if native and torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32
    )
