"""Trees inside `model.generate`: a loop for transformers' `custom_generate`.

    target.generate(**inputs, max_new_tokens=64, custom_generate=dynasurge.custom_generate("path/of/draft", B=16))

`generate` prepares everything as it always does: prompt, generation config, stopping criteria,
streamer. Our loop then decodes with a draft's trees instead of token by token. It returns what
`generate` returns, with the same distribution, or the same text if `do_sample` is off. Its random
numbers come from torch's own generator, so `torch.manual_seed` names the text.

A tree step emits several tokens at once. The loop passes them to the stopping criteria and the
streamer one at a time and drops what follows a stop, so they see no difference. Logits processors
(top-k, which `generate` may set by default; penalties; a user's own) change the target's
distribution at each node as they would if the node's path were text (models/processors.py).
"""

from __future__ import annotations

import dataclasses
import inspect
import threading
from typing import Any, cast

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteriaList,
)
from transformers.generation.utils import GenerateDecoderOnlyOutput

from dynasurge.decoding.engines import Engines
from dynasurge.decoding.session import Session
from dynasurge.decoding.tree_room import most_nodes
from dynasurge.errors import UsageError
from dynasurge.generation_config import check_config
from dynasurge.models.attention_masks import layer_kinds
from dynasurge.models.compatibility import CACHES, check_model, rope_switch
from dynasurge.models.draft_loading import load_draft, seat
from dynasurge.models.law import Law, law_of
from dynasurge.models.pair import Pair, check_pair
from dynasurge.models.processors import processed
from dynasurge.models.self_test import self_test
from dynasurge.settings import DEMO, Settings, settings_of

GENERATES_OWN = {  # fields of Settings that `generate` decides, and where the user sets each
    "T": "temperature=",
    "P": "top_p=",
    "top_k": "top_k=",
    "min_p": "min_p=",
    "repetition_penalty": "repetition_penalty=",
    "generation_config": "generation_config=",
    "chat": "tokenizer.apply_chat_template",
    "new_tokens": "max_new_tokens=",
    "prompt_len": "the prompt itself",
    "seed": "torch.manual_seed",
    "M": "max_new_tokens=",
    "target": "the model whose generate it is",
    "dtype": "from_pretrained",
    "device": "model.to",
    "device_map": "from_pretrained",
}
OUTPUTS = ("output_attentions", "output_hidden_states")  # that trees do not have
HARMLESS = {
    *CACHES,
    "position_ids",
    "attention_mask",
    "use_cache",
    "logits_to_keep",
}  # but see `_refuse_inputs`


def custom_generate(draft: str | PreTrainedModel = DEMO, **settings: Any) -> TreeGenerate:
    """The object to pass to `model.generate(custom_generate=...)`.

    draft: a hub name, a folder or a loaded model that shares the target's vocabulary; `demo` fits
    the demo target. Keyword arguments are fields of `Settings`: `B` or `growmap`, `mode`, `policy`,
    `use_bfs`, ... Keep the result: later calls reuse its models and caches. Raises UsageError for a
    wrong setting, and for one that `generate` sets with its own argument.
    """
    for name, word in GENERATES_OWN.items():
        if name in settings:
            raise UsageError(
                name, settings[name], "is for generate to set", f"leave it out here, and use {word}"
            )
    name = draft if isinstance(draft, str) else str(draft.name_or_path) or type(draft).__name__
    return TreeGenerate(draft, settings_of({"draft": name} | settings))


