"""Files are written whole or not at all: neither a reader nor a run that goes on after a kill meets
half a file. And the folders of the package's data and of the user's cache."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ASSETS = Path(__file__).parent / "assets"  # data of the package


def cache_folder() -> Path:
    """The user's cache: `$DYNASURGE_CACHE`, else `~/.cache/dynasurge`."""
    return Path(os.environ.get("DYNASURGE_CACHE") or Path.home() / ".cache" / "dynasurge")


def find_above(*names: str | os.PathLike[str]) -> Path | None:
    """The first of these files in the current folder, or in the nearest folder above it."""
    here = Path.cwd()
    files = (folder / name for folder in (here, *here.parents) for name in names)
    return next((file for file in files if file.is_file()), None)


@contextmanager
def write_whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a new file next to `path` to write to. It replaces `path` when the block ends, and is
    removed if the block fails or is stopped (also by Ctrl-C). Raises OSError if `path` cannot be
    written; before the block, if this is known then."""
    partial = Path(
        f"{os.fspath(path)}.{os.getpid()}.partial"
    )  # two runs that write one file use two partial files
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
