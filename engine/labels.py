"""What a labelled model is told of a song: artist, genre, lyrics, how long it is. From a user's words to numbers.

The ids of artists and genres are those of the checkpoint; names for them come from tables that the user has
(`fastjukebox convert --names`), one per level: the released models know two lists (v2: the 5b models and all
upsamplers; v3: the 1b model).
"""

from __future__ import annotations

import difflib
import logging
import math
import operator
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch

from .config import JukeboxConfig, LabelConfig, PriorConfig

Genre: TypeAlias = str | int | tuple[int, ...]
# The id of what is not in the tables.
UNKNOWN = 0
_ALPHABET = string.ascii_letters.swapcase() + string.digits + ".,:;!?-{plus}'\"()[] \t\n"
# By their size, with the character that stands for nothing; a character's number is its place, from 1 on.
ALPHABETS = {79: _ALPHABET.format(plus=""), 80: _ALPHABET.format(plus="+")}
# Names that an error offers, and characters of what was typed that it shows.
OFFERED, LONGEST_SHOWN = 3, 80
FIRST_EMOJI = "\U0001f000"
logger = logging.getLogger("fastjukebox")


@dataclass(frozen=True)
class Labels:
    """What a request says of the song that it is the beginning of; all of it is for models that know labels.

    artist: a name from the model's tables, or an id; 0 is an unknown artist. A tuple holds one per level, the finest
        first, or one for all levels.
    genre: likewise. Models that take several genres take a name word by word ("blues rock"); in a tuple each may be a
        tuple of ids.
    lyrics: of the whole song; the model hears those that belong to a window by how far into the song it is.
    song_seconds: how long the whole song is; None: as long as the result, but no shorter than the model's shortest.

    A name that some levels of the model know is an unknown one to the others, with a warning.

    Raises:
        ValueError: values of another kind.
    """

    artist: str | int | tuple[str | int, ...] = UNKNOWN
    genre: Genre | tuple[Genre, ...] = UNKNOWN
    lyrics: str = ""
    song_seconds: float | None = None

    def __post_init__(self) -> None:
        for name in ("artist", "genre"):
            value = getattr(self, name)
            several = isinstance(value, (tuple, list))
            found = tuple(_label(name, one, name == "genre") for one in (value if several else [value]))
            object.__setattr__(self, name, found if several else found[0])
        if not isinstance(self.lyrics, str):
            raise ValueError(f"lyrics must be text, not {self.lyrics!r}")
        if self.song_seconds is not None:
            try:
                seconds = math.nan if isinstance(self.song_seconds, (bool, str)) else float(self.song_seconds)
            except (TypeError, ValueError, OverflowError):
                seconds = math.nan
            if not 0 < seconds < math.inf:
                raise ValueError(f"song_seconds must be a finite number above 0, not {self.song_seconds!r}")
            object.__setattr__(self, "song_seconds", seconds)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Labels:
        """What `dataclasses.asdict` and JSON made lists of. Raises ValueError, TypeError."""

        def tuples(value: object) -> Any:
            return tuple(map(tuples, value)) if isinstance(value, list) else value

        return cls(**{name: tuples(value) for name, value in values.items()})

    def per_level(self, name: str, level: int, levels: int) -> Any:
        value = getattr(self, name)
        if not isinstance(value, tuple):
            return value
        if len(value) not in (1, levels):
            raise ValueError(f"{name} has {len(value)} values, the model has {levels} levels")
        return value[level % len(value)]


def _label(what: str, value: Any, several: bool) -> Any:
    """A name, an id, or a tuple of ids where there may be several. Raises ValueError."""
    if isinstance(value, str):
        return value
    try:
        if several and isinstance(value, (tuple, list)) and value:
            return tuple(_whole(one) for one in value)
        return _whole(value)
    except TypeError:
        raise ValueError(f"{what} must be a name or an id of 0 or more, or one per level; not {value!r}") from None


def _whole(value: Any) -> int:
    """NumPy's whole numbers too, which JSON does not take. Raises TypeError."""
    found = -1 if isinstance(value, bool) else operator.index(value)
    if found < 0:
        raise TypeError
    return found


