"""What a user tells a model of a song: the options, and what becomes of them."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from ..labels import Labels
    from .options import Settings


class Ids(click.ParamType):
    """A name, or ids: one, or with commas one per level; of a genre several, with plus signs."""

    def __init__(self, several: bool) -> None:
        self.name, self.several = "NAME|ID[,ID,ID]", several

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> object:
        levels = [level.split("+") for level in value.split(",")]
        # One number may be a name, too.
        if value.isdecimal() or not all(part.strip().isdecimal() for level in levels for part in level):
            return value
        if not self.several and any(len(level) > 1 for level in levels):
            self.fail(f"{value!r} is more than one artist", param, ctx)
        return tuple(tuple(map(int, level)) if self.several else int(level[0]) for level in levels)


class TextFile(click.ParamType):
    """The text of a file, `-` for standard input."""

    name = "FILE"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return sys.stdin.read() if value == "-" else Path(value).read_text(encoding="utf-8")
        except (OSError, UnicodeError) as error:
            self.fail(f"cannot read {value}: {getattr(error, 'strerror', None) or 'it is no text (UTF-8)'}", param, ctx)


# The options of what a model is told of a song, and the fields of engine.labels.Labels.
LABELS = ("artist", "genre", "lyrics", "song_seconds")
LABEL_OPTIONS = (
    click.option("--artist", type=Ids(False), help="For models that know artists.  [default: an unknown one]"),
    click.option("--genre", type=Ids(True), help="Likewise; several, where a model takes them, are words or ids 3+17."),
    click.option("--lyrics", type=TextFile(), help="For models that sing: the whole song's; `-` is standard input."),
    click.option(
        "--song-seconds",
        type=float,
        help="Length of the song that OUT is the beginning of.  [default: OUT's, or the model's shortest]",
    ),
)


def told(labels: Labels | None) -> str:
    """What a model that knows labels was told of the song, for people."""

    def named(what: str) -> str:
        value = getattr(labels, what, 0)
        levels = value if isinstance(value, tuple) else (value,)
        words = ["+".join(map(str, one)) if isinstance(one, tuple) else str(one) for one in levels]
        return f"an unknown {what}" if set(words) == {"0"} else f"{what} {', '.join(words)}"

    lyrics = f"{len(labels.lyrics)} characters of lyrics" if labels and labels.lyrics else "no lyrics"
    return f"{named('artist')}, {named('genre')}, {lyrics}"


def as_in(settings: Settings, source: Path) -> Settings:
    """With the model of a run that is given, and what that was told of its song, unless others are asked for."""
    from .prompts import own_labels, own_model

    labels = own_labels(source)
    told = {name: getattr(labels, name) for name in LABELS if labels and getattr(settings, name) is None}
    return dataclasses.replace(settings, model=settings.model or own_model(source), **told)


def given_labels(settings: Settings) -> Labels | None:
    given = {name: getattr(settings, name) for name in LABELS}
    given = {name: value for name, value in given.items() if value is not None}
    if not given:
        return None
    from ..labels import Labels

    return Labels(**given)
