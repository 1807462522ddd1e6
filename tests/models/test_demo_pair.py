"""The pair that ships, on real text: greedy equality with transformers, the draft's quality, the
whole demo command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dynasurge import Pair, Settings, load_pair
from dynasurge.cli.main import main
from dynasurge.decoding.session import Session
from dynasurge.experiments.datasets import load_prompts
from dynasurge.models.demo_pair import DRAFT
from dynasurge.models.feature_draft import FeatureDraft

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pair() -> Pair:
    return load_pair(dtype="float32", device="cpu")


def test_greedy_text_is_generates_token_for_token(pair: Pair) -> None:
    plans = [
        {"mode": "auto"},
        {"mode": "sTree", "growmap": str(ROOT / "growmaps" / "4x8-tree.pt")},
        {"mode": "dTree", "B": 12},
    ]
    sessions = [
        Session(pair, Settings(T=0, new_tokens=32, prompt_len=96, **plan)) for plan in plans
    ]
    for prompt in load_prompts("demo", 0, 1):
        ids = sessions[0].encode(prompt.text)
        plain = pair.target.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=32)[
            0, len(ids) :
        ].tolist()
        for plan, session in zip(plans, sessions, strict=True):
            assert session.generate(ids).output_ids == plain, (prompt.id, plan)


def test_the_draft_is_worth_shipping(pair: Pair) -> None:
    """On the bundled prompts at T = 0.6 a tree of 16 yields well over two tokens a pass,
    for any price of passes."""
    session = Session(pair, Settings(T=0.6, mode="dTree", B=16, fill=True, new_tokens=48))
    results = [session.generate(p.text, index=p.index) for p in load_prompts("demo", 0, 3)]
    steps = [step for result in results for step in result.steps]
    assert sum(step.accepted for step in steps) / len(steps) > 1.4
    assert all(
        len(result.output_ids) == 48 or result.output_ids[-1] in pair.eos for result in results
    )


def test_the_draft_loads_by_itself_and_is_small() -> None:
    model = FeatureDraft.from_pretrained(DRAFT)
    assert model.config.vocab_size == 49_152
    assert model.num_parameters() < 11_000_000
    assert sum(path.stat().st_size for path in DRAFT.glob("*.safetensors")) <= 21_000_000


def test_the_demo_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    out = tmp_path / "demo"
    assert (
        main(["compare", "--B", "4", "--end", "1", "--new-tokens", "32", "--output", str(out)]) == 0
    )
    summary = json.loads((out / "summary.json").read_text())
    auto, static, dynamic = summary["runs"]
    assert auto["tokens_per_step"] == 1
    assert static["tokens_per_step"] > 1.3
    assert dynamic["tokens_per_step"] > 1.3
    assert (out / "comparison.png").stat().st_size > 10_000
