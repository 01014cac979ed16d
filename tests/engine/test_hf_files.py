"""Hugging Face's folders, as `transformers` 4.57.6 writes them, become ours with every tensor in its place."""

import dataclasses
import json
import re

import pytest
import torch
from fastjukebox.engine import VQVAE, JukeboxConfig, Prior, checkpoint
from fastjukebox.engine.openai_format import convert
from labelled_cases import KINDS
from openai_files import STACK, assert_same, refused
from safetensors.torch import load_file, save_file

peer = pytest.importorskip("fastjukebox.bench.transformers_peer", reason="needs transformers 4.57.6")


@pytest.fixture(params=["labels", "encoder", "before"])
def stack(request):
    """A VQ-VAE, two upsamplers with labels, and a top prior of some kind."""
    torch.manual_seed(2)
    labels = KINDS["upsampler"].labels
    upsamplers = [dataclasses.replace(prior, labels=labels) for prior in STACK.priors[:2]]
    top = dataclasses.replace(KINDS[request.param], codebook_size=16)
    config = JukeboxConfig(STACK.vqvae, (*upsamplers, top))
    networks = VQVAE(config.vqvae), *map(Prior, config.priors)
    for network in networks:
        for tensor in network.state_dict().values():
            tensor.normal_()
    return config, networks


def their_tensors(networks):
    """The state of their whole model: its parts have prefixes, its priors count from the top."""
    vqvae, *priors = networks
    parts = {"vqvae": peer.build_vqvae(vqvae)}
    parts |= {f"priors.{2 - level}": peer.build_prior(prior) for level, prior in enumerate(priors)}
    return {
        f"{part}.{name}": tensor.detach().clone()
        for part, module in parts.items()
        for name, tensor in module.state_dict().items()
    }


def write(folder, tensors, form, shards):
    folder.mkdir()
    save, name = {
        "bin": (lambda tensors, path: torch.save(tensors, path), "pytorch_model{}.bin"),
        "safetensors": (lambda tensors, path: save_file(tensors, path, {"format": "pt"}), "model{}.safetensors"),
    }[form]
    keys = list(tensors)
    if shards == 1:
        return save(tensors, folder / name.format(""))
    weight_map = {}
    for shard in range(shards):
        own, file = keys[shard::shards], name.format(f"-{shard + 1:05}-of-{shards:05}")
        save({key: tensors[key] for key in own}, folder / file)
        weight_map |= dict.fromkeys(own, file)
    (folder / f"{name.format('')}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.mark.parametrize(("form", "shards"), [("bin", 1), ("bin", 3), ("safetensors", 1), ("safetensors", 2)])
def test_a_folder_is_converted_whole(tmp_path, stack, form, shards):
    config, networks = stack
    write(tmp_path / "hf", their_tensors(networks), form, shards)
    presets = {"vqvae": config.vqvae, **dict(enumerate(config.priors))}
    assert convert(tmp_path / "hf", None, tmp_path / "out", presets=presets) == config
    files = checkpoint.network_files(config)
    for network, file in zip(networks, files, strict=True):
        assert_same(load_file(tmp_path / "out" / file), network)


def test_the_lists_of_names_in_it_are_taken_along(tmp_path, stack):
    config, networks = stack
    write(tmp_path / "hf", their_tensors(networks), "bin", 1)
    artists = {"some_body.v2": 3, "nobody.v2": 8, "some body": 2}
    (tmp_path / "hf" / "artists.json").write_text(json.dumps(artists))
    (tmp_path / "hf" / "genres.json").write_text(json.dumps({"waltz.v2": 6, "slow waltz": 1}))
    presets = {"vqvae": config.vqvae, **dict(enumerate(config.priors))}
    convert(tmp_path / "hf", None, tmp_path / "out", presets=presets)
    for level in range(3):
        names = checkpoint.load_names(tmp_path / "out", level)
        assert names.artists == {"some_body": 3, "nobody": 8} and names.genres == {"waltz": 6}


@pytest.mark.parametrize("stack", ["before"], indirect=True)
def test_damaged_folders_are_named(tmp_path, stack):
    config, networks = stack
    tensors, presets = their_tensors(networks), {"vqvae": config.vqvae, **dict(enumerate(config.priors))}
    folder, out = tmp_path / "hf", tmp_path / "o"
    write(folder, tensors, "bin", 2)
    index = folder / "pytorch_model.bin.index.json"
    text = index.read_text()
    first = next(iter(tensors))
    for content, message in (
        ("[]", "is no index of a checkpoint"),
        (text.replace(first, "vqvae.no.such"), "lacks vqvae.no.such, or holds no floating-point tensor"),
        (text.replace("-00002-", "-00009-"), "pytorch_model-00009-of-00002.bin: does not exist"),
    ):
        index.write_text(content)
        refused(message, folder, None, out, presets=presets)
    index.write_text(text)
    shard = folder / "pytorch_model-00001-of-00002.bin"
    shard.write_bytes(shard.read_bytes()[:1000])
    refused("00001-of-00002.bin: is truncated or damaged", folder, None, out, presets=presets)
    write(tmp_path / "whole", tensors | {first: tensors[first].long()}, "safetensors", 1)
    refused(f"lacks {re.escape(first)}, or holds no floating", tmp_path / "whole", None, out, presets=presets)
    # A prior of other sizes than the published ones needs a preset.
    write(tmp_path / "other", tensors, "safetensors", 1)
    refused(r"the published size \(the file has no hps\) asks for", tmp_path / "other", None, out)
    assert not out.exists()
