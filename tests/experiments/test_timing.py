"""Settings are timed in turn, and a ratio is taken within a round."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dynasurge import Generation, Pair, generate
from dynasurge.experiments import timing
from dynasurge.experiments.timing import Passes, time_settings
from dynasurge.models.threads import Watch

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


@pytest.mark.parametrize(("slow", "warned"), [(0.011, False), (0.030, True)])
def test_a_run_whose_times_scatter_says_so(slow: float, warned: bool, models: Pair) -> None:
    """Only passes over equally large trees are compared: larger trees take longer anyway."""
    one, *_ = generate(models, "w3 w4", mode="auto", new_tokens=4, T=0.0).steps
    big, *_ = generate(models, "w3 w4", mode="dTree", B=4, fill=True, new_tokens=4, T=0.0).steps
    passes = Passes()
    passes.add([replace(one, target_seconds=9.0)])  # a first use
    for number in range(40):
        own = replace(one, target_seconds=slow if number % 3 == 0 else 0.010)
        passes.add([one, own, replace(big, target_seconds=0.5)])
    line = passes.warning(Watch())
    assert (line is not None) is warned
    if warned:
        assert str(line).startswith("times scatter: the middle 80% of passes")
