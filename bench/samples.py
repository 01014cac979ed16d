"""Pieces of audio by the paper's seven systems, for the benchmarks that listen: piece-N.wav in
WORK/samples/level-L/SYSTEM/seed-K, with the settings that they were made with.

A system that was trained at the top level only has the upsamplers of student-18, so that what one hears of it is its
top prior. "corpus" are pieces of held-out songs at random places, "codes" the same pieces through the VQ-VAE: what no
prior can be better than. A classifier that judges them should not have been trained on their songs.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..distill.export import export
from ..distill.labels import Labelled, read_quadrants, split
from ..distill.valence import ValenceTraining
from ..distill.work import Work
from ..engine.audio import AudioError, read_audio, write_audio
from ..engine.jukebox import Jukebox
from ..engine.runs import load_codes, save_codes
from ..engine.sampler import SamplingParams
from .harness import Unavailable

CORPUS = ("corpus", "codes")
CODES = "codes.safetensors"
SETTINGS = "settings.json"
# Songs that pieces are cut from at least, if that many were held out of the classifier too.
ENOUGH = 4


@dataclass(frozen=True)
class Pieces:
    """`samples` pieces of `audio_seconds` for a seed; `top_p` per level, the finest first. `level` is the one that is
    decoded: at the top, pieces are quick and tell of the top priors alone. `backend` is the decoder."""

    samples: int = 34
    audio_seconds: float = 5.0
    top_p: tuple[float, ...] = (0.9, 0.8, 0.98)
    level: int = 0
    backend: str = "auto"

    def params(self, seed: int) -> SamplingParams:
        return SamplingParams(
            seconds=self.audio_seconds, seed=seed, num_samples=self.samples, top_p=self.top_p, level=self.level
        )


@dataclass(frozen=True)
class Songs:
    """The audio that a work was made from: its folder, and the songs there, held out of the priors, that pieces are cut
    from. `heard` are those that the classifier was trained on, None where that is not known."""

    folder: Path
    held_out: tuple[str, ...]
    heard: frozenset[str] | None = None

    def new(self) -> Songs:
        """Those that were held out of the classifier too, if they are enough."""
        rest = tuple(song for song in self.held_out if song not in (self.heard or ()))
        return Songs(self.folder, rest, frozenset()) if self.heard and len(rest) >= ENOUGH else self

    @property
    def figures(self) -> dict[str, int]:
        """What a record says of them."""
        return {"songs": len(self.held_out)} | ({} if self.heard is None else {"songs_heard": len(self.heard)})


def songs_of(work: Work, folder: Path, unheard: Sequence[Labelled] | None) -> Songs:
    """The songs in `folder` that were held out of the priors; `unheard` is what `unheard_by` says."""
    held_out = tuple(song.path for song in work.codes().songs if song.split == "held_out")
    if unheard is None:
        return Songs(folder, held_out)
    known = {song.path for song in unheard}
    return Songs(folder, held_out, frozenset(song for song in held_out if folder / song not in known))


def unheard_by(classifier: Path | None, folder: Path) -> list[Labelled] | None:
    """The songs in `folder` that the classifier was not trained on: those that its valence.json names, else those of
    the split with its seed. None where there is no classifier or the songs have no labels."""
    if classifier is None:
        return None
    try:
        songs = read_quadrants(folder)
    except AudioError:
        return None
    about = json.loads((classifier / "valence.json").read_text())
    if (names := about.get("held_out")) is not None:
        return [song for song in songs if Path(os.path.relpath(song.path, folder)).as_posix() in names]
    return split(songs, ValenceTraining().held_out, about.get("seed") or 0)[1]


def pieces_folder(work: Work, system: str, seed: int, pieces: Pieces) -> Path:
    return work.folder / "samples" / f"level-{pieces.level}" / system / f"seed-{seed}"


def sampled(work: Work, system: str, seed: int, pieces: Pieces, songs: Songs) -> list[Path]:
    """The pieces of a system, or of the songs, as files; made unless they are there, made with the same settings by the
    same networks.

    Raises:
        Unavailable: the songs are not there.
    """
    target = pieces_folder(work, system, seed, pieces)
    files = [target / f"piece-{number}.wav" for number in range(pieces.samples)]
    settings = json.dumps(asdict(pieces) | _made_from(work, system, pieces, songs))
    made_with = target / SETTINGS
    if made_with.exists() and made_with.read_text() == settings and all(path.exists() for path in files):
        return files
    part = target.with_name(f"{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    if system in CORPUS:
        _cut(work, system, seed, pieces, songs, part)
    else:
        result = model(work, system, pieces.backend).sample(pieces.params(seed))
        save_codes(part / CODES, result.codes)
        for path, audio in zip(files, result.audio, strict=True):
            write_audio(part / path.name, audio[None], result.sample_rate)
    (part / SETTINGS).write_text(settings)
    shutil.rmtree(target, ignore_errors=True)
    part.rename(target)
    return files


def _made_from(work: Work, system: str, pieces: Pieces, songs: Songs) -> dict[str, Any]:
    """What tells the songs, or the networks by the figures of their training, from others."""
    found: dict[str, Any] = {"vqvae": work.figures("vqvae", pieces.level)}
    if system in CORPUS:
        return found | {"songs": songs.held_out}
    levels = [level for level in work.levels if level >= pieces.level]
    return found | {"priors": [work.figures(work.source(system, level), level) for level in levels]}


def codes(work: Work, system: str, seed: int, pieces: Pieces) -> list[Tensor]:
    """The codes of a system's pieces, per level [pieces, n]."""
    return load_codes(pieces_folder(work, system, seed, pieces) / CODES)


