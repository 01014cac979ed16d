"""Log-mel spectrograms of audio, shared by the valence classifier and the Fréchet distance.

The filterbank comes from librosa (of the extras `plot` and `eval`); everything else is torch.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..engine.audio import AudioError, read_audio
from .audio_folder import list_files

# dB below a full-scale sine: what digital silence becomes.
FLOOR = -80.0
# The transpositions that a bank can hear, in semitones either way.
MAX_SEMITONES = 6


@dataclass(frozen=True)
class MelConfig:
    """Rates and edges in Hz, `n_fft` and `hop` in samples."""

    sample_rate: int = 22050
    n_fft: int = 2048
    hop: int = 512
    mels: int = 128
    low: float = 30.0
    high: float = 7500.0

    def __post_init__(self) -> None:
        # A bank that transposes down sees frequencies up to half the rate, transposed.
        limit = self.sample_rate / 2 * 2 ** (-MAX_SEMITONES / 12)
        if not 0 <= self.low < self.high <= limit:
            raise ValueError(f"mel bands from {self.low} to {self.high} Hz must lie within 0 to {limit:.0f} Hz")

    def frames(self, seconds: float) -> int:
        """Whole frames of so much time, by their hops; at least one."""
        return max(1, round(seconds * self.sample_rate / self.hop))

    def samples(self, frames: int) -> int:
        """Samples that give exactly so many frames."""
        return self.n_fft + (frames - 1) * self.hop


def _check_librosa() -> None:
    if importlib.util.find_spec("librosa") is None:
        raise ValueError("mel spectrograms need librosa: pip install 'fastjukebox[eval]'")


@functools.lru_cache(maxsize=64)
def mel_bank(config: MelConfig, semitones: int = 0) -> Tensor:
    """Triangular filters [mels, n_fft // 2 + 1], each with a peak of 1, on Slaney's mel scale.

    With `semitones` the bank hears every frequency transposed by so much, up or down: the spectrogram of a song becomes
    nearly that of the song in another key at the same tempo (after Jaitly & Hinton, 2013, "Vocal tract length
    perturbation").

    Raises:
        ValueError: librosa is missing, or `semitones` is beyond 6 either way.
    """
    _check_librosa()
    if abs(semitones) > MAX_SEMITONES:
        raise ValueError(f"a bank transposes by at most {MAX_SEMITONES} semitones, not {semitones}")
    import librosa

    # Bin k of the transform is taken for the frequency k * rate / n_fft.
    rate = config.sample_rate * 2 ** (semitones / 12)
    bank = librosa.filters.mel(
        sr=rate, n_fft=config.n_fft, n_mels=config.mels, fmin=config.low, fmax=config.high, norm=None
    )
    return torch.from_numpy(bank)


def mel_centres(config: MelConfig) -> np.ndarray:
    """The frequencies at which the bands peak, in Hz: [mels]. Raises ValueError where librosa is missing."""
    _check_librosa()
    import librosa

    return librosa.mel_frequencies(config.mels + 2, fmin=config.low, fmax=config.high)[1:-1]


def log_mel(audio: Tensor, config: MelConfig, semitones: Sequence[int] | None = None) -> Tensor:
    """Log-mel spectrograms in dB of audio [B, samples]: [B, mels, frames], frames = 1 + (samples - n_fft) // hop.

    0 dB is a full-scale sine in the middle of a band, -80 dB and less is -80. semitones: each item's transposition.

    Raises:
        ValueError: fewer than n_fft samples, or librosa is missing.
    """
    if audio.shape[-1] < config.n_fft:
        raise ValueError(f"{audio.shape[-1]} samples are less than one window of {config.n_fft}")
    window = torch.hann_window(config.n_fft, device=audio.device)
    # Not centred: no frame sees samples that are not there.
    spectrum = torch.stft(audio, config.n_fft, config.hop, window=window, center=False, return_complex=True)
    power = spectrum.abs().square() / (config.n_fft / 4) ** 2
    bank = mel_bank(config) if semitones is None else torch.stack([mel_bank(config, moved) for moved in semitones])
    return 10 * (bank.to(audio.device) @ power).clamp(min=10 ** (FLOOR / 10)).log10()


def audio_files(source: str | Path | Sequence[str | Path]) -> list[Path]:
    """All audio files of a folder, nested as it is, sorted by path, or the paths of a list.

    Raises:
        AudioError: no folder, or no such file in it or in the list.
    """
    if not isinstance(source, (str, Path)):
        paths = [Path(path) for path in source]
        if not paths:
            raise AudioError("the list of audio files is empty")
        return paths
    folder = Path(source)
    if not folder.is_dir():
        raise AudioError(f"{folder} is not a folder of audio files")
    files, _ = list_files(folder)
    if not files:
        raise AudioError(f"{folder} holds no audio file")
    return [folder / path for path in files]


def read_mono(path: Path, config: MelConfig) -> Tensor:
    """[samples] FP32 at the config's rate. Raises AudioError."""
    return read_audio(path, config.sample_rate)[0]
