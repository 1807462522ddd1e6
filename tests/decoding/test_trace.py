"""Looking on: the text stays what it was, and every number shown is the models' own."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from samples import view

from dynasurge import Pair, build_growmap, generate, trace
from dynasurge.decoding.executors import Direct, Replayed
from dynasurge.decoding.session import Session
from dynasurge.decoding.trace import LIKELY, PART, Words, token_text
from dynasurge.probabilities import to_probs
from dynasurge.settings import settings_of
from dynasurge.trees.token_tree import TokenTree

PROMPT = "w5 w17 w8 w40 w33 w9 w21 w60 w61 w8 w40"
COMMON: dict[str, Any] = {"M": 128, "new_tokens": 20, "prompt_len": 16, "B": 9, "fill": True}


@pytest.mark.parametrize("policy", ["sampled", "topk", "hybrid"])
@pytest.mark.parametrize("T", [0.0, 0.8])
def test_p_and_q_are_what_the_models_say_and_the_text_is_generates(
    models: Pair, policy: str, T: float
) -> None:
    settings = COMMON | {"policy": policy, "T": T, "P": 0.9}
    plain, seen = generate(models, PROMPT, **settings), trace(models, PROMPT, **settings)
    assert [step.emitted for step in seen.steps] == [step.emitted for step in plain.steps]
    assert [step.tree for step in seen.steps] == [step.tree for step in plain.steps]
    text = list(plain.prompt_ids)
    for step in seen.steps:
        paths = [text]
        for node in range(1, step.tree.size + 1):
            before, token = paths[step.tree.parents[node]], step.tree.tokens[node]
            paths.append([*before, token])
            p, q = laws(models, before, T)
            assert step.p[node] == pytest.approx(float(p[token]), abs=1e-4)
            assert step.q[node] == pytest.approx(float(q[token]), abs=1e-4)
            known = step.likely[step.tree.parents[node]]
            for law, guesses in ((p, known.target), (q, known.draft)):
                best = law.topk(LIKELY)
                assert [chance for _, chance, _ in guesses] == pytest.approx(
                    [chance for chance in best.values.tolist() if chance > 0], abs=1e-4
                )
                assert guesses[0][2] == int(best.indices[0])
                assert guesses[0][0] == token_text(models.tokenizer, guesses[0][2])
        assert 0 <= min(step.reach) <= max(step.reach) <= 1 + 1e-6
        text += step.emitted
    assert seen.text == plain.text


def laws(pair: Pair, before: list[int], T: float) -> list[torch.Tensor]:
    """The target's and the draft's distributions [V] after these tokens."""
    both = ((pair.target, (T, 0.9)), (pair.draft, (T or 1.0, 0.9 if T else 1.0)))
    return [
        to_probs(model(torch.tensor([before])).logits[0, -1].detach(), *law) for model, law in both
    ]


def test_a_node_that_a_run_of_copies_follows_keeps_what_the_draft_thought(models: Pair) -> None:
    """The run's row, which nobody reads, begins at the same node."""
    repeating = "w5 w17 " * 20
    seen = trace(models, repeating, T=0.6, B=24, fill=True, M=160, new_tokens=40, prompt_len=40)
    assert any(q != q for step in seen.steps for q in step.q), "copies that the draft never read"
    for step in seen.steps:
        parents = {
            step.tree.parents[n] for n in range(1, step.tree.size + 1) if step.q[n] == step.q[n]
        }
        assert all(step.likely[node].draft for node in parents)


