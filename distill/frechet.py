"""The Fréchet distance between two sets of audio, on an embedding of log-mel patches that has no weights.

Means and covariances of patch embeddings are compared as Gaussians are (Dowson & Landau, 1982), as in the Fréchet audio
distance (Kilgour et al., 2019, "Fréchet Audio Distance"), whose embedding is a network, VGGish. Without a network the
figures can be reproduced to the last digit and need no download; they measure how audio sounds frame by frame, not
whether it is good music, and are comparable with each other only, for one `EmbeddingConfig`.

A patch of one second becomes
- the mel spectrum averaged over time, in `cepstra` coefficients of its orthonormal DCT: level, timbre, noise floor
  and, through the peaks of the harmonics, the distribution of pitches; and
- for each of `bands` groups of neighbouring mel bands, the magnitudes of its modulation at 1, 2, ... `modulations`
  cycles per patch: onsets, tempo and rhythm, wherever in the patch the beat falls. Steady noise flattens them.
"""

from __future__ import annotations

import importlib.util
import math
import multiprocessing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import NamedTuple
from unittest import mock

import torch
from torch import Tensor

from .mel import MelConfig, audio_files, log_mel, read_mono


@dataclass(frozen=True)
class EmbeddingConfig:
    """64 dimensions by default. `seconds` is a patch's length; patches do not overlap."""

    mel: MelConfig = field(default_factory=MelConfig)
    seconds: float = 1.0
    cepstra: int = 32
    bands: int = 4
    modulations: int = 8

    @property
    def dimensions(self) -> int:
        return self.cepstra + self.bands * self.modulations

    def __post_init__(self) -> None:
        frames = self.mel.frames(self.seconds)
        if not 1 <= self.cepstra <= self.mel.mels or self.mel.mels % self.bands or self.modulations > frames // 2:
            raise ValueError(
                f"{self.cepstra} cepstra and {self.bands} bands of {self.mel.mels} mels, {self.modulations} modulations"
                f" of {frames} frames: at most as many cepstra as mels, equal bands, half as many modulations as frames"
            )


class Frechet(NamedTuple):
    """The distance (squared, in the embedding's unit, dB^2) and how many patches each side gave."""

    distance: float
    patches: tuple[int, int]


def _dct(count: int, size: int) -> Tensor:
    """The first `count` rows of the orthonormal DCT-II [count, size] in FP64."""
    angle = math.pi / size * torch.arange(count, dtype=torch.float64)[:, None]
    rows = (2 / size) ** 0.5 * torch.cos(angle * (torch.arange(size, dtype=torch.float64) + 0.5))
    rows[0] *= 0.5**0.5
    return rows


