"""Fixtures for the engine's tests: random networks, and a whole model of them."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fastjukebox.engine import VQVAE, JukeboxConfig, Prior, PriorConfig, VQVAEConfig, checkpoint
from fastjukebox.engine.__main__ import main
from fastjukebox.engine.config import ConditionerConfig
from torch import nn

# Test modules import `openai_files`, which lies beside them.
sys.path.insert(0, str(Path(__file__).parent))

from openai_files import PRIOR_CONFIGS, VQVAE_CONFIG, VQVAE_HPS, prior_hps, prior_state, save, vqvae_state


@pytest.fixture(scope="session")
def randomize() -> Callable[[nn.Module], nn.Module]:
    """Fills a module with weights large enough that no term of its output can go missing unnoticed."""

    def fill(module: nn.Module, scale: float = 1.0) -> nn.Module:
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

    return fill


@pytest.fixture(scope="session")
def randomize_vqvae(randomize) -> Callable[[nn.Module], nn.Module]:
    """Random weights, and codebooks of latents that such encoders really give, so that many codes are in use."""

    def fill(vqvae: nn.Module) -> nn.Module:
        randomize(vqvae)
        config = vqvae.config
        for level, encoder in enumerate(vqvae.encoders):
            with torch.no_grad():
                audio = torch.randn(1, 1, config.codebook_size * config.samples_per_code(level))
                latents = encoder(audio)[0].T
                vqvae.codebook(level).copy_(latents + 0.1 * latents.std() * torch.randn_like(latents))
        return vqvae

    return fill


@pytest.fixture(scope="session")
def tiny_config() -> JukeboxConfig:
    """Three levels, every size different; the windows are 48, 32 and 24 codes: 384, 1024 and 3072 samples."""
    upper = ConditionerConfig(width=16, depth=2)
    sizes = ((0, 48, 6, upper), (1, 32, 4, upper), (2, 24, 4, None))
    priors = tuple(
        PriorConfig(level, 32, 3, 2, context_len, num_rows, codebook_size=37, conditioner=conditioner)
        for level, context_len, num_rows, conditioner in sizes
    )
    return JukeboxConfig(VQVAEConfig(37, 8, width=8, depth=2, multipliers=(1, 1, 1)), priors)


@pytest.fixture(scope="session")
def tiny_model(tiny_config, randomize, randomize_vqvae, tmp_path_factory) -> Path:
    """The folder of a model with random FP32 weights, in which every code depends on all that it should depend on."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        checkpoint.save_config(folder, tiny_config)
        checkpoint.save_network(
            folder / checkpoint.VQVAE_FILE, randomize_vqvae(VQVAE(tiny_config.vqvae)), torch.float32
        )
        for config in tiny_config.priors:
            prior = randomize(Prior(config), scale=0.6)
            if prior.conditioner:
                # Else the biases behind it outweigh it.
                prior.conditioner.embedding.data *= 4
            checkpoint.save_network(folder / checkpoint.prior_file(config.level), prior, torch.float32)
    return folder


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(1)
    networks = VQVAE(VQVAE_CONFIG), *(Prior(config) for config in PRIOR_CONFIGS)
    for network in networks:
        for tensor in network.state_dict().values():
            tensor.normal_()
    return networks


@pytest.fixture
def files(tmp_path, networks):
    """A folder of the usual names, with hps."""
    folder = tmp_path / "5b"
    folder.mkdir()
    vqvae, *priors = networks
    save(folder / "vqvae.pth.tar", vqvae_state(vqvae), VQVAE_HPS)
    for level, prior in enumerate(priors):
        save(folder / f"prior_level_{level}.pth.tar", prior_state(prior), prior_hps(level))
    return folder


@pytest.fixture
def run_cli(tiny_model, capfd, tmp_path, monkeypatch):
    """Runs a command on the tiny model, in a folder of its own; returns its exit code, stdout and stderr."""
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)

    def run(command, *args):
        model = ["--model", str(tiny_model)] if command not in ("resume", "convert") else []
        code = main([command, *map(str, args), *model])
        return code, *capfd.readouterr()

    return run


@pytest.fixture
def ok(run_cli):
    """Runs a command that must succeed, in silence on stderr; returns its stdout."""

    def run(*args):
        code, out, err = run_cli(*args)
        assert (code, err) == (0, ""), err
        return out

    return run


@pytest.fixture
def fails(run_cli):
    """Runs a command that must fail in the proper way and write no file; returns the message."""

    def run(*args):
        before = sorted(Path().rglob("*"))
        code, out, err = run_cli(*args)
        assert code == 2
        assert out == ""
        assert re.fullmatch(r"fastjukebox: error: [^\n]+\n", err), err
        assert "Traceback" not in err
        assert sorted(Path().rglob("*")) == before
        return err

    return run
