"""The command line: `fastjukebox COMMAND` or `python -m fastjukebox.engine COMMAND`.

Whatever goes wrong is one line on stderr and exit code 2; a stopped run is 130 (Ctrl-C) or 143 (SIGTERM).
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

import click

# PyTorch's threads wait for each other by spinning, by default for so long that a second busy program on the machine
# makes every operation take a time slice. Read when PyTorch is loaded, which the commands do.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")

from .cli.files import convert, decode, encode, info
from .cli.sampling import continue_, resume, sample, upsample
from .cli.terminal import Stopped, Terminated


class _Commands(click.Group):
    """Commands in the order in which they were added."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        # Click would print an empty line first.
        except KeyboardInterrupt as interrupt:
            raise Stopped(interrupt, None) from None


@click.group(cls=_Commands, invoke_without_command=True, context_settings={"max_content_width": 100})
@click.option("--traceback", is_flag=True, help="Show Python's traceback of an error.")
@click.pass_context
def cli(ctx: click.Context, traceback: bool) -> None:
    """Sample music from Jukebox-style models.

    \b
    fastjukebox sample song.wav --seconds 20 --seed 7
    fastjukebox continue song.wav longer.wav --seconds 30
    fastjukebox resume song.run

    The same seed gives the same bytes, however often a run was interrupted.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


for _command in (sample, continue_, upsample, resume, encode, decode, convert, info):
    cli.add_command(_command)


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line `args`, by default the process's own; returns the exit code."""
    arguments = list(sys.argv[1:] if args is None else args)
    try:
        with _terminated_like_interrupted():
            return cli.main(arguments, prog_name="fastjukebox", standalone_mode=False) or 0
    except Stopped as stopped:
        click.echo(f"fastjukebox: {stopped}", err=True)
        return stopped.exit_code
    except KeyboardInterrupt:
        click.echo("fastjukebox: interrupted", err=True)
        return 130
    except Exception as error:
        if arguments[:1] == ["--traceback"]:
            raise
        click.echo(f"fastjukebox: error: {_message(error)}", err=True)
        return 2


def _message(error: Exception) -> str:
    """One line for whatever went wrong."""
    if isinstance(error, click.UsageError) and error.ctx:
        text = f"{error.format_message()} (see `{error.ctx.command_path} --help`)"
    elif isinstance(error, click.ClickException):
        text = error.format_message()
    elif isinstance(error, MemoryError) or "not enough memory" in str(error) or "out of memory" in str(error):
        text = f"not enough memory: try a smaller --batch-size or fewer --seconds ({error})"
    elif isinstance(error, OSError):
        text = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    elif isinstance(error, ValueError):
        text = str(error)
    else:
        text = f"{type(error).__name__}: {error} (`fastjukebox --traceback ...` shows where)"
    return " ".join(text.split())


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    def stop(signum: int, frame: FrameType | None) -> None:
        raise Terminated

    # Python takes signals in the main thread only.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    sys.exit(main())