@pytest.mark.parametrize("mode", ["auto", "sTree"])
def test_captured_steps_keep_the_same_likely_tokens(
    models: Pair, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU nothing is captured, but the same functions are called."""
    own = {"mode": mode, "growmap": "3x3" if mode == "sTree" else None, "T": 0.8, "P": 0.9}
    settings, kept = settings_of(COMMON | own | {"fill": False}), []
    assert all(step.likely == () for step in generate(models, PROMPT, **COMMON).steps)
    for captured in (False, True):
        monkeypatch.setattr("dynasurge.decoding.engines.can_capture", lambda _, way=captured: way)
        session = Session(models, settings, likely=3)
        assert isinstance(session._decoder._run, Replayed if captured else Direct)
        kept.append(session.generate(session.encode(PROMPT)).steps)
    for direct, replayed in zip(*kept, strict=True):
        assert len(direct.likely) == direct.tree.size + 1
        assert direct.tree.tokens == replayed.tree.tokens
        for one, other in zip(direct.likely, replayed.likely, strict=True):
            assert [token for token, _ in one.target] == [token for token, _ in other.target]
            if one.draft:  # a captured step reads as many nodes as it has room for
                assert [token for token, _ in one.draft] == [token for token, _ in other.draft]


def test_fates_follow_the_rule() -> None:
    accepted, rejected, untried = "accepted", "rejected", "untried"
    assert view((1, 4)).fates == (
        "root", accepted, untried, rejected, accepted, untried, untried, rejected, untried
    )  # fmt: skip
    assert view((1, 4), bottom_up=True).fates == (
        "root", accepted, untried, rejected, accepted, untried, rejected, rejected, untried
    )  # fmt: skip
    assert view(()).fates == ("root", rejected, rejected, *[untried] * 6)
    assert view((), bottom_up=True).fates == ("root", *[rejected] * 8)
    assert view((1,), rule="bfs").fates == ("root", accepted, *[rejected] * 7)
    assert view((1,), beyond=(4, 7)).fates == (
        "root", accepted, untried, rejected, "cut", untried, untried, "cut", untried
    )  # fmt: skip
    assert view((1,), beyond=(4, 7)).stop == 7
    assert view((1, 4)).stop == 4
    assert view(()).stop == 0


class Tokenizer:
    """Tokens as byte-level and as sentencepiece vocabularies have them."""

    def convert_ids_to_tokens(self, token: int) -> str:
        return ["Ġthe", "▁the", "Ã"][token]

    def decode(self, tokens: list[int]) -> str:
        return [" the", "the", "�"][tokens[0]]


def test_tokens_keep_the_blank_that_begins_a_word_and_parts_of_letters_have_a_sign() -> None:
    assert [token_text(Tokenizer(), token) for token in range(3)] == [" the", " the", PART]  # type: ignore[arg-type]


class Letters:
    """Half of the tokens are words, of the others three make a letter."""

    def convert_ids_to_tokens(self, token: int) -> str:
        return "x"

    def decode(self, tokens: list[int], skip_special_tokens: bool = False) -> str:
        text, parts = "", 0
        for token in tokens:
            if parts == 0 and token % 2:
                text += " a"
            else:
                parts = (parts + 1) % 3
                text += "" if parts else "\U0001f600"
        return text + "\ufffd" * (parts > 0)


class Broken:
    """Tokens 2 and 4 begin a letter of two, which 3 completes; the others are words."""

    def convert_ids_to_tokens(self, token: int) -> str:
        return "x"

    def decode(self, tokens: list[int]) -> str:
        text = "".join("\ufffd" if t in (2, 4) else "?" if t == 3 else f" w{t}" for t in tokens)
        return text.replace("\ufffd?", "é")


def test_a_letter_that_is_never_completed_hides_nothing_behind_it() -> None:
    words, partial = Words(Broken()), list[int]()  # type: ignore[arg-type]
    told = [words.written(partial, token) for token in (5, 2, 3, 2, 6, 7, 4)]
    assert told == [" w5", "", "é", "", "\ufffd w6", " w7", ""]
    assert words.after([2], 3) == "é"
    assert words.after([2], 6) == "\ufffd w6"
    assert words.after([], 2) == PART
    tree = TokenTree(
        tokens=(2, 3, 6, 7), parents=(-1, 0, 0, 1), proposal=(1.0,) * 4, point=(False,) * 4
    )
    assert words.of_tree(tree, [2], "x")[0] == ("x", "é", "\ufffd w6", " w7")


@pytest.mark.parametrize("seed", range(3))
def test_a_letter_of_several_tokens_is_written_once_it_is_complete(models: Pair, seed: int) -> None:
    """After every token the running text is what was emitted so far, less the part of a letter."""
    pair = dataclasses.replace(models, tokenizer=Letters())
    seen = trace(pair, [5, 17, 8, 40], T=1.0, seed=seed, **COMMON)
    emitted = [token for step in seen.steps for token in step.emitted]
    written = [text for step in seen.steps for text in step.written]
    assert {"", " a", "\U0001f600"} == set(written)
    for count in range(len(emitted) + 1):
        so_far = Letters().decode(emitted[:count]).rstrip("\ufffd")
        assert "".join(written[:count]) == so_far


def test_what_a_session_prints_is_short_and_a_trace_is_a_table(models: Pair) -> None:
    result, seen = generate(models, PROMPT, **COMMON), trace(models, PROMPT, **COMMON)
    shown = [models, result, result.steps[0], result.steps[0].tree, seen, seen.steps[0]]
    assert all(len(repr(one)) < 200 and "\n" not in repr(one) for one in shown)
    assert "float32 on cpu" in repr(models)
    assert f"{len(result.output_ids)} tokens in {len(result.steps)} steps" in repr(result)
    assert repr(build_growmap("4x8")) == "<Growmap: 32 nodes, 8 levels>"
    table = seen.to_frame()
    assert list(table["tokens"]) == [len(step.emitted) for step in result.steps]
    assert list(table["drafted"]) == [step.tree.size for step in result.steps]
    assert "".join(table["text"]) == "".join(text for step in seen.steps for text in step.written)
    phases = [f"{phase}_ms" for phase in ("draft", "target", "verify", "other")]
    assert (table[phases] >= 0).all(axis=None)
    assert (table["target_ms"] > 0).all()
