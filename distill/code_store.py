"""The codes of a folder of audio on disk.

A store is `manifest.json` and, per level, shards `level_K/shard-NNNNN.npy` that hold whole songs one after another.
Where each song's codes lie follows from the lengths of the songs, so all of it is decided before the first is encoded
and kept in `plan.json`; a shard grows song by song under the name `.npy.part`, and its size says how far it got. The
plan becomes the manifest when the last shard is whole. A killed run goes on with the first song that is missing.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..engine.vqvae import VQVAE, fingerprint
from .audio_folder import Scan, Skipped, Song, label_key, list_files, read, read_labels, scan, unmatched_labels
from .run_folder import not_written, write_json

FORMAT = 1


class StoreError(ValueError):
    """A code store that cannot be written or read; the message says what to do."""


def write_store(
    folder: Path,
    store: Path,
    vqvae: VQVAE,
    held_out: float | int,
    seed: int,
    shortest: float = 0.0,
    levels: Sequence[int] | None = None,
    shard_codes: int = 1 << 24,
    decode: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> CodeStore:
    """Encode all songs of `folder` at `levels` (by default all) into `store`, or go on where an earlier call stopped; a
    complete store is opened. One song at a time is in memory. Labels are those of the last call.

    held_out, seed, shortest, decode: as for `audio_folder.scan`. shard_codes: the most codes of a shard, but for a
        longer song.
    progress: called with the songs done and their number after each; by default there is a bar on a terminal.

    Raises:
        StoreError: the store was written with other settings, another VQ-VAE or other audio files (new files are not
            appended: they would change the split), or there is no song.
        AudioError: a file cannot be read any more.
    """
    config = vqvae.config
    chosen = sorted(set(range(config.levels) if levels is None else levels))
    if not chosen or not set(chosen) <= set(range(config.levels)):
        raise StoreError(f"levels {chosen} are not levels 0 to {config.levels - 1} of the VQ-VAE")
    settings = {
        "format": FORMAT,
        "vqvae_fingerprint": fingerprint(vqvae),
        "seed": seed,
        "held_out": held_out,
        "shortest": shortest,
        "levels": chosen,
        "shard_codes": shard_codes,
        "sample_rate": config.sample_rate,
        "samples_per_code": [config.samples_per_code(level) for level in range(config.levels)],
        "codebook_size": config.codebook_size,
    }
    finished, planned = store / "manifest.json", store / "plan.json"
    path = finished if finished.exists() else planned
    if path.exists():
        plan = _read(path)
        _check_same(store, plan, settings)
        _check_files(store, plan, folder)
        labels = read_labels(folder)
        plan["unmatched"] = unmatched_labels(labels, [entry["file"] for entry in (*plan["songs"], *plan["skipped"])])
        for entry in plan["songs"]:
            entry["labels"] = labels.get(label_key(entry["file"]), {})
    else:
        plan = {**settings, **_plan(folder, store, settings, decode)}
        store.mkdir(parents=True, exist_ok=True)
    write_json(path, plan)
    if path == planned:
        _encode(folder, store, vqvae, plan, progress)
        os.replace(planned, finished)
    return CodeStore(store)


def _plan(folder: Path, store: Path, settings: dict[str, Any], decode: bool) -> dict[str, Any]:
    """What lies where: the part of the manifest that depends on the audio."""
    if store.exists() and any(not entry.name.endswith(".part") for entry in store.iterdir()):
        raise StoreError(f"{store} is not empty and holds no code store; choose another folder")
    found = scan(folder, settings["held_out"], settings["seed"], settings["shortest"], decode)
    if not found.songs:
        raise StoreError(f"there is no song to encode:\n{found.report()}")
    sizes, _ = list_files(folder)
    shards: dict[str, list[int]] = {str(level): [0] for level in settings["levels"]}
    entries = []
    for song in found.songs:
        places = {}
        for level, lengths in shards.items():
            count = song.samples(settings["sample_rate"]) // settings["samples_per_code"][int(level)]
            if lengths[-1] and lengths[-1] + count > settings["shard_codes"]:
                lengths.append(0)
            places[level] = [len(lengths) - 1, lengths[-1], count]
            lengths[-1] += count
        about = asdict(song)
        entries.append({"file": about.pop("path"), "bytes": sizes[song.path], **about, "codes": places})
    skipped = [{"file": file.path, "bytes": sizes[file.path], "reason": file.reason} for file in found.skipped]
    others = {"ignored": found.ignored, "unmatched": found.unmatched}
    return {"shards": shards, "songs": entries, "skipped": skipped, **others}


def _check_same(store: Path, plan: dict[str, Any], settings: dict[str, Any]) -> None:
    for name, value in settings.items():
        # Stores of earlier versions lack what came later, and keep their split.
        if plan.get(name, value) != value:
            raise StoreError(
                f"{store} was written with {name} {plan[name]}, not {value}; write to another folder, or remove it"
            )


def _check_files(store: Path, plan: dict[str, Any], folder: Path) -> None:
    planned = {entry["file"]: entry["bytes"] for entry in (*plan["songs"], *plan["skipped"])}
    sizes, _ = list_files(folder)
    changes = {
        "new": sorted(sizes.keys() - planned.keys()),
        "gone": sorted(planned.keys() - sizes.keys()),
        "changed": sorted(path for path in sizes.keys() & planned.keys() if sizes[path] != planned[path]),
    }
    told = [
        f"{len(paths)} {word} ({paths[0]!r}{', ...' * (len(paths) > 1)})" for word, paths in changes.items() if paths
    ]
    if told:
        raise StoreError(
            f"the audio files in {folder} are not those that {store} was begun with: {', '.join(told)}; "
            "put them back as they were, or write a new store to another folder"
        )


def _encode(
    folder: Path, store: Path, vqvae: VQVAE, plan: dict[str, Any], progress: Callable[[int, int], None] | None
) -> None:
    songs = [_song(entry) for entry in plan["songs"]]
    dtype = np.dtype("<i2" if plan["codebook_size"] <= 1 << 15 else "<i4")
    for level in plan["levels"]:
        (store / f"level_{level}").mkdir(exist_ok=True)
    with tqdm(total=len(songs), desc="encode", unit="song", disable=True if progress else None) as bar:
        for done, (song, entry) in enumerate(zip(songs, plan["songs"], strict=True), start=1):
            audio = None
            for level, (number, offset, count) in entry["codes"].items():
                shard = _Shard(_shard_path(store, level, number), plan["shards"][level][number], dtype)
                if not shard.holds(offset + count):
                    audio = read(folder, song, plan["sample_rate"])[None] if audio is None else audio
                    codes = vqvae.encode(audio, int(level))[0].cpu().numpy()
                    if len(codes) != count:
                        raise StoreError(f"{song.path} gives {len(codes)} codes of level {level}, not {count}")
                    try:
                        shard.put(offset, codes.astype(dtype))
                    except OSError as error:
                        raise StoreError(not_written(shard.path, error)) from None
                if offset + count == shard.length:
                    shard.finish()
            bar.update()
            if progress:
                progress(done, len(songs))


@dataclass(frozen=True)
class _Shard:
    """A .npy file of `length` codes that grows as `.npy.part`."""

    path: Path
    length: int
    dtype: np.dtype[Any]

    @property
    def part(self) -> Path:
        return self.path.with_suffix(".npy.part")

    @property
    def header(self) -> bytes:
        text = io.BytesIO()
        description = np.lib.format.dtype_to_descr(self.dtype)
        np.lib.format.write_array_header_1_0(
            text, {"descr": description, "fortran_order": False, "shape": (self.length,)}
        )
        return text.getvalue()

    def holds(self, stop: int) -> bool:
        """Whether the codes up to `stop` are written."""
        size = self.part.stat().st_size if self.part.exists() else 0
        return self.path.exists() or size >= len(self.header) + stop * self.dtype.itemsize

    def put(self, offset: int, codes: np.ndarray) -> None:
        """Write codes after the first `offset`, over what an interrupted write left there."""
        header = self.header
        with open(os.open(self.part, os.O_RDWR | os.O_CREAT, 0o644), "r+b") as file:
            if not offset:
                file.write(header)
            file.seek(len(header) + offset * self.dtype.itemsize)
            file.write(codes.tobytes())

    def finish(self) -> None:
        if not self.path.exists():
            with self.part.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(self.part, self.path)


def _shard_path(store: Path, level: int | str, number: int) -> Path:
    return store / f"level_{level}" / f"shard-{number:05d}.npy"


def _song(entry: dict[str, Any]) -> Song:
    names = ("file", "seconds", "sample_rate", "channels", "split", "labels")
    return Song(*(entry[name] for name in names))


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
        if values["format"] == FORMAT:
            return values
        reason = f"it has format {values['format']}, this version reads {FORMAT}"
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = getattr(error, "strerror", None) or f"damaged ({error})"
    raise StoreError(f"{path}: {reason}; write the store anew")


class CodeStore:
    """The codes that `write_store` wrote, memory-mapped.

    `songs` and `skipped` files as found, `levels` that are stored, `samples_per_code` of every level, `sample_rate` in
    Hz, `codebook_size`, `fingerprint` of the VQ-VAE, `held_out` as asked for.

    Raises:
        StoreError: there is no store at `path`, or none that is complete.
    """

    def __init__(self, path: Path) -> None:
        if (path / "plan.json").exists() and not (path / "manifest.json").exists():
            raise StoreError(f"{path} is not complete; write it again with the same settings and it goes on")
        manifest = _read(path / "manifest.json")
        self.path = path
        self.songs = tuple(_song(entry) for entry in manifest["songs"])
        self.skipped = tuple(Skipped(entry["file"], entry["reason"]) for entry in manifest["skipped"])
        # Stores of earlier versions do not know.
        self._others = manifest.get("ignored", 0), tuple(manifest.get("unmatched", ()))
        self.levels: tuple[int, ...] = tuple(manifest["levels"])
        self.samples_per_code: tuple[int, ...] = tuple(manifest["samples_per_code"])
        self.sample_rate: int = manifest["sample_rate"]
        self.codebook_size: int = manifest["codebook_size"]
        self.held_out: float | int = manifest["held_out"]
        self.fingerprint: str = manifest["vqvae_fingerprint"]
        self._places = [{int(level): place for level, place in song["codes"].items()} for song in manifest["songs"]]
        self._shards: dict[tuple[int, int], np.ndarray] = {}
        for level in self.levels:
            for number, length in enumerate(manifest["shards"][str(level)]):
                self._shards[level, number] = self._open(_shard_path(path, level, number), length)

    def _scan(self) -> Scan:
        return Scan(self.path, self.songs, self.skipped, *self._others)

    def report(self) -> str:
        """What is in it, and what its folder of audio held beside that: `Scan.report`."""
        return self._scan().report()

    def identity(self) -> str:
        """The songs in short, as `Scan.identity` has those of a folder."""
        return self._scan().identity(self.sample_rate)

    def _open(self, path: Path, length: int) -> np.ndarray:
        try:
            # Slices of plain arrays are far cheaper than those of np.memmap. An empty file cannot be mapped.
            shard = np.asarray(np.load(path, mmap_mode="r" if length else None))
        except (OSError, ValueError) as error:
            raise StoreError(f"{path}: {error}; write the store anew") from None
        if shard.shape != (length,):
            raise StoreError(f"{path}: holds {shard.shape} codes, not {length}; write the store anew")
        return shard

    def codes(self, song: int, level: int) -> np.ndarray:
        """[count] int16 or int32, read-only: all codes of song number `song` at `level`."""
        if level not in self.levels:
            raise StoreError(f"{self.path} has codes of levels {self.levels}, not of {level}")
        number, offset, count = self._places[song][level]
        return self._shards[level, number][offset : offset + count]

    def indices(self, split: str) -> list[int]:
        """The numbers of the songs of a split, "train" or "held_out"."""
        return [index for index, song in enumerate(self.songs) if song.split == split]
