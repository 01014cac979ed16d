"""`fastjukebox-train`: the commands that train stacks."""

from __future__ import annotations

import os
import sys
import traceback
from typing import NoReturn

from ..engine.stopping import Stopped, end_at_once, own_handlers, raise_when_stopped
from . import GO_ON

# As in engine/__main__.py; before PyTorch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")


def main() -> None:
    """Errors that a user can mend are one line and exit code 2; a stopped command has 130 (Ctrl-C) or 143."""
    with own_handlers():
        end_at_once(lambda: GO_ON, name="")
        import click

        from . import audio_commands  # noqa: F401
        from .commands import train
        from .pipeline import expected, message

        raise_when_stopped()
        try:
            train.main(standalone_mode=False)
        except click.exceptions.Exit as end:
            sys.exit(end.exit_code)
        except click.ClickException as error:
            error.show()
            sys.exit(2)
        except Stopped as stopped:
            click.echo(str(stopped), err=True)
            sys.exit(stopped.exit_code)
        except Exception as error:
            if expected(error):
                click.echo(f"error: {message(error)}", err=True)
                _leave(2)
            if "RANK" not in os.environ:
                raise
            traceback.print_exc()
            _leave(1)
        if "RANK" in os.environ:
            _leave(0)


def _leave(code: int) -> NoReturn:
    if "RANK" in os.environ:
        # An error's frames hold a network whose exchange with the other processes is not over: taking that apart waits
        # for Python's lock, which this process holds meanwhile, and torchrun waits for this process. And where all went
        # well, a thread of PyTorch's that is still there now and then ends the interpreter's own end by an abort.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    main()
