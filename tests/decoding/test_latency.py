"""Latency curves: what they are, and that they are measured once."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import tiny_model

from dynasurge.decoding.engines import Engines
from dynasurge.decoding.latency import cache_file, load_costs, measure
from dynasurge.drafting.cost_model import Costs
from dynasurge.models.engine import Engine


def test_curves_never_fall_and_keep_their_bends() -> None:
    bumpy = Costs(
        widths=(1, 2, 4, 8), target_seconds=(1.0, 1.4, 1.3, 1.9), draft_seconds=(0.1, 0.3, 0.2, 0.4)
    )
    assert [bumpy.target(nodes) for nodes in (0, 1, 2, 3, 5, 7)] == pytest.approx(
        [1.0, 1.3, 1.3, 1.3, 1.6, 1.9]
    )
    assert bumpy.target(11) == pytest.approx(2.5), "the last slope goes on beyond the curve"
    assert bumpy.draft(2) == pytest.approx(0.2)
    assert bumpy.step(3, 2) == pytest.approx(1.3 + 2 * 0.2)


@pytest.mark.parametrize("captured", [False, True])
@pytest.mark.parametrize(("target", "draft"), [(2, 3), (5, 5), (16, 64), (64, 600)])
def test_small_caches_are_measured_too(target: int, draft: int, captured: bool) -> None:
    engines = Engines(
        Engine(tiny_model("llama"), target),
        Engine(tiny_model("llama", layers=1), draft),
        captures=captured,
    )
    costs = measure(engines)
    assert costs.widths[0] == 1
    assert costs.widths[-1] < max(2, target)


def test_curves_are_measured_once_and_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DYNASURGE_CACHE", str(tmp_path))
    target, draft = Engine(tiny_model("llama"), 128), Engine(tiny_model("llama", layers=1), 128)
    engines = Engines(target, draft)
    costs = load_costs(engines)
    assert costs.widths[0] == 1
    assert all(seconds > 0 for seconds in costs.target_seconds + costs.draft_seconds)
    assert cache_file(engines).is_file()
    assert target.length == draft.length == 0
    monkeypatch.setattr(
        "dynasurge.decoding.latency.measure", lambda *_: pytest.fail("measured twice")
    )
    assert load_costs(engines) == costs
