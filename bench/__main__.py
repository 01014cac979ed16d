"""`python bench SCRIPT [options]` runs bench/SCRIPT.py on this checkout, installed or not."""

import importlib
import runpy
import signal
import sys
import types
from pathlib import Path

FOLDER = Path(__file__).resolve().parent


def scripts() -> list[str]:
    """The names of what can be run."""
    start = 'if __name__ == "__main__":'
    found = (path for path in FOLDER.glob("*.py") if start in path.read_text().splitlines())
    return sorted(path.stem for path in found if path != Path(__file__).resolve())


def end(number: int, frame: object) -> None:
    """End as after an error, so that temporary folders are removed; not again while that is done."""
    signal.signal(number, signal.SIG_IGN)
    sys.exit(128 + number)


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in scripts():
        asked = sys.argv[1:2] != ["--help"]
        print(f"usage: python bench SCRIPT [options]; scripts: {', '.join(scripts())}", file=sys.stderr)
        sys.exit(2 if asked else 0)
    # Python puts this folder first, where a script would hide a package of its name.
    sys.path.pop(0)
    package = types.ModuleType("fastjukebox")
    package.__path__ = [str(FOLDER.parent)]
    sys.modules["fastjukebox"] = package
    importlib.import_module("fastjukebox.engine.stopping").raise_again_when_lost()
    signal.signal(signal.SIGTERM, end)
    script = sys.argv.pop(1)
    runpy.run_module(f"fastjukebox.bench.{script}", run_name="__main__", alter_sys=True)
