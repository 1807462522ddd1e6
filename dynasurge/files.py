"""Files are written whole or not at all: a reader, or a run that goes on after a kill, never meets half of one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def write_whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives a path beside `path` to write to. It takes `path`'s place when the block ends, and is removed if the block
    fails or is stopped (Ctrl-C too). Raises OSError if it cannot be written."""
    partial = Path(f"{os.fspath(path)}.{os.getpid()}.partial")  # two runs that write one file do not meet
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise
