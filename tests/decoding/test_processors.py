"""Logits processors: at each node, what transformers would sample from after the node's own path."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
import toy
from conftest import ARCHITECTURES
from scipy.stats import chisquare
from toy import Steps, dynamic, static
from transformers import (
    AutoModelForCausalLM,
    LogitsProcessor,
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SynthIDTextWatermarkLogitsProcessor,
    TopKLogitsWarper,
)

from dynasurge import Pair, Session, Settings, UsageError, build_growmap, custom_generate, load_pair

TEXT = torch.tensor([[5, 17, 8, 40, 33, 9, 21, 60, 61]])
PADDED = pytest.mark.parametrize("padded", [False, True], ids=["exact", "padded"])


class Parity(LogitsProcessor):
    """A user's own: favours even tokens after an even text. It takes one row only."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        assert len(input_ids) == len(scores) == 1
        even = torch.arange(scores.shape[1]) % 2 == 0
        return scores + 2.0 * (even == bool(input_ids.sum() % 2 == 0))


STACKS = {
    "penalty": [RepetitionPenaltyLogitsProcessor(1.7)],
    "ban": [NoRepeatNGramLogitsProcessor(3)],
    "own": [Parity(), RepetitionPenaltyLogitsProcessor(1.3)],
    "top-k": [TopKLogitsWarper(2)],
}


def law_of(stack: LogitsProcessorList, target: toy.Table) -> toy.Table:
    """The table after the stack."""

    def table(context: tuple[int, ...]) -> list[float]:
        scores = torch.tensor([target(context)], dtype=torch.float64).log()
        return torch.softmax(stack(torch.tensor([context]), scores), -1)[0].tolist()

    return table


@PADDED
@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("rule", ["topdown", "traversal", "reserved"])
def test_steps_have_the_law_of_the_processors(stack: str, rule: str, padded: bool) -> None:
    """By enumeration, on trees whose paths change the law of what is below them."""
    target, draft = toy.random_table(3), toy.random_table(4)
    processors = LogitsProcessorList(STACKS[stack])
    law = law_of(processors, target)
    trees = [static(build_growmap("chain3"))]
    if rule != "reserved":
        how: dict[str, Any] = {"width": 1, "copies": True, "run": 1, "levels": 2}
        trees.append(dynamic(4, 3, 2, "hybrid", **how))
    for grown in trees:
        steps = Steps(draft, target, grown, rule, padded=padded, processors=processors)
        assert steps.distance(law, 4) < 1e-12
        assert steps.distance(target, 4) > 1e-3, "without the stack, this test would fail"


FAST, *SLOW = ARCHITECTURES


@pytest.fixture(scope="module")
def demo() -> Pair:
    return load_pair(dtype="float32", device="cpu")


@pytest.fixture(
    scope="module",
    params=[FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)],
)
def folders(request: pytest.FixtureRequest, tiny_folders: Any) -> tuple[str, str]:
    return tiny_folders[request.param]


def begins(batch: int, ids: torch.Tensor) -> list[int]:
    assert batch == 0
    return [(int(ids[-1]) * 7 + n) % 96 for n in range(40)]


GREEDY: list[dict[str, Any]] = [
    {"repetition_penalty": 1.3},
    {"no_repeat_ngram_size": 2, "repetition_penalty": 0.7},
    {"encoder_repetition_penalty": 1.5},
    {"encoder_no_repeat_ngram_size": 2},
    {"min_new_tokens": 9, "eos_token_id": list(range(0, 96, 2))},
    {"min_length": 15, "eos_token_id": list(range(0, 96, 3))},
    {"bad_words_ids": [[91], [86, 32], [52]]},
    {"sequence_bias": [[[91], -9.0], [[5, 17], 4.0]]},
    {"suppress_tokens": [91, 52, 32]},
    {"begin_suppress_tokens": [91, 52, 32]},
    {"forced_eos_token_id": 7},
    {"exponential_decay_length_penalty": (3, 1.4), "eos_token_id": 7},
    {"prefix_allowed_tokens_fn": begins},
    {"renormalize_logits": True, "remove_invalid_values": True},
    {"logits_processor": LogitsProcessorList([Parity()])},
]


