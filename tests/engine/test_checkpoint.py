"""Our own checkpoint folders: what is saved comes back, and what cannot be used is one error that says why."""

import dataclasses
import json
import math
import os
import shutil

import pytest
import torch
from fastjukebox.engine import CheckpointError, Jukebox, JukeboxConfig, Prior, checkpoint
from fastjukebox.engine.config import PRESETS
from fastjukebox.engine.config_json import from_json, to_json
from fastjukebox.engine.sampler import SamplingParams
from fastjukebox.kernels import native_library
from safetensors.torch import load_file, save_file


@pytest.fixture
def folder(tiny_model, tmp_path):
    """A copy that may be damaged."""
    return shutil.copytree(tiny_model, tmp_path / "model")


def edit_config(folder, change):
    path = folder / "config.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_network_comes_back_in_the_dtype_it_was_saved_in(tiny_config, tmp_path, randomize, dtype):
    checkpoint.save_config(tmp_path, tiny_config)
    prior = randomize(Prior(tiny_config.priors[1]))
    path = tmp_path / checkpoint.prior_file(1)
    checkpoint.save_network(path, prior, dtype)
    assert {tensor.dtype for tensor in load_file(path).values()} == {dtype}
    for wanted in (torch.float32, dtype):
        loaded = checkpoint.load_prior(tmp_path, 1, dtype=wanted)
        assert loaded.dtype == wanted and not loaded.training
        for name, tensor in loaded.state_dict().items():
            assert tensor.device.type == "cpu" and not tensor.requires_grad
            assert torch.equal(tensor, prior.state_dict()[name].to(dtype).to(wanted)), name
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith(".")] == []
    # For everyone, whoever has made it.
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("level", [2, 1])
def test_fp16_matrices_that_stay_as_stored_give_what_fp32_gives(tiny_config, tmp_path, randomize, stored, level):
    checkpoint.save_config(tmp_path, tiny_config)
    checkpoint.save_network(
        tmp_path / checkpoint.prior_file(level), randomize(Prior(tiny_config.priors[level])), stored
    )
    wide, kept = (checkpoint.load_prior(tmp_path, level, keep_fp16=keep) for keep in (False, True))
    assert wide.dtype == kept.dtype == torch.float32
    narrow = {name for name, tensor in kept.state_dict().items() if tensor.dtype != torch.float32}
    matrices = {f"layers.{i}.{name}.weight" for i in range(kept.config.depth) for name in ("qkv", "proj", "up", "down")}
    assert narrow == (matrices if stored == torch.float16 else set())
    codes = torch.randint(kept.config.codebook_size, (2, kept.config.context_len))
    assert torch.equal(wide(codes), kept(codes))


@pytest.mark.parametrize(("backend", "dtype"), [("eager", torch.float32), ("native", torch.float16)])
def test_a_jukebox_keeps_them_for_the_native_decoder_alone(backend, dtype, tiny_model, tmp_path, monkeypatch):
    if backend == "native" and native_library.missing():
        pytest.skip("needs the native decoder")
    monkeypatch.setattr(Jukebox, "KEPT_BYTES", 0)
    shutil.copytree(tiny_model, tmp_path / "half")
    prior = checkpoint.load_prior(tiny_model, 2)
    checkpoint.save_network(tmp_path / "half" / checkpoint.prior_file(2), prior, torch.float16)
    jukebox = Jukebox.from_pretrained(tmp_path / "half", "cpu", backend=backend)
    assert jukebox.prior(2).layers[0].up.weight.dtype == dtype
    assert jukebox.prior(2).dtype == jukebox.dtype == torch.float32


def test_small_priors_outlive_their_files(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "half")
    for level in range(3):
        path = folder / checkpoint.prior_file(level)
        checkpoint.save_network(path, checkpoint.load_prior(tiny_model, level), torch.float16)
    jukebox, params = Jukebox.from_pretrained(folder, "cpu"), SamplingParams(seconds=0.05)
    expected = jukebox.sample(params)
    for path in folder.glob("prior_*"):
        with path.open("r+b") as file:
            file.truncate(1000)
    assert torch.equal(jukebox.sample(params).audio, expected.audio)


