"""The command line: `fastjukebox COMMAND` or `python -m fastjukebox.engine COMMAND`.

Whatever goes wrong is one line on stderr and exit code 2; a stopped run is 130 (Ctrl-C) or 143 (SIGTERM).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from . import stopping

# PyTorch's threads wait for each other by spinning, by default for so long that a second busy program on the machine
# makes every operation take a time slice. Read when PyTorch is loaded, which the commands do.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line `args`, by default the process's own; returns the exit code."""
    with stopping.own_handlers():
        stopping.end_at_once()
        from .cli import commands

        return commands.run(sys.argv[1:] if args is None else args)


if __name__ == "__main__":
    sys.exit(main())
