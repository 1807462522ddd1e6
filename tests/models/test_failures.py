"""Models that give no numbers and memory that runs out: one line that says what, and what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FAST, argv, assert_one_line, tiny_model, tiny_tokenizer
from readers import records

import dynasurge.models.loading
import dynasurge.models.pair
from dynasurge.cli.main import main
from dynasurge.models.engine import Engine
from dynasurge.models.kv_cache import TreeCache

ONE = [*FAST, "--end", "1"]


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
@pytest.mark.parametrize("role", ["draft", "target"])
def test_a_broken_model_is_named(
    role: str,
    number: float,
    pair: list[str],
    prompts: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.lm_head.weight[7] = number
    broken = str(tmp_path / "broken")
    model.save_pretrained(broken)
    tiny_tokenizer().save_pretrained(broken)
    capsys.readouterr()
    flags = argv(f"--dataset {prompts} --{role} {broken} --output {tmp_path / 'out'}")
    assert main([*pair, *ONE, *flags]) == 2
    assert_one_line(f"--{role} {broken}: gives logits that are NaN or infinite", capsys)


def breaking(layers: int, length: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Models of so many layers give NaN in the second prompt's text, once they have read so much of
    it. Returns where they will have."""
    real, broken = Engine.score, []

    def score(self: Engine, tokens: Any, positions: Any, *others: Any, **how: Any) -> torch.Tensor:
        before = int(positions[0])
        logits = real(self, tokens, positions, *others, **how)
        if self.model.config.num_hidden_layers != layers:
            return logits
        if self.texts < 3 or before < length:  # the first text is a warm-up
            return logits
        broken.append(before)
        return logits * torch.nan

    monkeypatch.setattr(Engine, "score", score)
    return broken


@pytest.mark.parametrize(
    "mode", ["--mode auto", "--fill", "--fill --use_bfs", "--policy hybrid --use_bfs"]
)
@pytest.mark.parametrize("T", ["0", "0.8"])
def test_a_target_that_breaks_later_is_named_and_keeps_what_is_done(
    T: str, mode: str, pair: list[str], prompts: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    breaking(2, 13, monkeypatch)
    out = tmp_path / "out"
    flags = argv(f"{mode} --T {T} --dataset {prompts} --output {out}")
    assert main([*pair, *FAST, *flags]) == 2
    assert_one_line("gives logits that are NaN or infinite; try --dtype", capsys)
    assert 1 <= len(records(out)) < 4


@pytest.mark.parametrize("policy", ["sampled", "topk", "hybrid"])
def test_a_draft_that_breaks_later_changes_no_text(
    policy: str, pair: list[str], prompts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The target's text does not depend on what the draft proposes, and so not on its breaking."""
    texts, broken = [], []
    for name in ("sound", "broken"):
        if name == "broken":
            broken = breaking(1, 13, monkeypatch)
        flags = argv(f"--dataset {prompts} --end 2 --output {tmp_path / name}")
        assert main([*pair, *FAST, *flags, *argv(f"--fill --policy {policy} --T 0")]) == 0
        texts.append([row["output_ids"] for row in records(tmp_path / name)])
    assert broken
    assert texts[0] == texts[1]


def out_of_memory(*_: Any, **__: Any) -> Any:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


def test_memory_runs_out_reading_the_prompt(
    pair: list[str],
    prompts: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(Engine, "extend", out_of_memory)
    assert main([*pair, *ONE, "--no-self-test", "--dataset", prompts]) == 2
    assert_one_line(
        "ran out of memory reading the prompt; shrink the prompt: use a smaller --prompt-len",
        capsys,
    )


def test_memory_runs_out_scoring_a_tree(
    pair: list[str],
    prompts: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    real = Engine.score

    def score(self: Engine, tokens: Any, *others: Any, **how: Any) -> torch.Tensor:
        return out_of_memory() if len(tokens) == 5 else real(self, tokens, *others, **how)

    monkeypatch.setattr(Engine, "score", score)
    assert main([*pair, *ONE, "--fill", "--no-lookup", "--dataset", prompts]) == 2
    assert_one_line(
        "ran out of memory drafting or scoring a tree; shrink the tree: use a smaller --B", capsys
    )


def test_memory_runs_out_making_the_cache(
    pair: list[str],
    prompts: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    real = torch.zeros

    def zeros(*size: Any, **options: Any) -> torch.Tensor:
        return out_of_memory() if len(size) == 4 else real(*size, **options)

    monkeypatch.setattr(torch, "zeros", zeros)
    assert main([*pair, *ONE, "--dataset", prompts]) == 2
    assert_one_line("shrink the cache: use smaller --new-tokens, --prompt-len or tree", capsys)


def test_memory_runs_out_loading(
    pair: list[str],
    prompts: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(
        dynasurge.models.loading.AutoModelForCausalLM, "from_pretrained", out_of_memory
    )
    assert main([*pair, *ONE, "--dataset", prompts]) == 2
    assert_one_line(
        "while a model loaded; use a smaller model, --dtype bfloat16, or --device-map auto", capsys
    )


def test_a_device_map_loads_the_same_model(pair: list[str], prompts: str, tmp_path: Path) -> None:
    texts = []
    for name, flags in {"whole": [], "mapped": ["--device-map", "cpu"]}.items():
        out = tmp_path / name
        common = argv(f"--fill --dataset {prompts} --output {out}")
        assert main([*pair, *ONE, *common, *flags]) == 0
        texts.append([row["output_ids"] for row in records(out)])
    assert texts[0] == texts[1]


def test_a_model_that_does_not_fit_on_the_gpus_is_refused(
    pair: list[str],
    prompts: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(dynasurge.models.pair, "places", lambda model: {0, "disk"})
    assert main([*pair, *ONE, "--dataset", prompts, "--device-map", "cpu"]) == 2
    assert_one_line("does not fit on the GPUs together; use more or larger GPUs", capsys)


def test_layers_on_two_devices_have_their_cache_there() -> None:
    """The second device is `meta`, which has shapes but no numbers: enough to see where things
    are."""
    states = [torch.ones(1, 2, 3, 4), *[torch.ones(1, 2, 3, 4, device="meta")] * 2]
    cache = TreeCache([(state, state) for state in states], 8)
    with cache.writing_to(torch.arange(3), 3):
        for layer, state in zip(cache.layers, states, strict=True):
            keys, values = layer.update(state, 2 * state)
            assert keys.device == values.device == state.device
            assert keys.shape == (1, 2, 3, 4)
    states[0][:] = torch.arange(3.0)[:, None]
    cache.layers[0].keys[:, :, :3] = states[0]
    cache.commit([0, 2])
    assert cache.layers[0].keys[0, 0, :2, 0].tolist() == [0.0, 2.0]
    assert cache.length == 2
