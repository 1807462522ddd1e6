"""Records: an output folder's rows, one JSON object a (settings, prompt), each written whole or not
at all.

`records.jsonl` only grows, by whole lines. So a killed run loses at most the prompt that it was
decoding: the next run cuts off a torn last line and skips finished prompts. Of several processes,
the first writes to `records.jsonl` and process N to `records.N.jsonl`; another number of processes
may go on later. A finished run moves all rows into `records.jsonl`. If a kill comes between copying
and deleting, a row is in two files; it counts once.

Rows stay on disk. Memory holds only the place of each row.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import filelock

from dynasurge.errors import UsageError
from dynasurge.experiments.datasets import Prompt
from dynasurge.experiments.schema import FormatError, Row
from dynasurge.experiments.workers import ALONE, Processes
from dynasurge.files import write_whole
from dynasurge.generation_config import law_text

Key = tuple[str, int]  # run name, prompt's index


class RecordFile:
    """The rows of an output folder. Close it, or use it in a `with`: until then no other run can
    use the folder.

    With several processes, all of them must call every method except `find`, `has`, `rows` and
    `append`.
    """

    def __init__(
        self, folder: Path | None, runs: Collection[str], processes: Processes = ALONE
    ) -> None:
        """folder: None is a temporary one. runs: the run names that it may hold.

        Raises UsageError if the folder holds other runs, or rows that this version cannot read; if
        another run uses it; or if it cannot be written.
        """
        self._processes, self._open = processes, ExitStack()
        self._where: dict[Key, tuple[Path, int]] = {}
        with ExitStack() as failing:
            failing.callback(self.close)
            self.folder = (
                Path(self._open.enter_context(tempfile.TemporaryDirectory()))
                if folder is None
                else folder
            )
            self._main_path = self.folder / "records.jsonl"
            self._path = (
                self._main_path
                if processes.main
                else self.folder / f"records.{processes.rank}.jsonl"
            )
            try:
                self._prepare()
            except (OSError, ValueError) as error:
                if isinstance(error, UsageError):
                    raise
                raise _unwritable(self.folder, error) from error
            for (run, _), where in self._where.items():
                if run not in runs:
                    raise _stranger(self.folder, _row_at(*where), runs)
            failing.pop_all()

    def __enter__(self) -> RecordFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the folder for other runs."""
        self._open.close()

    def find(self, run: str, prompt: Prompt, prompt_ids: Sequence[int]) -> Row | None:
        """This prompt's row, if it exists. Raises UsageError if that row has another text."""
        where = self._where.get((run, prompt.index))
        if where is None:
            return None
        row = _row_at(*where)
        if row.prompt_ids != list(prompt_ids):
            reason = f"holds row {prompt.index} of another text"
            raise UsageError(
                "--output", self.folder, reason, "the dataset has changed: name another folder"
            )
        return row

    def has(self, run: str, index: int) -> bool:
        """Whether this prompt's row exists."""
        return (run, index) in self._where

    def rows(self, runs: Iterable[str], indices: Iterable[int]) -> Iterator[Row]:
        """The existing rows of these runs and prompts, by run, then by prompt."""
        for run in runs:
            for index in indices:
                if (where := self._where.get((run, index))) is not None:
                    yield _row_at(*where)

    def append(self, row: Row) -> None:
        """Add a row, whole, and wait until it is on disk. If it cannot be written, raises
        UsageError and leaves the file as before."""
        try:
            start = _append(self._path, row.to_json().encode() + b"\n")
        except OSError as error:
            raise _unwritable(self.folder, error) from error
        self._where[row.run, row.index] = self._path, start

    def merge(self) -> None:
        """Wait for all processes, then put all rows into `records.jsonl`."""
        self._processes.wait()
        if self._processes.main:
            try:
                self._merge()
            except OSError as error:
                raise _unwritable(self.folder, error) from error
        self._processes.wait()
        self._where.clear()
        self._scan()

    def _merge(self) -> None:
        self._scan()
        for path in self._paths()[1:]:
            for start, line, row in _lines(path):
                if self._where[row.run, row.index] == (path, start):
                    self._where[row.run, row.index] = (
                        self._main_path,
                        _append(self._main_path, line),
                    )
            path.unlink()

    def _prepare(self) -> None:
        if self._processes.main:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._open.enter_context(self._locked(self._main_path))
            for path in self._paths():
                if path != self._main_path:
                    with self._locked(path):  # a process of a killed launch may still write here
                        pass
                _cut_torn_line(path)
        self._processes.wait()
        if not self._processes.main:
            self._open.enter_context(self._locked(self._path))
        self._path.touch()  # fail now, not after the first prompt
        self._scan()
        # no process appends before all have seen the same rows, or shares would overlap
        self._processes.wait()

    @contextmanager
    def _locked(self, path: Path) -> Iterator[None]:
        """Hold a file of rows for this process alone. The lock ends with the process."""
        try:
            with filelock.FileLock(path.with_suffix(".lock"), timeout=0):
                yield
        except filelock.Timeout as error:
            reason, remedy = "is in use by another run", "wait for that run, or name another folder"
            raise UsageError("--output", self.folder, reason, remedy) from error

    def _paths(self) -> list[Path]:
        return record_files(self.folder)

    def _scan(self) -> None:
        for path in self._paths():
            for start, _, row in _lines(path):
                self._where.setdefault((row.run, row.index), (path, start))


