"""What people pass as a prompt: taken if it is one, refused in one line if it is none or
several."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from conftest import VOCAB, tiny_tokenizer
from transformers import BatchEncoding

from dynasurge import Pair, Session, Settings, UsageError, generate, load_pair, trace
from dynasurge.models.prompts import prompt_ids

IDS = [5, 17, 8, 40]
TEXT = "w5 w17 w8 w40"
TOKENIZER = tiny_tokenizer()


@pytest.mark.parametrize(
    "prompt",
    [
        TEXT,
        [TEXT],
        IDS,
        tuple(IDS),
        [IDS],
        np.array(IDS),
        np.array([IDS]),
        [np.int64(token) for token in IDS],
        torch.tensor(IDS),
        torch.tensor([IDS]),
        [torch.tensor(IDS)],
        {"input_ids": IDS},
        {
            "input_ids": torch.tensor([IDS]),
            "attention_mask": torch.ones(1, 4),
            "token_type_ids": torch.zeros(1, 4),
        },
        TOKENIZER(TEXT),
        TOKENIZER(TEXT, return_tensors="pt"),
        TOKENIZER([TEXT]),
        TOKENIZER.backend_tokenizer.encode(TEXT),
        BatchEncoding({"input_ids": IDS}),
    ],
    ids=str,
)
def test_one_prompt_is_taken(prompt: Any) -> None:
    assert prompt_ids(TOKENIZER, VOCAB, prompt) == IDS


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "prompt '': shorter than one token; give at least one word"),
        ([], r"prompt \[\]: shorter than one token"),
        (torch.zeros(0, dtype=torch.int64), ".*: shorter than one token"),
        ([IDS, IDS], "prompt of 2 texts: a tree continues one text; give one prompt at a time"),
        (torch.tensor([IDS, IDS]), "prompt of 2 texts"),
        ([TEXT, TEXT], "prompt of 2 texts"),
        (TOKENIZER([TEXT, TEXT]), "prompt of 2 texts"),
        ([5, 5000], "prompt token 5000: the model knows ids 0 to 95"),
        ([5, -1], "prompt token -1: the model knows ids 0 to 95"),
        ([5.0, 6.0], r"prompt with '5\.0': is no token id"),
        ([True], "prompt with 'True': is no token id"),
        (7, "prompt int: is neither text nor token ids"),
        (None, "prompt NoneType: is neither text nor token ids"),
        (
            [{"role": "user", "content": "hello"}],
            "prompt of 1 messages: a chat is not a text yet; add chat=True",
        ),
        ("w3 \ud800", "prompt .*: holds half a surrogate pair; correct the text"),
        ([[IDS]], r"prompt with '\[5, 17, 8, 40\]': is no token id"),
        ({"input_ids": IDS, "attention_mask": "x"}, "attention_mask str: is neither"),
        ({"input_ids": IDS, "attention_mask": [1, 1]}, "prompt with padding"),
        ({"text": TEXT}, "prompt with text: has no input_ids"),
        (
            {"input_ids": IDS, "pixel_values": torch.zeros(1)},
            "prompt with pixel_values: trees continue text only",
        ),
        (
            {"input_ids": [IDS], "attention_mask": [[0, 1, 1, 1]]},
            "prompt with padding: zeros in its attention_mask",
        ),
    ],
)
def test_what_is_not_one_prompt_is_refused(prompt: Any, message: str) -> None:
    with pytest.raises(UsageError, match=f"^{message}") as error:
        prompt_ids(TOKENIZER, VOCAB, prompt)
    assert "\n" not in str(error.value)


LONG = " ".join(f"w{3 + i * 7 % 90}" for i in range(200))


def test_python_reads_a_prompt_whole(models: Pair) -> None:
    result = generate(models, LONG, T=0, new_tokens=10)
    assert result.prompt_ids == models.encode(LONG)
    assert len(result.prompt_ids) == 200
    ids = torch.tensor([result.prompt_ids])
    assert (
        result.output_ids
        == models.target.generate(ids, do_sample=False, max_new_tokens=10)[0, 200:].tolist()
    )
    assert (
        generate(models, LONG, T=0, new_tokens=10, prompt_len=30).prompt_ids
        == result.prompt_ids[:30]
    )
    traced = trace(models, LONG, T=0, new_tokens=10)
    assert [token for step in traced.steps for token in step.emitted] == result.output_ids


@pytest.mark.slow
@pytest.mark.parametrize("mode", [{"mode": "auto"}, {"B": 8, "fill": True}, {}], ids=str)
def test_a_session_has_room_for_the_prompts_it_meets(
    mode: dict[str, Any], tiny_folders: dict[str, tuple[str, str]]
) -> None:
    """A model of 256 positions: 200 tokens of prompt are not reserved for a prompt of four."""
    pair = load_pair(*tiny_folders["gpt2"], dtype="float32", device="cpu")
    session = Session(pair, Settings(T=0, new_tokens=200, **mode))
    short = session.generate(TEXT)
    assert len(short.output_ids) == 200
    with pytest.raises(UsageError, match=r"reads 256 positions, 400 are needed"):
        session.generate(LONG)
    assert len(session.generate(LONG, new_tokens=56).output_ids) == 56
    assert session.generate(TEXT).output_ids == short.output_ids


def test_a_tensor_is_decoded_in_every_mode(models: Pair) -> None:
    modes: list[dict[str, Any]] = [{"mode": "auto"}, {"B": 4, "fill": True}]
    texts = [
        generate(models, torch.tensor([[5, 95]]), T=0, new_tokens=8, **mode).output_ids
        for mode in modes
    ]
    assert texts[0] == texts[1]
