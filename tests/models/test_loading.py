"""Names, folders and files of models: what is meant, and one line for what is wrong with it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import save_model, tiny_model
from safetensors.torch import load_file, save_file
from transformers import GPTNeoConfig, GPTNeoForCausalLM, T5Config, ViTConfig

import dynasurge.models.loading
from dynasurge import UsageError, generate, load_pair
from dynasurge.models.loading import find_source, load_generation_config, load_model

CODE = """
from transformers import LlamaConfig, LlamaForCausalLM

class OwnConfig(LlamaConfig):
    model_type = "own"

class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(save_model(tmp_path / "model", "llama"))


def refused(folder: object, message: str, **options: Any) -> None:
    with pytest.raises(UsageError, match=message) as error:
        load_model("--target", str(folder), torch.float32, **options)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(f"--target {folder}: ")


def change(folder: Path, edit: Any) -> None:
    """Edit the tensors of a checkpoint."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def test_a_checkpoint_that_lacks_tensors_is_refused_and_one_that_has_more_warns(
    folder: Path,
) -> None:
    change(folder, lambda tensors: tensors.update(extra=torch.zeros(2)))
    with pytest.warns(
        UserWarning, match="1 tensors of its checkpoint are not used, the first is extra"
    ):
        load_model("--target", str(folder), torch.float32)
    change(folder, lambda tensors: tensors.pop("model.layers.1.mlp.down_proj.weight"))
    refused(
        folder, r"its checkpoint lacks model\.layers\.1\.mlp\.down_proj\.weight; fetch it again"
    )


def test_a_folder_of_another_class_is_refused(folder: Path) -> None:
    change(
        folder,
        lambda tensors: [
            tensors.update({f"bert.{name}": tensors.pop(name)}) for name in list(tensors)
        ],
    )
    refused(
        folder, r"its checkpoint lacks lm_head\.weight, model\.embed_tokens\.weight, .* and 18 more"
    )


def test_tensors_of_another_shape_are_one_line(folder: Path) -> None:
    change(folder, lambda tensors: tensors.update({"model.norm.weight": torch.zeros(5)}))
    refused(
        folder,
        r"its model\.norm\.weight has another shape than its config says; fetch config and weights together",
    )


def test_an_adapter_is_no_model(folder: Path) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")
    refused(folder, "is an adapter, not a model; merge it into its base model")


def test_a_config_that_says_nonsense_is_one_line(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    for change, message in (
        ({"num_attention_heads": 5}, "Class validation error .* heads"),
        (
            {"model_type": "mistral", "sliding_window": 1},
            "has sliding_attention layers of 1 positions",
        ),
    ):
        (folder / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(UsageError, match=message) as error:
            load_pair(str(folder), str(folder), device="cpu")
        assert "\n" not in str(error.value)
    (folder / "config.json").write_text(json.dumps(config))
    ends = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(ends | {"eos_token_id": [[2]]}))
    with pytest.raises(UsageError, match=r"eos_token_id .*: is no token id"):
        load_pair(str(folder), str(folder), device="cpu")


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_git_lfs_pointer_is_named(folder: Path, name: str) -> None:
    (folder / name).write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 123\n"
    )
    refused(folder, rf"its {name} is a git-lfs pointer; fetch the file")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "is no JSON object"),
        ("[1, 2]", "is no JSON object"),
        ('{"watermarking_config": 5}', "cannot be loaded"),
        ('{"num_return_sequences": 4}', "cannot be loaded"),
        ('{"max_new_tokens": -1}', "cannot be loaded"),
    ],
)
def test_a_generation_config_that_says_nonsense_is_one_line(
    folder: Path, text: str, reason: str
) -> None:
    (folder / "generation_config.json").write_text(text)
    refused(folder, reason)
    with pytest.raises(UsageError, match=reason) as error:
        load_generation_config(str(folder))
    assert "\n" not in str(error.value)


def test_half_a_file_is_one_line(folder: Path) -> None:
    for name, message in {
        "model.safetensors": "weights are damaged or cut short",
        "tokenizer.json": "cannot be",
    }.items():
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: len(whole) // 2])
        refused(folder, message)
        (folder / name).write_bytes(whole)
    (folder / "config.json").write_text("{")
    refused(folder, "config.json")


def test_paths_that_lead_nowhere_are_no_matter_of_the_network(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (f"{folder}x", "./model2", "../x", "~/nothing here", "a/b/c"):
        refused(name, "there is no such folder; check the path")
    refused("x" * 300, "is no folder here")
    refused(folder / "config.json", "is a file; give the folder")
    refused(f"{folder}@main", "a folder has no revisions")
    refused(tmp_path, "has no config.json")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_source("--target", "~/model").path == str(folder)
    assert load_pair("~/model", "model", dtype=torch.float32, device="cpu").target_name == "model"


@pytest.mark.parametrize("name", ["", " ", None, 5, b"x"])
def test_what_is_no_name_is_refused(name: Any) -> None:
    with pytest.raises(
        UsageError, match=r"--target .*: is no name of a model; give a hub name or a folder"
    ):
        load_model("--target", name, torch.float32)


def test_devices_that_are_not_there_are_one_line(folder: Path) -> None:
    assert load_pair(str(folder), str(folder), device="cpu:7").target.device.type == "cpu"
    for options, flag in (
        ({"device": "tpu:1"}, "--device"),
        ({"device": None}, "--device"),
        ({"device_map": "x"}, "--device-map"),
    ):
        with pytest.raises(UsageError, match=f"^{flag} .*: not on this machine; use {flag} cpu"):
            load_pair(str(folder), str(folder), **options)


def test_a_revision_is_handed_to_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def from_pretrained(name: str, **options: Any) -> Any:
        asked.append((name, options))
        raise OSError("We couldn't connect\nto the hub")

    monkeypatch.setattr(dynasurge.models.loading.AutoConfig, "from_pretrained", from_pretrained)
    refused(
        "org/model@v1.0",
        "is no folder here, and the model hub does not give it .We couldn't connect to the hub.; check the name",
    )
    refused("org/model", "is no folder here")
    options = {"trust_remote_code": False}
    assert asked == [("org/model", options | {"revision": "v1.0"}), ("org/model", options)]


def test_code_beside_the_weights_runs_only_when_asked(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on the terminal"))
    (folder / "own.py").write_text(CODE)
    config = json.loads((folder / "config.json").read_text())
    classes = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}
    (folder / "config.json").write_text(
        json.dumps(config | {"model_type": "own", "auto_map": classes})
    )
    refused(
        folder,
        "needs code that is next to its weights; read that code, then add --trust-remote-code",
    )
    pair = load_pair(
        str(folder), str(folder), dtype="float32", device="cpu", trust_remote_code=True
    )
    plain = tiny_model("llama").generate(
        torch.tensor([[5, 6, 7]]), do_sample=False, max_new_tokens=12
    )[0, 3:]
    assert (
        generate(pair, [5, 6, 7], T=0, new_tokens=12, B=4, fill=True).output_ids == plain.tolist()
    )
    shutil.rmtree(tmp_path / "modules", ignore_errors=True)


def test_models_of_another_kind_get_reasons_of_their_own(tmp_path: Path) -> None:
    T5Config().save_pretrained(tmp_path / "t5")
    refused(tmp_path / "t5", r"is an encoder-decoder \(t5\)")
    ViTConfig().save_pretrained(tmp_path / "vit")
    refused(tmp_path / "vit", r"is not a causal language model \(vit\)")
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "config.json").write_text('{"model_type": "of tomorrow"}')
    refused(
        tmp_path / "new",
        "its architecture is not known to transformers .*; a newer transformers may know it",
    )


def test_eager_attention_is_said(tmp_path: Path) -> None:
    config = GPTNeoConfig(
        vocab_size=96, hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global"], 2]]
    )
    GPTNeoForCausalLM(config).save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="has eager attention only, which is slower than SDPA"):
        model, tokenizer = load_model("--target", str(tmp_path), torch.float32)
    assert model(torch.tensor([[5, 6]])).logits.isfinite().all()
    assert tokenizer is None


def test_dtypes_are_torchs_or_their_names(folder: Path) -> None:
    for dtype in (torch.float32, "float32", "torch.float32"):
        assert (
            load_pair(str(folder), str(folder), dtype=dtype, device="cpu").target.dtype
            is torch.float32
        )
    for dtype in ("fp32", torch.int8):
        with pytest.raises(
            UsageError, match=r"--dtype (fp32|int8): unknown; choose one of auto, float32, bfloat16"
        ):
            load_pair(str(folder), str(folder), dtype=dtype, device="cpu")