class Names(NamedTuple):
    """The ids of the artists and genres of a level, by name, in lower case."""

    artists: dict[str, int]
    genres: dict[str, int]


class LevelLabels(NamedTuple):
    """Labels as the prior of one level takes them: ids, the characters of all lyrics, and the song's length."""

    artist: int
    genres: tuple[int, ...]
    lyrics: tuple[int, ...]
    song_samples: int


def level_labels(
    labels: Labels | None,
    config: JukeboxConfig,
    names: Sequence[Names | None],
    seconds: float,
    sampled: Sequence[bool],
) -> list[LevelLabels | None]:
    """What the prior of each level is told of a song of which `seconds` are asked for; None where it takes no labels,
    and at levels that are not to be `sampled`.

    Raises:
        ValueError: the model takes no labels, or no lyrics; a name or id that it does not know, or a length.
    """
    labelled = [prior for prior in config.priors if prior.labels]
    if labels is not None and not labelled:
        raise ValueError("this model knows no artists, genres or lyrics: leave out the labels")
    labels = labels or Labels()
    if labels.lyrics and not any(prior.lyrics for prior in labelled):
        raise ValueError("this model takes no lyrics: leave them out")
    told = [prior for prior in labelled if sampled[prior.level]]
    timed = [prior.labels for prior in told if prior.labels and prior.labels.time_bins]
    song_seconds = labels.song_seconds
    if song_seconds is None:
        song_seconds = max([seconds, *(sizes.min_seconds for sizes in timed)])
    rate = config.vqvae.sample_rate
    if round(song_seconds * rate) < round(seconds * rate):
        raise ValueError(
            f"a song of {song_seconds:g} s cannot begin with {seconds:g} s: song_seconds is the whole song"
        )
    for sizes in timed:
        if not sizes.min_seconds <= song_seconds < sizes.max_seconds:
            raise ValueError(
                f"this model knows songs of {sizes.min_seconds:g} to less than {sizes.max_seconds:g} s, not of "
                f"{song_seconds:g} s"
            )
    artists = _of_levels("artist", labels, told, names, len(config.priors))
    genres = _of_levels("genre", labels, told, names, len(config.priors))
    found: list[LevelLabels | None] = [None] * len(config.priors)
    for prior, (artist,), several in zip(told, artists, genres, strict=True):
        tokens = lyric_tokens(labels.lyrics, prior.lyrics.vocabulary) if prior.lyrics else ()
        if prior.lyrics and labels.lyrics.strip() and not tokens:
            raise ValueError("the lyrics hold no character that the model knows")
        found[prior.level] = LevelLabels(artist, several, tokens, round(song_seconds * rate))
    return found


def _of_levels(
    what: str, labels: Labels, told: Sequence[PriorConfig], names: Sequence[Names | None], levels: int
) -> list[tuple[int, ...]]:
    """The ids of the artist, or of the genres, at each level that is `told`. Models may know other names at each level:
    where one is missing that another knows, it is an unknown one, with a warning."""
    found, problems = list[tuple[int, ...]](), list[str]()
    for prior in told:
        assert prior.labels is not None
        lists = names[prior.level]
        table = lists and (lists.artists if what == "artist" else lists.genres)
        value = labels.per_level(what, prior.level, levels)
        try:
            found.append(_ids(what, value, prior.labels, table, f"level {prior.level}"))
        except _UnknownName as error:
            problems.append(str(error))
            found.append((UNKNOWN,))
    if problems and len(problems) == len(told):
        raise ValueError(problems[0])
    for problem in problems:
        logger.warning("%s; this level is told of an unknown one", problem)
    return found


class _UnknownName(ValueError):
    """A name that is not in a level's table."""


