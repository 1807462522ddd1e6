"""Trees inside `model.generate`: the same text, streams and stops; and one line for what they can't
honour."""

from __future__ import annotations

import copy
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from architectures import SAME, build
from conftest import ARCHITECTURES, tiny_model
from scipy.stats import chisquare
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    StoppingCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
    TextStreamer,
)
from transformers.generation import GenerateDecoderOnlyOutput
from transformers.generation.streamers import BaseStreamer

from dynasurge import UsageError, custom_generate, load_pair
from dynasurge.experiments.datasets import load_prompts
from dynasurge.models.compatibility import cache_arguments
from dynasurge.probabilities import to_probs

PROMPT = torch.tensor([[5, 17, 8, 40, 33, 9, 21, 60, 61]])


@pytest.fixture(scope="module")
def targets(tiny_folders: dict[str, tuple[str, str]]) -> dict[str, PreTrainedModel]:
    return {
        name: AutoModelForCausalLM.from_pretrained(folders[1]).eval()
        for name, folders in tiny_folders.items()
    }


@pytest.fixture
def target(targets: dict[str, PreTrainedModel]) -> PreTrainedModel:
    return targets["llama"]


@pytest.fixture
def draft(tiny_folders: dict[str, tuple[str, str]]) -> str:
    return tiny_folders["llama"][0]


class Recorder(BaseStreamer):
    def __init__(self) -> None:
        self.ids: list[int] = []
        self.ended = 0

    def put(self, value: torch.Tensor) -> None:
        self.ids += value.flatten().tolist()

    def end(self) -> None:
        self.ended += 1


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("settings", [{"B": 6}, {"B": 6, "use_bfs": True}, {"mode": "auto"}])
def test_greedy_text_is_generates_own(
    name: str,
    settings: dict[str, Any],
    targets: dict[str, PreTrainedModel],
    tiny_folders: dict[str, tuple[str, str]],
) -> None:
    loop = custom_generate(tiny_folders[name][0], fill="B" in settings, **settings)
    for new in (30, 1, 50):  # shorter and longer than what its caches were made for
        plain = targets[name].generate(PROMPT, do_sample=False, max_new_tokens=new)
        assert torch.equal(
            targets[name].generate(
                PROMPT, do_sample=False, max_new_tokens=new, custom_generate=loop
            ),
            plain,
        )


def test_max_length_eos_and_stopping_criteria_cut_where_generate_cuts(
    target: PreTrainedModel, draft: str
) -> None:
    loop = custom_generate(draft, B=6, fill=True)
    text = target.generate(PROMPT, do_sample=False, max_new_tokens=30)[0].tolist()
    eos = text[len(PROMPT[0]) + 7]

    class After(StoppingCriteria):
        def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
            return torch.tensor([input_ids.shape[1] >= 15])

    for how in (
        {"max_length": 20},
        {"max_new_tokens": 30, "eos_token_id": eos},
        {"max_new_tokens": 30, "stopping_criteria": StoppingCriteriaList([After()])},
        {},  # generate's own default
    ):
        plain = target.generate(PROMPT, do_sample=False, **how)
        assert torch.equal(
            target.generate(PROMPT, do_sample=False, custom_generate=loop, **how), plain
        ), how
        assert plain.shape[1] < len(text)


def test_tokens_stream_as_they_come(
    target: PreTrainedModel, draft: str, capsys: pytest.CaptureFixture[str]
) -> None:
    loop, recorder = custom_generate(draft, B=6, fill=True), Recorder()
    output = target.generate(
        PROMPT, do_sample=False, max_new_tokens=12, custom_generate=loop, streamer=recorder
    )
    assert recorder.ids == output[0].tolist()
    assert recorder.ended == 1
    tokenizer = AutoTokenizer.from_pretrained(target.name_or_path)
    target.generate(
        PROMPT,
        do_sample=False,
        max_new_tokens=12,
        custom_generate=loop,
        streamer=TextStreamer(tokenizer, skip_prompt=True),
    )
    assert capsys.readouterr().out.split() == tokenizer.decode(output[0, PROMPT.shape[1] :]).split()


