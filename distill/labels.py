"""Songs with a mood: the table of their labels, and crops to train a classifier on."""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Collection, Sequence
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


def labels_file(source: str | Path) -> Path:
    """The table itself, or that of a folder."""
    return Path(source) / "labels.csv" if Path(source).is_dir() else Path(source)


def read_quadrants(source: str | Path) -> list[Labelled]:
    """The songs of a CSV file with the columns `quadrant` and `path` (or `file`, as in a corpus), or of a folder's
    labels.csv. Paths are relative to the CSV file. Each row is one song.

    Raises:
        AudioError: the table or a song does not exist, a column is missing, a quadrant is none of AP, DP, AU, DU, or a
            song appears twice. Names the file and the line.
    """
    table = labels_file(source)
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


def names(songs: Sequence[Labelled], source: str | Path) -> list[str]:
    """The songs' paths from the folder of the table that they were read from, with slashes, sorted."""
    folder = labels_file(source).parent
    return sorted(Path(os.path.relpath(song.path, folder)).as_posix() for song in songs)


def identity(songs: Sequence[Labelled]) -> str:
    """The songs and their classes in short, wherever they lie."""
    above = os.path.commonpath([song.path.parent for song in songs])
    rows = sorted((os.path.relpath(path, above), path.stat().st_size, quadrant) for path, quadrant in songs)
    return f"{len(songs)} songs, {hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:12]}"


def split(
    songs: Sequence[Labelled], share: float, seed: int, also: Collection[Path] = ()
) -> tuple[list[Labelled], list[Labelled]]:
    """Songs to train on and songs held out: about `share` of each quadrant, at least one, and those of `also`.

    Raises:
        ValueError: a quadrant has fewer than two songs, or all of it is held out.
    """
    rng = np.random.default_rng([seed, 1])
    training, held_out = [], []
    for index, name in enumerate(QUADRANTS):
        members = [song for song in songs if song.quadrant == index]
        if len(members) < 2:
            raise ValueError(f"quadrant {name} has {len(members)} songs: two are needed, one of them held out")
        order = rng.permutation(len(members))
        count = min(len(members) - 1, max(1, round(share * len(members))))
        held = [members[place] for place in order[:count]]
        rest = [members[place] for place in order[count:]]
        training += [song for song in rest if song.path not in also]
        held_out += held + [song for song in rest if song.path in also]
        if all(song.path in also for song in rest):
            raise ValueError(f"quadrant {name} has no song left to train on: all {len(members)} are held out")
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
