"""The Fréchet distance of Gaussians against closed forms, and what it hears in audio."""

import math

import numpy as np
import pytest
import torch
from fastjukebox.distill.frechet import (
    EmbeddingConfig,
    embed,
    fadtk_distance,
    frechet_distance,
    gaussian_distance,
    statistics,
)
from fastjukebox.distill.mel import MelConfig, audio_files, log_mel, mel_bank
from fastjukebox.engine.audio import AudioError, write_audio
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm

RATE = 8000
CONFIG = EmbeddingConfig(MelConfig(RATE, 512, 128, 32, 50.0, 2800.0), 0.5, cepstra=8, bands=2, modulations=4)


def _gaussian(rng, dimensions, rank=None):
    factor = rng.standard_normal((dimensions, rank or dimensions)) * 10 ** rng.uniform(-2, 2)
    return torch.from_numpy(rng.standard_normal(dimensions)), torch.from_numpy(factor @ factor.T)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 12))
def test_distance_of_gaussians_whose_axes_agree(seed, dimensions):
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.standard_normal((dimensions, dimensions)))[0]
    means = rng.standard_normal((2, dimensions))
    deviations = 10 ** rng.uniform(-3, 3, (2, dimensions))
    gaussians = [
        (torch.from_numpy(mean), torch.from_numpy(axes * deviation**2 @ axes.T))
        for mean, deviation in zip(means, deviations)
    ]
    expected = ((means[0] - means[1]) ** 2).sum() + ((deviations[0] - deviations[1]) ** 2).sum()
    assert gaussian_distance(*gaussians) == pytest.approx(expected, rel=1e-9, abs=1e-9 * deviations.max() ** 2)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32))
def test_distance_in_the_plane(seed):
    rng = np.random.default_rng(seed)
    first, second = _gaussian(rng, 2), _gaussian(rng, 2)
    (mean1, cov1), (mean2, cov2) = first, second
    # The trace of a 2 x 2 matrix's root: sqrt(trace + 2 sqrt(determinant)).
    root = math.sqrt(float((cov1 @ cov2).trace() + 2 * (cov1.det() * cov2.det()).clamp(min=0).sqrt()))
    expected = float((mean1 - mean2).square().sum() + cov1.trace() + cov2.trace()) - 2 * root
    scale = float(cov1.trace() + cov2.trace())
    assert gaussian_distance(first, second) == pytest.approx(expected, rel=1e-9, abs=1e-7 * scale)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32), st.integers(3, 20))
def test_distance_agrees_with_the_matrix_square_root(seed, dimensions):
    rng = np.random.default_rng(seed)
    first, second = _gaussian(rng, dimensions, 2 * dimensions), _gaussian(rng, dimensions, 2 * dimensions)
    (mean1, cov1), (mean2, cov2) = first, second
    root = np.trace(sqrtm((cov1 @ cov2).numpy())).real
    expected = float((mean1 - mean2).square().sum() + cov1.trace() + cov2.trace()) - 2 * root
    scale = float(cov1.trace() + cov2.trace())
    assert gaussian_distance(first, second) == pytest.approx(expected, rel=1e-8, abs=1e-8 * scale)
    assert gaussian_distance(first, second) == pytest.approx(gaussian_distance(second, first), rel=1e-9)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 12))
def test_distance_to_itself_is_zero_even_where_nothing_varies(seed, dimensions):
    mean, covariance = _gaussian(np.random.default_rng(seed), dimensions, rank=dimensions - 1)
    assert 0 <= gaussian_distance((mean, covariance), (mean, covariance)) < 1e-6 * float(covariance.trace())


def test_gaussians_of_different_dimensions_are_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="3 and 4 dimensions"):
        gaussian_distance(_gaussian(rng, 3), _gaussian(rng, 4))