def test_it_returns_a_dict_when_asked_and_takes_a_loaded_draft(
    target: PreTrainedModel, draft: str
) -> None:
    loaded = AutoModelForCausalLM.from_pretrained(draft)
    how = {"do_sample": False, "max_new_tokens": 9}
    output = target.generate(
        PROMPT, custom_generate=custom_generate(loaded, B=4), return_dict_in_generate=True, **how
    )
    assert isinstance(output, GenerateDecoderOnlyOutput)
    assert torch.equal(output.sequences, target.generate(PROMPT, **how))


@pytest.mark.parametrize(
    "how", [{}, {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2}], ids=["plain", "penalty"]
)
def test_scores_and_logits_are_generates(
    how: dict[str, Any], target: PreTrainedModel, draft: str
) -> None:
    loop = custom_generate(draft, B=6, fill=True)
    asked = {"output_scores": True, "output_logits": True, "return_dict_in_generate": True}
    asked |= {"do_sample": False, "max_new_tokens": 12} | how
    theirs = target.generate(PROMPT, **asked)
    mine = target.generate(PROMPT, custom_generate=loop, **asked)
    assert torch.equal(mine.sequences, theirs.sequences)
    for name in ("scores", "logits"):
        assert len(mine[name]) == len(theirs[name]) == 12
        for own, other in zip(mine[name], theirs[name], strict=True):
            torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-4)


def test_several_sequences_are_independent_and_padded(target: PreTrainedModel, draft: str) -> None:
    loop = custom_generate(draft, B=6, fill=True)
    ends = list(range(0, 96, 5))
    how = {"do_sample": True, "top_k": 0, "eos_token_id": ends, "pad_token_id": 3}
    how |= {"num_return_sequences": 4, "output_scores": True, "return_dict_in_generate": True}
    torch.manual_seed(0)
    output = target.generate(PROMPT, max_new_tokens=20, custom_generate=loop, **how)
    new = output.sequences[:, PROMPT.shape[1] :].tolist()
    assert len({tuple(text) for text in new}) == 4
    assert torch.equal(output.sequences[:, : PROMPT.shape[1]], PROMPT.repeat(4, 1))
    assert [len(output.scores), *output.scores[0].shape] == [len(new[0]), 4, 96]
    for text in new:
        end = next((n for n, token in enumerate(text) if token in ends), len(text))
        assert set(text[end + 1 :]) <= {3}
    with pytest.raises(UsageError, match="streamer given: a stream is one text"):
        target.generate(PROMPT, max_new_tokens=4, custom_generate=loop, streamer=Recorder(), **how)


def test_max_time_ends_a_text(target: PreTrainedModel, draft: str) -> None:
    class Slow(BaseStreamer):
        def put(self, value: torch.Tensor) -> None:
            time.sleep(0.03)

        def end(self) -> None: ...

    output = target.generate(
        PROMPT,
        do_sample=False,
        max_new_tokens=60,
        max_time=0.2,
        streamer=Slow(),
        custom_generate=custom_generate(draft, B=4),
    )
    assert 0 < output.shape[1] - PROMPT.shape[1] < 20


@pytest.mark.slow
def test_samples_have_the_configs_law_and_follow_torchs_seed(
    target: PreTrainedModel, draft: str
) -> None:
    loop = custom_generate(draft, B=4, fill=True)
    how = {"do_sample": True, "top_k": 0, "temperature": 0.7, "top_p": 0.8}
    texts = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        texts.append(
            target.generate(PROMPT, max_new_tokens=20, custom_generate=loop, **how)[0].tolist()
        )
    assert texts[0] == texts[1] != texts[2]
    torch.manual_seed(0)
    count = 500
    first = Counter(
        int(target.generate(PROMPT, max_new_tokens=2, custom_generate=loop, **how)[0, -2])
        for _ in range(count)
    )
    law = to_probs(target(PROMPT).logits[0, -1].detach(), 0.7, 0.8)
    assert set(first) <= set(law.nonzero().flatten().tolist()), "top-p"
    expected = {token: count * float(p) for token, p in enumerate(law) if p > 0}
    scale = count / sum(expected.values())
    observed = [first[token] for token in expected]
    assert chisquare(observed, [scale * e for e in expected.values()]).pvalue > 1e-3


