"""Reconstruction losses of the VQ-VAE and the figures that describe a reconstruction. Audio is [B, samples].

Jukebox (Dhariwal et al. 2020, section 3.1) adds to the L2 of the waveform the L2 between magnitude spectrograms at
several resolutions, because the waveform alone is dominated by low frequencies. Both are taken relative to the norm of
the target here ("spectral convergence", Arik et al. 2018, section 3), so that the terms keep their proportion while the
error falls from 0 dB to -20 dB and no weight depends on how loud the corpus is. The third term, the distance of log
magnitudes (same paper), is what makes quiet high bands, hi-hats for instance, count.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .parallel import Processes


class Resolution(NamedTuple):
    """One short-time Fourier transform, in samples."""

    n_fft: int
    hop: int
    window: int


# The three that Jukebox uses.
RESOLUTIONS = (Resolution(2048, 240, 1200), Resolution(1024, 120, 600), Resolution(512, 50, 240))

# Magnitudes are those of a window with unit energy, so white noise of RMS r has magnitude r in every bin. What lies
# below this floor (-60 dB of full scale) does not count.
FLOOR = 1e-3


def magnitudes(audio: Tensor, resolution: Resolution) -> Tensor:
    """[B, samples] -> [B, n_fft / 2 + 1, frames], the window scaled to unit energy."""
    window = torch.hann_window(resolution.window, dtype=audio.dtype, device=audio.device)
    window = window / window.square().sum().sqrt()
    spectrum = torch.stft(
        audio, resolution.n_fft, resolution.hop, resolution.window, window, center=True, return_complex=True
    )
    power = spectrum.real.square() + spectrum.imag.square()
    # The root has no gradient at zero: silence stays at 1e-5.
    return (power + 1e-10).sqrt()


def relative_error(output: Tensor, target: Tensor, processes: Processes) -> Tensor:
    """|output - target| / |target| over all elements of all processes: a scalar, 1 for an output of zeros. A target
    below the floor counts as one at the floor, so that silence has no weight beyond all others."""
    return processes.rms(output - target) / processes.rms(target).clamp_min(FLOOR)


def log_distance(output: Tensor, target: Tensor) -> Tensor:
    """Mean absolute distance of two magnitude spectrograms, in nepers (8.7 dB each)."""
    return ((output + FLOOR).log() - (target + FLOOR).log()).abs().mean()


class Reconstruction(NamedTuple):
    """The terms of the reconstruction loss: all scalars."""

    waveform: Tensor
    spectral: Tensor
    log_spectral: Tensor


def reconstruction(
    output: Tensor,
    target: Tensor,
    resolutions: tuple[Resolution, ...] = RESOLUTIONS,
    processes: Processes | None = None,
) -> Reconstruction:
    """Relative L2 of the waveform, and relative L2 and log distance of the spectrograms, averaged over resolutions.

    processes: with several, each has a share of the batch. Relative errors are then taken over the whole batch, so that
    the mean of the processes' gradients is the gradient of the batch's loss. Log distances need no exchange: their mean
    over equal shares is the batch's.
    """
    processes = processes or Processes()
    spectral, log_spectral = [], []
    for resolution in resolutions:
        with torch.no_grad():
            wanted = magnitudes(target, resolution)
        found = magnitudes(output, resolution)
        spectral.append(relative_error(found, wanted, processes))
        log_spectral.append(log_distance(found, wanted))
    return Reconstruction(
        relative_error(output, target, processes), torch.stack(spectral).mean(), torch.stack(log_spectral).mean()
    )


def snr(output: Tensor, target: Tensor) -> float:
    """Signal-to-noise ratio in dB over all elements."""
    noise = (output - target).square().sum().clamp_min(1e-12)
    return float(10 * (target.square().sum() / noise).log10())


def perplexity(codes: Tensor, codebook_size: int) -> float:
    """exp(entropy) of the codes' frequencies: how many codes are in use, between 1 and `codebook_size`."""
    frequency = torch.bincount(codes.flatten(), minlength=codebook_size).double() / codes.numel()
    return float(torch.special.entr(frequency).sum().exp())


def bits(nats: float) -> float:
    """Cross-entropy in nats -> bits per code."""
    return nats / math.log(2)
