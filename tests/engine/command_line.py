"""The command line in a process of its own."""

import sys
from pathlib import Path


def command(*args, before=""):
    """A subprocess's command line; the checkout is made importable as the tests do it. before: code that runs first."""
    tests = str(Path(__file__).parents[1])
    code = (
        f"import sys; sys.path.insert(0, {tests!r}); import conftest, torch; torch.set_num_threads(1); "
        f"import os, signal; {before}\n"
        "from fastjukebox.engine.__main__ import main; sys.exit(main(sys.argv[1:]))"
    )
    return [sys.executable, "-c", code, *map(str, args)]
