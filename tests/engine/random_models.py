"""Networks of random weights, and whole models of them."""

from pathlib import Path

import torch
from fastjukebox.engine import VQVAE, JukeboxConfig, Prior, checkpoint
from torch import nn


def randomize(module: nn.Module, scale: float = 1.0) -> nn.Module:
    """Weights large enough that no term of a network's output can go missing unnoticed."""
    with torch.no_grad():
        for name, tensor in sorted(module.state_dict().items()):
            noise = torch.randn(tensor.shape)
            if name.endswith(("bias", "embedding", "start_token")):
                noise *= 0.25
            elif tensor.dim() == 1:
                noise = 1 + 0.25 * noise
            elif tensor.dim() == 2 and not name.startswith("codebook"):
                noise *= scale * tensor.shape[0] ** -0.5
            elif tensor.dim() == 3:
                noise *= scale * (tensor.shape[2] * min(tensor.shape[:2])) ** -0.5
            tensor.copy_(noise)
    return module


def randomize_vqvae(vqvae: nn.Module) -> nn.Module:
    """Random weights, and codebooks of latents that such encoders really give, so that many codes are in use."""
    randomize(vqvae)
    config = vqvae.config
    for level, encoder in enumerate(vqvae.encoders):
        with torch.no_grad():
            audio = torch.randn(1, 1, config.codebook_size * config.samples_per_code(level))
            latents = encoder(audio)[0].T
            vqvae.codebook(level).copy_(latents + 0.1 * latents.std() * torch.randn_like(latents))
    return vqvae


def write(folder: Path, config: JukeboxConfig, seed: int) -> Path:
    """A model in FP32, in which every code depends on all that it should depend on."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        checkpoint.save_config(folder, config)
        checkpoint.save_network(folder / checkpoint.VQVAE_FILE, randomize_vqvae(VQVAE(config.vqvae)), torch.float32)
        for prior in config.priors:
            network = randomize(Prior(prior), scale=0.6)
            if network.conditioner:
                # Else the biases behind it outweigh it.
                network.conditioner.embedding.data *= 4
            checkpoint.save_network(folder / checkpoint.prior_file(prior.level), network, torch.float32)
    return folder