def record_files(folder: Path) -> list[Path]:
    """Every file of an output folder that may hold rows. `records.jsonl`, which may not exist yet,
    comes first. Any other file is the user's own."""
    ranks = (path for path in folder.glob("records.*.jsonl") if path.name.split(".")[1].isdecimal())
    return [folder / "records.jsonl", *sorted(ranks)]


@contextmanager
def write_output(path: Path) -> Iterator[Path]:
    """`write_whole` for a file of an output folder. Raises UsageError if it cannot be written."""
    try:
        with write_whole(path) as partial:
            yield partial
    except OSError as error:
        raise _unwritable(path.parent, error) from error


def _stranger(folder: Path, row: Row, runs: Collection[str]) -> UsageError:
    """The error for a row of a run that is not in the plan. A run's name has the settings' hash,
    their files' hash and the dataset."""
    if any(run.startswith(f"{row.hash}-") and run.endswith(f"-{row.dataset}") for run in runs):
        reason = f"holds records of {row.label} with another --every, growmap or priors file"
        return UsageError("--output", folder, reason, "name another folder")
    told = f"{law_text(row.settings)}, seed {row.settings.get('seed')}"
    about = f"{row.label}, {told}, {row.dataset}"
    return UsageError(
        "--output", folder, f"holds records of other settings ({about})", "name another folder"
    )


def _unwritable(folder: Path, error: OSError | ValueError) -> UsageError:
    reason = f"cannot be written ({error.strerror if isinstance(error, OSError) else error})"
    return UsageError("--output", folder, reason, "make room there, or name another folder")


def _append(path: Path, line: bytes) -> int:
    """Add a line and return where it starts. If it cannot be written whole, take it back."""
    start = path.stat().st_size
    try:
        with path.open("ab") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        with suppress(OSError):
            os.truncate(path, start)
        raise
    return start


def _cut_torn_line(path: Path) -> None:
    """Cut off a last line that a kill left incomplete."""
    if path.exists():
        data = path.read_bytes()
        if not data.endswith(b"\n"):
            os.truncate(path, data.rfind(b"\n") + 1)


def _lines(path: Path) -> Iterator[tuple[int, bytes, Row]]:
    """For each line of a records file: where it starts, the line, and its row. Raises UsageError
    for a line that is no row."""
    if not path.exists():
        return
    with path.open("rb") as file:
        start = 0
        for number, line in enumerate(file, start=1):
            yield start, line, _row(path, number, line)
            start += len(line)


def _row(path: Path, number: int, line: bytes) -> Row:
    try:
        return Row.from_json(line)
    except FormatError as error:
        reason = f"line {number} was written by another version of dynasurge ({error})"
        remedy = "go on with that version, or name another folder"
        raise UsageError("--output", path, reason, remedy) from error
    except (ValueError, TypeError, RecursionError) as error:
        remedy = "fix it, or name another folder"
        raise UsageError("--output", path, f"line {number} is no record", remedy) from error


def _row_at(path: Path, start: int) -> Row:
    with path.open("rb") as file:
        file.seek(start)
        return Row.from_json(file.readline())
