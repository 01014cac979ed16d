"""Songs with a mood: the table of their labels, and crops to train a classifier on."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..engine.audio import AudioError
from .mel import MelConfig, read_mono

# Activated or deactivated, pleasant or unpleasant; the order of the classes.
QUADRANTS = ("AP", "DP", "AU", "DU")


class Labelled(NamedTuple):
    """A song and its class, an index into `QUADRANTS`."""

    path: Path
    quadrant: int


def read_quadrants(source: str | Path) -> list[Labelled]:
    """The songs of a CSV file with the columns `quadrant` and `path` (or `file`, as in a corpus), or of a folder's
    labels.csv. Paths are relative to the CSV file. Each row is one song.

    Raises:
        AudioError: the table or a song does not exist, a column is missing, a quadrant is none of AP, DP, AU, DU, or a
            song appears twice. Names the file and the line.
    """
    table = Path(source)
    table = table / "labels.csv" if table.is_dir() else table
    if not table.is_file():
        raise AudioError(f"{table}: no such file")
    songs: dict[Path, int] = {}
    # Spreadsheets write a byte order mark.
    with table.open(newline="", encoding="utf-8-sig") as lines:
        reader = csv.DictReader(lines)
        names = reader.fieldnames or ()
        column = next((name for name in ("path", "file") if name in names), None)
        if column is None or "quadrant" not in names:
            raise AudioError(
                f"{table}: needs the columns path (or file) and quadrant, has {', '.join(names) or 'none'}"
            )
        for row in reader:
            place = f"{table}, line {reader.line_num}"
            if row["quadrant"] not in QUADRANTS:
                raise AudioError(f"{place}: unknown quadrant {row['quadrant']!r}; it must be {', '.join(QUADRANTS)}")
            path = table.parent / row[column]
            if not path.is_file():
                raise AudioError(f"{place}: no such file: {path}")
            if path in songs:
                raise AudioError(f"{place}: {path} has a label already")
            songs[path] = QUADRANTS.index(row["quadrant"])
    return [Labelled(path, quadrant) for path, quadrant in songs.items()]


def split(songs: Sequence[Labelled], share: float, seed: int) -> tuple[list[Labelled], list[Labelled]]:
    """Songs to train on and songs held out: about `share` of each quadrant, at least one.

    Raises:
        ValueError: a quadrant has fewer than two songs.
    """
    rng = np.random.default_rng([seed, 1])
    training, held_out = [], []
    for index, name in enumerate(QUADRANTS):
        members = [song for song in songs if song.quadrant == index]
        if len(members) < 2:
            raise ValueError(f"quadrant {name} has {len(members)} songs: two are needed, one of them held out")
        order = rng.permutation(len(members))
        count = min(len(members) - 1, max(1, round(share * len(members))))
        held_out += [members[place] for place in order[:count]]
        training += [members[place] for place in order[count:]]
    return training, held_out


class LabelledCrops:
    """Random crops of songs, which are held as 16-bit samples: 2.6 MB per minute at 22.05 kHz."""

    def __init__(self, songs: Sequence[Labelled], mel: MelConfig, samples: int, seed: int) -> None:
        self.samples, self.seed = samples, seed
        self.audio: list[list[np.ndarray]] = [[] for _ in QUADRANTS]
        for path, quadrant in songs:
            audio = read_mono(path, mel)
            if len(audio) < samples:
                raise AudioError(f"{path}: shorter than a crop of {samples / mel.sample_rate:.1f} s")
            self.audio[quadrant].append((audio.clamp(-1, 1) * 32767).round().to(torch.int16).numpy())

    def batch(self, step: int, size: int) -> tuple[Tensor, Tensor]:
        """Audio [size, samples] and quadrants [size], each quadrant equally often, as a function of (seed, step)."""
        rng = np.random.default_rng([self.seed, step])
        quadrants = rng.permutation(np.arange(size) % len(QUADRANTS))
        crops = []
        for quadrant in quadrants:
            song = self.audio[quadrant][rng.integers(len(self.audio[quadrant]))]
            start = rng.integers(len(song) - self.samples + 1)
            crops.append(song[start : start + self.samples])
        return torch.from_numpy(np.stack(crops).astype(np.float32) / 32767), torch.from_numpy(quadrants)
