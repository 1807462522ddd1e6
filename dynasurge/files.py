"""Files are written whole or not at all: a reader, or a run that goes on after a kill, never meets
half of one. And where files go that can be made anew."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ASSETS = Path(__file__).parent / "assets"  # what ships with the package


def cache_folder() -> Path:
    """The user's cache: `$DYNASURGE_CACHE`, else `~/.cache/dynasurge`."""
    return Path(os.environ.get("DYNASURGE_CACHE") or Path.home() / ".cache" / "dynasurge")


@contextmanager
def write_whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives a file beside `path` to write to. It takes `path`'s place when the block ends, and is
    removed if the block fails or is stopped (Ctrl-C too). Raises OSError if it cannot be written,
    before the block if that can be seen."""
    partial = Path(
        f"{os.fspath(path)}.{os.getpid()}.partial"
    )  # two runs that write one file do not meet
    if Path(path).is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    partial.touch()
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise
