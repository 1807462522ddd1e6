"""Drafts that read the target's hidden states: what they compute, what they load, that decoding with
them stays lossless."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import VOCAB, save_model, tiny_model
from plain_feature_draft import PlainDraft
from transformers import LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

import dynasurge
from dynasurge import Pair, Session, Settings, UsageError, load_pair
from dynasurge.decoding import engines
from dynasurge.decoding.assembly import Parts, make_trees
from dynasurge.decoding.executors import Direct
from dynasurge.decoding.loop import Decoder
from dynasurge.decoding.phases import Judge, Phases
from dynasurge.experiments.text_distributions import level_distributions
from dynasurge.models.feature_draft import FeatureDraft, FeatureDraftConfig, published_config
from dynasurge.models.feature_engine import FeatureEngine
from dynasurge.probabilities import Random
from dynasurge.verification.rules import RULES

TAPS = [1, 2, 3]
PROMPT = [5, 9, 13, 4, 70, 33, 8]
EAGLE = {"num_hidden_layers": 1, "draft_vocab_size": 40}
OURS = {
    "num_hidden_layers": 2,
    "own_head": False,
    "inject": True,
    "residual_embedding": True,
    "norm_taps": True,
}
FORMS = pytest.mark.parametrize(
    "form", [EAGLE, OURS, OURS | {"carry": False}], ids=["eagle", "ours", "no carry"]
)


def random_draft(**form: Any) -> FeatureDraft:
    """A random draft in float32 whose distributions are far from uniform."""
    config = FeatureDraftConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_attention_heads=4,
        num_key_value_heads=2,
        taps=TAPS,
        **form,
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        draft = FeatureDraft(config).eval().requires_grad_(False)
        for parameter in draft.parameters():
            parameter.normal_(0, 0.3) if parameter.ndim == 2 else parameter.uniform_(0.5, 1.5)
        if draft.ids is not None:
            chosen = torch.randperm(VOCAB)[: len(draft.d2t)].sort().values
            draft.d2t.copy_(chosen - torch.arange(len(chosen)))
    return draft


def pair_of(form: dict[str, Any], models: Pair, target: Any = None) -> Pair:
    target = (target or tiny_model("llama", layers=4)).double()
    draft = random_draft(**form).double()
    draft.attach(target)
    names = {"draft_name": "features", "target_name": "tiny"}
    return Pair(draft=draft, target=target, tokenizer=models.tokenizer, **names)


class Checked(FeatureEngine):
    """Compares each pass with the plain reading of the same text and path."""

    passes = deepest = 0

    def score(
        self, tokens: Any, positions: Any, rows: Any, hidden: Any, parents: Any = None, **how: Any
    ) -> Any:
        logits = super().score(tokens, positions, rows, hidden, parents, **how)
        plain = PlainDraft(self.model, self._target.model)
        if parents is None:
            if not self.passes:
                self.text: dict[int, int] = {}
            self.text |= dict(zip(positions.tolist(), tokens.tolist(), strict=True))
            self.paths: dict[int, list[int]] = {int(positions[-1]): []}
            text = [self.text[place] for place in range(int(positions[-1]) + 1)]
            expected = [plain.logits(text, [])]
            self.known = text
        else:
            expected = []
            for token, row, parent in zip(
                tokens.tolist(), rows.tolist(), parents.tolist(), strict=True
            ):
                self.paths[row] = [*self.paths[parent], token]
                self.deepest = max(self.deepest, len(self.paths[row]))
                expected.append(plain.logits(self.known, self.paths[row]))
        self.passes += 1
        torch.testing.assert_close(logits, torch.stack(expected), rtol=0, atol=1e-5)
        return logits


@FORMS
@pytest.mark.parametrize(
    "shape", [{"mode": "dTree", "B": 8, "fill": True}, {"mode": "sTree", "growmap": "2x3"}]
)
def test_every_pass_of_a_generation_is_the_plain_reading(
    form: dict[str, Any], shape: dict[str, Any], models: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trees, their paths, and the text read again after each step."""
    made: list[Checked] = []

    def checked(*args: Any, **how: Any) -> Checked:
        made.append(Checked(*args, **how))
        return made[-1]

    monkeypatch.setattr(engines, "FeatureEngine", checked)
    pair = pair_of(form, models)
    settings = Settings(T=0.8, P=1.0, new_tokens=8, **shape)
    session = Session(pair, settings, longest=len(PROMPT))
    result = session.generate(PROMPT)
    assert made[0].passes > len(result.steps)
    assert made[0].deepest > 1
    assert len(result.output_ids) == 8