def embed(audio: Tensor, config: EmbeddingConfig) -> Tensor:
    """The embeddings [patches, dimensions] FP64 of audio [samples]; a rest shorter than a patch is left out."""
    mel, frames = config.mel, config.mel.frames(config.seconds)
    count = (len(audio) - mel.n_fft) // mel.hop + 1 if len(audio) >= mel.n_fft else 0
    if count < frames:
        return torch.zeros(0, config.dimensions, dtype=torch.float64)
    # [mels, patches * frames] -> [patches, mels, frames]
    patches = log_mel(audio[None], mel)[0, :, : count // frames * frames].double()
    patches = patches.unflatten(1, (-1, frames)).transpose(0, 1)
    # Divided by sqrt(mels), so that a change of level by 1 dB is a change by 1, however many mels there are.
    cepstra = patches.mean(2) @ _dct(config.cepstra, mel.mels).T.to(patches.device) / mel.mels**0.5
    grouped = patches.unflatten(1, (config.bands, -1)).mean(2)
    # A sine of amplitude 1 dB has magnitude 1. The mean, modulation 0, is in the cepstra.
    modulation = torch.fft.rfft(grouped).abs()[..., 1 : config.modulations + 1] * (2 / frames)
    return torch.cat([cepstra, modulation.flatten(1)], 1)


def statistics(embeddings: Tensor, ridge: float = 1e-6) -> tuple[Tensor, Tensor]:
    """Mean [d] and covariance [d, d] in FP64 of embeddings [n, d].

    The covariance is the unbiased estimate plus `ridge` times its mean variance on the diagonal, so that a direction in
    which nothing varies (silence) does not make it singular. That is all it does: with few patches the distance is too
    large, by an amount that shrinks with 1 / n (Chong & Forsyth, 2020), so compare sets of equal size.

    Raises:
        ValueError: fewer than d + 1 embeddings, from which no covariance of full rank can be estimated.
    """
    count, dimensions = embeddings.shape
    if count < dimensions + 1:
        raise ValueError(f"{count} patches are too few for {dimensions} dimensions: at least {dimensions + 1}")
    embeddings = embeddings.double()
    covariance = torch.cov(embeddings.T).reshape(dimensions, dimensions)
    return embeddings.mean(0), covariance + ridge * covariance.trace() / dimensions * torch.eye(dimensions).to(
        covariance
    )


def _square_root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T


def gaussian_distance(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> float:
    """The squared Fréchet distance between two Gaussians, each a mean [d] and a covariance [d, d] (FP64).

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), Dowson & Landau (1982). The eigenvalues of C1 C2 are the
    squares of the singular values of C1^(1/2) C2^(1/2), so their roots are summed without ever forming the product,
    which is not symmetric and has the square of the condition number.

    Raises:
        ValueError: the Gaussians have different dimensions.
    """
    (mean1, cov1), (mean2, cov2) = first, second
    if mean1.shape != mean2.shape or cov1.shape != cov2.shape:
        raise ValueError(f"Gaussians of {len(mean1)} and {len(mean2)} dimensions cannot be compared")
    cross = torch.linalg.svdvals(_square_root(cov1) @ _square_root(cov2)).sum()
    distance = (mean1 - mean2).square().sum() + cov1.trace() + cov2.trace() - 2 * cross
    # Rounding may leave a tiny negative number.
    return max(0.0, float(distance))


def embed_files(
    source: str | Path | Sequence[str | Path], config: EmbeddingConfig, device: torch.device | str = "cpu"
) -> Tensor:
    """The embeddings [patches, dimensions] of a folder's audio, or of a list of files. Raises AudioError."""
    return torch.cat([embed(read_mono(path, config.mel).to(device), config).cpu() for path in audio_files(source)])


def frechet_distance(
    first: str | Path | Sequence[str | Path],
    second: str | Path | Sequence[str | Path],
    config: EmbeddingConfig | None = None,
    ridge: float = 1e-6,
    device: torch.device | str = "cpu",
) -> Frechet:
    """The Fréchet distance between the audio of two folders, or of two lists of files.

    Raises:
        AudioError: a folder or a file cannot be read.
        ValueError: a side has too few patches, or librosa is missing.
    """
    config = config or EmbeddingConfig()
    sides = [embed_files(source, config, device) for source in (first, second)]
    gaussians = []
    for name, side in zip(("first", "second"), sides, strict=True):
        try:
            gaussians.append(statistics(side, ridge))
        except ValueError as error:
            raise ValueError(f"the {name} set of audio: {error}") from None
    return Frechet(gaussian_distance(*gaussians), (len(sides[0]), len(sides[1])))


def fadtk_distance(first: str | Path, second: str | Path, model: str = "vggish", workers: int = 1) -> float:
    """The Fréchet audio distance of two folders by Microsoft's `fadtk` (pip install fadtk) with one of its networks.

    fadtk is not among the dependencies. It needs torchaudio and downloads most networks; cdpam-acoustic and
    cdpam-content come inside the package cdpam. Run by hand with fadtk 1.1.0 and cdpam-acoustic, it gave the score
    that fadtk ships for its sample audio; not in the tests. Its processes are spawned: call this below
    `if __name__ == "__main__":` in a script.

    Raises:
        ValueError: fadtk is not installed or knows no such model, or a folder does not exist or holds no audio.
    """
    if importlib.util.find_spec("fadtk") is None:
        raise ValueError("fadtk_distance needs fadtk: pip install fadtk")
    sides = [audio_files(folder) for folder in (first, second)]
    from fadtk import (  # pyright: ignore[reportMissingImports]
        FrechetAudioDistance,
        cache_embedding_files,
        model_loader,
    )

    # The constructors of the CLAP models download gigabytes, whichever model is asked for: not to be run for a name.
    clap = {"clap-2023": (model_loader.CLAPModel, "2023")}
    clap |= {f"clap-laion-{kind}": (model_loader.CLAPLaionModel, kind) for kind in ("audio", "music")}
    with mock.patch.multiple(
        model_loader,
        CLAPModel=lambda kind: SimpleNamespace(name=f"clap-{kind}"),
        CLAPLaionModel=lambda kind: SimpleNamespace(name=f"clap-laion-{kind}"),
    ):
        models = {loader.name: loader for loader in model_loader.get_all_models()}
    if model not in models:
        raise ValueError(f"fadtk has no model {model}; it has {', '.join(sorted(models))}")
    if model in clap:
        constructor, kind = clap[model]
        models[model] = constructor(kind)
    # fadtk switches gradients off and sets the start method for the whole process.
    start_method = multiprocessing.get_start_method(allow_none=True)
    # fadtk takes every file with a dot in its name for audio, names embeddings by the stem, and keeps those, statistics
    # and converted audio beside the files, never to be made anew: it gets links in folders of their own.
    with TemporaryDirectory() as scratch, torch.set_grad_enabled(torch.is_grad_enabled()):
        folders = [Path(scratch, side) for side in ("first", "second")]
        try:
            for folder, paths in zip(folders, sides, strict=True):
                folder.mkdir()
                for index, path in enumerate(paths):
                    (folder / f"{index:06}{path.suffix}").symlink_to(path.resolve())
                cache_embedding_files(folder, models[model], workers=workers)
            distance = float(FrechetAudioDistance(models[model], load_model=False).score(*folders))
        finally:
            multiprocessing.set_start_method(start_method, force=True)
    # Rounding may leave a tiny negative number.
    return max(distance, 0.0)
