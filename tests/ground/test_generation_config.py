"""What a generation config makes of open settings, and that every entry of transformers' is known."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig

from dynasurge.errors import UsageError
from dynasurge.generation_config import HONOURED, LAW, NAMES, NO_EFFECT, REFUSED, UNSAID
from dynasurge.settings import Settings

QWEN = {
    "do_sample": True,
    "temperature": 0.7,
    "top_p": 0.8,
    "top_k": 20,
    "repetition_penalty": 1.05,
}
DOCS = Path(__file__).parents[2] / "docs/guides/law.md"


@pytest.mark.parametrize(
    ("given", "own", "law"),
    [
        ({}, {}, "greedy (T = 0)"),
        ({}, {"temperature": 0.7, "top_k": 9}, "greedy (T = 0)"),
        ({}, QWEN, "T = 0.7, top-p 0.8, top-k 20, repetition penalty 1.05"),
        ({}, {"do_sample": True}, "T = 1, top-k 50"),
        ({"T": 0.3}, QWEN, "T = 0.3, top-p 0.8, top-k 20, repetition penalty 1.05"),
        ({"T": 0}, QWEN, "greedy (T = 0), repetition penalty 1.05"),
        ({"T": 0.9, "P": 1.0}, QWEN | {"min_p": 0.1, "no_repeat_ngram_size": 3}, "T = 0.9"),
        ({"T": 0.6}, {}, "T = 0.6"),
        ({"T": 0.6}, {"top_p": 0.9}, "T = 0.6, top-p 0.9"),
        ({"top_k": 0, "min_p": 0.1}, QWEN, "T = 0.7, top-p 0.8, min-p 0.1, repetition penalty 1.05"),
        ({"repetition_penalty": 1}, QWEN, "T = 0.7, top-p 0.8, top-k 20"),
        ({}, {"typical_p": 1.0, "suppress_tokens": [3], "top_h": None}, "greedy (T = 0), suppress_tokens [3]"),
        ({"generation_config": {"no_repeat_ngram_size": 3}}, QWEN, "greedy (T = 0), no_repeat_ngram_size 3"),
        ({"generation_config": QWEN, "T": 0.9, "P": 1.0}, {}, "T = 0.9, top-k 20, repetition penalty 1.05"),
    ],
)  # fmt: skip
def test_a_config_says_what_settings_leave_open(
    given: dict[str, Any], own: dict[str, Any], law: str
) -> None:
    settings = Settings(**given).under(own)
    assert settings.law == law
    assert settings.under({"do_sample": True, "min_p": 0.5}) == settings, "nothing is open any more"
    assert Settings(**settings.to_dict()) == settings


def test_end_tokens_are_part_of_a_config_that_was_given_and_not_of_the_targets_law() -> None:
    assert Settings(generation_config={"eos_token_id": 0}).under({}).generation_config
    assert Settings().under({"eos_token_id": [1, 2]}).generation_config is None


@pytest.mark.parametrize(
    ("given", "own", "message"),
    [
        ({}, {"num_beams": 4}, "num_beams 4: trees are verified along one text; the target's"),
        ({"generation_config": {"num_beams": 4}}, {}, "num_beams 4: .*; leave it out of --gen"),
        ({"generation_config": {"topk": 4}}, {}, "--generation-config topk: .*; did you mean top_k"),
        ({"generation_config": "none.json"}, {}, "--generation-config none.json: cannot be read"),
        ({"generation_config": "{]"}, {}, "--generation-config {]: cannot be read"),
        ({"top_k": 5}, {}, "--top-k 5: the target's generation config does not sample"),
        ({"P": 0.5}, {}, "--P 0.5: .*; add --T"),
        ({"min_p": 1.5}, {}, "--min-p 1.5: min-p lies in"),
        ({"top_k": -1}, {}, "--top-k -1: must be at least 0"),
        ({"top_k": 1.5}, {}, "--top-k 1.5: is not a whole number"),
        ({"repetition_penalty": 0}, {}, "--repetition-penalty 0: is a positive factor"),
    ],
)  # fmt: skip
def test_what_cant_be_is_refused(given: dict[str, Any], own: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=f"^{message}"):
        Settings(**given).under(own)


def test_a_file_is_kept_by_content(tmp_path: Path) -> None:
    path = tmp_path / "generation_config.json"
    path.write_text(json.dumps(QWEN | {"transformers_version": "4.51.0"}))
    settings = Settings(generation_config=str(path))
    assert settings == Settings(generation_config=QWEN)  # type: ignore[arg-type]
    assert settings == Settings(generation_config=GenerationConfig(**QWEN))  # type: ignore[arg-type]
    path.write_text("{}")
    assert settings.hash() != Settings(generation_config=str(path)).hash()


def test_every_entry_of_transformers_config_is_known_and_in_the_docs() -> None:
    """It fails when transformers adds one: say what it means here, in the code and in the docs."""
    known = set(vars(GenerationConfig()))
    assert known <= NAMES
    groups = [{entry for entry, _, _ in LAW.values()}, HONOURED.keys(), REFUSED.keys(), NO_EFFECT]
    assert sum(map(len, groups)) + len(UNSAID) == len(NAMES), "one meaning each"
    words = ["honoured", "honoured", "refused", "no effect"]
    table = DOCS.read_text(encoding="utf-8")
    documented = dict(re.findall(r"^\| `(\w+)` \| ([^|:]+?)(?::.*)? \|$", table, re.MULTILINE))
    expected = {name: word for group, word in zip(groups, words, strict=True) for name in group}
    assert documented == expected