def test_files_are_fp16_unless_asked_otherwise(tiny_config, tmp_path):
    checkpoint.save_network(tmp_path / "prior.safetensors", Prior(tiny_config.priors[2]))
    assert {tensor.dtype for tensor in load_file(tmp_path / "prior.safetensors").values()} == {torch.float16}


def test_the_vqvae_is_fp32_whatever_the_file_holds(folder, tiny_config):
    vqvae = checkpoint.load_vqvae(folder)
    checkpoint.save_network(folder / checkpoint.VQVAE_FILE, vqvae, torch.float16)
    assert {tensor.dtype for tensor in checkpoint.load_vqvae(folder).state_dict().values()} == {torch.float32}
    codes = torch.randint(37, (1, 40))
    jukebox = Jukebox.from_pretrained(folder, dtype="bfloat16")
    assert jukebox.prior(0).dtype == torch.bfloat16
    assert jukebox.decode(codes).dtype == torch.float32


def test_configs_survive_the_round_trip(tiny_config, tmp_path):
    checkpoint.save_config(tmp_path / "new" / "folder", tiny_config)
    assert checkpoint.load_config(tmp_path / "new" / "folder") == tiny_config
    published = JukeboxConfig(
        PRESETS["vqvae"], tuple(PRESETS[n] for n in ("upsampler-0-72", "upsampler-1-24", "top-18"))
    )
    assert from_json(JukeboxConfig, json.loads(json.dumps(to_json(published)))) == published


def test_a_save_that_fails_leaves_the_old_file(folder, tiny_config, monkeypatch):
    path = folder / checkpoint.prior_file(2)
    before = path.read_bytes()

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save_network(path, Prior(tiny_config.priors[2]))
    assert path.read_bytes() == before
    assert not [file for file in folder.iterdir() if file.name.startswith(".")]


@pytest.mark.parametrize("name", ["vqvae.safetensors", "prior_0.safetensors"])
@pytest.mark.parametrize("keep", [0, 7, 200, -1])
def test_truncated_and_empty_files_are_one_error(folder, name, keep):
    path = folder / name
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=rf"{path}: cannot be read.*is the file complete\?"):
        Jukebox.from_pretrained(folder).prior(0)


@pytest.mark.parametrize("content", [b"not a safetensors file" * 20, b"PK\x03\x04" * 50, b"\xff" * 64])
def test_files_of_another_kind_are_one_error(folder, content):
    path = folder / "prior_1.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{path}: cannot be read"):
        checkpoint.load_prior(folder, 1)


@pytest.mark.parametrize("name", ["vqvae.safetensors", "prior_2.safetensors"])
def test_missing_files_are_one_error(folder, name):
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=f"{folder / name}"):
        Jukebox.from_pretrained(folder).prior(2)


