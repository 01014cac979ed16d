"""Codes are given to the VQ-VAE that made them: a run brings its model along, and no other VQ-VAE reads its codes."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from fastjukebox.engine import VQVAE, Prior, checkpoint, runs
from fastjukebox.engine.__main__ import main

SHORT = ("--seconds", "0.05", "--level", "2")


@pytest.fixture
def command(tmp_path, monkeypatch, capfd):
    """Runs a command without a --model of its own; returns its exit code, stdout and stderr."""
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    return lambda *args: (main([*map(str, args)]), *capfd.readouterr())


@pytest.fixture
def other_vqvae(tiny_model, tiny_config, randomize_vqvae):
    """A model of the same sizes whose codes mean something else."""
    shutil.copytree(tiny_model, "other")
    checkpoint.save_network(Path("other", checkpoint.VQVAE_FILE), randomize_vqvae(VQVAE(tiny_config.vqvae)))
    return Path("other")


@pytest.fixture
def other_priors(tiny_model, tiny_config, randomize):
    """A student, say."""
    shutil.copytree(tiny_model, "student")
    checkpoint.save_network(Path("student", checkpoint.prior_file(1)), randomize(Prior(tiny_config.priors[1])))
    return Path("student")


def test_a_run_brings_its_model_along(command, tiny_model):
    assert command("sample", "a.wav", *SHORT, "--model", tiny_model)[0] == 0
    for name, args in {
        "b": ("upsample", "a.run", "b.wav", "--level", "1"),
        "c": ("continue", "a.run", "c.wav", "--seconds", "0.1", "--level", "2"),
    }.items():
        assert command(*args)[::2] == (0, "")
        assert json.loads(Path(f"{name}.run/request.json").read_text())["model"] == str(tiny_model.resolve())
    assert command("decode", "a.run", "d.wav")[::2] == (0, "")
    assert Path("d.wav").read_bytes() == Path("a.wav").read_bytes()


def test_a_run_whose_model_is_gone_asks_for_it(command, tiny_model):
    shutil.copytree(tiny_model, "model")
    assert command("sample", "a.wav", *SHORT, "--model", "model")[0] == 0
    Path("model").rename("moved")
    code, _, err = command("upsample", "a.run", "b.wav", "--level", "1")
    assert code == 2 and "which is not there: --model says where it is" in err
    assert command("upsample", "a.run", "b.wav", "--level", "1", "--model", "moved")[0] == 0


def test_codes_of_another_vqvae_are_refused(command, tiny_model, other_vqvae):
    assert command("sample", "a.wav", *SHORT, "--model", tiny_model)[0] == 0
    assert command("encode", "a.wav", "a.safetensors", "--model", tiny_model)[0] == 0
    for source in ("a.run", "a.run/codes.safetensors", "a.safetensors"):
        for args in (
            ("decode", source, "b.wav"),
            ("upsample", source, "b.wav", "--level", "1"),
            ("continue", source, "b.wav", "--seconds", "0.1"),
        ):
            code, out, err = command(*args, "--model", other_vqvae)
            assert (code, out) == (2, "")
            assert err.startswith(f"fastjukebox: error: {source}")
            assert "codes of another VQ-VAE" in err and "--model" in err and err.count("\n") == 1
    assert not Path("b.wav").exists() and not Path("b.run").exists()


def test_other_priors_take_the_codes_of_their_vqvae(command, tiny_model, other_priors):
    assert command("sample", "a.wav", *SHORT, "--model", tiny_model)[0] == 0
    for name, model in (("own", tiny_model), ("student", other_priors)):
        assert command("upsample", "a.run", f"{name}.wav", "--level", "1", "--model", model)[0] == 0
    own, student = (runs.load_codes(Path(f"{name}.run/codes.safetensors")) for name in ("own", "student"))
    assert torch.equal(own[2], student[2]) and not torch.equal(own[1], student[1])


def test_codes_files_that_do_not_say_whose_they_are_pass(command, tiny_model):
    runs.save_codes(Path("old.safetensors"), [torch.zeros(1, count, dtype=torch.long) for count in (0, 0, 16)])
    assert command("decode", "old.safetensors", "old.wav", "--model", tiny_model)[0] == 0


def test_info_tells_where_a_network_is(command, tiny_model, tiny_config):
    shutil.copytree(tiny_model, "base")
    prior, name = checkpoint.load_prior(Path("base"), 0), checkpoint.prior_file(0)
    prior.layers[0].up.weight.neg_()
    checkpoint.save_config(Path("student"), tiny_config, "../base")
    checkpoint.save_network(Path("student", name), prior, torch.float32, base=Path("base", name))
    told = " ".join(command("info", "--model", "student")[1].split())
    own = prior.layers[0].up.weight.numel()
    assert f"{name} {own:,} parameters in F32, 0.0 MB, the others in {Path.cwd().resolve()}/base/{name}" in told
    Path("base", name).unlink()
    told = " ".join(command("info", "--model", "student")[1].split())
    assert f"{name} {Path.cwd().resolve()}/base/{name}, which has part of it, is missing" in told