class TreeGenerate:
    """The loop that `generate` calls; `custom_generate` makes it."""

    def __init__(self, draft: str | PreTrainedModel, settings: Settings) -> None:
        self._draft, self._settings = draft, settings
        most_nodes(settings)  # so a bad growmap is refused now
        self._pair: Pair | None = None
        self._engines: Engines | None = None
        self._room = 0  # tokens of text that the engines hold
        self._fits: tuple[
            Any, ...
        ] = ()  # what the pair depends on: the target's dtype, device, vocabulary, ...
        self._owner: int | None = None  # the thread that decodes with it
        self._lock = threading.Lock()

    @property
    def __signature__(self) -> inspect.Signature:
        """The signature of a call. Raises UsageError for stop strings.

        `generate` reads the signature before it builds stopping criteria. Stop strings need a
        tokenizer, which `generate` does not keep for a custom loop; it would fail there with an
        unhelpful line. So they are refused here.
        """
        stop_strings = _asked_for_stop_strings()
        if stop_strings:
            reason = "generate hands no tokenizer to a custom_generate"
            remedy = "pass stopping_criteria=[StopStringCriteria(tokenizer, stop_strings)], of transformers"
            raise UsageError("stop_strings", stop_strings, reason, remedy)
        return inspect.signature(self.__call__)

    def __getstate__(self) -> dict[str, Any]:
        """The state of a copy, which gets its own lock."""
        return {
            name: value for name, value in vars(self).items() if name not in ("_lock", "_owner")
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.Lock(), _owner=None)

    def __call__(
        self,
        model: PreTrainedModel,
        input_ids: torch.Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **model_kwargs: Any,
    ) -> torch.Tensor | GenerateDecoderOnlyOutput:
        """Decode one prompt, `num_return_sequences` times. input_ids: int64 [1, n], repeated so
        often. Returns int64 [1, n + new], padded if texts differ in length, inside a
        GenerateDecoderOnlyOutput if the config says so. Its logits and scores are of one more pass
        over the finished texts.

        Calls from several threads take turns. Raises UsageError for arguments that trees do not
        support.
        """
        streamer, assistant = _callers("streamer", "assistant_model")
        check_model("--target", str(model.name_or_path) or type(model).__name__, model)
        _refuse_config(generation_config, assistant, streamer)
        _refuse_inputs(input_ids, model_kwargs, generation_config)
        known = model.config.get_text_config().vocab_size
        if not 0 <= int(input_ids.min()) <= int(input_ids.max()) < known:
            raise UsageError(
                "input_ids",
                int(input_ids.max()),
                f"the model knows ids 0 to {known - 1}",
                "fix the prompt",
            )
        if self._owner == threading.get_ident():
            raise UsageError(
                "custom_generate",
                "in use",
                "it is decoding another text",
                "make another one for this text",
            )
        with self._lock:
            self._owner = threading.get_ident()
            try:
                return self._decode(
                    model,
                    input_ids,
                    stopping_criteria,
                    generation_config,
                    streamer,
                    logits_processor,
                )
            finally:
                self._owner = None

    def _decode(
        self,
        model: PreTrainedModel,
        input_ids: torch.Tensor,
        stopping_criteria: StoppingCriteriaList,
        config: GenerationConfig,
        streamer: Any,
        processors: LogitsProcessorList,
    ) -> torch.Tensor | GenerateDecoderOnlyOutput:
        prompt, count = input_ids.shape[1], len(input_ids)
        law = law_of(bool(config.do_sample), processors)
        session = self._session(model, prompt, config.max_length, law)
        rows = []
        for number in range(count):
            text = input_ids[number : number + 1]
            for token in (
                token
                for step in session.stream(text[0].tolist(), index=number, eos=frozenset())
                for token in step.emitted
            ):
                new = torch.tensor([token], device=input_ids.device)
                text = torch.cat([text, new[None]], dim=1)
                if streamer is not None:
                    streamer.put(new.cpu())
                if bool(stopping_criteria(text, None).all()):
                    break
            rows.append(text[0])
        if streamer is not None:
            streamer.end()
        texts = pad_sequence(rows, batch_first=True, padding_value=_pad(config))
        if not config.return_dict_in_generate:
            return texts
        output: Any = GenerateDecoderOnlyOutput(sequences=cast(torch.LongTensor, texts))
        if config.output_logits or config.output_scores:
            logits = _logits(model, texts, prompt)
            if config.output_logits:
                output.logits = logits
            if config.output_scores:
                output.scores = tuple(
                    _scores(processors, texts[:, : prompt + n], own) for n, own in enumerate(logits)
                )
        return cast(GenerateDecoderOnlyOutput, output)

    def _session(
        self,
        model: PreTrainedModel,
        prompt: int,
        length: int,
        law: Law,
    ) -> Session:
        """A session for one call. The draft and the caches are kept for the next call."""
        pair = self._pair
        config = model.config.get_text_config()
        fits = (
            model.dtype,
            model.device,
            config.vocab_size,
            layer_kinds(config),
            rope_switch(config),
        )
        if pair is None or pair.target is not model or self._fits != fits:
            pair, self._room, self._fits = self._fit(model), 0, fits
        seed = int(torch.randint(2**63 - 1, ())) if law.T > 0 else 0
        own: dict[str, Any] = {"T": law.T, "P": law.P, "seed": seed, "new_tokens": length - prompt}
        settings = dataclasses.replace(self._settings, **own)
        engines = self._engines if self._room >= length else None
        session = Session(pair, settings, engines=engines, longest=prompt, law=law)
        if engines is None:
            self._pair, self._engines, self._room = pair, session.engines, length
        return session

    def _fit(self, model: PreTrainedModel) -> Pair:
        """Load the draft for this target and check that they fit. Raises UsageError."""
        target, name = str(model.name_or_path) or type(model).__name__, self._settings.draft
        draft, tokenizer = (
            load_draft(
                name,
                model,
                model.dtype,
                device=model.device,
                trust_remote_code=self._settings.trust_remote_code,
            )
            if isinstance(self._draft, str)
            else (self._draft, _beside(self._draft))
        )
        targets = _beside(model)
        # If a tokenizer is missing, only the sizes of the vocabularies are compared.
        shared = check_pair(name, draft, tokenizer, target, model, targets)
        if not seat(draft, model):
            self_test("--draft", name, draft)
        self_test("--target", target, model)
        # Decoding uses token ids only: nothing calls this pair's tokenizer.
        tokenizer = cast(PreTrainedTokenizerBase, targets)
        return Pair(
            draft=draft,
            target=model,
            tokenizer=tokenizer,
            draft_name=name,
            target_name=target,
            shared=shared,
        )


