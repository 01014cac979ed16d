"""Windows of a code store, with the upper codes over the same time: what priors are trained and measured on."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from .audio_crops import part_of_rank
from .code_store import CodeStore
from .forward import Windows
from .told import Told


class CodeWindows:
    """Windows of one level's codes, with the upper codes over the same time if `with_upper`.

    A window starts on a whole upper code: upper code i covers the window's codes [i * ratio, (i + 1) * ratio). Without
    upper codes it starts anywhere. All windows of the training songs are equally likely, and a batch depends on (seed,
    step) alone. Songs that hold no window are left out; there are `too_short` of them, of both splits.

    told: what a prior that takes labels is told of them.

    Raises:
        ValueError: no training song holds a window, or `ratio` does not fit the store or the window.
    """

    def __init__(
        self,
        store: CodeStore,
        level: int,
        window_len: int,
        ratio: int,
        seed: int,
        with_upper: bool,
        told: Told | None = None,
    ) -> None:
        self.store, self.level, self.window_len, self.seed = store, level, window_len, seed
        self.with_upper, self.told = with_upper, told
        self.ratio = ratio if with_upper else 1
        if with_upper and store.samples_per_code[level + 1 : level + 2] != (ratio * store.samples_per_code[level],):
            raise ValueError(f"an upper code of level {level} does not stand for {ratio} codes in {store.path}")
        if window_len % self.ratio:
            raise ValueError(f"a window of {window_len} codes does not hold whole upper codes of {ratio}")
        starts = {
            split: [(song, self._starts(song)) for song in store.indices(split)] for split in ("train", "held_out")
        }
        self.too_short = sum(count == 0 for songs in starts.values() for _, count in songs)
        self.train, self.held_out = ([place for place in starts[split] if place[1]] for split in ("train", "held_out"))
        if not self.train:
            raise ValueError(self._none("train"))
        # Window w of the training songs belongs to the first song that ends after it.
        self.ends = np.cumsum([count for _, count in self.train], dtype=np.int64)

    @property
    def seconds(self) -> float:
        """How long a window lasts."""
        return self.window_len * self.store.samples_per_code[self.level] / self.store.sample_rate

    def _none(self, split: str) -> str:
        songs = self.store.indices(split)
        if not songs:
            return f"{self.store.path}: there is no {split} song; it takes two songs or more, one of them held out"
        longest = max(self.store.songs[song].seconds for song in songs)
        return (
            f"{self.store.path}: none of the {len(songs)} {split} songs holds a window of {self.window_len} codes of "
            f"level {self.level}, {self.seconds:.2f} s; the longest has {longest:.2f} s"
        )

    def report(self) -> str:
        """How many songs there are windows of, and how many are left out."""
        left_out = f"; {self.too_short} are shorter than that and left out" if self.too_short else ""
        told = f"\nlevel {self.level}: {self.told.report()}" if self.told else ""
        return (
            f"level {self.level}: windows of {self.seconds:.2f} s of {len(self.train)} songs to train on and "
            f"{len(self.held_out)} held out{left_out}{told}"
        )

    def _starts(self, song: int) -> int:
        """How many windows a song holds."""
        count = len(self.store.codes(song, self.level))
        if self.with_upper:
            # Encoders leave out what does not fill a code: the upper level may end first.
            count = min(count, len(self.store.codes(song, self.level + 1)) * self.ratio)
        return max(0, (count - self.window_len) // self.ratio + 1)

    def _stack(self, places: list[tuple[int, int]]) -> Windows:
        """The windows at (song, start), starts in upper codes."""
        count, ratio, level = self.window_len, self.ratio, self.level
        windows = Windows(
            _to_tensor([self.store.codes(song, level)[start * ratio :][:count] for song, start in places])
        )
        if self.with_upper:
            upper = [self.store.codes(song, level + 1)[start:][: count // ratio] for song, start in places]
            windows = windows._replace(upper=_to_tensor(upper))
        if self.told is None:
            return windows
        return windows.with_conditions([self.told(song, start * ratio) for song, start in places])

    def batch(self, step: int, size: int, rank: int = 0, world: int = 1) -> Windows:
        """`size` / `world` windows of the training songs: rank's part of the batch of a step.

        Raises:
            ValueError: `size` is no multiple of `world`.
        """
        rng = np.random.default_rng([self.seed, step])
        windows = rng.integers(0, self.ends[-1], size)[part_of_rank(size, rank, world)]
        places = []
        for window, index in zip(windows, np.searchsorted(self.ends, windows, side="right"), strict=True):
            song, count = self.train[index]
            places.append((song, int(window - self.ends[index] + count)))
        return self._stack(places)

    def measured(self, per_song: int) -> Iterator[Windows]:
        """`per_song` windows of each held-out song, spread evenly over it, one at a time.

        Raises:
            ValueError: no held-out song holds a window.
        """
        if not self.held_out:
            raise ValueError(self._none("held_out"))
        shares = (np.arange(per_song) + 0.5) / per_song
        places = [(song, int(share * count)) for song, count in self.held_out for share in shares]
        return (self._stack([place]) for place in places)

    def epoch_steps(self, batch: int) -> int:
        """Steps of `batch` windows for as many codes as the training songs hold that are not too short."""
        codes = sum(len(self.store.codes(song, self.level)) for song, _ in self.train)
        return -(-codes // (batch * self.window_len))


def _to_tensor(rows: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(rows).astype(np.int64))
