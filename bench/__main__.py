"""`python bench SCRIPT [options]` runs bench/SCRIPT.py on this checkout, installed or not."""

import runpy
import sys
import types
from pathlib import Path

if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python bench SCRIPT [options]")
    # Python puts this folder first, where a script would hide a package of its name.
    sys.path.pop(0)
    package = types.ModuleType("fastjukebox")
    package.__path__ = [str(Path(__file__).resolve().parent.parent)]
    sys.modules["fastjukebox"] = package
    script = sys.argv.pop(1)
    runpy.run_module(f"fastjukebox.bench.{script}", run_name="__main__", alter_sys=True)
