"""What a generation config means here: the target's law, and the end of a text.

transformers' `generate` draws from what `generation_config.json` and its arguments say. The same
file is the default law here. A setting replaces the file's entry, as an argument of `generate`
does. T and P together say the whole law: the target's own file then only names end tokens.

This module knows names and values only. models/processors.py does what they ask for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dynasurge.errors import UsageError, flag_of, meant

FLAG = "--generation-config"
# Fields of Settings: what each is called in a generation config and in a table, and its value
# without effect.
LAW = {
    "T": ("temperature", "T", 1.0),
    "P": ("top_p", "top-p", 1.0),
    "top_k": ("top_k", "top-k", 0),
    "min_p": ("min_p", "min-p", 0.0),
    "repetition_penalty": ("repetition_penalty", "repetition penalty", 1.0),
}
LAW_FIELDS = (*LAW, "generation_config")
SAMPLING = ("P", "top_k", "min_p")  # without effect on greedy text
DEFAULT_TOP_K = 50  # what `generate` takes where a config that samples names no top_k
# Further entries that are honoured, and their values without effect besides None.
HONOURED: dict[str, Any] = {
    "bad_words_ids": None,
    "begin_suppress_tokens": None,
    "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0,
    "eos_token_id": None,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "exponential_decay_length_penalty": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "max_time": None,
    "min_length": 0,
    "min_new_tokens": 0,
    "no_repeat_ngram_size": 0,
    "remove_invalid_values": False,
    "renormalize_logits": False,
    "sequence_bias": None,
    "stop_strings": None,
    "suppress_tokens": None,
    "top_h": None,
    "typical_p": 1.0,
    "watermarking_config": None,
}
# Entries that are refused: their values without effect besides None, and why.
REFUSED: dict[str, tuple[Any, str]] = {
    "assistant_early_exit": (None, "the tree's draft does its work"),
    "constraints": (None, "is a search over beams"),
    "diversity_penalty": (0.0, "is a search over beams"),
    "dola_layers": (None, "needs the target's inner layers"),
    "force_words_ids": (None, "is a search over beams"),
    "guidance_scale": (1, "runs the model a second time"),
    "num_beam_groups": (1, "is a search over beams"),
    "num_beams": (1, "trees are verified along one text"),
    "penalty_alpha": (0.0, "contrastive search compares hidden states"),
    "prompt_lookup_num_tokens": (None, "the tree's draft does its work (and copies, too)"),
    "token_healing": (False, "changes the prompt"),
    "use_mtp": (False, "the tree's draft does its work"),
}
# Entries that change nothing here, or that another setting decides.
NO_EFFECT = {
    *("max_length", "max_new_tokens", "do_sample", "num_return_sequences"),
    *("early_stopping", "length_penalty", "low_memory"),
    *("use_cache", "cache_implementation", "cache_config", "max_cache_len"),
    *("compile_config", "disable_compile", "continuous_batching_config", "prefill_chunk_size"),
    *("output_attentions", "output_hidden_states", "output_scores", "output_logits"),
    *("return_dict_in_generate", "pad_token_id", "bos_token_id", "decoder_start_token_id"),
    *("is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule"),
    *("assistant_confidence_threshold", "assistant_lookbehind", "target_lookbehind"),
    *("assistant_ensemble_weight", "max_matching_ngram_size", "speculation_type"),
}
UNSAID = {"_from_model_config", "transformers_version"}  # entries about the file itself
NAMES = {own for own, _, _ in LAW.values()} | HONOURED.keys() | REFUSED.keys() | NO_EFFECT | UNSAID


def read_config(given: object) -> str | None:
    """A generation config as JSON text, with its entries in order: from a file's path, a mapping,
    transformers' GenerationConfig, JSON text, or None. Raises UsageError, also for an unknown
    entry."""
    if given is None:
        return None
    if callable(to_dict := getattr(given, "to_dict", None)):
        given = {name: value for name, value in to_dict().items() if value is not None}
    try:
        if isinstance(given, Mapping):
            data: object = json.loads(json.dumps(dict(given)))
        elif isinstance(given, str) and given.lstrip().startswith("{"):
            data = json.loads(given)
        else:
            data = json.loads(Path(str(given)).expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError) as error:
        reason = f"cannot be read ({str(error)[:120]})"
        raise UsageError(
            FLAG, str(given)[:80], reason, "give a file like generation_config.json"
        ) from error
    if not isinstance(data, dict):
        raise UsageError(FLAG, str(given)[:80], "is no JSON object", "name entries and values")
    for name in data:
        if name not in NAMES:
            raise UsageError(FLAG, name, "is no entry of a generation config", meant(name, NAMES))
    return json.dumps({name: data[name] for name in sorted(data) if name not in UNSAID})


def check_config(config: Mapping[str, Any], remedy: str = "leave it out") -> None:
    """Raise UsageError if an entry asks for what trees cannot do."""
    for name, (neutral, reason) in REFUSED.items():
        value = config.get(name)
        if value is not None and value != neutral:
            raise UsageError(name, value, reason, remedy)


def complete(
    given: Mapping[str, Any], config: str | None, own: Mapping[str, Any]
) -> dict[str, Any]:
    """The fields LAW_FIELDS of a whole law. given: these fields of Settings, None where they leave
    it open. config: a config that replaces the target's own, as JSON text. own: the target's own,
    without entries that are None.

    `generation_config` becomes JSON text of the other honoured entries; None if there are none.
    Raises UsageError for an entry that is refused, and for a setting that greedy text ignores.
    """
    if config is not None:
        entries, remedy = json.loads(config), f"leave it out of {FLAG}"
    else:
        whole = given["T"] is not None and given["P"] is not None
        entries = {} if whole else {k: v for k, v in own.items() if k != "eos_token_id"}
        remedy = "the target's generation config has it: give --T and --P, which override that"
    check_config(entries, remedy)
    samples = bool(entries.get("do_sample"))
    law: dict[str, Any] = {}
    for name, (entry, _, neutral) in LAW.items():
        value = entries.get(entry)
        if name == "T" and not samples:
            value = 0.0
        elif name in SAMPLING and law["T"] == 0:
            value = neutral
        elif name == "top_k" and value is None and samples:
            value = DEFAULT_TOP_K
        law[name] = next(v for v in (given[name], value, neutral) if v is not None)
    for name in SAMPLING if given["T"] is None and law["T"] == 0 else ():
        if given[name] is not None and given[name] != LAW[name][2]:
            reason = "the target's generation config does not sample, so this changes nothing"
            raise UsageError(flag_of(name), given[name], reason, "add --T 0.6")
    others = {
        name: entries[name]
        for name, neutral in HONOURED.items()
        if entries.get(name) not in (None, neutral, [])
    }
    return law | {"generation_config": json.dumps(others, sort_keys=True) if others else None}


def law_text(law: Mapping[str, Any]) -> str:
    """A whole law in words: `T = 0.7, top-p 0.8, top-k 20, repetition penalty 1.05`. Missing fields
    have no effect."""
    T = law["T"]
    said = ["greedy (T = 0)" if T == 0 else f"T = {T:g}"]
    for name, (_, word, neutral) in LAW.items():
        value = law.get(name, neutral)
        if name != "T" and value != neutral and (T > 0 or name not in SAMPLING):
            said.append(f"{word} {value:g}")
    others = json.loads(law.get("generation_config") or "{}")
    said += [f"{name} {str(value)[:40]}" for name, value in others.items()]
    return ", ".join(said)
