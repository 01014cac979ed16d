"""Audio files and arrays in, files out: mono FP32 at the model's rate inside, soundfile and soxr at the edges.

Both are imported where they are used: codes can be sampled on a machine that has neither.
"""

from __future__ import annotations

import io
import numbers
import os
import struct
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeAlias

import numpy as np
import torch
from torch import Tensor

from .whole_file import whole_file

if TYPE_CHECKING:
    from soundfile import SoundFile

AudioLike: TypeAlias = str | Path | np.ndarray | Tensor
FORMATS = (".wav", ".flac", ".ogg")
# Hz that audio may have. From an absurdly low rate seconds would become hours.
RATES = (1000, 1_000_000)
# Samples handed to libsndfile at a time.
BLOCK = 1 << 16
# Bytes at the end of an MP3 that may be left unread, as tags are; of a long one a tenth may.
MOST_LEFT = 1 << 14
# What is to be said of one that `stops_early`, after its name.
STOPS_EARLY = (
    "is an MP3 of varying bit rate that does not say how long it is, and would be cut short; this mends it: "
    "ffmpeg -i OLD.mp3 -c copy NEW.mp3"
)


class AudioError(ValueError):
    """Audio that cannot be read, used or written; the message says why and what to do."""


def is_length_guessed(sound: SoundFile, file: BinaryIO) -> bool:
    """Whether `sound`, which reads from `file`, is an MP3 without the header that says how long it is, as encoders of
    one pass leave it out. libsndfile guesses its length by the first frames."""
    if sound.format != "MP3":
        return False
    start = os.pread(file.fileno(), 10, 0)
    # Behind a tag, whose size has seven bits a byte.
    size = sum((byte & 127) << shift for byte, shift in zip(start[6:], (21, 14, 7, 0), strict=False))
    frame = os.pread(file.fileno(), 256, 10 + size if start.startswith(b"ID3") else 0)
    return not any(name in frame for name in (b"Xing", b"Info", b"VBRI"))