def test_folders_that_are_no_checkpoint_are_one_error(folder, tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere/config\.json does not exist"):
        Jukebox.from_pretrained(tmp_path / "nowhere")
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json does not exist .*fastjukebox convert"):
        Jukebox.from_pretrained(folder)
    with pytest.raises(CheckpointError, match=r"prior_0\.safetensors/config\.json"):
        Jukebox.from_pretrained(folder / "prior_0.safetensors")
    (folder / "config.json").mkdir()
    with pytest.raises(CheckpointError, match=r"config\.json"):
        Jukebox.from_pretrained(folder)


@pytest.mark.parametrize(("wanted", "found"), [(0, 2), (2, 0), (0, 1), (1, 0)])
def test_the_file_of_another_level_is_one_error(tiny_config, tmp_path, wanted, found):
    # Levels 0 and 1 of the same sizes, as in the published models: only the file can tell them apart.
    same = [dataclasses.replace(tiny_config.priors[min(level, 1)], level=level) for level in range(2)]
    config = dataclasses.replace(
        tiny_config, priors=(same[0], dataclasses.replace(same[0], level=1), tiny_config.priors[2])
    )
    checkpoint.save_config(tmp_path, config)
    checkpoint.save_network(tmp_path / checkpoint.prior_file(wanted), Prior(config.priors[found]))
    with pytest.raises(CheckpointError, match=rf"prior_{wanted}\.safetensors.*level {wanted} prior|config asks for"):
        checkpoint.load_prior(tmp_path, wanted)


def test_levels_that_do_not_exist_are_one_error(folder):
    for level in (-1, 3):
        with pytest.raises(CheckpointError, match=f"priors of level 0 to 2, not {level}"):
            checkpoint.load_prior(folder, level)


def change_tensors(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def test_missing_tensors_are_named_with_their_shape(folder):
    path = folder / "prior_1.safetensors"
    change_tensors(path, lambda tensors: (tensors.pop("layers.1.up.weight"), tensors.pop("start_token")))
    with pytest.raises(CheckpointError) as error:
        checkpoint.load_prior(folder, 1)
    assert str(path) in str(error.value)
    assert "2 tensors are missing, the first layers.1.up.weight (32, 32)" in str(error.value)
    assert "level 1 prior" in str(error.value)


def test_unexpected_tensors_are_named_with_their_shape(folder):
    path = folder / "prior_1.safetensors"
    change_tensors(path, lambda tensors: tensors.update({"layers.3.ln_0.bias": torch.zeros(32)}))
    with pytest.raises(CheckpointError, match=rf"{path}: tensor layers\.3\.ln_0\.bias \(32,\) has no place in"):
        checkpoint.load_prior(folder, 1)


@pytest.mark.parametrize("shape", [(36, 32), (32, 37), (37, 33), (37 * 32,)])
def test_wrong_shapes_are_named_both(folder, shape):
    path = folder / "prior_1.safetensors"
    change_tensors(path, lambda tensors: tensors.update({"token_embedding": torch.zeros(shape)}))
    with pytest.raises(CheckpointError) as error:
        checkpoint.load_prior(folder, 1)
    assert f"{path}: tensor token_embedding has shape {shape}, the config asks for (37, 32)" in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: values["priors"][0].update(loudness=11), "PriorConfig has no field loudness"),
        (lambda values: values.update(extra=1), "JukeboxConfig has no field extra"),
        (lambda values: values["vqvae"].update(wdith=3), "VQVAEConfig has no field wdith; it has codebook_size"),
        (lambda values: values.pop("vqvae"), "missing"),
        (lambda values: values["priors"][1].pop("heads"), "PriorConfig.*heads"),
        (lambda values: values["priors"][1].update(heads=3), "not a multiple of heads 3"),
        (lambda values: values["priors"][1].update(heads=0), "heads"),
        (lambda values: values["priors"][1].update(num_rows=0), "num_rows"),
        (lambda values: values["priors"][1].update(width="wide"), "wide"),
        (lambda values: values["priors"][1].update(width=None), "width: None is no int"),
        (lambda values: values["priors"][1].update(pattern_cycle=["diagonal"]), "diagonal"),
        (lambda values: values["priors"].reverse(), r"priors\[0\] is a prior of level 2"),
        (lambda values: values["vqvae"].update(codebook_size=99), "has 37 codes, the VQ-VAE 99"),
        (lambda values: values.update(format=2), "not a format 1 fastjukebox config"),
        (lambda values: values.pop("format"), "not a format 1 fastjukebox config"),
    ],
)
def test_configs_that_cannot_be_used_are_one_error(folder, change, message):
    edit_config(folder, change)
    with pytest.raises(CheckpointError, match=message) as error:
        checkpoint.load_config(folder)
    assert str(folder / "config.json") in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", '"demo"', "\xff"])
def test_configs_that_are_none_are_one_error(folder, text):
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"config\.json"):
        checkpoint.load_config(folder)


def test_a_fingerprint_follows_the_weights_and_the_config(folder, tiny_model):
    before = checkpoint.fingerprint(folder)
    assert before == checkpoint.fingerprint(tiny_model)
    path = folder / "prior_0.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert checkpoint.fingerprint(folder) != before
    path.write_bytes(content)
    assert checkpoint.fingerprint(folder) == before
    # Any byte counts, other files do not.
    path.write_bytes(content[: len(content) // 2] + b"?" + content[len(content) // 2 + 1 :])
    assert checkpoint.fingerprint(folder) != before
    path.write_bytes(content)
    (folder / "codes.safetensors").write_bytes(b"codes")
    assert checkpoint.fingerprint(folder) == before
    edit_config(folder, lambda values: values["vqvae"].update(sample_rate=22050))
    assert checkpoint.fingerprint(folder) != before


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e5])
def test_numbers_that_are_not_finite_are_refused(folder, value):
    prior = checkpoint.load_prior(folder, 1)
    prior.layers[1].up.weight[3, 2] = value
    checkpoint.save_network(folder / checkpoint.prior_file(1), prior, torch.float32)
    # 1e5 is too large for float16 only.
    for dtype in (torch.float32, torch.float16)[value == 1e5 :]:
        with pytest.raises(CheckpointError, match=rf"prior_1.*layers\.1\.up\.weight.*not finite in {dtype}"):
            checkpoint.load_prior(folder, 1, dtype=dtype)


