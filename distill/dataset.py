"""The corpus on disk, memory-mapped: audio as 16-bit samples, and the codes of each level.

Row i is the same song in every file. Lower levels have far more codes per song, so they may hold fewer songs; the first
`held_out` songs are in all of them and are never trained on. Batches are a function of (seed, step), so a run that is
interrupted goes on with the data it would have seen.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch import Tensor

from ..engine.vqvae import VQVAE
from .corpus import compose, render

# Songs of corpora with different seeds do not overlap.
SONGS_PER_SEED = 100_000


def write_audio(path: Path, songs: int, seconds: float, sample_rate: int, seed: int) -> None:
    """Render songs `seed` * 100000 + i into `path`: [songs, samples] int16 at full scale 32767."""
    part = path.with_name(f".{path.name}")
    array = open_memmap(part, mode="w+", dtype=np.int16, shape=(songs, round(seconds * sample_rate)))
    for song in range(songs):
        audio = render(compose(seed * SONGS_PER_SEED + song), seconds, sample_rate)
        array[song] = np.rint(audio * 32767).astype(np.int16)
    array.flush()
    os.replace(part, path)


def read_audio(path: Path) -> np.ndarray:
    """[songs, samples] int16, memory-mapped."""
    return np.load(path, mmap_mode="r")


def to_float(samples: np.ndarray) -> Tensor:
    """int16 -> float32 in -1..1."""
    return torch.from_numpy(samples.astype(np.float32) / 32767)


def write_codes(path: Path, vqvae: VQVAE, level: int, audio: np.ndarray, songs: int) -> None:
    """Encode the first `songs` songs: [songs, codes] int16 or int32, whichever holds the codebook."""
    dtype = np.int16 if vqvae.config.codebook_size <= 1 << 15 else np.int32
    part = path.with_name(f".{path.name}")
    count = audio.shape[1] // vqvae.config.samples_per_code(level)
    array = open_memmap(part, mode="w+", dtype=dtype, shape=(songs, count))
    for song in range(songs):
        array[song] = vqvae.encode(to_float(audio[song : song + 1]), level)[0].numpy().astype(dtype)
    array.flush()
    os.replace(part, path)


def read_codes(path: Path) -> np.ndarray:
    """[songs, codes] integers, memory-mapped."""
    return np.load(path, mmap_mode="r")


class AudioCrops:
    """Random crops of the songs from `held_out` on; the crops before that are for measuring."""

    def __init__(self, audio: np.ndarray, samples: int, held_out: int, seed: int) -> None:
        if audio.shape[0] <= held_out or audio.shape[1] < samples:
            raise ValueError(f"{audio.shape} audio is too small for {held_out} held-out songs and {samples} samples")
        self.audio, self.samples, self.held_out, self.seed = audio, samples, held_out, seed

    def batch(self, step: int, size: int) -> Tensor:
        """[size, samples] of the training songs."""
        rng = np.random.default_rng([self.seed, step])
        songs = rng.integers(self.held_out, self.audio.shape[0], size)
        starts = rng.integers(0, self.audio.shape[1] - self.samples + 1, size)
        return to_float(np.stack([self.audio[s, t : t + self.samples] for s, t in zip(songs, starts, strict=True)]))

    def measured(self) -> Tensor:
        """[held_out, samples], from the middle of each held-out song."""
        start = (self.audio.shape[1] - self.samples) // 2
        return to_float(self.audio[: self.held_out, start : start + self.samples])


class CodeWindows:
    """Windows of one level's codes with the upper codes over the same time.

    A window starts on a whole upper code: upper code i covers the window's codes [i * ratio, (i + 1) * ratio).
    """

    def __init__(
        self, codes: np.ndarray, upper: np.ndarray | None, context_len: int, ratio: int, held_out: int, seed: int
    ) -> None:
        if codes.shape[0] <= held_out or codes.shape[1] < context_len:
            raise ValueError(f"{codes.shape} codes are too few for {held_out} held-out songs and {context_len} codes")
        if upper is not None and context_len % ratio:
            raise ValueError(f"a window of {context_len} codes does not hold whole upper codes of {ratio}")
        self.codes, self.upper, self.context_len, self.held_out, self.seed = codes, upper, context_len, held_out, seed
        self.ratio = ratio if upper is not None else 1
        whole = codes.shape[1] if upper is None else min(codes.shape[1], upper.shape[1] * ratio)
        # Starts, in units of whole upper codes.
        self.starts = (whole - context_len) // self.ratio + 1

    def window(self, song: int, start: int) -> tuple[Tensor, Tensor | None]:
        """Codes [context_len] and upper codes [context_len / ratio] or None, from position `start * ratio`."""
        position = start * self.ratio
        codes = torch.from_numpy(self.codes[song, position : position + self.context_len].astype(np.int64))
        if self.upper is None:
            return codes, None
        upper = self.upper[song, start : start + self.context_len // self.ratio]
        return codes, torch.from_numpy(upper.astype(np.int64))

    def _stack(self, places: list[tuple[int, int]]) -> tuple[Tensor, Tensor | None]:
        codes, uppers = [], []
        for song, start in places:
            window, upper = self.window(song, start)
            codes.append(window)
            if upper is not None:
                uppers.append(upper)
        return torch.stack(codes), torch.stack(uppers) if uppers else None

    def batch(self, step: int, size: int) -> tuple[Tensor, Tensor | None]:
        """Codes [size, context_len] and upper codes [size, context_len / ratio] or None, from the training songs."""
        rng = np.random.default_rng([self.seed, step])
        songs = rng.integers(self.held_out, self.codes.shape[0], size)
        starts = rng.integers(0, self.starts, size)
        return self._stack([(int(song), int(start)) for song, start in zip(songs, starts, strict=True)])

    def measured(self, per_song: int) -> tuple[Tensor, Tensor | None]:
        """`per_song` windows of each held-out song, spread evenly over it."""
        starts = ((np.arange(per_song) + 0.5) / per_song * self.starts).astype(int)
        return self._stack([(song, int(start)) for song in range(self.held_out) for start in starts])
