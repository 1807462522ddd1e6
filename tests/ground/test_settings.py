"""Settings that exist are valid; most of what they refuse is tested as flags (test_cli.py)."""

from __future__ import annotations

from typing import Any

import pytest

from dynasurge.errors import UsageError
from dynasurge.settings import AUTO_NODES, Settings, settings_of


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"B": "auto", "fill": True}, "--fill True: there is no budget to fill with --B auto"),
        ({"fill": True}, "--fill True"),
        ({"B": "many"}, "--B many: neither a whole number nor auto; try --B 8"),
        ({"B": 7.5}, "--B 7.5: neither a whole number nor auto"),
        ({"B": 0}, "--B 0: must be at least 1"),
        ({"values": "best"}, "--values best: unknown; choose one of learned, fixed, own"),
        (
            {"values": "own", "priors": "mine.json"},
            "--priors mine.json: --values own uses no priors",
        ),
        ({"new_tokens": 2.5}, "--new-tokens 2.5: is not a whole number; give a whole number"),
        ({"T": "a"}, "--T 'a': is not a number"),
        ({"growmap": 5}, "--growmap 5: is not a text"),
        ({"B": True}, "--B True: neither a whole number nor auto"),
        ({"seed": None}, "--seed None: is not a whole number"),
        ({"prompt_len": 0}, "--prompt-len 0: must be at least 1; try --prompt-len 128"),
    ],
)
def test_bad_fields_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        Settings(**fields)
    assert str(caught.value).startswith(message)


def test_the_budget_of_auto_is_what_fits() -> None:
    assert Settings().budget == AUTO_NODES
    assert Settings(M=300, prompt_len=128).budget == 300 - 128 - 128
    assert Settings(M=100, prompt_len=128).budget == 1, "and check_room says that nothing fits"
    assert Settings(M=5000).budget == AUTO_NODES
    assert Settings(B=7).budget == 7


def test_every_field_counts_in_the_name_of_a_run() -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"B": 8},
        {"B": 8, "fill": True},
        {"values": "own"},
        {"lookup": False},
    ]
    changes += [{"priors": "mine.json"}, {"max_depth": 3}]
    assert len({Settings(**change).hash() for change in changes}) == len(changes)


@pytest.mark.parametrize(
    ("field", "remedy"),
    [
        ("topk", "did you mean top_k?"),
        ("temperature", "did you mean T?"),
        ("max_new_tokens", "did you mean new_tokens?"),
        ("frobnicate", "leave it out"),
    ],
)
def test_an_unknown_field_is_one_line(field: str, remedy: str) -> None:
    with pytest.raises(UsageError) as caught:
        settings_of({"B": 8, field: 5})
    assert str(caught.value) == f"{field} 5: is no field of Settings; {remedy}"