def test_statistics_are_mean_and_unbiased_covariance_and_need_enough_patches():
    embeddings = torch.randn(50, 4, dtype=torch.float64)
    embeddings[:, 3] = 7.0
    mean, covariance = statistics(embeddings, ridge=1e-3)
    centred = embeddings - embeddings.mean(0)
    plain = centred.T @ centred / 49
    torch.testing.assert_close(mean, embeddings.mean(0))
    torch.testing.assert_close(covariance, plain + 1e-3 * plain.trace() / 4 * torch.eye(4, dtype=torch.float64))
    assert bool((torch.linalg.eigvalsh(covariance) > 0).all())
    assert float(statistics(embeddings)[1][3, 3]) == pytest.approx(1e-6 * float(plain.trace()) / 4)
    statistics(embeddings[:5])
    with pytest.raises(ValueError, match="4 patches are too few for 4 dimensions: at least 5"):
        statistics(embeddings[:4])


def _music(seed, seconds=20.0, tempo=4.0, semitones=0.0, noise=0.0):
    """Plucked notes of random pitch, `tempo` per second, with white noise of that RMS: [samples]."""
    rng = np.random.default_rng(seed)
    samples = int(seconds * RATE)
    audio = np.zeros(samples + RATE)
    for onset in np.arange(0, seconds, 1 / tempo):
        frequency = 220 * 2 ** ((rng.integers(0, 24) + semitones) / 12)
        time = np.arange(RATE) / RATE
        start = int(onset * RATE)
        audio[start : start + RATE] += 0.2 * np.exp(-6 * time) * np.sin(2 * np.pi * frequency * time)
    return torch.from_numpy(audio[:samples] + noise * rng.standard_normal(samples)).float()


def _set(seeds, **changes):
    return statistics(torch.cat([embed(_music(seed, **changes), CONFIG) for seed in seeds]))


def test_distance_hears_noise_pitch_and_rhythm():
    base = _set(range(6))
    same = gaussian_distance(base, _set(range(6, 12)))
    noisy = [gaussian_distance(base, _set(range(6, 12), noise=noise)) for noise in (0.001, 0.003, 0.01, 0.03)]
    assert same < noisy[0] and noisy == sorted(noisy)
    for changes in ({"semitones": 2.0}, {"semitones": 7.0}, {"tempo": 3.0}, {"tempo": 6.0}):
        assert gaussian_distance(base, _set(range(6, 12), **changes)) > 2 * same, changes