@pytest.mark.parametrize(
    ("how", "field"),
    [
        ({"num_beams": 2}, "num_beams 2"),
        ({"inputs": PROMPT.repeat(2, 1)}, "input_ids of batch size 2"),
        ({"attention_mask": torch.tensor([[0] + [1] * 8])}, "attention_mask with zeros"),
        ({"guidance_scale": 1.5}, "guidance_scale 1.5"),
        ({"output_attentions": True, "return_dict_in_generate": True}, "output_attentions True"),
        ({"prompt_lookup_num_tokens": 3}, "prompt_lookup_num_tokens 3"),
        ({"penalty_alpha": 0.6, "top_k": 4}, "penalty_alpha 0.6"),
        ({"dola_layers": "low"}, "dola_layers low"),
    ],
)
def test_what_it_cant_honour_is_refused_in_one_line(
    how: dict[str, Any], field: str, target: PreTrainedModel, draft: str
) -> None:
    arguments = {"inputs": PROMPT, "max_new_tokens": 8, "do_sample": False} | how
    with pytest.raises(UsageError) as error:
        target.generate(custom_generate=custom_generate(draft, B=4), **arguments)
    assert str(error.value).startswith(f"{field}: ")
    assert "; " in str(error.value)
    assert "\n" not in str(error.value)


def test_an_assistant_and_a_used_cache_are_refused(target: PreTrainedModel, draft: str) -> None:
    loop = custom_generate(draft, B=4)
    with pytest.raises(UsageError, match="assistant_model given"):
        target.generate(
            PROMPT,
            assistant_model=tiny_model("llama", layers=1),
            custom_generate=loop,
            max_new_tokens=4,
        )
    (name,) = cache_arguments(type(target), None)
    cache = target(PROMPT[:, :4], use_cache=True)[name]
    with pytest.raises(UsageError, match=f"{name} of 4 tokens"):
        target.generate(PROMPT, **{name: cache}, custom_generate=loop, max_new_tokens=4)


def test_settings_that_generate_decides_and_unfit_drafts_are_refused(
    target: PreTrainedModel, draft: str
) -> None:
    with pytest.raises(UsageError, match=r"T 0\.6: is for generate to set; .*temperature"):
        custom_generate(draft, T=0.6)
    with pytest.raises(UsageError, match="--B 0"):
        custom_generate(draft, B=0)
    with pytest.raises(UsageError, match="device_map auto: is for generate to set"):
        custom_generate(draft, device_map="auto")
    flexible = tiny_model("llama", layers=1)
    flexible.set_attn_implementation("flex_attention")
    with pytest.raises(UsageError, match="flex_attention attention takes no tree mask"):
        target.generate(
            PROMPT, max_new_tokens=4, do_sample=False, custom_generate=custom_generate(flexible)
        )
    other = tiny_model("llama", layers=1, vocab=50)  # without a tokenizer, sizes must do
    with pytest.raises(UsageError, match="vocabulary"):
        target.generate(
            PROMPT, max_new_tokens=4, do_sample=False, custom_generate=custom_generate(other)
        )


def test_a_loop_in_use_is_refused_to_its_own_streamer_and_shared_by_threads(
    target: PreTrainedModel, draft: str
) -> None:
    loop = custom_generate(draft, B=4)
    how = {"max_new_tokens": 12, "do_sample": False}
    plain = target.generate(PROMPT, **how).tolist()

    class Nested(BaseStreamer):
        puts = 0

        def put(self, value: torch.Tensor) -> None:
            self.puts += 1
            if self.puts == 2:  # the first is the prompt
                target.generate(PROMPT[:, :3], custom_generate=loop, **how)

        def end(self) -> None: ...

    with pytest.raises(
        UsageError, match="custom_generate in use: it is decoding another text; make another"
    ):
        target.generate(PROMPT, custom_generate=loop, streamer=Nested(), **how)
    with ThreadPoolExecutor(3) as pool:
        texts = list(
            pool.map(
                lambda _: target.generate(PROMPT, custom_generate=loop, **how).tolist(), range(6)
            )
        )
    assert texts == [plain] * 6
    assert copy.deepcopy(loop) is not loop