@pytest.mark.parametrize("how", GREEDY, ids=lambda how: "-".join(how))
def test_greedy_text_is_generates(how: dict[str, Any], folders: tuple[str, str]) -> None:
    target = AutoModelForCausalLM.from_pretrained(folders[1]).eval()
    shared = {"inputs": TEXT, "max_new_tokens": 16, "do_sample": False} | how
    for settings in ({"B": 6, "fill": True}, {"mode": "auto"}):
        loop = custom_generate(folders[0], **settings)
        assert torch.equal(
            target.generate(custom_generate=loop, **shared), target.generate(**shared)
        )


@pytest.mark.nightly
@pytest.mark.parametrize("how", GREEDY, ids=lambda how: "-".join(how))
def test_greedy_text_of_the_demo_pair_is_generates(how: dict[str, Any], demo: Pair) -> None:
    ids = torch.tensor([demo.encode("The harbour council met on Tuesday to decide")])
    shared = {"inputs": ids, "max_new_tokens": 32, "do_sample": False} | how
    loop = custom_generate("demo", B=8, fill=True)
    plain = demo.target.generate(**shared)
    assert torch.equal(demo.target.generate(custom_generate=loop, **shared), plain)


@pytest.mark.slow
def test_samples_of_custom_generate_have_generates_law(tiny_folders: Any) -> None:
    """The second new token, through the whole engine, beside the exact law over the first two
    (tests/decoding/test_law.py has more laws)."""
    how: dict[str, Any] = {"top_k": 8, "repetition_penalty": 1.8, "temperature": 0.4, "top_p": 0.9}
    draft, name = tiny_folders["llama"]
    target = AutoModelForCausalLM.from_pretrained(name).eval()
    loop, count = custom_generate(draft, B=4, fill=True), 200
    how = how | {"do_sample": True, "eos_token_id": 200}  # no token
    config = {"max_new_tokens": 1, "return_dict_in_generate": True, "output_scores": True} | how

    def law(ids: torch.Tensor) -> torch.Tensor:
        return target.generate(ids, **config).scores[0].softmax(-1)[0]

    torch.manual_seed(0)
    first, exact = law(TEXT), torch.zeros(96)
    for token in first.nonzero()[:, 0]:
        exact += first[token] * law(torch.cat([TEXT, token.view(1, 1)], 1))
    drawn = Counter(
        int(target.generate(TEXT, max_new_tokens=3, custom_generate=loop, **how)[0, -2])
        for _ in range(count)
    )
    likely = (exact * count >= 5).nonzero()[:, 0].tolist()
    rest = 1.0 - float(exact[likely].sum())
    observed, expected = (
        [drawn[token] for token in likely],
        [count * float(exact[t]) for t in likely],
    )
    if count * rest >= 1:
        observed, expected = [*observed, count - sum(observed)], [*expected, count * rest]
    assert all(exact[token] > 0 for token in drawn)
    scale = sum(observed) / sum(expected)
    assert chisquare(observed, [scale * e for e in expected]).pvalue > 1e-3


class Derived(SynthIDTextWatermarkLogitsProcessor):
    """A refused one, under another name."""


@pytest.mark.parametrize("kind", [SynthIDTextWatermarkLogitsProcessor, Derived])
def test_what_is_no_function_of_ids_and_logits_is_refused(
    kind: type[SynthIDTextWatermarkLogitsProcessor], tiny_folders: Any
) -> None:
    pair = load_pair(*tiny_folders["llama"], dtype="float32", device="cpu")
    stateful = kind(
        ngram_len=2,
        keys=[1, 2],
        sampling_table_size=8,
        sampling_table_seed=0,
        context_history_size=4,
        device=torch.device("cpu"),
    )
    with pytest.raises(UsageError, match=r"logits processor SynthID.*: keeps state"):
        Session(pair, Settings(new_tokens=8), logits_processor=LogitsProcessorList([stateful]))
