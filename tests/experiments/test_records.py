"""The records of a folder under everything that may happen to it: kills, full disks, other
versions, other runs."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import files_no_larger_than
from samples import AUTO
from samples import row as sample_row

from dynasurge import UsageError
from dynasurge.experiments.datasets import Prompt
from dynasurge.experiments.records import RecordFile
from dynasurge.experiments.schema import FORMAT, Row
from dynasurge.experiments.workers import Processes

RUN = "abc"


def row(index: int) -> Row:
    return replace(sample_row(AUTO, index, [[]]), run=RUN, text="w" * 50)


def fields(index: int, **other: Any) -> dict[str, Any]:
    """What stands in a line, but for some fields."""
    return json.loads(row(index).to_json()) | other


def prompt(index: int) -> Prompt:
    return Prompt(index=index, id=str(index), kind="", text="")


def indices(folder: Path) -> list[int]:
    with RecordFile(folder, [RUN]) as records:
        return [found.index for found in records.rows([RUN], range(100))]


def test_rows_are_found_again(tmp_path: Path) -> None:
    with RecordFile(tmp_path, [RUN]) as records:
        for index in (2, 0, 1):
            records.append(row(index))
        assert records.find(RUN, prompt(1), [1]) == row(1)
        assert records.find(RUN, prompt(3), [3]) is None
        assert [found.index for found in records.rows([RUN], [0, 1, 2])] == [0, 1, 2]
        with pytest.raises(UsageError, match="holds row 1 of another text"):
            records.find(RUN, prompt(1), [7])
    assert indices(tmp_path) == [0, 1, 2]


def test_a_full_disk_leaves_no_part_of_a_row(tmp_path: Path) -> None:
    with RecordFile(tmp_path, [RUN]) as records:
        records.append(row(0))
        before = (tmp_path / "records.jsonl").read_bytes()
        with files_no_larger_than(len(before) + 30), pytest.raises(UsageError) as caught:
            records.append(row(1))
        assert "cannot be written (File too large); make room there, or name another folder" in str(
            caught.value
        )
        assert (tmp_path / "records.jsonl").read_bytes() == before
        assert records.find(RUN, prompt(1), [1]) is None
        records.append(row(1))
    assert indices(tmp_path) == [0, 1]


def test_kill_9_in_the_middle_of_a_row(tmp_path: Path) -> None:
    code = f"""
import os, signal
from pathlib import Path
from dynasurge.experiments import records
from dynasurge.experiments.schema import Row
folder = records.RecordFile(Path({str(tmp_path)!r}), ["{RUN}"])
folder.append({row(0)!r})
def die(file):  # half of the row is on the disk
    os.ftruncate(file, os.fstat(file).st_size - 40)
    os.kill(os.getpid(), signal.SIGKILL)
