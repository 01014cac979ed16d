"""Mel spectrograms of audio in one picture; needs the `plot` extra."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor


def check_plot(path: Path) -> Path:
    """`path`, if a picture can be written there. Raises ValueError."""
    missing = [name for name in ("librosa", "matplotlib") if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"plots need {' and '.join(missing)}: pip install 'fastjukebox[plot]'")
    if path.suffix.lower() != ".png":
        raise ValueError(f"{path}: the ending of a plot must be .png")
    return path


def plot_mel(path: str | Path, panels: Sequence[tuple[str, Tensor]], sample_rate: int) -> None:
    """Write a PNG with one log-mel spectrogram per panel, one below the other on the same axes.

    panels: a title and audio [samples] at `sample_rate` Hz each.

    Raises:
        ValueError: a library is missing, the ending is not .png, or the file cannot be written.
    """
    path = check_plot(Path(path))
    import librosa
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 0.6 + 3.2 * len(panels)), layout="constrained")
    # Canvas and figure without pyplot: no window, no global state.
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(panels), squeeze=False, sharex=True)[:, 0]
    longest = max(len(audio) for _, audio in panels) / sample_rate
    image = None
    for axis, (title, audio) in zip(axes, panels, strict=True):
        samples = audio.detach().cpu().numpy().astype(np.float32)
        n_fft = 2048
        # A clip shorter than a window is followed by silence.
        samples = np.pad(samples, (0, max(0, n_fft - len(samples))))
        mel = librosa.feature.melspectrogram(y=samples, sr=sample_rate, n_fft=n_fft, hop_length=512, n_mels=128)
        # 0 dB is a full-scale sine's neighbourhood in every panel, so that loudness can be compared.
        level = librosa.power_to_db(mel, ref=(n_fft / 4) ** 2, amin=1e-4, top_db=None)
        times = librosa.frames_to_time(np.arange(mel.shape[1]), sr=sample_rate, hop_length=512)
        frequencies = librosa.mel_frequencies(n_mels=128, fmax=sample_rate / 2)
        image = axis.pcolormesh(times, frequencies, level, vmin=-80, vmax=0, cmap="magma", shading="nearest")
        axis.set_yscale("symlog", linthresh=1000, base=2)
        axis.set_ylim(0, sample_rate / 2)
        axis.set_yticks([0, 500, 1000, 2000, 4000, 8000, 16000], labels=["0", "500", "1k", "2k", "4k", "8k", "16k"])
        axis.set_xlim(0, longest)
        axis.set_title(title, loc="left")
        axis.set_ylabel("Hz")
    axes[-1].set_xlabel("seconds")
    if image is not None:
        figure.colorbar(image, ax=list(axes), label="dB")
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror or error}") from None
