"""Lists of artists and genres: files of lines `name;id`, a pair of them for each kind of model, as the original has
them in `jukebox/data/ids`; or Hugging Face's `artists.json` and `genres.json`, which hold two kinds. They are not ours
to ship; who has the models has them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from .checkpoint import CheckpointError, is_id
from .config import LabelConfig
from .labels import Names

ARTISTS, GENRES = "artist_ids.txt", "genre_ids.txt"
ARTISTS_JSON, GENRES_JSON = "artists.json", "genres.json"
# There a name of a model that takes several genres ends so.
_SEVERAL = ".v2"


def find_names(folder: Path, sizes: LabelConfig) -> Names:
    """The names of a model with so many artists and genres: of the pairs of lists in `folder` that fit, the longest.

    Raises:
        CheckpointError: a list cannot be read, or none fits.
    """
    fitting, found = list[Names](), list[str]()
    for name, names in _pairs(folder, sizes):
        counts = tuple(1 + max(table.values(), default=0) for table in names)
        found.append(f"{name} ({counts[0]} and {counts[1]})")
        if counts[0] <= sizes.artists and counts[1] <= sizes.genres:
            fitting.append(names)
    if not fitting:
        there = "; ".join(found) or f"no *{ARTISTS}, no {ARTISTS_JSON}"
        raise CheckpointError(
            f"{folder}: holds no lists for a model of {sizes.artists} artists and {sizes.genres} genres: {there}"
        )
    return max(fitting, key=lambda names: len(names.artists))


def _pairs(folder: Path, sizes: LabelConfig) -> Iterator[tuple[str, Names]]:
    for artists in sorted(folder.glob(f"*{ARTISTS}")):
        genres = artists.with_name(artists.name.removesuffix(ARTISTS) + GENRES)
        yield f"{artists.name} and {genres.name}", Names(_lines(artists), _lines(genres))
    if (folder / ARTISTS_JSON).exists():
        several = sizes.genre_slots > 1
        tables = (_json(folder / name, several) for name in (ARTISTS_JSON, GENRES_JSON))
        yield f"{ARTISTS_JSON} and {GENRES_JSON}", Names(*tables)


def _lines(path: Path) -> dict[str, int]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
        pairs = [line.strip().rsplit(";", 1) for line in lines if line.strip()]
        return _checked({name.lower(): int(number) for name, number in pairs})
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"lines must be `name;id` ({error})"
        raise CheckpointError(f"{path}: {reason}") from None


def _checked(table: dict[str, int]) -> dict[str, int]:
    if not table or not all(map(is_id, table.values())):
        raise ValueError("no names, or ids that are none")
    return table


def _json(path: Path, several: bool) -> dict[str, int]:
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        own = _checked({name: number for name, number in table.items() if name.endswith(_SEVERAL) == several})
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"it must hold an id for each name ({error})"
        raise CheckpointError(f"{path}: {reason}") from None
    return {name.removesuffix(_SEVERAL).lower(): number for name, number in own.items()}