def stops_early(sound: SoundFile, file: BinaryIO) -> bool:
    """Whether much of `file` is left where `sound`, whose length was guessed, has come to its end."""
    if not is_length_guessed(sound, file):
        return False
    size = os.fstat(file.fileno()).st_size
    return size - file.tell() > max(MOST_LEFT, size // 10)


def read_audio(source: AudioLike, sample_rate: int, source_rate: int | None = None) -> Tensor:
    """Mono FP32 samples [items, samples] at `sample_rate`, in Hz.

    source: a file, or an array [samples], or [items, samples] for several items (a file gives one item; its channels
    are mixed down). source_rate: the rate of an array, by default `sample_rate`.

    Raises:
        AudioError: no samples, NaN or infinite samples, a rate that is none, or a file that libsndfile cannot read.
    """
    if source_rate is not None and isinstance(source, (str, Path)):
        raise AudioError(f"{source} has a sample rate of its own; give one with an array only")
    if isinstance(source, (str, Path)):
        import soundfile

        name = str(source)
        try:
            # By the file, whatever its name is made of.
            with open(source, "rb") as file:
                if not file.seekable():
                    raise AudioError(f"cannot read audio from {name}: it is a pipe; write it to a file first")
                with soundfile.SoundFile(file) as sound:
                    samples, source_rate = sound.read(dtype="float32", always_2d=True), sound.samplerate
                    if stops_early(sound, file):
                        raise AudioError(f"{name} {STOPS_EARLY}")
        # A TypeError where the ending names a format without a header.
        except (soundfile.LibsndfileError, OSError, TypeError) as error:
            reason = "no such file" if not Path(source).exists() else str(error)
            raise AudioError(f"cannot read audio from {name}: {reason}") from None
        samples = samples.mean(axis=1)[None]
    else:
        name = "the audio given"
        if isinstance(source, Tensor):
            # NumPy has no BF16.
            source = (source.float() if source.is_floating_point() else source).detach().cpu().numpy()
        samples = np.asarray(source)
        if samples.dtype.kind not in "iuf" or samples.ndim not in (1, 2):
            raise AudioError(
                f"audio must be float samples [samples] or [items, samples], not {samples.dtype} {samples.shape}"
            )
        if samples.dtype.kind in "iu":
            # Integer PCM spans its type's range; unsigned PCM has its zero in the middle.
            half = 2.0 ** (8 * samples.dtype.itemsize - 1)
            samples = samples / half - (samples.dtype.kind == "u")
        samples = np.atleast_2d(samples.astype(np.float32))
    if not samples.size:
        raise AudioError(f"{name} holds no samples")
    if not np.isfinite(samples).all():
        raise AudioError(f"{name} holds NaN or infinite samples")
    if source_rate is not None and not (isinstance(source_rate, numbers.Real) and RATES[0] <= source_rate <= RATES[1]):
        raise AudioError(f"the sample rate of {name} must be {RATES[0]} to {RATES[1]} Hz, not {source_rate!r}")
    if source_rate is not None and source_rate != sample_rate:
        import soxr

        samples = soxr.resample(samples.T, source_rate, sample_rate).T
    return torch.from_numpy(np.ascontiguousarray(samples, dtype=np.float32))


def check_output(path: str | Path) -> Path:
    """`path`, if its ending names a format and files can be made in its folder. Raises AudioError."""
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise AudioError(f"{path}: the ending must be one of {', '.join(FORMATS)}")
    check_folder(path)
    return path


def check_folder(path: Path) -> None:
    """Raises AudioError where `path`'s folder does not exist or takes no new file."""
    folder = written_at(path).parent
    if not folder.is_dir():
        raise AudioError(f"{path}: the folder {folder} does not exist")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise AudioError(f"{path}: the folder {folder} cannot be written to: {error.strerror}") from None


def written_at(path: Path) -> Path:
    """`path`, or where it leads if it is a link to a file or to nothing yet: such a link stays one."""
    target = path.resolve() if path.is_symlink() else path
    return target if target.is_file() or not target.exists() else path


def output_files(path: str | Path, items: int) -> list[Path]:
    """The files of so many items: `path` itself for one, else name-0.wav, name-1.wav, ..."""
    path = Path(path)
    return [path] if items == 1 else [path.with_name(f"{path.stem}-{item}{path.suffix}") for item in range(items)]


def write_audio(path: str | Path, samples: Tensor, sample_rate: int) -> list[Path]:
    """Write samples [items, samples] as 16-bit wav or flac, or ogg, by the ending of `path`, to `output_files`; each
    file appears whole or not at all. Samples beyond +-1 are clipped. Returns the files.

    Raises:
        AudioError: the ending is unknown or a file cannot be written; says why.
    """
    import soundfile

    path = check_output(path)
    paths = output_files(path, len(samples))
    for item_path, item in zip(paths, samples, strict=True):
        try:
            content = io.BytesIO()
            with soundfile.SoundFile(content, "w", sample_rate, 1, format=path.suffix[1:].upper()) as file:
                # In blocks: libsndfile 1.2 crashes on a minute of ogg in one piece.
                for block in item.split(BLOCK):
                    file.write(_clipped(block))
            # Not by libsndfile, which calls a full disk "System error".
            with whole_file(written_at(item_path)) as part:
                part.write_bytes(content.getbuffer())
        except (soundfile.LibsndfileError, OSError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise AudioError(f"cannot write {item_path}: {reason}") from None
    return paths


def wav_header(samples: int, sample_rate: int) -> bytes:
    """The first 44 bytes of the 16-bit mono wav that `write_audio` writes; `wav_samples` follow."""
    sizes = (36 + 2 * samples, b"WAVE", b"fmt ", 16, 1, 1, sample_rate, 2 * sample_rate, 2, 16, b"data", 2 * samples)
    return struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", *sizes)


def _clipped(samples: Tensor) -> np.ndarray:
    # Not by PyTorch, which would wait for threads that a forked process does not have.
    return np.clip(samples.numpy(), -1, 1)


def wav_samples(samples: Tensor) -> bytes:
    """16-bit samples of `samples` [n], as `write_audio` rounds them."""
    import soundfile

    content = io.BytesIO()
    soundfile.write(content, _clipped(samples), 1, "PCM_16", format="RAW")
    return content.getvalue()
