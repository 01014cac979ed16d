"""Random crops of a folder of audio: what a VQ-VAE is trained on.

They depend on (seed, step) alone, so training that is interrupted goes on with what it would have heard.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .audio_folder import Scan, Song, read


def part_of_rank(size: int, rank: int, world: int) -> slice:
    """Where rank `rank` of `world` finds its share of a batch of `size`; the shares lie one after another.

    Raises:
        ValueError: they would not be equal, so that the mean of their gradients would not be the batch's gradient.
    """
    if size % world or not 0 <= rank < world:
        fitting = ", ".join(str(count) for count in range(1, size + 1) if size % count == 0)
        raise ValueError(
            f"a batch of {size} has no equal part for rank {rank} of {world} processes: start {fitting} of them"
        )
    return slice(rank * (size // world), (rank + 1) * (size // world))


class AudioCrops:
    """Random crops of the training songs, mono at the model's rate; a shorter song is followed by silence.

    A song is chosen in proportion to its duration, then a place in it. `samples` is the length of a crop.

    Raises:
        ValueError: there is no training song.
    """

    def __init__(self, songs: Scan, samples: int, sample_rate: int, seed: int) -> None:
        self.folder, self.samples, self.sample_rate, self.seed = songs.folder, samples, sample_rate, seed
        self.train = [song for song in songs.songs if song.split == "train"]
        self.held_out = [song for song in songs.songs if song.split == "held_out"]
        self.ends = np.cumsum([song.samples(sample_rate) for song in self.train], dtype=np.int64)
        if not self.train or not self.ends[-1]:
            raise ValueError(f"there is no song to train on:\n{songs.report()}")

    def batch(self, step: int, size: int, rank: int = 0, world: int = 1) -> Tensor:
        """[size / world, samples]: rank's part of the batch of a step."""
        rng = np.random.default_rng([self.seed, step])
        chosen = np.searchsorted(self.ends, rng.integers(0, self.ends[-1], size), side="right")
        shares = rng.random(size)
        part = part_of_rank(size, rank, world)
        return self._crops([(self.train[i], float(share)) for i, share in zip(chosen[part], shares[part], strict=True)])

    def measured(self, per_song: int = 1) -> Tensor:
        """[held-out songs * per_song, samples], spread evenly over each held-out song; one lies in its middle.

        Raises:
            ValueError: no song is held out.
        """
        if not self.held_out:
            raise ValueError(
                f"no song of {self.folder} is held out to measure on: it takes two songs or more; cut a single one "
                "into parts, a file each"
            )
        return self._crops([(song, (index + 0.5) / per_song) for song in self.held_out for index in range(per_song)])

    def _crops(self, places: list[tuple[Song, float]]) -> Tensor:
        """Crops at a share, 0 to below 1, of each song's possible starts."""
        crops = torch.zeros(len(places), self.samples)
        for row, (song, share) in zip(crops, places, strict=True):
            length = song.samples(self.sample_rate)
            start = int(share * (max(0, length - self.samples) + 1))
            part = read(self.folder, song, self.sample_rate, start, min(start + self.samples, length))
            row[: len(part)] = part
        return crops
