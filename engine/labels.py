"""What a labelled model is told of a song: artist, genre, lyrics, how long it is. From a user's words to numbers.

The ids of artists and genres are those of the checkpoint; names for them come from tables that the user has
(`fastjukebox convert --names`), one per level: the released models know two lists (v2: the 5b models and all
upsamplers; v3: the 1b model).
"""

from __future__ import annotations

import difflib
import math
import re
import string
from collections.abc import Iterable, Mapping, Sequence
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
# Names that an error offers.
OFFERED = 3


@dataclass(frozen=True)
class Labels:
    """What a request says of the song that it is the beginning of; all of it is for models that know labels.

    artist: a name from the model's tables, or an id; 0 is an unknown artist. A tuple holds one per level, the finest
        first, or one for all levels.
    genre: likewise. Models that take several genres take a name word by word ("blues rock"); in a tuple each may be a
        tuple of ids.
    lyrics: of the whole song; the model hears those that belong to a window by how far into the song it is.
    song_seconds: how long the whole song is; None: as long as the result, but no shorter than the model's shortest.

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
            for one in value if isinstance(value, tuple) else (value,):
                ids = one if name == "genre" and isinstance(one, tuple) else (one,)
                if not ids or not all(_is_id(item) or (isinstance(item, str) and len(ids) == 1) for item in ids):
                    raise ValueError(f"{name} must be a name or an id of 0 or more, or one per level; not {one!r}")
        if not isinstance(self.lyrics, str):
            raise ValueError(f"lyrics must be text, not {self.lyrics!r}")
        seconds = self.song_seconds
        number = isinstance(seconds, (int, float)) and not isinstance(seconds, bool)
        if seconds is not None and not (number and 0 < seconds < math.inf):
            raise ValueError(f"song_seconds must be above 0, not {seconds!r}")

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


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


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
    timed = [prior.labels for prior in labelled if sampled[prior.level] and prior.labels and prior.labels.time_bins]
    song_seconds = labels.song_seconds
    if song_seconds is None:
        song_seconds = max([seconds, *(sizes.min_seconds for sizes in timed)])
    if song_seconds < seconds:
        raise ValueError(
            f"a song of {song_seconds:g} s cannot begin with {seconds:g} s: song_seconds is the whole song"
        )
    levels, samples = len(config.priors), round(song_seconds * config.vqvae.sample_rate)
    found = list[LevelLabels | None]()
    for level, prior in enumerate(config.priors):
        sizes = prior.labels
        if sizes is None or not sampled[level]:
            found.append(None)
            continue
        if sizes in timed and not sizes.min_seconds <= song_seconds < sizes.max_seconds:
            raise ValueError(
                f"this model knows songs of {sizes.min_seconds:g} to less than {sizes.max_seconds:g} s, not of "
                f"{song_seconds:g} s"
            )
        where = f"level {level}"
        artist = _artist(labels.per_level("artist", level, levels), sizes, names[level], where)
        genres = _genres(labels.per_level("genre", level, levels), sizes, names[level], where)
        tokens = lyric_tokens(labels.lyrics, prior.lyrics.vocabulary) if prior.lyrics else ()
        found.append(LevelLabels(artist, genres, tokens, samples))
    return found


def _artist(name: str | int, sizes: LabelConfig, names: Names | None, where: str) -> int:
    key = _normalized(name, sizes) if isinstance(name, str) else name
    return _id(key, sizes.artists, names and names.artists, f"{where} artist")


def _genres(genre: Genre, sizes: LabelConfig, names: Names | None, where: str) -> tuple[int, ...]:
    if isinstance(genre, str):
        name = _normalized(genre, sizes)
        parts: Iterable[str | int] = name.split("_") if sizes.genre_slots > 1 else (name,)
    else:
        parts = genre if isinstance(genre, tuple) else (genre,)
    found = tuple(_id(part, sizes.genres, names and names.genres, f"{where} genre") for part in parts)
    if len(found) > sizes.genre_slots:
        raise ValueError(f"{where} takes at most {sizes.genre_slots} genres, not {len(found)}: {genre!r}")
    return found


def _normalized(name: str, sizes: LabelConfig) -> str:
    """As the tables of such a model write names: those of models that take several genres are words of a-z and 0-9."""
    lower = name.strip().lower()
    return re.sub("[^a-z0-9]+", "_", lower).strip("_") if sizes.genre_slots > 1 else lower


def _id(name: str | int, count: int, table: Mapping[str, int] | None, what: str) -> int:
    if isinstance(name, int):
        if name >= count:
            raise ValueError(f"{what} {name} does not exist: ids are 0 (unknown) to {count - 1}")
        return name
    if table is None:
        raise ValueError(
            f"{what} {name!r}: the model's folder holds no names, so give ids, or convert it with --names FOLDER"
        )
    if name not in table:
        close = difflib.get_close_matches(name, table, OFFERED)
        hint = f"close to it: {', '.join(close)}" if close else "0 stands for any that is not in its tables"
        raise ValueError(f"{what} {name!r} is not one that the model knows; {hint}")
    return table[name]


def lyric_tokens(text: str, vocabulary: int) -> tuple[int, ...]:
    """The numbers of a text's characters, as far as the alphabet of that size has them, accents taken off.

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
    plain = anyascii(text).replace("\\", "\n")
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
    middle = torch.tensor(offset) + torch.tensor(samples) / 2.0
    place = int(len(tokens) * middle / torch.tensor(labels.song_samples))
    first = min(max(place, length // 2), len(tokens) - length // 2) - length // 2
    return tokens[first : first + length]