def test_rhythm_does_not_depend_on_where_a_patch_starts():
    audio = _music(0)
    shifted = embed(audio[RATE // 10 :], CONFIG)
    assert gaussian_distance(statistics(embed(audio, CONFIG)), statistics(shifted)) < gaussian_distance(
        statistics(embed(audio, CONFIG)), _set([0], tempo=5.0)
    )


def test_level_is_heard_in_decibels():
    audio = _music(0, noise=0.01)
    moved = embed(audio * 0.5, CONFIG) - embed(audio, CONFIG)
    torch.testing.assert_close(moved[:, 0], torch.full((len(moved),), 20 * math.log10(0.5), dtype=torch.float64))
    assert float(moved[:, 1:].abs().max()) < 1e-3


def test_patches_are_whole_ones():
    mel = CONFIG.mel
    samples = mel.samples(2 * mel.frames(CONFIG.seconds))
    assert [len(embed(torch.zeros(count), CONFIG)) for count in (samples - 1, samples)] == [1, 2]


def test_a_level_that_moves_by_a_decibel_has_a_modulation_of_one():
    mel = CONFIG.mel
    frames = mel.frames(CONFIG.seconds)
    # Every frame has the same spectrum, in all bands; the level goes up and down twice in a patch.
    noise = torch.randn(mel.hop, generator=torch.Generator().manual_seed(0)).repeat(frames + 8)
    level = torch.sin(2 * math.pi * 2 * torch.arange(len(noise)) / (frames * mel.hop))
    (found,) = embed((0.1 * noise * 10 ** (level / 20))[: mel.samples(frames)], CONFIG)[:, CONFIG.cepstra :]
    expected = torch.tensor([0.0, 1.0, 0.0, 0.0] * CONFIG.bands, dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.1)


def test_folders_and_lists_of_files(tmp_path):
    for name, seeds in (("a", range(3)), ("b", range(3, 6))):
        (tmp_path / name).mkdir()
        for seed in seeds:
            write_audio(tmp_path / name / f"{seed}.wav", _music(seed)[None], RATE)
    (tmp_path / "a" / "notes.txt").write_text("not audio")
    first, second = tmp_path / "a", tmp_path / "b"
    result = frechet_distance(first, second, CONFIG)
    assert result.distance > 0 and result.patches == (120, 120)
    assert frechet_distance(first, first, CONFIG).distance < 1e-6
    assert frechet_distance(second, first, CONFIG).distance == pytest.approx(result.distance, rel=1e-9)
    assert frechet_distance(audio_files(first), audio_files(second), CONFIG) == result


def test_a_folders_audio_is_all_of_it(tmp_path):
    (tmp_path / "one" / "two").mkdir(parents=True)
    names = ("b.wav", "one/a.MP3", "one/two/c.aiff", "one/two/d.m4a")
    for name in (*names, "cover.jpg", "one/notes.txt"):
        (tmp_path / name).touch()
    assert audio_files(tmp_path) == [tmp_path / name for name in names]
    # What cannot be read is named.
    with pytest.raises(AudioError, match=r"b\.wav"):
        frechet_distance(tmp_path, tmp_path, CONFIG)


def test_errors_name_what_is_wrong(tmp_path):
    with pytest.raises(AudioError, match="not a folder"):
        frechet_distance(tmp_path / "nowhere", tmp_path, CONFIG)
    with pytest.raises(AudioError, match="holds no"):
        frechet_distance(tmp_path, tmp_path, CONFIG)
    with pytest.raises(AudioError, match="empty"):
        audio_files([])
    with pytest.raises(AudioError, match="no such file"):
        frechet_distance([tmp_path / "lost.wav"], tmp_path, CONFIG)
    (tmp_path / "b").mkdir()
    write_audio(tmp_path / "song.wav", _music(0)[None], RATE)
    write_audio(tmp_path / "b" / "short.wav", _music(0, seconds=0.25)[None], RATE)
    with pytest.raises(ValueError, match="the second set of audio: 0 patches"):
        frechet_distance(tmp_path, tmp_path / "b", CONFIG)
    with pytest.raises(ValueError, match=r"pip install fadtk|not a folder"):
        fadtk_distance(tmp_path / "nowhere", tmp_path)


def test_a_sine_is_loudest_in_its_band_at_its_level():
    mel = CONFIG.mel
    # A frequency in the middle of a transform's bin, at the peak of the nearest band but for the band's slope.
    frequency = 32 * RATE / mel.n_fft
    audio = 0.1 * torch.sin(2 * math.pi * frequency * torch.arange(RATE) / RATE)
    level = log_mel(audio[None], mel)[0].mean(1)
    assert int(level.argmax()) == int(mel_bank(mel)[:, 32].argmax())
    assert float(level.max()) == pytest.approx(-20.0, abs=2.5)
    assert float(log_mel(torch.zeros(1, RATE), mel).max()) == -80.0
    with pytest.raises(ValueError, match="511 samples"):
        log_mel(torch.zeros(1, 511), mel)


def test_a_transposing_bank_hears_the_song_in_another_key():
    plain, up = (log_mel(_music(0, semitones=s)[None], CONFIG.mel)[0] for s in (0, 3))
    moved = log_mel(_music(0)[None], CONFIG.mel, [3])[0]
    assert float((moved - up).abs().mean()) < 0.4 * float((plain - up).abs().mean())
    with pytest.raises(ValueError, match="6 semitones"):
        mel_bank(CONFIG.mel, 7)


@pytest.mark.parametrize(("cepstra", "bands", "modulations"), [(33, 2, 4), (8, 3, 4), (8, 2, 40)])
def test_impossible_embeddings_are_refused(cepstra, bands, modulations):
    with pytest.raises(ValueError, match="at most"):
        EmbeddingConfig(CONFIG.mel, 0.5, cepstra, bands, modulations)


def test_bands_beyond_the_rate_are_refused():
    with pytest.raises(ValueError, match="2828 Hz"):
        MelConfig(RATE, 512, 128, 32, 50.0, 3000.0)
