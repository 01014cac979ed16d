"""Fixtures for the engine's tests: random networks, and a whole model of them."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fastjukebox.engine import VQVAE, JukeboxConfig, Prior, PriorConfig, VQVAEConfig
from fastjukebox.engine.__main__ import main
from fastjukebox.engine.config import ConditionerConfig
from fastjukebox.engine.speculative_decoder import SpeculativeDecoder
from torch import nn

# Test modules import what lies beside them.
sys.path.insert(0, str(Path(__file__).parent))

import random_models
from openai_files import PRIOR_CONFIGS, VQVAE_CONFIG, VQVAE_HPS, prior_hps, prior_state, save, vqvae_state


@pytest.fixture(scope="session")
def randomize() -> Callable[..., nn.Module]:
    return random_models.randomize


@pytest.fixture(scope="session")
def randomize_vqvae() -> Callable[[nn.Module], nn.Module]:
    return random_models.randomize_vqvae


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
def tiny_model(tiny_config, tmp_path_factory) -> Path:
    """The folder of a model with random FP32 weights, in which every code depends on all that it should depend on."""
    return random_models.write(tmp_path_factory.mktemp("models") / "tiny", tiny_config, seed=0)


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


@pytest.fixture
def decoders(monkeypatch):
    """All that draft."""
    found, start = [], SpeculativeDecoder._start
    monkeypatch.setattr(SpeculativeDecoder, "_start", lambda decoder: (found.append(decoder), start(decoder)))
    return found
