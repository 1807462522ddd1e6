"""Sweeps on tiny models: the grid, what is written, kills, and several processes that write what
one would."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest
from conftest import FAST, argv, assert_one_line, files_no_larger_than
from readers import markdown, numbers, records

from dynasurge import Pair, UsageError, load_pair
from dynasurge.cli.main import main
from dynasurge.experiments.datasets import load_prompts
from dynasurge.experiments.grid import grid
from dynasurge.experiments.launch import join, own_gpu
from dynasurge.experiments.provenance import git_commit
from dynasurge.experiments.sweep import sweep
from dynasurge.experiments.workers import Processes
from dynasurge.settings import Settings

SAME = argv("label run dataset index output_ids accepted ranks children tree_size")


@pytest.fixture
def command(pair: list[str], prompts: str, growmap: str) -> list[str]:
    axes = argv(f"--T 0 0.8 --B 4 auto --growmap {growmap}")
    return ["sweep", *pair, *FAST, "--dataset", prompts, *axes]


def same(folder: Path) -> list[str]:
    """What must not depend on kills, on processes or on the clock, in an order of its own."""
    return sorted(json.dumps({name: row[name] for name in SAME}) for row in records(folder))


def share_costs(folder: Path, other: Path) -> None:
    """Trees that pay for their time are the same only if passes cost the same."""
    other.mkdir()
    (other / "costs.json").write_bytes((folder / "costs.json").read_bytes())


# --- the grid
# -----------------------------------------------------------------------------------------------------


def test_the_grid_says_nothing_twice() -> None:
    plan = grid(
        growmap=["4x8-tree.pt", "8x8.pt"],
        B=[16, 32],
        use_bfs=[False, True],
        T=[0, 0.6],
        seed=[1, 2],
    )
    assert len(plan) == len(set(plan)) == 2 * (5 + 9)
    labels = [settings.label for settings in plan if settings.T == 0.6 and settings.seed == 1]
    assert labels == [
        "auto",
        *("sTree 4x8", "sTree 4x8 +ETV", "sTree 8x8", "sTree 8x8 +ETV"),
        *("dTree B=16", "dTree B=16 +ETV", "dTree B=32", "dTree B=32 +ETV"),
    ]
    assert not any(settings.use_bfs for settings in plan if settings.T == 0), (
        "greedy text knows no rule"
    )
    assert {settings.T for settings in plan[:10]} == {0}, (
        "one temperature and seed after another, auto first"
    )


def test_policies_are_for_trees_that_are_drawn() -> None:
    plan = grid(mode=["auto", "dTree"], B=[8], policy=["sampled", "hybrid"], T=[0, 0.6])
    assert [(s.mode, s.T, s.policy) for s in plan] == [
        ("auto", 0, "sampled"),
        ("dTree", 0, "topk"),
        ("auto", 0.6, "sampled"),
        ("dTree", 0.6, "sampled"),
        ("dTree", 0.6, "hybrid"),
    ]


def test_only_dynamic_trees_are_filled() -> None:
    plan = grid(growmap=["2x3.pt"], B=[8], fill=True)
    assert [(settings.mode, settings.fill) for settings in plan] == [
        ("auto", False),
        ("sTree", False),
        ("dTree", True),
    ]


def test_grids_that_cannot_be() -> None:
    with pytest.raises(UsageError, match="--growmap None: sTree needs a tree shape"):
        grid(mode=["sTree"])
    with pytest.raises(UsageError, match="two files of one name make one column"):
        grid(growmap=["a/tree.pt", "b/tree.pt"])
    with pytest.raises(UsageError, match=r"--growmap 4x8-tree\.pt: two files of one name"):
        grid(growmap=["4x8-tree.pt", "4x8.pt"])
    with pytest.raises(UsageError, match="--etv reserved: needs child counts that are fixed"):
        grid(mode=["dTree"], use_bfs=[True], etv="reserved")


# --- one process
# --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_sweep_writes_rows_a_parquet_a_table_and_figures(
    command: list[str], pair: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, other = tmp_path / "out", tmp_path / "others.txt"
    other.write_text("w5 w6 w7\n" + " ".join(f"w{9 + i}" for i in range(20)) + "\n")
    flags = argv(f"--use_bfs --seed 0 1 --end 2 --min-prompt-len 12 --output {out}")
    dataset = command[command.index("--dataset") + 1]
    assert main([*command, "--dataset", dataset, str(other), *flags]) == 0
    written = records(out)
    per_prompt = 2 * (
        4 + 7
    )  # seeds x (T = 0: auto and three trees; T = 0.8: these, and the trees with ETV)
    assert len(written) == 3 * per_prompt
    assert [row["index"] for row in written] == [0] * per_prompt + [1] * 2 * per_prompt, (
        "prompt by prompt"
    )
    assert {row["dataset"] for row in written[: 2 * per_prompt]} == {dataset}
    assert len({(row["run"], row["index"]) for row in written}) == len(written)
    for row in written:
        assert row["hash"] == Settings(**row["settings"]).hash()
        assert row["about"]["dtype"] == "float32"
        assert set(row["about"]) == {
            *(
                "device",
                "dtype",
                "floor_ms",
                "date",
                "python",
                "dynasurge",
                "torch",
                "transformers",
                "commit",
            )
        }
        assert row["about"]["commit"] == git_commit()
        assert row["revision"].startswith("sha256:")
        assert [len(ranks) for ranks in row["ranks"]] == row["accepted"]
        assert all(len(children) in (len(ranks), len(ranks) + 1) for ranks, children in
                   zip(row["ranks"], row["children"], strict=True))  # fmt: skip
        assert all(rank < count for ranks, children in zip(row["ranks"], row["children"], strict=True)
                   for rank, count in zip(ranks, children, strict=False))  # fmt: skip
    frame = pd.read_parquet(out / "records.parquet")
    assert len(frame) == len(written)
    assert frame["tokens"].sum() == sum(len(row["output_ids"]) for row in written)
    assert set(frame["B"]) == {"auto", "4"}
    printed = capsys.readouterr().out
    told = [line.replace(str(other), "") for line in printed.splitlines() if f" {other}" in line]
    assert [numbers(line) for line in told] == [[1, 2, 12]] * 2, "one too short, the other cut"
    tables = markdown((out / "results.md").read_text())
    assert tables == markdown(printed)
    assert [title.split()[0] for title in tables] == ["prompts", "others"]
    for table in tables.values():
        found = {(row["T"], row["policy"], row["tree"]) for row in table}
        assert len(found) == len(table) == per_prompt / 2, "seeds are pooled"
        assert {("0", "", "auto"), ("0.8", "sampled", "dTree B=auto +ETV")} <= found
    for name in ("prompts", "others"):
        assert (out / f"comparison-{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (out / f"comparison-{name}.svg").read_text().count("<path") > 20


@pytest.mark.slow
def test_a_sweep_goes_on_where_kill_9_stopped_it(command: list[str], tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert main([*command, "--output", str(whole)]) == 0
    share_costs(whole, cut)
    code = f"""
