"""Shared fixtures: tiny random pairs of three architectures, on disk as a user's models would be;
what mistakes cost."""

from __future__ import annotations

import json
import re
import resource
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import interpreted  # noqa: F401 (first of all)
import pytest
import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from dynasurge import Pair, build_growmap, load_pair, save_growmap

VOCAB = 96
ARCHITECTURES = ("llama", "gpt2", "qwen2")
DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)

torch.set_num_threads(1)  # tiny tensors: more threads only wait for each other


def argv(line: str) -> list[str]:
    """What a program gets from a line of the shell."""
    return shlex.split(line)


# a small run; flags behind these win
FAST = argv(
    "--T 0.6 --P 1.0 --M 64 --prompt-len 12 --new-tokens 10 --B 4 --device cpu --dtype float32"
)


def tiny_model(
    architecture: str, *, layers: int = 2, seed: int = 0, vocab: int = VOCAB
) -> PreTrainedModel:
    """A random causal LM in float32 whose next-token distributions are far from uniform."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        shared = {"vocab_size": vocab, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
        if architecture == "gpt2":
            model: PreTrainedModel = GPT2LMHeadModel(
                GPT2Config(n_embd=32, n_layer=layers, n_head=4, n_positions=256, **shared)
            )
        else:
            config_type, model_type = {
                "llama": (LlamaConfig, LlamaForCausalLM),
                "qwen2": (Qwen2Config, Qwen2ForCausalLM),
            }[architecture]
            model = model_type(
                config_type(
                    hidden_size=32,
                    intermediate_size=64,
                    num_hidden_layers=layers,
                    num_attention_heads=4,
                    num_key_value_heads=2,
                    max_position_embeddings=256,
                    **shared,
                )
            )
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.25)
    return model.float().eval()


def tiny_tokenizer(vocab: int = VOCAB) -> PreTrainedTokenizerFast:
    """Words `w0 w1 ...` separated by spaces; unknown words are <unk>."""
    words = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i for i in range(3, vocab)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
    )


def save_model(folder: Path, architecture: str, **kwargs: int) -> str:
    tiny_model(architecture, **kwargs).save_pretrained(folder)
    tiny_tokenizer(kwargs.get("vocab", VOCAB)).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def tiny_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, str]]:
    """(draft folder, target folder) by architecture. Drafts are the target's first layer: related,
    not equal."""
    root = tmp_path_factory.mktemp("models")
    return {
        name: (
            save_model(root / f"{name}-draft", name, layers=1),
            save_model(root / f"{name}-target", name),
        )
        for name in ARCHITECTURES
    }


@pytest.fixture
def pair(tiny_folders: dict[str, tuple[str, str]]) -> list[str]:
    """The flags that name a pair."""
    draft, target = tiny_folders["llama"]
    return ["--draft", draft, "--target", target]


@pytest.fixture(scope="module")
def models(tiny_folders: dict[str, tuple[str, str]]) -> Pair:
    """The pair that `pair` names, in memory."""
    return load_pair(*tiny_folders["llama"], dtype="float32", device="cpu")


@pytest.fixture
def growmap(tmp_path: Path) -> str:
    """The file of a static tree."""
    save_growmap(build_growmap("2x3"), tmp_path / "2x3-tree.pt")
    return str(tmp_path / "2x3-tree.pt")


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    path = tmp_path / "prompts.jsonl"
    rows = [
        {
            "id": f"p{i}",
            "kind": "test",
            "text": " ".join(f"w{3 + (i * 7 + j) % 90}" for j in range(20)),
        }
        for i in range(4)
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return str(path)


def assert_one_line(message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The command printed one line that holds the message and a remedy, and nothing else (but what
    it was about to do and to use)."""
    captured = capsys.readouterr()
    err = re.sub("^(loading .*\n)?(preparing .*\n)?", "", captured.err)
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1, err
    assert re.search(r"; \S", err), "a remedy"
    assert re.fullmatch("(law: .*\n)?(memory: .*\n)?", captured.out)


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """The operating system lets no file grow beyond `size` bytes: a write ends in the middle, as on
    a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