def test_a_folder_takes_what_it_lacks_from_its_base(tiny_model, tiny_config, tmp_path):
    base, folder = tmp_path / "base", tmp_path / "other" / "folder"
    shutil.copytree(tiny_model, base)
    checkpoint.save_config(folder, tiny_config, "../../base")
    with pytest.raises(checkpoint.CheckpointError, match="prior_0"):
        (base / checkpoint.prior_file(0)).rename(tmp_path / "kept")
        checkpoint.load_prior(folder, 0)
    (tmp_path / "kept").rename(base / checkpoint.prior_file(0))
    for level in range(3):
        ours, theirs = checkpoint.load_prior(folder, level), checkpoint.load_prior(base, level)
        assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters()))
    before = checkpoint.fingerprint(folder)
    # A file of its own comes first, and is another model.
    torch.manual_seed(5)
    checkpoint.save_network(folder / checkpoint.prior_file(1), Prior(tiny_config.priors[1]))
    own = checkpoint.load_prior(folder, 1)
    assert not torch.equal(own.token_embedding, checkpoint.load_prior(base, 1).token_embedding)
    assert checkpoint.fingerprint(folder) != before


def test_tensors_left_to_the_base_are_those_it_had(tiny_model, tiny_config, tmp_path):
    base, folder, name = tmp_path / "base", tmp_path / "folder", checkpoint.prior_file(0)
    shutil.copytree(tiny_model, base)
    checkpoint.save_config(folder, tiny_config, "../base")
    prior = checkpoint.load_prior(base, 0)
    # Numbers that FP16 holds as well.
    prior.layers[0].up.bias.data.fill_(0.5)
    checkpoint.save_network(base / name, prior, torch.float32)
    prior.layers[0].up.weight.data.neg_()
    checkpoint.save_network(folder / name, prior, torch.float32, base=base / name)
    assert list(load_file(folder / name)) == ["layers.0.up.weight"]
    found = checkpoint.load_prior(folder, 0).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in prior.state_dict().items())
    assert checkpoint.network_paths(folder, name) == [folder / name, base.resolve() / name]
    # A copy has both parts, and numbers that FP16 does not hold.
    checkpoint.copy_network(folder, name, tmp_path / name)
    whole = load_file(tmp_path / name)
    assert whole.keys() == found.keys() and all(torch.equal(found[each], tensor) for each, tensor in whole.items())
    checkpoint.copy_network(base, name, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == (base / name).read_bytes()
    # Another dtype is another file; nothing is shared with it.
    checkpoint.save_network(tmp_path / "half.safetensors", prior, torch.float16, base=base / name)
    assert len(load_file(tmp_path / "half.safetensors")) == len(prior.state_dict())

    def error():
        with pytest.raises(CheckpointError) as raised:
            checkpoint.load_prior(folder, 0)
        return str(raised.value)

    # A base that went on to other weights, that is gone, and none at all.
    theirs = checkpoint.load_prior(base, 0)
    theirs.token_embedding[3, 2] += 1
    checkpoint.save_network(base / name, theirs, torch.float32)
    assert "base/prior_0.safetensors: not what" in error() and "export both again" in error()
    (base / name).unlink()
    assert "base/prior_0.safetensors: cannot be read" in error()
    request = SamplingParams(seconds=0.1)
    with pytest.raises(CheckpointError, match=r"base/prior_0\.safetensors does not exist"):
        Jukebox.from_pretrained(folder).sample(request)
    checkpoint.save_config(folder, tiny_config)
    assert "leaves tensors to the folder's base" in error()


def test_a_base_that_is_no_path_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"format": 1, "base": 3}')
    with pytest.raises(checkpoint.CheckpointError, match="base must be"):
        checkpoint.load_config(tmp_path)
