"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A file to write beside `path`. When that is done it takes its place; where it cannot be, it is removed. Whenever
    the process ends, `path` holds the old content or the new; of several that write at the same time one waits for the
    other."""
    # A name as long as a file system allows has no room for more.
    part = path.with_name(f".{path.name[:50]}.part")
    with _alone(part):
        try:
            yield part
            os.replace(part, path)
        except BaseException:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def _alone(part: Path) -> Iterator[None]:
    """The file is there, and nobody else's who comes this way."""
    while True:
        with part.open("ab") as file:
            # Not every file system has locks.
            with contextlib.suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
            try:
                own = os.path.samestat(os.fstat(file.fileno()), part.stat())
            except FileNotFoundError:
                own = False
            # Else it was another one's, who is done with it.
            if own:
                yield
                return
