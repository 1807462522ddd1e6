"""The comparison with what else a user could run: every method runs on the same prompts, and
greedily all say the same."""

from __future__ import annotations

import json
from pathlib import Path

import peers
import pytest


@pytest.mark.slow
def test_every_peer_runs_and_greedy_text_is_one(
    pair: list[str], prompts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [
        "--data",
        prompts,
        "--prompts",
        "2",
        "--prompt-len",
        "12",
        "--new-tokens",
        "24",
        "--T",
        "0",
        "0.6",
    ]
    peers.main(["run", *pair, *flags, "--B", "4", "--output", str(tmp_path / "out")])
    rows = [
        json.loads(line)
        for line in (tmp_path / "out" / "rows-0-of-1.jsonl").read_text().splitlines()
    ]
    methods = {row["method"] for row in rows}
    assert {
        "generate",
        "assisted 5",
        "lookup 5",
        "assisted default",
        "auto",
        "chain 3",
        "Sequoia",
        "EAGLE-2",
        "OPT-Tree",
    } < methods
    assert len(rows) == 2 * 2 * len(methods)
    for index in (0, 1):
        texts = {tuple(row["output_ids"]) for row in rows if (row["T"], row["index"]) == (0, index)}
        assert len(texts) == 1
    for row in rows:
        assert 0 < row["prefill_seconds"] < row["seconds"]
        assert row["passes"] <= len(row["output_ids"]) <= 24
    capsys.readouterr()
    peers.main(["table", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    assert "**prompts, T = 0**" in printed
    assert "| ms a step |" in printed
    assert printed.count("2 of 2") == len(methods)
