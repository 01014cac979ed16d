"""A folder of audio as training songs: what is in it, which songs are held out, and any part of a song.

Any format that libsndfile reads, any rate, any nesting; links are followed. A file that cannot be used is reported with
the reason.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import math
import os
import unicodedata
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
from torch import Tensor
from tqdm import tqdm

from ..engine.audio import BLOCK, STOPS_EARLY, AudioError, is_length_guessed, read_audio, stops_early

LABELS_FILE = "labels.csv"
# The share of a folder's songs that is held out where nothing else is asked for.
HELD_OUT = 0.05
# Beside the names of libsndfile's formats: their other endings, and audio that it cannot read, which is reported.
OTHER_SUFFIXES = {".aac", ".aif", ".aifc", ".bwf", ".m4a", ".mp2", ".oga", ".opus", ".snd", ".wave", ".wma"}
# Frames at the end of a file that a scan without decoding looks at.
TAIL = 4096
# Samples on either side of a part that is resampled, at the lower of the two rates: more than soxr's filter sees.
MARGIN = 1024


@dataclass(frozen=True)
class Song:
    """An audio file that can be used. `path` is relative to the folder, with slashes; `split` "train" or "held_out"."""

    path: str
    seconds: float
    sample_rate: int
    channels: int
    split: str
    labels: dict[str, str] = field(default_factory=dict)

    @property
    def frames(self) -> int:
        """Samples per channel at the file's own rate."""
        return round(self.seconds * self.sample_rate)

    def samples(self, sample_rate: int) -> int:
        """Length at another rate (Hz), rounded down."""
        return self.frames * sample_rate // self.sample_rate


