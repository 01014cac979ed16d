"""All commands, and what becomes of their errors."""

from __future__ import annotations

from collections.abc import Sequence

import click

from .. import version
from ..memory import is_out_of_memory
from ..stopping import Stopped
from .files import convert, decode, encode, info
from .sampling import continue_, resume, sample, upsample
from .terminal import Commands


def _print_version(ctx: click.Context, param: click.Parameter, wanted: bool) -> None:
    if wanted:
        click.echo(f"fastjukebox {version()}")
        ctx.exit()


@click.group(
    cls=Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Print the version."
)
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


def run(args: Sequence[str]) -> int:
    """Run the command line `args`; returns the exit code."""
    try:
        return cli.main(list(args), prog_name="fastjukebox", standalone_mode=False) or 0
    except Stopped as stopped:
        click.echo(f"fastjukebox: {stopped}", err=True)
        return stopped.exit_code
    except KeyboardInterrupt:
        click.echo("fastjukebox: interrupted", err=True)
        return 130
    except Exception as error:
        if list(args[:1]) == ["--traceback"]:
            raise
        click.echo(f"fastjukebox: error: {_message(error)}", err=True)
        return 2


def _message(error: Exception) -> str:
    """One line for whatever went wrong."""
    if isinstance(error, click.UsageError) and error.ctx:
        text = f"{error.format_message()} (see `{error.ctx.command_path} --help`)"
    elif isinstance(error, click.ClickException):
        text = error.format_message()
    elif is_out_of_memory(error):
        text = f"not enough memory: try a smaller --batch-size or fewer --seconds ({error})"
    elif isinstance(error, OSError):
        text = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    elif isinstance(error, ValueError):
        text = str(error)
    else:
        text = f"{type(error).__name__}: {error} (`fastjukebox --traceback ...` shows where)"
    return " ".join(text.split())
