"""The law that settings and generation configs ask for, through the whole engine."""

from __future__ import annotations

import copy
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import DEVICES, tiny_tokenizer
from scipy.stats import chisquare
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    LogitsProcessorList,
    PreTrainedTokenizerFast,
    RepetitionPenaltyLogitsProcessor,
)

from dynasurge import Pair, Session, Settings, UsageError, generate, load_pair
from dynasurge.decoding.executors import Direct, Replayed

pytestmark = pytest.mark.filterwarnings("ignore:.*(looks at the text|nothing is drafted)")
PROMPT = [5, 17, 8, 40, 33, 9, 21, 60, 61]
SIZE: dict[str, Any] = {"new_tokens": 16, "B": 6, "fill": True}
CAPTURED = pytest.mark.parametrize("captured", [False, True], ids=["direct", "captured"])


@pytest.fixture(scope="module", params=DEVICES)
def loaded(request: pytest.FixtureRequest, tiny_folders: dict[str, tuple[str, str]]) -> Pair:
    return load_pair(*tiny_folders["llama"], dtype="float32", device=request.param)


@pytest.fixture
def pair(loaded: Pair) -> Iterator[Pair]:
    own = copy.deepcopy(loaded.target.generation_config)
    yield loaded
    loaded.target.generation_config = own


def session_of(pair: Pair, captured: bool, **settings: Any) -> Session:
    """A session whose steps are captured, but perhaps verification, or not at all."""
    session = Session(pair, Settings(**settings))
    session.generate(PROMPT[:3], new_tokens=1)
    assert isinstance(session._decoder._run, Replayed if captured else Direct)
    return session


def text_of(prompt: list[int], pair: Pair) -> torch.Tensor:
    return torch.tensor([prompt], device=pair.target.device)


def capture(monkeypatch: pytest.MonkeyPatch, captured: bool) -> None:
    monkeypatch.setattr("dynasurge.decoding.engines.can_capture", lambda pair: captured)