def _beside(model: PreTrainedModel) -> PreTrainedTokenizerBase | None:
    """The tokenizer in the model's folder or hub entry; None if there is none."""
    try:
        return AutoTokenizer.from_pretrained(model.name_or_path) if model.name_or_path else None
    except (OSError, ValueError):
        return None


def _callers(*names: str) -> list[Any]:
    """Arguments of the running `generate`. transformers (5.17 to 5.23) passes neither streamer nor
    assistant to a callable, although it has already put the prompt into the streamer. So they are
    read from its frame."""
    frame = inspect.currentframe()
    for _ in range(2):  # this function's caller, and the caller of that
        frame = frame.f_back if frame is not None else None
    found = frame.f_locals if frame is not None else {}
    return [found.get(name) for name in names]


def _asked_for_stop_strings() -> Any:
    """The stop strings of the running `generate`; None without them or without a `generate`."""
    frame = inspect.currentframe()
    while frame is not None and not (
        frame.f_code.co_name == "generate" and "kwargs" in frame.f_locals
    ):
        frame = frame.f_back
    if frame is None:
        return None
    asked, told = frame.f_locals, frame.f_locals.get("generation_config")
    model = asked.get("self")
    configs = [told, getattr(model, "generation_config", None)] if told is None else [told]
    found = [
        asked["kwargs"].get("stop_strings"),
        *(getattr(config, "stop_strings", None) for config in configs),
    ]
    return next(filter(None, found), None)


