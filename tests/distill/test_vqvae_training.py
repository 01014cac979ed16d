"""Codebook averages, and one level trained on one clip."""

import os
import signal

import numpy as np
import pytest
import soundfile
import torch
from fastjukebox.distill import losses
from fastjukebox.distill.audio_crops import AudioCrops
from fastjukebox.distill.audio_folder import scan
from fastjukebox.distill.trainer import TrainingStopped
from fastjukebox.distill.vqvae import CodebookAverage, LevelObjective, VQVAETraining, load_level, train_level
from fastjukebox.engine.config import VQVAEConfig
from fastjukebox.engine.vqvae import VQVAE

CONFIG = VQVAEConfig(codebook_size=32, code_dim=8, width=16, depth=2, multipliers=(1, 1, 1))


def _generator():
    return torch.Generator().manual_seed(1)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A folder of two equal songs, one held out."""
    folder = tmp_path_factory.mktemp("clip")
    time = np.arange(4096) / 44100
    tones = sum(np.sin(2 * np.pi * f * time + f) / (n + 2) for n, f in enumerate((220.0, 330.0, 550.0)))
    for name in "ab":
        soundfile.write(folder / f"{name}.wav", tones * 0.37, 44100)
    return scan(folder, 1, seed=0)


def test_codebook_is_the_mean_of_its_latents_on_a_constant_assignment():
    latents = torch.randn(60, 4) + 2
    codes = torch.arange(60) % 6
    average = CodebookAverage(torch.zeros(6, 4), decay=0.8)
    average.start(latents, _generator())
    for _ in range(100):
        assert average.update(latents, codes, _generator()) == 0
    expected = torch.stack([latents[codes == code].mean(0) for code in range(6)])
    torch.testing.assert_close(average.codebook, expected, atol=1e-5, rtol=1e-5)


def test_start_takes_codes_from_the_latents():
    latents = torch.randn(5, 4) + 3
    average = CodebookAverage(torch.zeros(12, 4))
    average.start(latents, _generator())
    assert float(torch.cdist(average.codebook, latents).min(dim=1).values.max()) < 0.2
    assert len(average.codebook.unique(dim=0)) == 12


def test_dead_codes_move_to_latents_of_the_batch():
    latents = torch.randn(64, 4) + 1
    average = CodebookAverage(torch.zeros(8, 4), decay=0.9, dead_below=0.1)
    average.start(latents, _generator())
    # Everything goes to code 0: the others fall below the limit after log(0.1) / log(0.9) = 22 steps.
    restarts = [average.update(latents, torch.zeros(64, dtype=torch.long), _generator()) for _ in range(23)]
    assert sum(restarts[:21]) == 0 and sum(restarts) == 7
    distances = torch.cdist(average.codebook[1:], latents).min(dim=1).values
    assert float(distances.max()) < 1e-4


def test_restarts_bring_a_collapsed_codebook_into_use():
    latents = torch.randn(512, 4) + 1
    average = CodebookAverage(torch.zeros(32, 4), decay=0.9)
    average.start(torch.full((512, 4), 50.0), _generator())
    generator = _generator()
    for _ in range(80):
        codes = torch.cdist(latents, average.codebook).argmin(dim=1)
        average.update(latents, codes, generator)
    assert len(codes.unique()) > 24


def objective(vqvae, level, **changes):
    return LevelObjective(vqvae, level, VQVAETraining(steps=1, quantize_from=0, **changes), seed=0)


def test_average_writes_the_codebook_of_the_network():
    vqvae = VQVAE(CONFIG)
    level = objective(vqvae, 1)
    level(torch.randn(2, 2048), 0)
    assert level.average.is_started
    assert bool(vqvae.codebook(1).any()) and not bool(vqvae.codebook(0).any())


def test_encoder_gets_the_decoders_gradient_through_the_codes():
    vqvae = VQVAE(CONFIG)
    objective(vqvae, 0, commitment=0.0)(torch.randn(2, 2048), 0).backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in vqvae.encoders[0].parameters())
    assert all(p.grad is None for p in vqvae.encoders[1].parameters())


def test_loss_is_the_weighted_sum_of_its_terms():
    vqvae, audio = VQVAE(CONFIG), torch.randn(2, 4096)
    weights = {"waveform": 2.0, "spectral": 3.0, "log_spectral": 5.0}
    latents = vqvae.encoders[0](audio[:, None])
    # Before it quantizes, the decoder sees the latents.
    level = LevelObjective(vqvae, 0, VQVAETraining(steps=1, quantize_from=1, **weights), seed=0)
    terms = losses.reconstruction(vqvae.decoders[0](latents)[:, 0], audio)
    torch.testing.assert_close(level(audio, 0), sum(weights[name] * getattr(terms, name) for name in weights))
    assert not level.average.is_started
    # From then on the latents are drawn to the codes, as those are before they move themselves.
    level = objective(vqvae, 0, **dict.fromkeys(weights, 0.0), commitment=7.0, codebook_decay=0.5)
    level(audio, 0)
    before = vqvae.codebook(0).clone()
    distance = (latents - vqvae.dequantize(vqvae.quantize(latents, 0), 0)).square().mean()
    torch.testing.assert_close(level(audio, 1), 7 * distance)
    assert not torch.equal(vqvae.codebook(0), before) and level.average.decay == 0.5


def test_the_codebook_depends_on_the_seed_and_the_step():
    vqvae, audio, found = VQVAE(CONFIG), torch.randn(2, 2048), []
    for seed, step in ((0, 5), (0, 5), (0, 6), (1, 5)):
        LevelObjective(vqvae, 0, VQVAETraining(steps=9, quantize_from=5), seed)(audio, step)
        found.append(vqvae.codebook(0).clone())
    assert [torch.equal(found[0], other) for other in found] == [True, True, False, False]


def test_loss_falls_and_one_clip_is_overfitted(clip, tmp_path):
    crops = AudioCrops(clip, 4096, 44100, seed=0)
    settings = VQVAETraining(steps=80, batch=1, learning_rate=3e-3, quantize_from=20)
    figures = train_level(tmp_path, CONFIG, 0, crops, settings, 0)
    assert figures["steps"] == 80 and figures["snr_db"] > 6 and figures["perplexity"] > 4
    loaded = VQVAE(CONFIG)
    load_level(tmp_path, loaded, 0)
    audio = crops.measured()
    assert losses.snr(loaded.decode(loaded.encode(audio, 0), 0), audio) == pytest.approx(figures["snr_db"], abs=1e-3)


def test_a_level_goes_on_to_the_same_bits(clip, tmp_path, monkeypatch):
    settings = VQVAETraining(steps=5, quantize_from=2)

    def weights(folder):
        crops, loaded = AudioCrops(clip, 2048, 44100, seed=0), VQVAE(CONFIG)
        figures = train_level(folder, CONFIG, 2, crops, settings, 0)
        load_level(folder, loaded, 2)
        audio = crops.measured()
        assert losses.snr(loaded.decode(loaded.encode(audio, 2), 2), audio) == pytest.approx(
            figures["snr_db"], rel=1e-4
        )
        return torch.load(folder / "state.pt", weights_only=True)

    whole = weights(tmp_path / "a")
    batch = AudioCrops.batch

    def interrupted(crops, step, *rest):
        # It quantizes by then.
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return batch(crops, step, *rest)

    with monkeypatch.context() as patched, pytest.raises(TrainingStopped, match="after step 4 of 5"):
        patched.setattr(AudioCrops, "batch", interrupted)
        weights(tmp_path / "b")
    resumed = weights(tmp_path / "b")
    for part in ("model", "codebook"):
        for name, value in whole[part].items():
            assert value is resumed[part][name] or torch.equal(value, resumed[part][name]), name
