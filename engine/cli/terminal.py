"""What the commands share: option values, progress, the report, and the models and files users name."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import click

from ..stopping import Stopped, raise_when_stopped

if TYPE_CHECKING:
    from ..jukebox import Jukebox
    from ..progress import Progress


class Commands(click.Group):
    """Commands in the order in which they were added; a stop comes out as Stopped."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def hint(self, interrupt: KeyboardInterrupt) -> str:
        """How to go on, for the end of the line that a stopped command leaves."""
        return ""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as interrupt:
            raise Stopped(interrupt, self.hint(interrupt)) from None


class Command(click.Command):
    """A command that computes. PyTorch is imported for it, after its options are known to be good, without looking for
    garbage among the million objects that this makes: a fifth faster."""

    def invoke(self, ctx: click.Context) -> object:
        gc.disable()
        try:
            import torch  # noqa: F401
        finally:
            gc.enable()
        return super().invoke(ctx)


class PerLevel(click.ParamType):
    """One number, or several separated by commas, the finest level first."""

    def __init__(self, kind: type[int] | type[float]) -> None:
        self.kind, self.name = kind, "number[,number...]"

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        return "N[,N,N]"

    def convert(
        self, value: str | float | tuple[float, ...], param: click.Parameter | None, ctx: click.Context | None
    ) -> float | tuple[float, ...]:
        if not isinstance(value, str):
            return value
        try:
            numbers = [self.kind(part) for part in value.split(",")]
        except ValueError:
            kind = "whole numbers" if self.kind is int else "numbers"
            self.fail(f"{value!r} must be {kind} separated by commas, the finest level first, or one", param, ctx)
        return numbers[0] if len(numbers) == 1 else tuple(numbers)


class ProgressBar:
    """Codes done, the level at work and the time left, on stderr where that is a terminal. From the first code on a
    stop is an exception."""

    def __init__(self, quiet: bool) -> None:
        from tqdm import tqdm

        self.started = False
        # Else tqdm makes a lock for several processes, of which Python 3.14 warns when a stop ends this one at once.
        tqdm.set_lock(threading.RLock())
        self.bar = tqdm(
            disable=quiet or not sys.stderr.isatty(),
            file=sys.stderr,
            bar_format="{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} codes{postfix}",
            dynamic_ncols=True,
            total=1,
            delay=1e-9,
        )

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.bar.close()

    def __call__(self, progress: Progress) -> None:
        if not self.started:
            raise_when_stopped()
        self.started = True
        self.bar.total = progress.total
        self.bar.set_postfix_str(f"level {progress.level}, {clock(progress.eta)} left", refresh=False)
        self.bar.update(progress.done - self.bar.n)


def clock(seconds: float) -> str:
    """0:09, 12:30 or 3:05:00."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def report(rows: Sequence[tuple[str, str]], err: bool = False) -> None:
    """Rows of a name and a value, aligned."""
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        click.echo(f"{name:{width}}  {value}", err=err)


def check_model(name: str) -> None:
    """Raises ValueError where there is none of that name."""
    from ..jukebox import MODELS

    if name not in MODELS and not (name and Path(name).expanduser().is_dir()):
        raise ValueError(f"no model {name!r}: it is neither a folder nor one of the names {', '.join(MODELS)}")


def load_model(
    model: str,
    device: str,
    dtype: str | None,
    backend: str,
    threads: int | None = None,
    draft: str | None = None,
) -> Jukebox:
    """Raises ValueError (CheckpointError) where it cannot be used."""
    from ..jukebox import Jukebox
    from ..threads import take_threads

    take_threads(threads)
    check_model(model)
    if draft is not None:
        check_model(draft)
    return Jukebox.from_pretrained(model, device, dtype, backend, draft)


def new_file(path: Path, overwrite: bool) -> Path:
    """`path`, if it can be made or replaced. Raises ValueError."""
    from ..audio import check_folder

    if path.is_dir():
        raise ValueError(f"{path} is a folder; name a file")
    if path.exists() and not overwrite:
        raise ValueError(f"{path} exists; give another name, or --overwrite to replace it")
    check_folder(path)
    return path