def _pad(config: GenerationConfig) -> int:
    """The token that fills texts which end early, as `generate` chooses it."""
    known = [config.pad_token_id, config.eos_token_id, 0]
    pad = next(ids for ids in known if ids is not None)
    return int(pad[0] if isinstance(pad, list) else pad)


def _logits(model: PreTrainedModel, texts: torch.Tensor, prompt: int) -> tuple[torch.Tensor, ...]:
    """The target's logits [n, V] before each token after the prompt, float32. texts: [n, length]."""
    keep: dict[str, Any] = {}
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        keep["logits_to_keep"] = texts.shape[1] - prompt
    with torch.no_grad():
        logits = model(texts[:, :-1].to(model.device), use_cache=False, **keep).logits
    return tuple(logits[:, prompt - texts.shape[1] :].float().unbind(1))


def _scores(
    processors: LogitsProcessorList, texts: torch.Tensor, logits: torch.Tensor
) -> torch.Tensor:
    """The logits [n, V] after texts [n, length], processed."""
    none = torch.zeros(1, 0, dtype=torch.int64, device=logits.device)
    depth = torch.zeros(1, dtype=torch.int64, device=logits.device)
    rows = [
        processed(processors, text.to(logits.device), none, depth, own)
        for text, own in zip(texts, logits.split(1), strict=True)
    ]
    return torch.cat(rows)


def _refuse_inputs(
    input_ids: torch.Tensor, model_kwargs: dict[str, Any], config: GenerationConfig
) -> None:
    """Raise UsageError unless the input is one prompt of token ids, read from its start, without
    padding."""
    one = "generate for one prompt at a time"
    count = config.num_return_sequences or 1
    if input_ids.shape[0] != count or not (input_ids == input_ids[0]).all():
        size = input_ids.shape[0] // count
        raise UsageError("input_ids", f"of batch size {size}", "a tree continues one text", one)
    if input_ids.shape[1] == 0:
        raise UsageError(
            "input_ids", "of no token", "a tree needs a root", "give at least one token"
        )
    mask = model_kwargs.get("attention_mask")
    if mask is not None and not torch.as_tensor(mask).all():
        raise UsageError(
            "attention_mask", "with zeros", "padding is not read", f"{one}, without padding"
        )
    positions = model_kwargs.get("position_ids")
    count = torch.arange(input_ids.shape[1])  # for every axis, if positions have several
    if positions is not None and not bool((positions.cpu() == count).all()):
        raise UsageError("position_ids", "given", "do not count from 0", "leave them out")
    for name in CACHES:
        cache = model_kwargs.get(name)
        if cache is not None and cache.get_seq_length() > 0:
            reason = "trees keep a cache of their own"
            raise UsageError(name, f"of {cache.get_seq_length()} tokens", reason, "leave it out")
    for name, value in model_kwargs.items():
        said = value is not None and not (
            isinstance(value, dict) and not value
        )  # {}: there is nothing to encode
        if name == "token_type_ids" and said:
            said = bool(value.any())
        if name not in HARMLESS and said:
            named = (
                ", ".join(value) if name == "mm_encoder_outputs" else name
            )  # for pictures, sound, ...
            raise UsageError(named, "given", "trees continue text only", "leave it out")


def _refuse_config(config: GenerationConfig, assistant: object, streamer: object) -> None:
    """Raise UsageError for outputs and ways of decoding that trees do not support."""
    for name in OUTPUTS:
        if getattr(config, name, None):
            raise UsageError(name, True, "trees do not keep it", f"use {name}=False")
    if assistant is not None:
        raise UsageError(
            "assistant_model", "given", "the tree's draft does its work", "leave it out"
        )
    check_config(config.to_dict())
    if streamer is not None and (config.num_return_sequences or 1) > 1:
        reason = "a stream is one text"
        raise UsageError("streamer", "given", reason, "use num_return_sequences=1")
