"""The losses against restatements in FP64."""

import math

import numpy as np
import pytest
import torch
from fastjukebox.distill import losses
from fastjukebox.distill.losses import FLOOR, Resolution

SMALL = Resolution(64, 10, 48)


def _audio(batch=2, samples=400, offset=0.1):
    return torch.randn(batch, samples) * 0.2 + offset


def _magnitudes(audio, resolution):
    """Frame by frame: reflect, window in the middle of the frame, FFT."""
    window = np.zeros(resolution.n_fft)
    left = (resolution.n_fft - resolution.window) // 2
    # The periodic Hann window.
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(resolution.window) / resolution.window)
    window[left : left + resolution.window] = hann / np.sqrt((hann**2).sum())
    half = resolution.n_fft // 2
    rows = []
    for row in audio.double().numpy():
        padded = np.pad(row, half, mode="reflect")
        starts = range(0, len(row) + 1, resolution.hop)
        rows.append(np.stack([np.abs(np.fft.rfft(padded[s : s + resolution.n_fft] * window)) for s in starts], axis=1))
    return np.stack(rows)


@pytest.mark.parametrize("resolution", [SMALL, Resolution(128, 17, 128)])
def test_magnitudes_equal_a_frame_by_frame_transform(resolution):
    audio = _audio()
    found = losses.magnitudes(audio, resolution)
    np.testing.assert_allclose(found.numpy(), _magnitudes(audio, resolution), atol=3e-5)


def test_white_noise_has_its_rms_as_magnitude():
    noise = 0.3 * torch.randn(1, 40_000)
    power = losses.magnitudes(noise, losses.RESOLUTIONS[2]).square().mean()
    assert math.isclose(float(power.sqrt()), 0.3, rel_tol=0.03)


def test_reconstruction_equals_its_restatement():
    target, output = _audio(), _audio(offset=-0.05)
    resolutions = (SMALL, Resolution(128, 16, 100))
    found = losses.reconstruction(output, target, resolutions)
    x, y = target.double().numpy(), output.double().numpy()
    pairs = [(_magnitudes(target, r), _magnitudes(output, r)) for r in resolutions]
    spectral = np.mean([np.linalg.norm(b - a) / np.linalg.norm(a) for a, b in pairs])
    log_spectral = np.mean([np.abs(np.log(b + FLOOR) - np.log(a + FLOOR)).mean() for a, b in pairs])
    assert math.isclose(float(found.waveform), np.linalg.norm(y - x) / np.linalg.norm(x), rel_tol=1e-5)
    assert math.isclose(float(found.spectral), spectral, rel_tol=1e-4)
    assert math.isclose(float(found.log_spectral), log_spectral, rel_tol=1e-4)


def test_reconstruction_has_finite_gradients_on_silence():
    output = torch.zeros(1, 400, requires_grad=True)
    sum(losses.reconstruction(output, torch.zeros(1, 400), (SMALL,))).backward()
    assert output.grad is not None and bool(output.grad.isfinite().all())


def test_silence_weighs_no_more_than_what_is_hardly_heard():
    output = torch.full((1, 400), 1e-3, requires_grad=True)
    terms = losses.reconstruction(output, torch.zeros(1, 400), (SMALL,))
    assert float(terms.waveform.detach()) == pytest.approx(1.0) and float(terms.spectral.detach()) < 5


def test_snr_counts_in_decibels():
    target = _audio()
    assert math.isclose(losses.snr(target * 0.9, target), 20.0, abs_tol=1e-3)


@pytest.mark.parametrize(("codes", "expected"), [([0, 0, 0], 1.0), ([0, 1, 2, 3], 4.0), ([0, 0, 1, 1], 2.0)])
def test_perplexity_counts_the_codes_in_use(codes, expected):
    assert math.isclose(losses.perplexity(torch.tensor(codes), 8), expected, rel_tol=1e-6)


def test_bits_of_a_fair_coin():
    assert math.isclose(losses.bits(math.log(2)), 1.0)