def test_a_target_that_changed_gets_a_pair_that_fits(draft: str) -> None:
    model, loop = tiny_model("llama"), custom_generate(draft, B=4)
    for dtype in (torch.float32, torch.float64, torch.float32):
        model.to(dtype)
        text = model.generate(PROMPT, max_new_tokens=6, do_sample=False, custom_generate=loop)
        assert text.tolist() == model.generate(PROMPT, max_new_tokens=6, do_sample=False).tolist()
    with pytest.raises(UsageError, match="input_ids 5000: the model knows ids 0 to"):
        model.generate(
            torch.tensor([[5, 5000]]), max_new_tokens=2, do_sample=False, custom_generate=loop
        )


@pytest.mark.slow
def test_the_demo_pairs_greedy_text_is_generates_own() -> None:
    pair = load_pair(dtype="float32", device="cpu")
    loop = custom_generate(B=8)
    for prompt in load_prompts("demo", 0, 1):
        ids = pair.tokenizer(prompt.text, return_tensors="pt").input_ids[:, :96]
        plain = pair.target.generate(ids, do_sample=False, max_new_tokens=32)
        assert torch.equal(
            pair.target.generate(ids, do_sample=False, max_new_tokens=32, custom_generate=loop),
            plain,
        )


def test_stop_strings_are_refused_with_what_works_instead(
    target: PreTrainedModel, draft: str
) -> None:
    loop = custom_generate(draft, B=6, fill=True)
    words = {"<unk>": 0, "abcdef": 1} | {
        f"w{i}": i for i in range(2, 96)
    }  # transformers looks for the second
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="<unk>"))
    )
    plain = target.generate(PROMPT, do_sample=False, max_new_tokens=20)
    word = tokenizer.decode(plain[0, len(PROMPT[0]) + 6])
    how: dict[str, Any] = {"do_sample": False, "max_new_tokens": 20}
    line = r"stop_strings \['w\d+'\]: generate hands no tokenizer to a custom_generate; pass stopping_criteria=\[StopStr"
    with pytest.raises(UsageError, match=line):
        target.generate(
            PROMPT, stop_strings=[word], tokenizer=tokenizer, custom_generate=loop, **how
        )
    with pytest.raises(UsageError, match=line):
        target.generate(
            PROMPT,
            generation_config=GenerationConfig(stop_strings=[word], **how),
            custom_generate=loop,
        )
    stopped = target.generate(PROMPT, stop_strings=[word], tokenizer=tokenizer, **how)
    criteria = StoppingCriteriaList([StopStringCriteria(tokenizer, [word])])
    assert torch.equal(
        target.generate(PROMPT, stopping_criteria=criteria, custom_generate=loop, **how), stopped
    )
    assert stopped.shape[1] < plain.shape[1]


def test_a_model_that_reads_no_tree_is_told_so_before_its_inputs_are_looked_at(draft: str) -> None:
    config = MambaConfig(vocab_size=96, hidden_size=32, state_size=4, num_hidden_layers=2)
    with pytest.raises(UsageError, match="--target MambaForCausalLM: keeps a recurrent state"):
        MambaForCausalLM(config).generate(
            PROMPT, max_new_tokens=4, custom_generate=custom_generate(draft, B=4)
        )


def test_a_target_whose_config_changed_gets_masks_that_fit() -> None:
    kind, config = SAME["mistral, window 30"]
    model = build(kind, config)
    loop, how = (
        custom_generate(build(kind, config, seed=1), B=6, fill=True),
        {"do_sample": False, "max_new_tokens": 30},
    )
    for window in (30, 8, 16):
        model.config.sliding_window = window
        assert torch.equal(
            model.generate(PROMPT, custom_generate=loop, **how), model.generate(PROMPT, **how)
        ), window
