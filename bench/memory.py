"""The most memory that a process has had, and processes of their own to ask for it."""

from __future__ import annotations

import contextlib
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

from .harness import ROOT

STATUS = Path("/proc/self/status")


def peak() -> int:
    """Bytes of memory that this process has had at most since `forget_peak`.

    Linux's own counter, where there is one: `getrusage` begins with the peak of the process that started this one.
    """
    if STATUS.exists():
        return 1024 * int(STATUS.read_text().split("VmHWM:")[1].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def forget_peak() -> None:
    """Count from what is in use now, where Linux allows it."""
    with contextlib.suppress(OSError):
        STATUS.with_name("clear_refs").write_text("5")


def alone(*words: str) -> dict[str, Any]:
    """What `python bench` with these words prints last, as JSON, in a process of its own. Raises RuntimeError."""
    command, pipe = [sys.executable, "bench", *words], subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, text=True, stdout=pipe, stderr=pipe) as child:
        try:
            out, err = child.communicate()
        except BaseException:
            # Not killed: it has folders to remove.
            child.terminate()
            raise
    if child.returncode:
        raise RuntimeError(err[-1000:])
    return json.loads(out.splitlines()[-1])
