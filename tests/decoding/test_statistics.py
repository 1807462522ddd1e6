"""The first two emitted tokens of real (tiny) models, sampled through the whole engine, against the
target's exact law.

The enumeration tests cannot see an indexing error between engine, cache and rule; this test can.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_model, tiny_tokenizer
from scipy.stats import chisquare

from dynasurge import Pair, Settings, build_growmap, probabilities, save_growmap
from dynasurge.decoding.session import Session

VOCAB, PROMPT, T, P = 8, [3, 5, 4, 7], 0.8, 0.9
PLANS: dict[str, dict[str, Any]] = {
    "auto": {"mode": "auto"},
    "sTree topdown": {"mode": "sTree"},
    "sTree traversal": {"mode": "sTree", "use_bfs": True},
    "sTree reserved": {"mode": "sTree", "use_bfs": True, "etv": "reserved"},
    "dTree topdown": {"mode": "dTree"},
    "dTree hybrid traversal": {"mode": "dTree", "policy": "hybrid", "use_bfs": True},
    "captured auto": {"mode": "auto"},
    "captured sTree traversal": {"mode": "sTree", "use_bfs": True},
    "captured dTree topdown": {"mode": "dTree"},
    "captured dTree hybrid traversal": {
        **{"mode": "dTree", "policy": "hybrid", "use_bfs": True, "fill": True},
    },
}
SAMPLES, CAPTURED_SAMPLES, MANY = 500, 250, 20_000


@pytest.fixture(scope="module")
def pair() -> Pair:
    return Pair(
        draft=tiny_model("llama", layers=1, vocab=VOCAB),
        target=tiny_model("llama", vocab=VOCAB),
        tokenizer=tiny_tokenizer(VOCAB),
        draft_name="tiny draft",
        target_name="tiny target",
    )


@torch.inference_mode()
def next_token(pair: Pair, tokens: list[int]) -> list[float]:
    return probabilities.to_probs(
        pair.target(torch.tensor([tokens])).logits[0, -1].double(), T, P
    ).tolist()


def exact_law(pair: Pair) -> dict[tuple[int, ...], float]:
    """The target's law of the next two tokens; a text that ends after one is a cell of its own."""
    law: dict[tuple[int, ...], float] = {}
    for first, mass in enumerate(next_token(pair, PROMPT)):
        if first in pair.eos:
            law[(first,)] = mass
        elif mass > 0:
            law |= {
                (first, x): mass * m
                for x, m in enumerate(next_token(pair, [*PROMPT, first]))
                if m > 0
            }
    return {cell: mass for cell, mass in law.items() if mass > 0}


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANS)
def test_emitted_pairs_have_the_targets_law(
    name: str, pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = CAPTURED_SAMPLES if name.startswith("captured") else SAMPLES
    _sample(name, samples, pair, tmp_path, monkeypatch)


@pytest.mark.nightly
@pytest.mark.parametrize("name", PLANS)
def test_many_emitted_pairs_have_the_targets_law(
    name: str, pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _sample(name, MANY, pair, tmp_path, monkeypatch)


def _sample(
    name: str, samples: int, pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "dynasurge.decoding.engines.can_capture", lambda pair: name.startswith("captured")
    )
    plan = PLANS[name]
    if plan["mode"] == "sTree":
        save_growmap(build_growmap("2x2"), tmp_path / "2x2.pt")
        plan = plan | {"growmap": str(tmp_path / "2x2.pt")}
    settings = Settings(
        T=T, P=P, B=4, M=32, prompt_len=4, new_tokens=3, max_depth=3, seed=11, **plan
    )
    session = Session(pair, settings)
    counts = Counter(
        tuple(session.generate(PROMPT, index=i).output_ids[:2]) for i in range(samples)
    )
    law = exact_law(pair)
    assert set(counts) <= set(law), "a token pair that the target never emits"
    cells = sorted(law, key=lambda cell: -law[cell])
    observed, expected = [0.0], [0.0]
    for cell in cells:  # cells expected fewer than 10 times are pooled
        if law[cell] * samples >= 10:
            observed.append(counts[cell])
            expected.append(law[cell] * samples)
        else:
            observed[0] += counts[cell]
            expected[0] += law[cell] * samples
    pooled = slice(0 if expected[0] > 1 else 1, None)
    scale = sum(observed[pooled]) / sum(expected[pooled])
    assert len(cells) > 10
    assert chisquare(observed[pooled], [e * scale for e in expected[pooled]]).pvalue > 1e-4
