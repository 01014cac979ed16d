"""`python bench/SCRIPT.py` is `python bench SCRIPT`: a script that is run by its path has no package to import from."""

from __future__ import annotations

import os
import sys
from typing import NoReturn


def run(path: str) -> NoReturn:
    """Become the process that runs the script at `path` as a part of its package, with the same arguments."""
    folder, name = os.path.split(os.path.abspath(path))
    os.execv(sys.executable, [sys.executable, folder, name.removesuffix(".py"), *sys.argv[1:]])
