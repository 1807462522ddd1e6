"""Settings are timed in turn, and a ratio is taken within a round."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dynasurge import Generation, Pair, generate
from dynasurge.experiments import timing
from dynasurge.experiments.timing import time_settings

SLOW = [1.0, 5.0, 1.0]  # the machine is slow in the second of three rounds


def test_medians_of_rounds_with_the_lowest_and_the_highest(
    models: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def timed(pair: Pair, prompt: Any, **own: Any) -> Generation:
        done, turn = generate(pair, prompt, **own), (len(calls) - 2) // 2
        calls.append(own["mode"])
        seconds = SLOW[turn] * (0.4 if own["mode"] == "auto" else 0.1) * len(done.output_ids)
        return replace(done, prefill_seconds=1.0, seconds=1.0 + seconds)

    monkeypatch.setattr(timing, "generate", timed)
    own = {"T": 0.0, "new_tokens": 6}
    settings = {"auto": {"mode": "auto", **own}, "tree": {"mode": "dTree", "B": 4, **own}}
    table = time_settings(models, "w3 w4 w5", settings, rounds=3)
    assert calls == ["auto", "dTree", "auto", "dTree", "dTree", "auto", "auto", "dTree"]
    assert table["ms_a_token"].tolist() == pytest.approx([400, 100])
    assert table["ms_a_token_high"].tolist() == pytest.approx([2000, 500])
    for name in ("speedup", "speedup_low", "speedup_high"):
        assert table[name].tolist() == pytest.approx([1, 4]), "one slow round slowed both"
    assert table.loc["auto", "tokens_per_step"] == 1