def _ids(what: str, value: Genre, sizes: LabelConfig, table: Mapping[str, int] | None, where: str) -> tuple[int, ...]:
    count, most = (sizes.artists, 1) if what == "artist" else (sizes.genres, sizes.genre_slots)
    parts: Sequence[str | int] = value if isinstance(value, tuple) else (value,)
    if isinstance(value, str):
        name = _normalized(value, sizes)
        if not name:
            raise ValueError(
                f"{where} {what} {value!r} holds no letter or digit that its names are made of; give an id"
            )
        parts = name.split("_") if what == "genre" and sizes.genre_slots > 1 else (name,)
    if len(parts) > most:
        raise ValueError(f"{where} takes at most {most} {what}s, not {len(parts)}: {value!r}")
    return tuple(_id(part, value, count, sizes, table, f"{where} {what}") for part in parts)


def _normalized(name: str, sizes: LabelConfig) -> str:
    """As the tables of such a model write names: those of models that take several genres are words of a-z and 0-9."""
    lower = name.strip().lower()
    return re.sub("[^a-z0-9]+", "_", lower).strip("_") if sizes.genre_slots > 1 else lower


def _id(
    part: str | int, typed: Genre, count: int, sizes: LabelConfig, table: Mapping[str, int] | None, where: str
) -> int:
    found = part if isinstance(part, int) else (table or {}).get(part)
    if found is None and table:
        # A table may hold names that no typing gives.
        found = {_normalized(name, sizes): number for name, number in table.items()}.get(str(part))
    if found is None and str(part).isdecimal():
        found = int(part)
    if found is not None:
        if found >= count:
            raise ValueError(f"{where} {found} does not exist: ids are 0 (unknown) to {count - 1}")
        return found
    shown = repr(typed) if len(str(typed)) < LONGEST_SHOWN else f"{str(typed)[:LONGEST_SHOWN]!r}..."
    word = f" ({part})" if isinstance(typed, str) and part != _normalized(typed, sizes) else ""
    if table is None:
        raise ValueError(
            f"{where} {shown}: the model's folder holds no names, so give ids, or convert it with --names FOLDER"
        )
    known = {_normalized(name, sizes) for name in table}
    close = difflib.get_close_matches(str(part), known, OFFERED)
    hint = f"close to it: {', '.join(close)}" if close else "0 stands for any that is not in its tables"
    raise _UnknownName(f"{where} {shown}{word} is not one that the model knows; {hint}")


def lyric_tokens(text: str, vocabulary: int) -> tuple[int, ...]:
    """The numbers of a text's characters, as far as the alphabet of that size has them, accents taken off. Other
    scripts are written in Latin letters, by other rules than the original's.

    Raises:
        ValueError: there is no alphabet of that size.
    """
    if not text:
        return ()
    if vocabulary not in ALPHABETS:
        raise ValueError(f"no alphabet of {vocabulary} characters is known, only of {', '.join(map(str, ALPHABETS))}")
    # Here: whoever has no lyrics does without the package.
    from anyascii import anyascii

    numbers = {character: number for number, character in enumerate(ALPHABETS[vocabulary], start=1)}
    # Emojis have names there, which nobody means to be sung.
    plain = "".join(character for character in text if character < FIRST_EMOJI).replace("\u2014", "--")
    plain = anyascii(plain).replace("\\", "\n")
    return tuple(numbers[character] for character in plain if character in numbers)


def window_lyrics(labels: LevelLabels, config: PriorConfig, offset: int, samples: int) -> tuple[int, ...]:
    """The characters of the lyrics that belong to a window of `samples` audio samples that begins at `offset`: those
    around the place that is as far into the lyrics as the window's middle is into the song. Short lyrics end the
    window's, after characters that stand for nothing."""
    assert config.lyrics is not None
    tokens, length = labels.lyrics, config.lyrics.length
    if len(tokens) < length:
        return (0,) * (length - len(tokens)) + tokens
    # FP32, as the models were trained with: the place is rounded down.
    begin, size, song = (torch.tensor(number, device="cpu") for number in (offset, samples, labels.song_samples))
    place = int(len(tokens) * (begin + size.float() / 2.0) / song)
    first = min(max(place - length // 2, 0), len(tokens) - length)
    return tokens[first : first + length]