records.os.fsync = die
folder.append({row(1)!r})
"""
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    torn = (tmp_path / "records.jsonl").read_bytes()
    assert not torn.endswith(b"\n")
    assert torn.count(b"\n") == 1
    with RecordFile(
        tmp_path, [RUN]
    ) as records:  # nor does the lock of the killed run stand in the way
        assert records.find(RUN, prompt(1), [1]) is None
        records.append(row(1))
    assert indices(tmp_path) == [0, 1]


def test_records_of_another_version_are_refused(tmp_path: Path) -> None:
    old = fields(0)
    del old["format"]
    for written, version in ((old, 1), (fields(0, format=FORMAT + 1), FORMAT + 1)):
        (tmp_path / "records.jsonl").write_text(json.dumps(written) + "\n")
        with pytest.raises(UsageError) as caught:
            RecordFile(tmp_path, [RUN])
        assert f"line 1 was written by another version of dynasurge (format {version}" in str(
            caught.value
        )
    assert json.loads((tmp_path / "records.jsonl").read_text()) == written


@pytest.mark.parametrize(
    "broken",
    [
        {"about": {}},
        {"seconds": float("nan")},
        {"output_ids": 3},
        {"settings": "x"},
        {"draft_seconds": None},
    ],
)
def test_a_line_that_no_result_could_be_made_of_is_named(
    broken: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "records.jsonl").write_text(
        row(0).to_json() + "\n" + json.dumps(fields(1, **broken)) + "\n"
    )
    with pytest.raises(UsageError, match="line 2 is no record; fix it"):
        RecordFile(tmp_path, [RUN])
    (tmp_path / "records.jsonl").write_text("[" * 100_000 + "\n")
    with pytest.raises(UsageError, match="line 1 is no record"):
        RecordFile(tmp_path, [RUN])


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    with RecordFile(tmp_path, [RUN]) as records:
        records.append(row(0))
        with pytest.raises(
            UsageError, match="is in use by another run; wait for that run, or name another folder"
        ):
            RecordFile(tmp_path, [RUN])
        records.append(row(1))
    assert indices(tmp_path) == [0, 1]


def test_a_process_that_a_killed_launch_left_behind_is_not_joined(tmp_path: Path) -> None:
    """Its first process is gone and so is that lock, but this one still writes."""
    orphan = RecordFile(tmp_path, [RUN], Processes(rank=1, count=2))
    for processes in (Processes(), Processes(rank=0, count=2), Processes(rank=1, count=2)):
        with pytest.raises(UsageError, match="is in use by another run"):
            RecordFile(tmp_path, [RUN], processes)
    orphan.append(row(1))
    orphan.close()
    assert indices(tmp_path) == [1]


@pytest.mark.skipif(
    not Path("/proc").is_dir(), reason="needs a place where not even root may write"
)
def test_a_folder_that_cannot_be_written_is_named() -> None:
    with pytest.raises(UsageError, match="cannot be written"):
        RecordFile(Path("/proc/nowhere"), [RUN])


def test_rows_of_other_processes_are_merged_once(tmp_path: Path) -> None:
    for rank, mine in ((0, [0, 2]), (1, [1]), (2, [3])):
        with RecordFile(tmp_path, [RUN], Processes(rank=rank, count=3)) as records:
            for index in mine:
                records.append(row(index))
    assert indices(tmp_path) == [0, 1, 2, 3], (
        "a launch that was killed before it merged has lost nothing"
    )
    kept = (tmp_path / "records.1.jsonl").read_bytes()
    for _ in range(2):
        with RecordFile(tmp_path, [RUN]) as records:
            records.merge()
        assert [path.name for path in sorted(tmp_path.glob("*.jsonl"))] == ["records.jsonl"]
        lines = (tmp_path / "records.jsonl").read_text().splitlines()
        assert sorted(json.loads(line)["index"] for line in lines) == [0, 1, 2, 3]
        (tmp_path / "records.1.jsonl").write_bytes(
            kept
        )  # as if killed between copying and deleting


def test_a_users_copy_is_left_alone(tmp_path: Path) -> None:
    with RecordFile(tmp_path, [RUN]) as records:
        records.append(row(0))
    copy = tmp_path / "records.backup.jsonl"
    copy.write_bytes((tmp_path / "records.jsonl").read_bytes())
    with RecordFile(tmp_path, [RUN]) as records:
        records.append(row(1))
        records.merge()
    assert copy.exists()
    assert indices(tmp_path) == [0, 1]


def test_a_torn_line_of_any_process_is_mended(tmp_path: Path) -> None:
    with RecordFile(tmp_path, [RUN], Processes(rank=1, count=2)) as records:
        records.append(row(1))
    with (tmp_path / "records.1.jsonl").open("a") as file:
        file.write('{"format": 2, "ru')
    assert indices(tmp_path) == [1]


def test_no_folder_leaves_nothing_behind() -> None:
    with RecordFile(None, [RUN]) as records:
        records.append(row(0))
        assert records.find(RUN, prompt(0), [0]) == row(0)
        folder = records.folder
    assert not folder.exists()
