"""Pieces of audio by the paper's seven systems, for the benchmarks that listen: piece-N.wav in
WORK/samples/level-L/SYSTEM/seed-K, with the settings that they were made with.

A system that was trained at the top level only has the upsamplers of student-18, so that what one hears of it is its
top prior. "corpus" are pieces of held-out songs at random places, "codes" the same pieces through the VQ-VAE: what no
prior can be better than.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..distill.work import Work
from ..engine.audio import read_audio, write_audio
from ..engine.jukebox import Jukebox
from ..engine.runs import load_codes, save_codes
from ..engine.sampler import SamplingParams

CORPUS = ("corpus", "codes")
CODES = "codes.safetensors"
SETTINGS = "settings.json"


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


def folder(work: Work, system: str, seed: int, pieces: Pieces) -> Path:
    return work.folder / "samples" / f"level-{pieces.level}" / system / f"seed-{seed}"


def sampled(work: Work, system: str, seed: int, pieces: Pieces) -> list[Path]:
    """The pieces of a system, or of the corpus, as files; made unless they are there, made with the same settings."""
    target = folder(work, system, seed, pieces)
    files = [target / f"piece-{number}.wav" for number in range(pieces.samples)]
    settings = json.dumps(asdict(pieces))
    made_with = target / SETTINGS
    if made_with.exists() and made_with.read_text() == settings and all(path.exists() for path in files):
        return files
    part = target.with_name(f"{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    if system in CORPUS:
        _cut(work, system, seed, pieces, part)
    else:
        result = model(work, system, pieces.backend).sample(pieces.params(seed))
        save_codes(part / CODES, result.codes)
        for path, audio in zip(files, result.audio, strict=True):
            write_audio(part / path.name, audio[None], result.sample_rate)
    (part / SETTINGS).write_text(settings)
    shutil.rmtree(target, ignore_errors=True)
    part.rename(target)
    return files


def codes(work: Work, system: str, seed: int, pieces: Pieces) -> list[Tensor]:
    """The codes of a system's pieces, per level [pieces, n]."""
    return load_codes(folder(work, system, seed, pieces) / CODES)


def reference(work: Work, pieces: Pieces, songs: int = 60) -> list[Path]:
    """Training songs as they are, or decoded from their codes where an upper level is."""
    store = work.codes()
    chosen = [index for index, song in enumerate(store.songs) if song.split == "train"][:songs]
    if not pieces.level:
        return [work.corpus / store.songs[index].path for index in chosen]
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
        work.export(system, Path(exported))
        jukebox = Jukebox.from_pretrained(exported, work.device, backend=backend)
        # The files go; small priors stay.
        for level in work.levels:
            jukebox.prior(level)
    return jukebox


def _cut(work: Work, name: str, seed: int, pieces: Pieces, target: Path) -> None:
    """Pieces of held-out songs at places that the seed decides."""
    random = np.random.default_rng(seed)
    store = work.codes()
    songs = [song for song in store.songs if song.split == "held_out"]
    vqvae = work.vqvae([pieces.level])
    count = round(pieces.audio_seconds * vqvae.config.sample_rate)
    for number in range(pieces.samples):
        song = songs[int(random.integers(len(songs)))]
        audio = read_audio(work.corpus / song.path, vqvae.config.sample_rate)
        start = int(random.integers(max(1, audio.shape[1] - count)))
        piece = audio[:, start : start + count]
        if name == "codes":
            with torch.inference_mode():
                unit = vqvae.config.samples_per_code(pieces.level)
                whole = piece[:, : piece.shape[1] // unit * unit].to(work.device)
                piece = vqvae.decode(vqvae.encode(whole, pieces.level), pieces.level).cpu()
        write_audio(target / f"piece-{number}.wav", piece, vqvae.config.sample_rate)