def test_a_prompt_of_one_token_and_a_long_one(
    models: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first token has no feature before it; a prompt is read in chunks."""
    monkeypatch.setattr("dynasurge.models.feature_engine.CHUNK", 3)
    monkeypatch.setattr(engines, "FeatureEngine", Checked)
    for form in (EAGLE, OURS):
        pair = pair_of(form, models)
        settings = Settings(mode="dTree", B=4, fill=True, T=0.8, P=1.0, new_tokens=4)
        for prompt in ([7], PROMPT):
            assert Session(pair, settings, longest=len(prompt)).generate(prompt).output_ids


@FORMS
def test_distributions_by_level_are_the_plain_reading(form: dict[str, Any], models: Pair) -> None:
    """Before each token of a text, read as the root and deeper; a text too short for it counts as
    read from its first token."""
    pair = pair_of(form, models)
    plain = PlainDraft(pair.draft, pair.target)
    for prompt in (PROMPT, PROMPT[:1]):
        output = [5, 9, 11, 4]
        _, found = level_distributions(pair, prompt, output, 3, T=0.8)
        text = [*prompt, *output[:-1]]
        for level in range(3):
            for number in range(4):
                end = len(prompt) + number
                root = max(1, end - level)
                logits = plain.logits(text[:root], text[root:end])
                expected = torch.softmax(logits / 0.8, -1)
                torch.testing.assert_close(found[level, number], expected, rtol=0, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("T", [0.0, 0.8])
@FORMS
def test_captured_steps_write_the_texts_of_direct_ones(
    form: dict[str, Any], T: float, models: Pair
) -> None:
    on_cpu = pair_of(form, models)
    texts = []
    for where in ("cpu", "cuda"):
        own = {"draft": on_cpu.draft.float().to(where), "target": on_cpu.target.float().to(where)}
        pair = replace(on_cpu, **own)
        on_cpu.draft.attach(pair.target)
        settings = Settings(mode="dTree", B=8, fill=True, T=T, P=1.0, new_tokens=24)
        session = Session(pair, settings, longest=len(PROMPT))
        assert session.engines.captures == (where == "cuda")
        texts.append(session.generate(PROMPT).output_ids)
    assert min(map(len, texts)) > 0  # an end token may come early
    if T == 0:
        assert texts[0] == texts[1]


@FORMS
@pytest.mark.parametrize("target", ["llama", "qwen3"])
def test_greedy_texts_are_those_of_generate(
    form: dict[str, Any], target: str, models: Pair
) -> None:
    model: Any = tiny_model("llama", layers=4)
    if target == "qwen3":
        sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "head_dim": 16}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
        with torch.random.fork_rng():
            torch.manual_seed(1)
            model = Qwen3ForCausalLM(Qwen3Config(vocab_size=VOCAB, **sizes, **heads)).eval()
    pair = pair_of(form, models, model)
    how = {"do_sample": False, "max_new_tokens": 24, "eos_token_id": None, "pad_token_id": 0}
    expected = model.generate(torch.tensor([PROMPT]), **how)[0, len(PROMPT) :].tolist()
    for shape in ({"mode": "dTree", "B": 6}, {"mode": "sTree", "growmap": "2x2"}, {"mode": "auto"}):
        settings = Settings(T=0.0, new_tokens=24, **shape)
        result = Session(pair, settings, longest=len(PROMPT)).generate(PROMPT)
        assert result.output_ids == expected[: len(result.output_ids)]


# --- checkpoints

PUBLISHED = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 1,
    "vocab_size": VOCAB,
    "draft_vocab_size": 40,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "torch_dtype": "float16",
    "transformers_version": "4.28.1",
}


def publish(
    folder: Path, change: Callable[[dict[str, Any]], object] = lambda config: None
) -> FeatureDraft:
    """Write a checkpoint as the authors of EAGLE-3 do."""
    draft = random_draft(**EAGLE)
    folder.mkdir()
    config = dict(PUBLISHED)
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    names = {
        name.replace("layers.0.", "midlayer."): value for name, value in draft.state_dict().items()
    }
    known = torch.zeros(VOCAB, dtype=torch.bool).index_fill(0, draft.ids, True)
    torch.save(names | {"t2d": known}, folder / "pytorch_model.bin")
    return draft


@pytest.fixture
def target(tmp_path: Path) -> str:
    return save_model(tmp_path / "target", "llama", layers=6)


def test_a_published_checkpoint_is_loaded_as_it_is(tmp_path: Path, target: str) -> None:
    draft = publish(tmp_path / "head")
    pair = load_pair(str(tmp_path / "head"), target, dtype="float32", device="cpu")
    assert isinstance(pair.draft, FeatureDraft)
    assert [*pair.draft.config.taps] == [2, 3, 3]
    assert pair.draft.config.rms_norm_eps == 1e-5
    for name, value in draft.state_dict().items():
        torch.testing.assert_close(pair.draft.state_dict()[name], value)
    result = dynasurge.generate(pair, PROMPT, mode="dTree", B=6, T=0.7, new_tokens=12)
    drafted = {token for step in result.steps for token in step.tree.tokens[1:]}
    assert drafted <= {*draft.ids.tolist()}


def test_layer_numbers_of_a_config_count_from_zero() -> None:
    own = PUBLISHED | {"eagle_config": {"eagle_aux_hidden_state_layer_ids": [1, 9, 17]}}
    config = published_config(own | {"architectures": ["LlamaForCausalLMEagle3"]}, 20)
    assert config is not None
    assert [*config.taps] == [2, 10, 18]
    assert (
        published_config({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}, 8) is None
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c.update(vocab_size=97),
            "--draft HEAD: was made for a vocabulary of 97, the target's is 96",
        ),
        (
            lambda c: c.update(target_hidden_size=64),
            "reads hidden states of 64 numbers, the target's have 32",
        ),
        (lambda c: c.update(intermediate_size=50), "another shape than its config says"),
        (lambda c: c.update(num_hidden_layers=2), "has 2 layers; an EAGLE-3 draft has one"),
        (
            lambda c: c.update(architectures=["Eagle3Speculator"]),
            "is in the format of speculators; give the",
        ),
        (
            lambda c: c.update(eagle_config={"eagle_aux_hidden_state_layer_ids": [1, 3, 8]}),
            "reads the target after layers [2, 4, 9], it has 6",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(
    change: Any, message: str, tmp_path: Path, target: str
) -> None:
    head = tmp_path / "head"
    publish(head, change)
    with pytest.raises(UsageError) as error:
        load_pair(str(head), target, dtype="float32", device="cpu")
    assert message.replace("HEAD", str(head)) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_checkpoint_that_lacks_tensors_is_refused(tmp_path: Path, target: str) -> None:
    publish(tmp_path / "head")
    path = tmp_path / "head" / "pytorch_model.bin"
    weights = torch.load(path, weights_only=True)
    del weights["fc.weight"]
    torch.save(weights, path)
    with pytest.raises(UsageError, match=r"its checkpoint lacks fc\.weight"):
        load_pair(str(tmp_path / "head"), target, dtype="float32", device="cpu")


@FORMS
@pytest.mark.parametrize("T", [0.0, 0.8])
def test_steps_of_fixed_shape_write_the_same_text(
    form: dict[str, Any], T: float, models: Pair
) -> None:
    """As a GPU replays them: the draft reads a fixed number of tokens again, and spare rows."""
    pair = pair_of(form, models)
    settings = Settings(mode="sTree", growmap="2x3", T=T, P=1.0, new_tokens=16)
    texts = []
    for captured in (False, True):
        target, draft = engines.engines_of(pair, 64, 64)
        trees = make_trees(settings, Parts(), target.device, captured=captured)
        judge = Judge(rule=RULES["traversal" if T else "topdown"], T=T, P=1.0)
        phases = Phases(target, draft, trees, judge, padded=captured, captured=captured)
        decoder = Decoder(Direct(phases, lag=2 if captured else 1))
        decoder.prefill(PROMPT)
        steps = decoder.steps(PROMPT, 16, Random.seeded(4))
        texts.append([token for step in steps for token in step.emitted])
    assert texts[0] == texts[1]


def test_generate_of_transformers_takes_such_a_draft(tmp_path: Path, target: str) -> None:
    publish(tmp_path / "head")
    model = LlamaForCausalLM.from_pretrained(target)
    ids = torch.tensor([PROMPT])
    how = {"max_new_tokens": 16, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    plain = model.generate(ids, **how)
    own = dynasurge.custom_generate(str(tmp_path / "head"), mode="dTree", B=6)
    assert torch.equal(model.generate(ids, custom_generate=own, **how), plain)