import os, signal, sys
import torch
from dynasurge.experiments import records
from dynasurge.cli.main import main
torch.set_num_threads(1)
seen = []
def die(file):
    seen.append(file)
    if len(seen) == 6:
        os.ftruncate(file, os.fstat(file).st_size - 40)
        os.kill(os.getpid(), signal.SIGKILL)
records.os.fsync = die
main({[*command, "--output", str(cut)]!r})
"""
    for times in (1, 2):
        killed = subprocess.run([sys.executable, "-c", code], capture_output=True)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert (cut / "records.jsonl").read_bytes().count(b"\n") == 5 * times
    assert main([*command, "--output", str(cut)]) == 0
    assert same(cut) == same(whole)
    assert len(records(cut)) == 4 * (4 + 4)


@pytest.mark.slow
def test_a_wider_grid_goes_on_in_the_same_folder(command: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main([*command, "--mode", "auto", "--end", "2", "--output", str(out)]) == 0
    before = (out / "records.jsonl").read_bytes()
    assert main([*command, "--end", "2", "--output", str(out)]) == 0
    assert (out / "records.jsonl").read_bytes().startswith(before)
    assert len(pd.read_parquet(out / "records.parquet")) == 2 * (4 + 4)


def origins(told: str) -> dict[str, int]:
    """How many rows are said to be of which device."""
    return {device: int(count) for count, device in re.findall(r"(\d+) on ([^,]+), \w+\d", told)}


@pytest.mark.slow
def test_rows_made_elsewhere_are_pointed_out(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main([*command, "--mode", "auto", "--end", "1", "--output", str(out)]) == 0
    assert origins((out / "results.md").read_text()) == {}
    moved = [row | {"about": row["about"] | {"device": "one H100"}} for row in records(out)]
    (out / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in moved))
    assert main([*command, "--mode", "auto", "--end", "2", "--output", str(out)]) == 0
    here = records(out)[-1]["about"]["device"]
    for told in ((out / "results.md").read_text(), capsys.readouterr().out):
        assert origins(told) == {"one H100": 2, here: 2}


@pytest.mark.slow
def test_a_changed_dataset_is_noticed_before_anything_runs(
    command: list[str], prompts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main([*command, "--mode", "auto", "--end", "2", "--output", str(out)]) == 0
    first, second, *others = Path(prompts).read_text().splitlines()
    Path(prompts).write_text("\n".join([first, second.replace("w", "w1"), *others]) + "\n")
    before = (out / "records.jsonl").read_bytes()
    capsys.readouterr()
    assert main([*command, "--mode", "auto", "--output", str(out)]) == 2
    assert "holds row 1 of another text" in capsys.readouterr().err
    assert (out / "records.jsonl").read_bytes() == before


@pytest.mark.slow
def test_two_spellings_of_a_file_are_one_dataset(
    command: list[str], prompts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = [*command, "--mode", "auto", "--end", "1", "--output", "out", "--dataset"]
    assert main([*flags, "prompts.jsonl", "./prompts.jsonl"]) == 0
    assert main([*flags, "./prompts.jsonl"]) == 0
    assert {row["dataset"] for row in records(tmp_path / "out")} == {"prompts.jsonl"}
    assert len(records(tmp_path / "out")) == 2


def test_the_function_behind_the_command(models: Pair, prompts: str, tmp_path: Path) -> None:
    plan = grid(mode=["auto", "dTree"], B=[4], fill=True, M=64, prompt_len=12, new_tokens=10)
    seen: list[str] = []
    frame = sweep(
        models,
        plan,
        {"mine": load_prompts(prompts)},
        tmp_path,
        on_row=lambda d: seen.append(d.row.label),
    )
    assert list(frame["label"]) == ["auto"] * 4 + ["dTree B=4"] * 4
    turns = ["auto", "dTree B=4", "dTree B=4", "auto"]
    assert seen == turns * 2, "interleaved, each time another first"


def test_mistakes_of_a_sweep(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(command) == 2
    assert_one_line(
        "--output None: a sweep is a folder of records; try --output runs/sweep", capsys
    )
    for flags, message in (
        (["--T", "0.6", "-1"], "--T -1.0: a temperature is 0 (greedy) or more"),
        (["--mode", "tree"], "argument --mode: invalid choice: 'tree'"),
        (["--B", "8", "50"], "--M 64: 12 prompt + 10 new tokens + a tree of 50 need 72 rows"),
        (["--dataset", "demo", "none.txt"], "--dataset none.txt: cannot be read"),
        (
            ["--dataset", "a/x.txt", "b/x.txt"],
            "--dataset a/x.txt: two files of one name make one table",
        ),
        (["--fill"], "--fill True: there is no budget to fill with --B auto"),
    ):
        assert main([*command, *flags, "--output", str(out)]) == 2
        assert_one_line(message, capsys)
        assert not out.exists()


def test_no_prompt_is_long_enough(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "short.txt").write_text("w5 w6 w7\nw5 w6\n")
    flags = argv(f"--dataset {tmp_path / 'short.txt'} --output {tmp_path / 'out'}")
    assert main([*command, *flags, "--min-prompt-len", "12"]) == 2
    assert_one_line("has so many tokens; use --min-prompt-len 3, or other rows", capsys)
    assert not (tmp_path / "out").exists()


def test_two_sweeps_into_one_folder(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from dynasurge.experiments.records import RecordFile

    with RecordFile(tmp_path / "out", []):
        assert main([*command, "--output", str(tmp_path / "out")]) == 2
    assert_one_line("is in use by another run; wait for that run, or name another folder", capsys)


@pytest.mark.slow
def test_a_full_disk_stops_a_sweep_between_rows(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    with files_no_larger_than(10_000):
        assert main([*command, "--end", "2", "--output", str(out)]) == 2
    assert_one_line(
        "cannot be written (File too large); make room there, or name another folder", capsys
    )
    done = (out / "records.jsonl").read_bytes()
    assert done.endswith(b"\n")
    assert 1 <= done.count(b"\n") < 16
    assert main([*command, "--end", "2", "--output", str(out)]) == 0
    assert len(records(out)) == 16


def test_results_that_cannot_be_written_cost_one_line(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = [*command, "--mode", "dTree", "--end", "1", "--output"]
    for name in ("records.parquet", "results.md", "comparison-prompts.png"):
        (tmp_path / name / name).mkdir(parents=True)
        assert main([*small, str(tmp_path / name)]) == 2
        assert "cannot be written" in capsys.readouterr().err
    with files_no_larger_than(12_000):  # room for the rows, but not for the parquet
        assert main([*small, str(tmp_path / "full")]) == 2
    assert "cannot be written" in capsys.readouterr().err
    assert not (tmp_path / "full" / "records.parquet").exists()
    assert len(records(tmp_path / "full")) == 4


def test_a_folder_is_looked_into_before_anything_is_loaded(
    command: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    assert main([*command, "--mode", "auto", "--end", "1", "--output", str(out)]) == 0
    monkeypatch.setattr("dynasurge.models.pair.load_pair", lambda *_, **__: pytest.fail("too late"))
    capsys.readouterr()
    assert main([*command, "--mode", "auto", "--T", "0.7", "--end", "1", "--output", str(out)]) == 2
    assert_one_line("holds records of other settings (auto, greedy (T = 0), seed 0", capsys)


def test_costs_of_a_wider_grid_are_added_behind_those_there_are(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, long = tmp_path / "out", ["--M", "400", "--mode", "dTree", "--end", "1", "--T", "0.8"]
    assert main([*command, *long, "--output", str(out)]) == 0
    costs = json.loads((out / "costs.json").read_text())
    assert costs["widths"][-1] > 4
    short = {name: value if name == "step_seconds" else value[:2] for name, value in costs.items()}
    short["target_seconds"] = [0.5, 0.75]
    (out / "costs.json").write_text(json.dumps(short))
    assert main([*command, *long, "--end", "2", "--output", str(out)]) == 0
    again = json.loads((out / "costs.json").read_text())
    assert again["widths"] == costs["widths"]
    assert again["target_seconds"][:2] == [0.5, 0.75]
    assert min(again["target_seconds"][2:]) >= 0.75, "what trees went by so far does not change"
    (out / "costs.json").write_text("{")
    capsys.readouterr()
    assert main([*command, *long, "--end", "3", "--output", str(out)]) == 2
    assert (
        "costs.json: is missing, damaged or too short, and rows here went by it"
        in capsys.readouterr().err
    )


# --- several processes
# --------------------------------------------------------------------------------------------


def test_several_processes_need_a_folder_to_meet_in(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "dynasurge.experiments.launch.join", lambda *_: (Processes(rank=1, count=2), "cpu")
    )
    assert main(["--mode", "auto", *command[1:5], "--end", "1"]) == 2
    assert_one_line(
        "--output None: several processes put their rows in one folder; try --output runs/mine",
        capsys,
    )


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shares_are_everything_once(count: int) -> None:
    for items in ([], [1], list(range(10))):
        shares = [Processes(rank=rank, count=count).share(items) for rank in range(count)]
        assert sorted(item for share in shares for item in share) == items
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_processes_do_not_fight_for_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(
        UsageError, match="--device cuda:1: 2 processes cannot share it; leave it out"
    ):
        join("cuda:1")
    with pytest.raises(UsageError, match="--device-map auto: spreads one model over all GPUs"):
        join("auto", "auto")


def threads(count: int, work: Callable[[Processes], pd.DataFrame]) -> list[pd.DataFrame]:
    """Call work(Processes) in so many threads, which wait for each other as processes would."""
    barrier = threading.Barrier(count, timeout=60)
    members = [
        Processes(rank=rank, count=count, wait=lambda: barrier.wait() and None)
        for rank in range(count)
    ]
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(work, members))


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3, 5])
def test_any_number_of_processes_writes_the_same_rows(
    count: int, pair: list[str], prompts: str, tmp_path: Path
) -> None:
    plan = grid(mode=["auto", "dTree"], B=[4, 6], fill=True, M=64, prompt_len=12, new_tokens=10)
    data = {"mine": load_prompts(prompts)}
    models = [load_pair(pair[1], pair[3], device="cpu", dtype="float32") for _ in range(count)]
    sweep(models[0], plan, data, tmp_path / "one")
    frames = threads(
        count, lambda p: sweep(models[p.rank], plan, data, tmp_path / "many", processes=p)
    )
    assert [len(frame) for frame in frames] == [len(plan) * 4] * count
    assert same(tmp_path / "many") == same(tmp_path / "one")
    assert not list((tmp_path / "many").glob("records.*.jsonl")), "merged"
    assert len(pd.read_parquet(tmp_path / "many" / "records.parquet")) == len(plan) * 4


def launch(count: int, arguments: list[str], code: str = "") -> subprocess.CompletedProcess[str]:
    """`accelerate launch -m dynasurge ...`, or of a script around it, on CPUs."""
    options = argv(
        f"--multi_gpu --num_processes {count} --num_machines 1 --main_process_port 0"
        " --mixed_precision no --dynamo_backend no"
    )
    start = [sys.executable, "-m", "accelerate.commands.launch", *options]
    program = [code] if code else ["-m", "dynasurge"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*start, *program, *arguments], env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.mark.parametrize(("seen", "own"), [(None, "1"), ("3,5", "5"), ("GPU-a,GPU-b", "GPU-b")])
def test_each_process_of_a_launch_sees_its_own_gpu(
    seen: str | None, own: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    if seen is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", seen)
    assert own_gpu(2) == own
    with pytest.raises(UsageError, match="1 GPUs cannot serve process 2 of this machine; launch 1"):
        own_gpu(1)


@pytest.mark.slow
def test_two_launched_processes_write_what_one_would(command: list[str], tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert main([*command, "--output", str(one)]) == 0
    share_costs(one, two)
    done = launch(2, [*command, "--output", str(two)])
    assert done.returncode == 0, done.stderr
    assert same(two) == same(one)
    assert done.stdout.count("written: ") == 1, "one of them reports"
    assert len(pd.read_parquet(two / "records.parquet")) == len(records(one))


@pytest.mark.slow
def test_a_rank_that_dies_loses_no_finished_row(command: list[str], tmp_path: Path) -> None:
    one, two, script = tmp_path / "one", tmp_path / "two", tmp_path / "dies.py"
    assert main([*command, "--output", str(one)]) == 0
    share_costs(one, two)
    script.write_text("""
import os, signal, sys
from dynasurge.experiments import records
from dynasurge.cli.main import main
real, seen = os.fsync, []
def die(file):
    real(file)
    seen.append(file)
    if len(seen) == 5 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
records.os.fsync = die
sys.exit(main(sys.argv[1:]))
""")
    assert launch(2, [*command, "--output", str(two)], str(script)).returncode != 0
    finished = [(two / name).read_bytes() for name in ("records.1.jsonl", "records.jsonl")]
    assert finished[0].count(b"\n") == 5
    assert main([*command, "--output", str(two)]) == 0, (
        "with another number of processes than before"
    )
    merged = (two / "records.jsonl").read_bytes()
    assert all(
        line in merged
        for data in finished
        for line in data.splitlines(keepends=True)
        if line.endswith(b"\n")
    )
    assert same(two) == same(one)
