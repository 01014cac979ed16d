"""`fastjukebox-train`: the commands that train stacks."""

from __future__ import annotations

import os
import sys

import click

# As in engine/__main__.py; before PyTorch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")

from . import audio_commands  # noqa: F401
from .commands import EXPECTED, train


def main() -> None:
    """Errors that a user can mend are one line and exit code 2; a stopped run ends with 130."""
    try:
        train.main(standalone_mode=False)
    except click.exceptions.Exit as end:
        sys.exit(end.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt) as stopped:
        click.echo(str(stopped) or "stopped", err=True)
        sys.exit(130)
    except EXPECTED as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
