"""`eval.sh`: what the study consists of, and that the script runs from anywhere."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from conftest import argv
from readers import markdown

from dynasurge.cli.run import plan_of
from dynasurge.cli.sweep import sweep_parser

ROOT = Path(__file__).parents[2]


def evaluate(*flags: str, folder: Path = ROOT, **environment: str) -> str:
    """Run eval.sh from a folder with this interpreter; returns what it printed."""
    command = ["bash", str(ROOT / "eval.sh"), *flags]
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"} | environment
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def planned(*flags: str) -> list[str]:
    """The arguments that eval.sh would start a sweep with."""
    words = argv(evaluate(*flags, LAUNCH="echo"))
    assert words[:3] == ["-m", "dynasurge", "sweep"]
    return words[3:]


def test_the_study_is_that_of_the_prototype() -> None:
    args = sweep_parser().parse_args(planned())
    assert (args.dataset, args.start, args.end) == (["cnn", "c4"], 0, 200)
    assert args.prompt_len == args.min_prompt_len == args.new_tokens == 128
    plan = plan_of(args)
    by_temperature = Counter(settings.T for settings in plan)
    assert by_temperature == {0: 9, 0.6: 17, 0.85: 17, 0.9: 17, 0.95: 17, 1.0: 17}
    assert {settings.label for settings in plan if settings.T == 0.9} == {
        "auto",
        *(
            f"sTree {tree}{etv}"
            for tree in ("4x8", "8x8", "optimal63", "optimal127")
            for etv in ("", " +ETV")
        ),
        *(f"dTree B={B}{etv}" for B in (16, 32, 64, "auto") for etv in ("", " +ETV")),
    }


@pytest.mark.parametrize("flags", [[], ["--quick"]])
def test_flags_pass_through_and_win(flags: list[str]) -> None:
    args = sweep_parser().parse_args(
        planned(*flags, "--draft", "D", "--target", "T", "--dataset", "wiki", "--T", "0.7")
    )
    assert (args.draft, args.target, args.dataset, args.T) == ("D", "T", ["wiki"], [0.7])
    assert args.output == ("runs/eval-quick" if flags else "runs/eval")


def test_all_gpus_are_used_unless_the_flags_say_where(tmp_path: Path) -> None:
    python = tmp_path / "a python"
    python.write_text('#!/bin/sh\nif [ "$1" = -c ]; then echo 2; else echo "$@"; fi\n')
    python.chmod(0o755)
    assert "accelerate.commands.launch --multi_gpu --num_processes 2" in evaluate(
        PYTHON=str(python)
    )
    for flags in (["--device-map", "auto"], ["--device=cuda:1"], ["--T", "0", "--device", "cpu"]):
        assert evaluate(*flags, PYTHON=str(python)).startswith("-m dynasurge sweep")


@pytest.mark.slow
def test_a_small_study_from_another_folder(pair: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    flags = argv(f"--quick --end 2 --new-tokens 8 --device cpu --output {out}")
    (table,) = markdown(evaluate(*flags, *pair, folder=tmp_path)).values()
    assert ("0.6", "dTree B=16 +ETV") in {(row["T"], row["tree"]) for row in table}
    assert len(pd.read_parquet(out / "records.parquet")) == 2 * (1 + 6 + 1 + 12)
    assert (out / "comparison-demo.png").exists()