GREEDY: list[dict[str, Any]] = [
    {},
    {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
    {"min_new_tokens": 9, "eos_token_id": list(range(0, 96, 2))},
    {"suppress_tokens": [91, 52, 32]},
    {"exponential_decay_length_penalty": (3, 1.4), "eos_token_id": 7},
]


@CAPTURED
@pytest.mark.parametrize("how", GREEDY, ids=lambda how: "-".join(how) or "none")
@pytest.mark.parametrize("source", ["own", "given"])
def test_greedy_text_is_generates(
    how: dict[str, Any], source: str, captured: bool, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    capture(monkeypatch, captured)
    pair.target.generation_config.update(**(how if source == "own" else {"min_new_tokens": 3}))
    given: dict[str, Any] = {} if source == "own" else {"generation_config": how}
    for mode in ({}, {"mode": "auto", "fill": False}):
        session = session_of(pair, captured, **SIZE | mode | given)
        mine = [session.generate(prompt).output_ids for prompt in (PROMPT, PROMPT[:4])]
        if source == "given":
            pair.target.generation_config.update(min_new_tokens=None)
        for prompt, text in zip((PROMPT, PROMPT[:4]), mine, strict=True):
            theirs = pair.target.generate(
                text_of(prompt, pair), max_new_tokens=16, **(how if source == "given" else {})
            )
            assert text == theirs[0, len(prompt) :].tolist()


def test_a_text_ends_where_generate_would_end_it(pair: Pair) -> None:
    # transformers looks for a token of these letters
    words = {"<unk>": 0, "abcdef": 1} | {f"w{i}": i for i in range(2, 96)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    pair = replace(pair, tokenizer=PreTrainedTokenizerFast(tokenizer_object=tokenizer))
    text = pair.target.generate(text_of(PROMPT, pair), max_new_tokens=16, do_sample=False)
    words = pair.tokenizer.decode(text[0, len(PROMPT) :]).split()
    how = {"stop_strings": [words[7]]}
    assert words[7] not in words[:7]
    theirs = pair.target.generate(
        text_of(PROMPT, pair), max_new_tokens=16, tokenizer=pair.tokenizer, **how
    )
    result = generate(pair, PROMPT, generation_config=how, **SIZE)
    assert result.output_ids == theirs[0, len(PROMPT) :].tolist()
    assert len(result.output_ids) == 8
    assert sum(len(step.emitted) for step in result.steps) == 8
    again = Session(pair, Settings(generation_config=how, **SIZE))  # type: ignore[arg-type]
    assert [len(again.generate(PROMPT).output_ids) for _ in range(2)] == [8, 8]


def test_max_time_ends_a_text(pair: Pair) -> None:
    session = Session(pair, Settings(generation_config={"max_time": 0.05}, **SIZE))  # type: ignore[arg-type]
    took = 0
    for step in session.stream(PROMPT, eos=frozenset()):
        took += len(step.emitted)
        time.sleep(0.06)
    assert 0 < took < 16


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    [
        {"top_k": 4},
        {"min_p": 0.3, "P": 0.9},
        {"T": 0.5, "top_k": 8, "repetition_penalty": 1.8},
        {"generation_config": {"do_sample": True, "typical_p": 0.6, "top_k": 0}},
    ],
    ids=lambda how: "-".join(how),
)
def test_samples_of_captured_steps_have_generates_law(
    how: dict[str, Any], pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second new token, beside the exact law over the first two."""
    capture(monkeypatch, True)
    config = {"do_sample": True, "top_k": 0, "eos_token_id": 200, "max_new_tokens": 1}
    names = {"T": "temperature", "P": "top_p"}
    config |= {names.get(k, k): v for k, v in how.items() if k != "generation_config"}
    config |= how.get("generation_config", {})

    def law(ids: list[int]) -> torch.Tensor:
        out = pair.target.generate(
            text_of(ids, pair), return_dict_in_generate=True, output_scores=True, **config
        )
        return out.scores[0].softmax(-1)[0].cpu()

    first, exact = law(PROMPT), torch.zeros(96)
    for token in first.nonzero()[:, 0].tolist():
        exact += first[token] * law([*PROMPT, token])
    given = {"T": 1.0} | how if "generation_config" not in how else how
    session = session_of(pair, True, **given, new_tokens=3, B=4, fill=True, use_bfs=True)
    count = 250
    drawn = Counter(
        step[1]
        for step in (
            [t for s in session.stream(PROMPT, index=i, eos=frozenset()) for t in s.emitted]
            for i in range(count)
        )
    )
    likely = (exact * count >= 5).nonzero()[:, 0].tolist()
    rest = 1.0 - float(exact[likely].sum())
    observed = [drawn[token] for token in likely]
    expected = [count * float(exact[token]) for token in likely]
    if count * rest >= 1:
        observed, expected = [*observed, count - sum(observed)], [*expected, count * rest]
    assert all(exact[token] > 0 for token in drawn)
    scale = sum(observed) / sum(expected)
    assert chisquare(observed, [scale * e for e in expected]).pvalue > 1e-3


def test_the_draft_proposes_what_the_target_can_accept(pair: Pair) -> None:
    """With top-k 1 both models are certain, so what is proposed is the draft's likeliest token."""
    result = generate(pair, PROMPT, T=1.0, top_k=1, **SIZE)
    assert result.output_ids == generate(pair, PROMPT, T=0, **SIZE).output_ids
    assert {q for step in result.steps for q in step.q[1:]} == {1.0}


def test_a_captured_step_says_that_its_law_looks_at_the_text(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    capture(monkeypatch, True)
    Session(pair, Settings(T=0.7, top_k=5, repetition_penalty=1.2, **SIZE)).generate(PROMPT)
    assert not [w for w in recwarn if "looks at" in str(w.message)]
    ban = {"no_repeat_ngram_size": 2}
    with pytest.warns(UserWarning, match="no_repeat_ngram_size 2: the law looks at the text"):
        Session(pair, Settings(generation_config=ban, **SIZE)).generate(PROMPT)  # type: ignore[arg-type]


def test_captured_and_direct_sessions_grow_the_same_tree_under_any_law(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    for how in ({"top_k": 9, "min_p": 0.02}, {"repetition_penalty": 1.3}):
        texts = []
        for captured in (False, True):
            capture(monkeypatch, captured)
            texts.append(generate(pair, PROMPT, T=0.8, **how, **SIZE).output_ids)
        assert texts[0][:3] == texts[1][:3]


def test_a_users_own_processors_join_the_others(pair: Pair) -> None:
    own = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(1.4)])
    settings = Settings(generation_config={"no_repeat_ngram_size": 2}, **SIZE)  # type: ignore[arg-type]
    theirs = pair.target.generate(
        text_of(PROMPT, pair), max_new_tokens=16, no_repeat_ngram_size=2, logits_processor=own
    )
    mine = Session(pair, settings, logits_processor=own[0]).generate(PROMPT)
    assert mine.output_ids == theirs[0, len(PROMPT) :].tolist()


@pytest.mark.parametrize(
    "config",
    [
        {"no_repeat_ngram_size": "x"},
        {"watermarking_config": 5},
        {"watermarking_config": {"x": 1}},
        {"suppress_tokens": 5},
        {"exponential_decay_length_penalty": [1]},
        {"exponential_decay_length_penalty": [1, "a"], "eos_token_id": 7},
        {"bad_words_ids": [[500]]},
        {"max_time": "a"},
    ],
    ids=str,
)
def test_what_transformers_cannot_use_is_one_line(config: dict[str, Any], pair: Pair) -> None:
    with pytest.raises(UsageError, match=r"transformers cannot use it .*; correct that entry"):
        Session(pair, Settings(generation_config=config, **SIZE))  # type: ignore[arg-type]


def test_end_tokens_that_are_none_are_one_line(pair: Pair) -> None:
    with pytest.raises(
        UsageError, match=r"forced_eos_token_id \[500\]: the target knows ids 0 to 95"
    ):
        Session(pair, Settings(generation_config={"forced_eos_token_id": 500}, **SIZE))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="eos_token_id"):
        Session(pair, Settings(generation_config={"eos_token_id": "x"}, **SIZE))  # type: ignore[arg-type]


def test_a_forced_end_comes_at_the_end_of_this_text(pair: Pair) -> None:
    session = Session(pair, Settings(generation_config={"forced_eos_token_id": 7}, **SIZE))  # type: ignore[arg-type]
    for count in (8, 16):
        theirs = pair.target.generate(
            text_of(PROMPT, pair), max_new_tokens=count, forced_eos_token_id=7
        )
        mine = session.generate(PROMPT, new_tokens=count).output_ids
        assert mine == theirs[0, len(PROMPT) :].tolist()


def test_a_penalty_that_ignores_a_number_for_each_row_gets_one_row(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = RepetitionPenaltyLogitsProcessor(
        1.9, prompt_ignore_length=torch.tensor([4], device=pair.target.device)
    )
    theirs = pair.target.generate(
        text_of(PROMPT, pair), max_new_tokens=16, logits_processor=LogitsProcessorList([own])
    )
    for captured in (False, True):
        capture(monkeypatch, captured)
        session = Session(pair, Settings(**SIZE), logits_processor=LogitsProcessorList([own]))
        assert session.generate(PROMPT).output_ids == theirs[0, len(PROMPT) :].tolist()


TEMPLATE = (
    "{{ bos_token }}{% for m in messages %} w9 {{ m.content }} w10{% endfor %}"
    "{% if add_generation_prompt %} w11{% endif %}"
)


@pytest.fixture
def chatty(tiny_folders: dict[str, tuple[str, str]]) -> Pair:
    pair = load_pair(*tiny_folders["llama"], dtype="float32", device="cpu")
    pair.tokenizer.chat_template = TEMPLATE
    return pair


def test_a_chat_is_rendered_once(chatty: Pair) -> None:
    ids = [1, 9, 5, 6, 10, 11]
    messages = [{"role": "user", "content": "w5 w6"}]
    assert chatty.encode("w5 w6", chat=True) == chatty.encode(messages, chat=True) == ids
    assert chatty.encode(messages[0], chat=True) == ids
    assert chatty.encode(ids, chat=True) == ids, "ids are taken as they are"
    for prompt in ("w5 w6", messages):
        assert generate(chatty, prompt, chat=True, **SIZE).prompt_ids == ids
    answered = [*messages, {"role": "assistant", "content": "w7"}]
    assert chatty.encode(answered, chat=True) == [1, 9, 5, 6, 10, 9, 7], "it is continued"


def test_a_chat_is_cut_inside_its_last_message(chatty: Pair) -> None:
    long = [{"role": "user", "content": "w5 w6 w7 w8"}]
    assert chatty.encode(long, chat=True, limit=6) == [1, 9, 5, 6, 10, 11]
    with pytest.raises(
        UsageError, match=r"--prompt-len 4: leaves no room .*; use --prompt-len 5 or"
    ):
        chatty.encode(long, chat=True, limit=4)


def test_a_rendered_text_gets_no_second_start_token(chatty: Pair) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    tokenizer.chat_template = TEMPLATE
    pair = Pair(
        draft=chatty.draft,
        target=chatty.target,
        tokenizer=tokenizer,
        draft_name="d",
        target_name="t",
    )
    assert pair.encode("w5 w6") == [1, 5, 6]
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "w5 w6"}], tokenize=False, add_generation_prompt=True
    )
    assert pair.encode(str(text)) == pair.encode("w5 w6", chat=True) == [1, 9, 5, 6, 10, 11]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([{"role": "user"}], "prompt .*: needs a role and a content"),
        ([{"role": "user", "content": [{"type": "image"}]}], "prompt .*: needs a role and"),
        ([{"role": "user", "content": "w5"}, "w6"], "prompt .*: needs a role and"),
        ([{"role": "user", "content": "w5"}] * 2, "prompt .*: the target's chat template refuses"),
    ],
)
def test_what_is_no_chat_is_refused(prompt: Any, message: str, chatty: Pair) -> None:
    chatty.tokenizer.chat_template = (
        "{% if messages|length > 1 %}{{ raise_exception('roles') }}{% endif %}"
    )
    with pytest.raises(UsageError, match=f"^{message}"):
        generate(chatty, prompt, chat=True, **SIZE)
    chatty.tokenizer.chat_template = None
    with pytest.raises(UsageError, match=r"--chat True: the tokenizer of .* has no chat template"):
        generate(chatty, "w5", chat=True, **SIZE)