@dataclass(frozen=True)
class Skipped:
    """An audio file that cannot be used, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class Scan:
    """What a folder holds. `ignored` counts the files that are no audio by their ending; `unmatched` are the rows of
    labels.csv that name none of its audio files."""

    folder: Path
    songs: tuple[Song, ...]
    skipped: tuple[Skipped, ...]
    ignored: int
    unmatched: tuple[str, ...]

    def report(self) -> str:
        """What was found, and a line for everything that was left out."""
        held_out = sum(song.split == "held_out" for song in self.songs)
        minutes = sum(song.seconds for song in self.songs) / 60
        lines = [
            f"{self.folder}: {len(self.songs)} songs, {minutes:.1f} min: {len(self.songs) - held_out} to train on, "
            f"{held_out} held out; {len(self.skipped)} skipped, {self.ignored} other files"
        ]
        lines += [f"skipped {file.path}: {file.reason}" for file in self.skipped]
        lines += [f"{LABELS_FILE} names {path}, which is not there" for path in self.unmatched]
        # File names need not be valid Unicode.
        return "\n".join(lines).encode("utf-8", "backslashreplace").decode()

    def identity(self, sample_rate: int) -> str:
        """The songs in short: the same wherever the folder lies, another where a song or the split is another."""
        rows = [[song.path, song.samples(sample_rate), song.split] for song in self.songs]
        minutes = sum(song.seconds for song in self.songs) / 60
        digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
        return f"{len(self.songs)} songs, {minutes:.1f} min, {digest[:12]}"


def list_files(folder: Path) -> tuple[dict[str, int], int]:
    """The audio files below `folder`, by their endings, as relative path -> bytes (-1: no regular file), sorted by
    path; and the number of other files.

    Raises:
        AudioError: `folder` or a folder in it cannot be listed.
    """
    import soundfile

    suffixes = OTHER_SUFFIXES | {f".{name.lower()}" for name in soundfile.available_formats()}
    sizes: dict[str, int] = {}
    ignored = 0

    def visit(where: Path, above: frozenset[str]) -> None:
        nonlocal ignored
        real = os.path.realpath(where)
        # A link to a folder that it lies in.
        if real in above:
            return
        for name in os.listdir(where):
            path = where / name
            relative = path.relative_to(folder).as_posix()
            if path.is_dir():
                visit(path, above | {real})
            elif path.suffix.lower() in suffixes:
                sizes[relative] = path.stat().st_size if path.is_file() else -1
            elif relative != LABELS_FILE:
                ignored += 1

    try:
        visit(folder, frozenset())
    except OSError as error:
        raise AudioError(f"{error.filename}: cannot be listed: {error.strerror}") from None
    return dict(sorted(sizes.items())), ignored


def read_labels(folder: Path) -> dict[str, dict[str, str]]:
    """labels.csv in `folder` as path -> column -> value, empty where there is none. Column `file` or `path` names the
    audio file, relative to the folder; look it up under `label_key`.

    Raises:
        ValueError: no such column, a file named twice, a row that does not fit the columns, or no CSV in UTF-8.
    """
    table = folder / LABELS_FILE
    if not table.exists():
        return {}
    try:
        # Spreadsheets write a byte order mark.
        with table.open(newline="", encoding="utf-8-sig") as file:
            return _read_rows(table, csv.DictReader(file, strict=True))
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{table} is no CSV in UTF-8 ({error}): is a quote left open?") from None


def _read_rows(table: Path, reader: csv.DictReader[str]) -> dict[str, dict[str, str]]:
    labels: dict[str, dict[str, str]] = {}
    # As people write headings.
    reader.fieldnames = [name.strip().lower() for name in reader.fieldnames or ()]
    column = next((name for name in ("file", "path") if name in reader.fieldnames), None)
    if column is None:
        raise ValueError(f"{table} needs a column `file` with paths relative to its folder")
    for row in reader:
        if None in row or None in row.values():
            raise ValueError(f"{table}, line {reader.line_num}: {len(reader.fieldnames)} values are expected")
        key = label_key(row.pop(column))
        if key in labels:
            raise ValueError(f"{table}, line {reader.line_num}: {key} is there twice")
        labels[key] = row
    return labels


def label_key(path: str) -> str:
    """A path as `read_labels` has it: some systems write é as one character, others as two."""
    return unicodedata.normalize("NFC", PurePosixPath(path).as_posix())


def unmatched_labels(labels: Collection[str], files: Collection[str]) -> tuple[str, ...]:
    """The keys of `read_labels` that name none of the audio files."""
    return tuple(sorted(set(labels) - {label_key(path) for path in files}))


def held_out_songs(
    paths: Collection[str], held_out: float | int, seed: int, first: Collection[str] | None = None
) -> set[str]:
    """The songs to measure on: so many (int), or such a share (float), with the lowest hashes of (seed, path), of
    `first` before others. Of two songs or more, at least one is held out and at least one is not; a single song is for
    training.

    Raises:
        ValueError: `held_out` is negative, or leaves nothing to train on.
    """
    is_share = isinstance(held_out, float)
    if held_out < 0 or (is_share and held_out >= 1):
        raise ValueError(f"held_out must be a number of songs or a share from 0.0 to below 1.0, not {held_out}")
    if len(paths) < 2:
        return set()
    count = round(held_out * len(paths)) if is_share else int(held_out)
    if not is_share and count >= len(paths):
        raise ValueError(f"{held_out} held-out songs of {len(paths)} leave nothing to train on")
    ranked = sorted(paths, key=lambda path: hashlib.sha256(f"{seed} ".encode() + path.encode()).digest())
    count = min(max(1, count), len(paths) - 1)
    wanted = set(paths if first is None else first)
    preferred = [path for path in ranked if path in wanted]
    # One of them is left to train on.
    held = preferred[: max(0, min(count, len(preferred) - 1))]
    others = [path for path in ranked if path not in wanted] + preferred[len(held) :]
    return {*held, *others[: count - len(held)]}


def scan(folder: Path, held_out: float | int, seed: int, shortest: float = 0.0, decode: bool = True) -> Scan:
    """All songs of a folder, split by song (`held_out_songs`), and what was left out.

    shortest: seconds of a song that can be measured on; shorter ones are held out only where there are no others.
    decode: decode every file from beginning to end, which alone finds all damage. Without it, headers and last samples
    are looked at: enough for files that were cut short. A wav that was cut short counts as what is there of it.

    Raises:
        ValueError: the folder cannot be listed (AudioError), labels.csv cannot be used, or `held_out` is out of range.
    """
    files, ignored = list_files(folder)
    labels = read_labels(folder)
    found: dict[str, tuple[int, int, int]] = {}
    skipped: list[Skipped] = []
    for path, size in tqdm(files.items(), desc="scan", unit="file", disable=None):
        try:
            if size <= 0:
                raise AudioError("is empty" if size == 0 else "no regular file")
            found[path] = _probe(folder / path, decode)
        except AudioError as error:
            skipped.append(Skipped(path, str(error)))
    long = {path for path, (frames, rate, _) in found.items() if frames >= shortest * rate}
    held = held_out_songs(found, held_out, seed, long)
    songs = []
    for path, (frames, rate, channels) in found.items():
        split = "held_out" if path in held else "train"
        songs.append(Song(path, frames / rate, rate, channels, split, labels.get(label_key(path), {})))
    return Scan(folder, tuple(songs), tuple(skipped), ignored, unmatched_labels(labels, files))


def _probe(path: Path, decode: bool) -> tuple[int, int, int]:
    """Frames, rate and channels. Raises AudioError: the reason why the file cannot be used, without its name."""
    import soundfile

    try:
        with contextlib.ExitStack() as opened:
            file = opened.enter_context(soundfile.SoundFile(str(path)))
            raw = None
            if file.format == "MP3":
                # By a file that tells how far it was read.
                raw = opened.enter_context(path.open("rb"))
                file = opened.enter_context(soundfile.SoundFile(raw))
            frames = 0 if decode else file.seek(max(0, file.frames - TAIL))
            while len(block := file.read(BLOCK, dtype="float32", always_2d=True)):
                frames += len(block)
                if not np.isfinite(block).all():
                    raise AudioError("holds NaN or infinite samples")
            if raw and stops_early(file, raw):
                raise AudioError(STOPS_EARLY)
            if frames != file.frames and not (raw and decode and is_length_guessed(file, raw)):
                raise AudioError(f"ends after {frames} of {file.frames} samples")
            if not frames:
                raise AudioError("holds no samples")
            return frames, file.samplerate, file.channels
    except UnicodeEncodeError:
        raise AudioError("its name is not valid Unicode") from None
    # A TypeError where the ending names a format without a header.
    except (soundfile.LibsndfileError, OSError, TypeError) as error:
        raise AudioError(getattr(error, "error_string", None) or str(error)) from None


def read(folder: Path, song: Song, sample_rate: int, start: int = 0, stop: int | None = None) -> Tensor:
    """Mono samples [stop - start] of a song at `sample_rate`; `start` and `stop` are in samples at that rate, `stop` at
    most and by default `song.samples(sample_rate)`. Only this part is decoded; it equals that part of the whole song,
    but for resampling, where the difference is in the last bits.

    Raises:
        AudioError: the file cannot be read any more, or there is damage here that a scan without decoding passed over.
    """
    import soundfile

    stop = song.samples(sample_rate) if stop is None else stop
    common = math.gcd(sample_rate, song.sample_rate)
    # Source frames and samples between the points in time where both rates have one.
    unit_in, unit_out = song.sample_rate // common, sample_rate // common
    margin = 0 if unit_in == unit_out else MARGIN * max(1, -(-sample_rate // song.sample_rate))
    unit = max(0, start - margin) // unit_out
    first, last = unit * unit_in, min(song.frames, -(-(stop + margin) * unit_in // unit_out))
    try:
        with soundfile.SoundFile(str(folder / song.path)) as file:
            file.seek(first)
            frames = file.read(last - first, dtype="float32", always_2d=True)
        if len(frames) != last - first:
            raise AudioError(f"{len(frames)} samples where {last - first} were expected")
        part = read_audio(frames.mean(axis=1), sample_rate, song.sample_rate)[0]
    except (soundfile.LibsndfileError, OSError, ValueError) as error:
        reason = getattr(error, "error_string", None) or str(error)
        raise AudioError(
            f"cannot read {folder / song.path} at {start / sample_rate:.1f} s: {reason}; scan the folder again"
        ) from None
    # soxr rounds the length of a whole song, `Song.samples` rounds it down.
    return part[start - unit * unit_out :][: stop - start]
