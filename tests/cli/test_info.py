"""`dynasurge info` and `dynasurge --version`: what a user pastes into an issue."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
import torch

from dynasurge.cli.main import main
from dynasurge.settings import VERSION

ROOT = Path(__file__).parents[2]


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"dynasurge {VERSION}\n"
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == VERSION
    for file in ("README.md", "CITATION.cff", "CHANGELOG.md"):
        assert VERSION in (ROOT / file).read_text(encoding="utf-8"), file


def test_info_says_what_runs_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DYNASURGE_CACHE", str(tmp_path))
    (tmp_path / "latency").mkdir()
    (tmp_path / "latency" / "a.json").write_text("{}")
    assert main(["info"]) == 0
    facts = dict(
        (part.strip() for part in line.split("  ", 1))
        for line in capsys.readouterr().out.splitlines()
    )
    assert facts["dynasurge"].startswith(VERSION)
    assert facts["torch"] == torch.__version__
    assert facts["cached latency"] == "1"
    assert facts["cached growmaps"] == "0"
    assert str(tmp_path) in facts["cache"]
    assert "MB in the package" in facts["demo draft"]
    assert "T = 0.6, 1" in facts["curves of traversal"]
    assert list(tmp_path.rglob("*")) == [tmp_path / "latency", tmp_path / "latency" / "a.json"]


def test_info_without_the_demo_target(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("dynasurge.cli.info.find_gguf", lambda: None)
    assert main(["info"]) == 0
    assert "of the model hub" in capsys.readouterr().out


def test_info_takes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--draft", "demo"]) == 2
    assert "--draft" in capsys.readouterr().err
