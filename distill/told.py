"""What priors that take labels are told of training windows: artist, genre and lyrics of a song, out of its row in
labels.csv, and where in the song a window lies."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache

from ..engine.config import JukeboxConfig
from ..engine.label_embedding import Conditions
from ..engine.labels import UNKNOWN, Labels, LevelLabels, Names, level_labels, lyric_tokens
from ..engine.prior import Prior
from .code_store import CodeStore

COLUMNS = ("artist", "genre", "lyrics")


class Told:
    """The conditions of any window of a store's songs, as sampling would have them.

    Songs without a row or a value are told of as ones of an unknown artist or genre, without lyrics. Songs shorter or
    longer than those that the model knows count as its shortest or longest.

    Raises:
        ValueError: a name or id that the model does not know; names the song.
    """

    def __init__(self, prior: Prior, config: JukeboxConfig, names: Sequence[Names | None], store: CodeStore) -> None:
        self.prior, self.store = prior, store
        self._config, self._names = config, names
        # The warnings of a name come once.
        self._numbers = cache(self._find_numbers)
        self.labels = [self._labels(index) for index in range(len(store.songs))]

    def __call__(self, song: int, first: int) -> Conditions:
        """Of the window of song number `song` that begins with its code `first`."""
        config = self.prior.config
        unit = self.store.samples_per_code[config.level]
        samples = config.window_len * unit
        return self.prior.label_conditions(self.labels[song], self.store.sample_rate, first * unit, samples)

    def report(self) -> str:
        """How many songs have which labels."""
        songs = self.store.songs
        counts = [f"{sum(bool(song.labels.get(name)) for song in songs)} with {name}" for name in COLUMNS]
        return f"labels of {len(songs)} songs (labels.csv): {', '.join(counts)}; others count as unknown"

    def digest(self) -> str:
        """A short identity of all labels."""
        return hashlib.sha256(repr(self.labels).encode()).hexdigest()[:12]

    def _labels(self, index: int) -> LevelLabels:
        song, config = self.store.songs[index], self.prior.config
        artist, genre, lyrics = (song.labels.get(name, "").strip() for name in COLUMNS)
        try:
            found = self._numbers(artist, genre)
            characters = lyric_tokens(lyrics, config.lyrics.vocabulary) if config.lyrics else ()
        except ValueError as error:
            raise ValueError(f"{song.path} in {self.store.path}: {error}") from None
        return found._replace(lyrics=characters, song_samples=song.samples(self.store.sample_rate))

    def _find_numbers(self, artist: str, genre: str) -> LevelLabels:
        labels = Labels(artist or UNKNOWN, genre or UNKNOWN)
        # All levels, of which one at least must know a name.
        told = [True] * len(self._config.priors)
        found = level_labels(labels, self._config, self._names, 0.0, told)[self.prior.config.level]
        assert found is not None
        return found
