"""The options that the sampling commands share."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click

from .labels import LABEL_OPTIONS
from .terminal import PerLevel

PATH = click.Path(path_type=Path)


@dataclass(frozen=True)
class Settings:
    """The options that `sample`, `continue` and `upsample` share; the help texts below say what each means."""

    seconds: float | None
    seed: int
    samples: int | None
    first_item: int
    temperature: float | tuple[float, ...]
    top_k: int | tuple[int, ...]
    top_p: float | tuple[float, ...]
    hop_fraction: float | tuple[float, ...] | None
    level: int
    batch_size: int
    segments: int
    order: str
    model: str | None
    device: str
    dtype: str | None
    backend: str
    draft: str | None
    run: Path | None
    overwrite: bool
    stream: bool
    threads: int | None
    plot: Path | None
    plot_beside: Path | None
    quiet: bool
    artist: str | tuple[int, ...] | None
    genre: str | tuple[tuple[int, ...], ...] | None
    lyrics: str | None
    song_seconds: float | None


DRAFT_OPTION = click.option(
    "--draft",
    metavar="NAME|FOLDER",
    help="A student of the model that guesses codes ahead, of few pieces at a time: the same result, sooner where "
    "networks are wide. On a GPU with --backend triton or triton-int8.",
)
SAMPLING_OPTIONS = (
    click.option("--seed", type=int, default=0, show_default=True, help="Another seed, another piece."),
    click.option(
        "--samples",
        type=int,
        help="How many; several become name-0.wav, name-1.wav, ... Processes of torchrun share them.",
    ),
    click.option("--first-item", type=int, help="Begin with this one of the seed's pieces.  [default: 0, or --item]"),
    click.option("--temperature", type=PerLevel(float), default=0.99, show_default=True, help="Lower is tamer."),
    click.option("--top-k", type=PerLevel(int), default=0, help="Draw from the K likeliest codes.  [default: 0, all]"),
    click.option("--top-p", type=PerLevel(float), default=1.0, help="Draw from the likeliest that make up P of all."),
    click.option(
        "--hop-fraction", type=PerLevel(float), help="How far windows move.  [default: 0.5, at the top 0.125]"
    ),
    click.option("--level", type=int, default=0, help="Stop at this level and decode it: 2 or 1 are quick previews."),
    click.option("--batch-size", type=int, default=16, show_default=True, help="Pieces sampled side by side."),
    click.option(
        "--segments",
        type=int,
        default=1,
        show_default=True,
        help="Cut each piece into so many below the top, which are sampled side by side: several times as fast where "
        "networks are wide, but one does not hear the other.",
    ),
    click.option(
        "--order", type=click.Choice(("level", "time")), default="level", help="By time needs all levels in memory."
    ),
    click.option(
        "--model",
        metavar="NAME|FOLDER",
        help="See `info` and `convert`.  [default: that of the run that is given, else demo]",
    ),
    click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, ..."),
    click.option(
        "--dtype",
        type=click.Choice(("float32", "float16", "bfloat16")),
        help="Of the priors.  [default: float32 on CPUs, else float16]",
    ),
    click.option(
        "--backend",
        default="auto",
        show_default=True,
        help="The decoder; see `info`. auto-int8: the fastest, weights rounded.",
    ),
    DRAFT_OPTION,
    click.option(
        "--run", type=PATH, metavar="DIR", help="What `resume` goes on from.  [default: OUT's name with .run]"
    ),
    click.option("--overwrite", is_flag=True, help="Replace OUT, the run directory and the PNG."),
    click.option("--stream", is_flag=True, help="Write the wav while it grows; with OUT `-`, to stdout."),
)
REPORT_OPTIONS = (
    click.option(
        "--threads",
        type=click.IntRange(1, 1024),
        metavar="N",
        help="CPU threads.  [default: all cores, or a container's share]",
    ),
    click.option("--plot", type=PATH, metavar="PNG", help="Draw the result's mel spectrogram."),
    click.option("--plot-beside", type=PATH, metavar="AUDIO", help="Draw that audio's below it, to compare."),
    click.option("-q", "--quiet", is_flag=True, help="No progress bar."),
)


def sampling_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the shared options, which arrive as `settings`."""

    @functools.wraps(command)
    def wrapper(**values: object) -> None:
        settings = {field.name: values.pop(field.name) for field in dataclasses.fields(Settings)}
        if settings["first_item"] is None:
            # One of several pieces becomes what it would have become beside the others.
            settings["first_item"] = values.get("item") or 0
        command(settings=Settings(**settings), **values)  # pyright: ignore[reportArgumentType]

    return with_options(*SAMPLING_OPTIONS, *LABEL_OPTIONS, *REPORT_OPTIONS)(wrapper)


def with_options(*options: Callable[[Callable[..., None]], Callable[..., None]]) -> Callable[..., Callable[..., None]]:
    def apply(command: Callable[..., None]) -> Callable[..., None]:
        for option in reversed(options):
            command = option(command)
        return command

    return apply


_OUT_HELP = """

    OUT is .wav or .flac (16 bit), or .ogg; ogg carries a random serial number, so only the other two are the same
    bytes each time. Settings with [N,N,N] are one number, or one per level, the finest first."""


def shared_help(command: Callable[..., None]) -> Callable[..., None]:
    command.__doc__ = (command.__doc__ or "") + _OUT_HELP
    return command