def reference(work: Work, pieces: Pieces, songs: Songs, count: int = 60) -> list[Path]:
    """Training songs as they are, or decoded from their codes where an upper level is.

    Raises:
        Unavailable: the songs are not there.
    """
    store = work.codes()
    chosen = store.indices("train")[:count]
    if not pieces.level:
        return [_there(songs.folder / store.songs[index].path) for index in chosen]
    target = work.folder / "samples" / f"level-{pieces.level}" / "reference"
    vqvae = work.vqvae([pieces.level])
    files = [target / f"{index}.wav" for index in chosen]
    for index, path in zip(chosen, files, strict=True):
        if not path.exists():
            target.mkdir(parents=True, exist_ok=True)
            found = torch.from_numpy(store.codes(index, pieces.level).astype("int64"))[None]
            with torch.inference_mode():
                write_audio(path, vqvae.decode(found.to(work.device), pieces.level).cpu(), vqvae.config.sample_rate)
    return files


def model(work: Work, system: str, backend: str = "auto") -> Jukebox:
    """The stack of a system on the work's device."""
    with tempfile.TemporaryDirectory() as exported:
        export(work, system, Path(exported))
        jukebox = Jukebox.from_pretrained(exported, work.device, backend=backend)
        # The files go; small priors stay.
        for level in work.levels:
            jukebox.prior(level)
    return jukebox


def _there(song: Path) -> Path:
    if not song.exists():
        raise Unavailable(f"there is no {song}: --songs is the folder of the audio that the work was made from")
    return song


def _cut(work: Work, name: str, seed: int, pieces: Pieces, songs: Songs, target: Path) -> None:
    """Pieces of held-out songs at places that the seed decides."""
    random = np.random.default_rng(seed)
    vqvae = work.vqvae([pieces.level])
    count = round(pieces.audio_seconds * vqvae.config.sample_rate)
    for number in range(pieces.samples):
        song = songs.folder / songs.held_out[int(random.integers(len(songs.held_out)))]
        audio = read_audio(_there(song), vqvae.config.sample_rate)
        start = int(random.integers(max(1, audio.shape[1] - count)))
        piece = audio[:, start : start + count]
        if name == "codes":
            with torch.inference_mode():
                unit = vqvae.config.samples_per_code(pieces.level)
                whole = piece[:, : piece.shape[1] // unit * unit].to(work.device)
                piece = vqvae.decode(vqvae.encode(whole, pieces.level), pieces.level).cpu()
        write_audio(target / f"piece-{number}.wav", piece, vqvae.config.sample_rate)
