"""Codebook averages, and one level trained on one clip."""

import numpy as np
import pytest
import torch
from fastjukebox.distill.dataset import AudioCrops
from fastjukebox.distill.stage import Budget, TrainingDiverged
from fastjukebox.distill.vqvae import CodebookAverage, LevelTrainer, VQVAETraining, load_level, train_level
from fastjukebox.engine.config import VQVAEConfig
from fastjukebox.engine.vqvae import VQVAE

CONFIG = VQVAEConfig(codebook_size=32, code_dim=8, width=16, depth=2, multipliers=(1, 1, 1))


def _generator():
    return torch.Generator().manual_seed(1)


def _clip(samples=4096):
    time = np.arange(samples) / 44100
    tones = sum(np.sin(2 * np.pi * f * time + f) / (n + 2) for n, f in enumerate((220.0, 330.0, 550.0)))
    return np.rint(tones * 12000).astype(np.int16)[None].repeat(2, axis=0)


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


def test_average_writes_the_codebook_of_the_network():
    vqvae = VQVAE(CONFIG)
    trainer = LevelTrainer(vqvae, 1, VQVAETraining(quantize_from=0), seed=0)
    trainer.loss(torch.randn(2, 2048), 0)
    assert trainer.average.is_started
    assert bool(vqvae.codebook(1).any()) and not bool(vqvae.codebook(0).any())


def test_encoder_gets_the_decoders_gradient_through_the_codes():
    trainer = LevelTrainer(VQVAE(CONFIG), 0, VQVAETraining(quantize_from=0, commitment=0.0), seed=0)
    trainer.loss(torch.randn(2, 2048), 0).backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in trainer.vqvae.encoders[0].parameters())
    assert all(p.grad is None for p in trainer.vqvae.encoders[1].parameters())


def test_loss_falls_and_one_clip_is_overfitted(tmp_path):
    crops = AudioCrops(_clip(), 4096, held_out=1, seed=0)
    budget = Budget(80, 10, 3e-3, warm_up=10, log_every=1000)
    lines = []
    settings = VQVAETraining(batch=1, quantize_from=20)
    vqvae, progress, figures = train_level(tmp_path / "v.pt", CONFIG, 0, crops, budget, settings, 0, lines.append)
    assert progress.step == 80
    assert figures["snr_db"] > 6 and figures["perplexity"] > 4
    loaded = VQVAE(CONFIG)
    load_level(tmp_path / "v.pt", loaded, 0)
    codes = vqvae.encode(crops.measured(), 0)
    assert torch.equal(codes, loaded.encode(crops.measured(), 0))
    torch.testing.assert_close(vqvae.decode(codes), loaded.decode(codes))


def test_resumed_training_equals_undisturbed_training(tmp_path):
    crops = AudioCrops(_clip(), 2048, held_out=1, seed=0)
    settings = VQVAETraining(quantize_from=2)

    def weights(path, *limits):
        for steps in limits:
            # A constant learning rate: the schedule depends on the planned steps.
            budget = Budget(steps, 10, 1e-3, final=1.0)
            vqvae, _, _ = train_level(path, CONFIG, 2, crops, budget, settings, 0, str)
        return vqvae.state_dict()

    whole, resumed = weights(tmp_path / "a.pt", 6), weights(tmp_path / "b.pt", 3, 6)
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name


def test_diverged_loss_stops_and_keeps_the_state(tmp_path):
    crops = AudioCrops(_clip(), 2048, held_out=1, seed=0)
    train_level(tmp_path / "v.pt", CONFIG, 2, crops, Budget(2, 10, 1e-3), VQVAETraining(), 0, str)
    before = (tmp_path / "v.pt").read_bytes()
    with pytest.raises(TrainingDiverged, match="step 2"):
        broken = VQVAETraining(waveform=float("nan"))
        train_level(tmp_path / "v.pt", CONFIG, 2, crops, Budget(4, 10, 1e-3), broken, 0, str)
    assert (tmp_path / "v.pt").read_bytes() == before
