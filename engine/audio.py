"""Audio files and arrays in, files out: mono FP32 at the model's rate inside, soundfile and soxr at the edges."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

import numpy as np
import soundfile
import soxr
import torch
from torch import Tensor

AudioLike: TypeAlias = str | Path | np.ndarray | Tensor
FORMATS = (".wav", ".flac", ".ogg")


class AudioError(ValueError):
    """Audio that cannot be read, used or written; the message says why and what to do."""


def read_audio(source: AudioLike, sample_rate: int, source_rate: int | None = None) -> Tensor:
    """Mono FP32 samples [items, samples] at `sample_rate`, in Hz.

    source: a file, or an array [samples], or [items, samples] for several items (a file gives one item; its channels
    are mixed down). source_rate: the rate of an array, by default `sample_rate`.

    Raises:
        AudioError: no samples, NaN or infinite samples, or a file that libsndfile cannot read.
    """
    if isinstance(source, (str, Path)):
        name = str(source)
        try:
            samples, source_rate = soundfile.read(name, dtype="float32", always_2d=True)
        except (soundfile.LibsndfileError, OSError) as error:
            reason = "no such file" if not Path(source).exists() else str(error)
            raise AudioError(f"cannot read audio from {name}: {reason}") from None
        samples = samples.mean(axis=1)[None]
    else:
        name = "the audio given"
        samples = source.detach().cpu().numpy() if isinstance(source, Tensor) else np.asarray(source)
        if samples.dtype.kind not in "iuf" or samples.ndim not in (1, 2):
            raise AudioError(
                f"audio must be float samples [samples] or [items, samples], not {samples.dtype} {samples.shape}"
            )
        if samples.dtype.kind in "iu":
            # Integer PCM spans its type's range.
            samples = samples / float(np.iinfo(samples.dtype).max + 1)
        samples = np.atleast_2d(samples.astype(np.float32))
    if not samples.shape[1]:
        raise AudioError(f"{name} holds no samples")
    if not np.isfinite(samples).all():
        raise AudioError(f"{name} holds NaN or infinite samples")
    if source_rate and source_rate != sample_rate:
        samples = soxr.resample(samples.T, source_rate, sample_rate).T
    return torch.from_numpy(np.ascontiguousarray(samples, dtype=np.float32))


def check_output(path: str | Path) -> Path:
    """`path`, if its ending names a format that can be written and its folder exists. Raises AudioError."""
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise AudioError(f"{path}: the ending must be one of {', '.join(FORMATS)}")
    if not path.parent.is_dir():
        raise AudioError(f"{path}: the folder {path.parent} does not exist")
    return path


def write_audio(path: str | Path, samples: Tensor, sample_rate: int) -> list[Path]:
    """Write samples [items, samples] as 16-bit wav or flac, or ogg, by the ending of `path`; several items become
    name-0.wav, name-1.wav, ... Samples beyond +-1 are clipped. Returns the files."""
    path = check_output(path)
    paths = [path]
    if len(samples) > 1:
        paths = [path.with_name(f"{path.stem}-{item}{path.suffix}") for item in range(len(samples))]
    for item_path, item in zip(paths, samples, strict=True):
        try:
            soundfile.write(item_path, item.clamp(-1, 1).numpy(), sample_rate)
        except (soundfile.LibsndfileError, OSError) as error:
            raise AudioError(f"cannot write {item_path}: {error}") from None
    return paths
