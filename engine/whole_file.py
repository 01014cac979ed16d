"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A file to write beside `path`. When that is done it takes its place; where it cannot be, it is removed. Whenever
    the process ends, `path` holds the old content or the new."""
    # A name as long as a file system allows has no room for more.
    part = path.with_name(f".{path.name[:50]}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
