"""Files are written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from dynasurge.files import write_whole


def test_a_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "numbers.json"
    path.write_text("old")
    with write_whole(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def write(path: Path, text: str, stop: BaseException | None = None) -> None:
    with write_whole(path) as partial:
        partial.write_text(text)
        if stop is not None:
            raise stop


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), RuntimeError()])
def test_what_was_there_stays_if_writing_stops(stop: BaseException, tmp_path: Path) -> None:
    path = tmp_path / "numbers.json"
    path.write_text("old")
    with pytest.raises(type(stop)):
        write(path, "ne", stop)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["nowhere/numbers.json", "file/numbers.json", "folder"])
def test_a_path_that_cannot_be_written_is_an_os_error(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder").mkdir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OSError, match=name.split("/")[0]):
        write(tmp_path / name, "new")
    assert sorted(tmp_path.rglob("*")) == before
