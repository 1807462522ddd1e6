"""A sweep that is killed at random moments ends with the rows of one that was left alone.

Two tiny random models decode a grid of more than 1,000 (settings, prompt) pairs, once undisturbed
and once killed (SIGKILL) after random times, twenty times; every other life is a launch of two
processes of which one is killed. Rows are compared in all that does not depend on the clock.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROMPTS, KILLS = 24, 20
SAME = (
    "label",
    "run",
    "dataset",
    "index",
    "prompt_ids",
    "output_ids",
    "accepted",
    "ranks",
    "children",
    "tree_size",
)
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
LAUNCH = [
    "-m",
    "accelerate.commands.launch",
    "--multi_gpu",
    "--num_processes",
    "2",
    "--num_machines",
    "1",
]
LAUNCH += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]


@pytest.mark.nightly
def test_a_sweep_that_is_killed_again_and_again_loses_nothing(
    pair: list[str], tmp_path: Path
) -> None:
    command, chance = make_study(tmp_path, pair), random.Random(0)
    whole_run = [sys.executable, *command, str(tmp_path / "whole")]
    subprocess.run(whole_run, env=ENVIRONMENT, check=True, capture_output=True)
    whole = rows(tmp_path / "whole")
    assert len(whole) > 1000
    cut = tmp_path / "cut"
    cut.mkdir()
    prices = (tmp_path / "whole" / "costs.json").read_bytes()  # a machine has one price list
    (cut / "costs.json").write_bytes(prices)
    kills = 0
    for life in range(KILLS):
        # so that every kill finds work to do
        wanted = count(cut) + chance.randrange(2 * len(whole) // (KILLS + 2))
        kills += one_life(command, cut, wanted, chance.random(), launched=life % 2 == 1)
    assert kills > KILLS // 2
    last = [sys.executable, *command, str(cut)]
    subprocess.run(last, env=ENVIRONMENT, check=True, capture_output=True)
    assert sorted(rows(cut)) == sorted(whole)


def one_life(
    command: list[str], folder: Path, wanted: int, moment: float, *, launched: bool
) -> bool:
    """Run until there are so many rows and, for as long as a row takes, a `moment` longer, then
    kill: the process, or one of two. Returns whether there was any left to kill. Until any row is
    there, the kill falls anywhere in loading."""
    start = [sys.executable, *(LAUNCH if launched else []), *command, str(folder)]
    process = subprocess.Popen(
        start, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    loading = wanted == count(folder)
    while process.poll() is None and count(folder) < wanted:
        time.sleep(0.002)
    time.sleep(moment * (5.0 if loading else 0.05))
    if process.poll() is not None:
        return False
    victim = process.pid
    if launched:
        children = Path(f"/proc/{victim}/task/{victim}/children").read_text().split()
        victim = int(children[int(moment * len(children))]) if children else victim
    os.kill(victim, signal.SIGKILL)
    process.wait()
    return True


def make_study(root: Path, pair: list[str]) -> list[str]:
    """Prompts, and the command of a sweep over 44 settings but for the output folder."""
    texts = [" ".join(f"w{3 + (i * 7 + j) % 90}" for j in range(20)) for i in range(PROMPTS)]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (root / "prompts.jsonl").write_text(lines)
    flags = (
        "--M 64 --prompt-len 12 --new-tokens 10 --device cpu --dtype float32 --T 0.6 0.9 --seed 0 1"
    )
    flags += " --B 4 8 auto --use_bfs --growmap growmaps/2x2.pt growmaps/4x8-tree.pt --dataset"
    data = str(root / "prompts.jsonl")
    return ["-m", "dynasurge", "sweep", *pair, *flags.split(), data, "--output"]


def rows(folder: Path) -> list[str]:
    """What must not depend on the clock, a line a row."""
    lines = (folder / "records.jsonl").read_text().splitlines()
    return [json.dumps({name: json.loads(line)[name] for name in SAME}) for line in lines]


def count(folder: Path) -> int:
    """Whole lines in all files of records."""
    return sum(path.read_bytes().count(b"\n") for path in folder.glob("records*.jsonl"))
