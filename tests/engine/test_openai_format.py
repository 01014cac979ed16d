"""OpenAI files become our folders with every tensor in its place."""

import dataclasses
import sys
import types
from pathlib import Path

import pytest
import torch
from fastjukebox.engine.checkpoint import load_config, load_prior, load_vqvae
from fastjukebox.engine.config import PRESETS, VQVAEConfig
from fastjukebox.engine.openai_config import prior_config, vqvae_config
from fastjukebox.engine.openai_format import _own_dtype, convert, openai_name
from fastjukebox.engine.openai_pickle import Model, read_model
from fastjukebox.engine.patterns import Pattern
from fastjukebox.engine.prior import Prior
from fastjukebox.engine.vqvae import VQVAE
from labelled_cases import KINDS
from openai_files import (
    PRESETS_OF_STACK,
    PRIOR_CONFIGS,
    STACK,
    VQVAE_CONFIG,
    VQVAE_HPS,
    assert_same,
    label_hps,
    prior_hps,
    prior_state,
    save,
    vqvae_state,
)
from safetensors.torch import load_file


@pytest.mark.parametrize(
    ("legacy", "module", "half", "with_hps"),
    [
        (False, False, False, False),
        (False, False, True, True),
        (False, True, True, False),
        (True, False, False, True),
        (True, True, False, False),
        (True, True, True, True),
    ],
)
def test_conversion_keeps_every_tensor(tmp_path, networks, legacy, module, half, with_hps):
    vqvae, *priors = networks
    optimizer = {"opt": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}}
    kind = {"legacy": legacy, "module": module, **optimizer}
    paths = {
        level: save(
            tmp_path / f"level{level}",
            # The names where gradient checkpointing was on, and where it was off.
            prior_state(prior, "blocks" if level else "model", half),
            prior_hps(level) if with_hps else None,
            **kind,
        )
        for level, prior in enumerate(priors)
    }
    path = save(tmp_path / "vq", vqvae_state(vqvae), VQVAE_HPS if with_hps else None, **kind)
    done = []
    config = convert(
        path,
        paths,
        tmp_path / "out",
        presets=None if with_hps else PRESETS_OF_STACK,
        progress=lambda *step: done.append(step),
    )
    assert config == load_config(tmp_path / "out") == STACK
    assert done == [
        (1, 4, "VQ-VAE"),
        (2, 4, "level 0 prior"),
        (3, 4, "level 1 prior"),
        (4, 4, "level 2 prior"),
    ]
    assert_same(load_file(tmp_path / "out" / "vqvae.safetensors"), vqvae)
    for level, prior in enumerate(priors):
        assert_same(load_file(tmp_path / "out" / f"prior_{level}.safetensors"), prior, half)


def test_a_converted_folder_gives_the_same_networks(tmp_path, files, networks):
    convert(files, None, tmp_path / "out")
    vqvae, *priors = networks
    assert_same(load_vqvae(tmp_path / "out").state_dict(), vqvae)
    codes = torch.randint(16, (2, 32))
    for level, prior in enumerate(priors):
        loaded = load_prior(tmp_path / "out", level)
        cond = None if level == 2 else prior.condition(codes[:, :8])
        assert torch.equal(loaded(codes, cond), prior(codes, cond))


def test_the_dtype_can_be_chosen(tmp_path, files, networks):
    convert(files, None, tmp_path / "out", dtype=torch.float16)
    assert_same(load_file(tmp_path / "out" / "prior_2.safetensors"), networks[3], half=True)
    # The codes that a VQ-VAE finds should not depend on a dtype.
    assert_same(load_file(tmp_path / "out" / "vqvae.safetensors"), networks[0])


@pytest.mark.parametrize(
    ("matrices", "vector", "stored"),
    [
        (("float16", "float16"), "float32", "float16"),
        (("bfloat16", "float32"), "float32", "bfloat16"),
        (("float16", "bfloat16"), "float32", "float32"),
        (("float32", "float32"), "float16", "float32"),
    ],
)
def test_a_prior_is_stored_as_its_matrices_are(matrices, vector, stored):
    tensors = {str(n): torch.zeros(2, 2, dtype=getattr(torch, dtype)) for n, dtype in enumerate(matrices)}
    tensors["vector"] = torch.zeros(2, dtype=getattr(torch, vector))
    assert _own_dtype(Model("file", tensors, {})) == getattr(torch, stored)


def test_a_prior_beside_the_folder_replaces_the_one_in_it(tmp_path, files, networks):
    other = dataclasses.replace(PRIOR_CONFIGS[2], depth=2)
    path = save(tmp_path / "top", prior_state(Prior(other)), prior_hps(2, prior_depth=2))
    assert convert(files, {2: path}, tmp_path / "out").priors == (*PRIOR_CONFIGS[:2], other)


@pytest.mark.parametrize("legacy", [False, True])
def test_settings_in_the_dict_class_of_the_original_are_read(tmp_path, monkeypatch, networks, legacy):
    module = types.ModuleType("jukebox.hparams")
    module.Hyperparams = type("Hyperparams", (dict,), {"__module__": "jukebox.hparams"})
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "jukebox", types.ModuleType("jukebox"))
        patch.setitem(sys.modules, "jukebox.hparams", module)
        hps = module.Hyperparams(VQVAE_HPS, inner=module.Hyperparams(a=1))
        path = save(tmp_path / "vq", vqvae_state(networks[0]), hps, legacy=legacy)
    hps = read_model(path).hps
    assert (hps["downs_t"], hps["l_bins"], hps["bandwidth"]) == ((2, 2, 1), 16, {"l2": 0.25, "spec": 2.0})
    assert dict(hps["inner"]) == {"a": 1}
    assert vqvae_config(read_model(path))[0] == VQVAE_CONFIG


@pytest.mark.linux
@pytest.mark.parametrize("legacy", [False, True])
def test_tensors_of_a_zip_file_are_mapped_and_not_read(tmp_path, networks, legacy):
    path = save(tmp_path / "vq", vqvae_state(networks[0]), legacy=legacy)
    model = read_model(path)
    assert model.tensors and (str(path) in Path("/proc/self/maps").read_text()) != legacy


def test_settings_that_are_left_out_are_as_in_the_original():
    needed = ("downs_t", "strides_t", "emb_width", "l_bins", "width", "depth")
    vqvae, _ = vqvae_config(Model("file", {}, {name: VQVAE_HPS[name] for name in needed}))
    assert (vqvae.multipliers, vqvae.conv_ratio, vqvae.sample_rate) == ((1, 1, 1), 1.0, 44100)
    assert (vqvae.dilation_growth, vqvae.dilation_cycle, vqvae.reverse_decoder_dilation) == (1, None, True)
    needed = ("n_ctx", "prior_width", "heads", "attn_order", "blocks", "cond_width", "cond_depth")
    hps = {"prior_depth": 1, **{name: prior_hps(1)[name] for name in needed}}
    tensors = dict.fromkeys(("prior.transformer._attn_mods.0.ln_0.bias", "conditioner_blocks.0.ln.bias"), torch.ones(1))
    prior, _ = prior_config(Model("file", tensors, hps), 1, vqvae)
    assert (prior.attn_ratio, prior.mlp_ratio, prior.scale_residual) == (0.25, 1.0, False)
    assert (prior.labels, prior.lyrics, prior.separate_head) == (None, None, False)
    conditioner = prior.conditioner
    assert (conditioner.conv_ratio, conditioner.scale_residual) == (1.0, False)
    assert (conditioner.dilation_growth, conditioner.dilation_cycle) == (1, None)
    hps |= {"labels": True, "y_bins": (5, 4), "use_tokens": True, "n_tokens": 8, "n_vocab": 11}
    hps |= {"prime_width": 16, "prime_depth": 1, "prime_heads": 2, "prime_attn_order": 2}
    tensors.pop("conditioner_blocks.0.ln.bias")
    encoder = prior_config(Model("file", tensors, hps), 2, vqvae)[0].lyrics.encoder
    assert (encoder.attn_ratio, encoder.mlp_ratio, encoder.scale_residual, encoder.num_rows) == (0.25, 1.0, False, 1)


def test_all_settings_reach_the_config():
    hps = {
        **VQVAE_HPS,
        "hvqvae_multipliers": None,
        "dilation_cycle": 2,
        "vqvae_reverse_decoder_dilation": False,
        "sr": 22050,
    }
    config, _ = vqvae_config(Model("file", {}, hps))
    assert (config.multipliers, config.dilation_cycle, config.reverse_decoder_dilation) == ((1, 1, 1), 2, False)
    assert config.sample_rate == 22050
    hps = prior_hps(2, attn_order=9, m_attn=0.5, m_mlp=2, res_scale=True, blocks=8, prior_depth=1)
    config, _ = prior_config(Model("file", {"prior.transformer._attn_mods.0.ln_0.bias": torch.ones(1)}, hps), 2, config)
    assert (config.attn_width, config.mlp_width, config.scale_residual, config.row_len) == (8, 32, True, 4)
    assert config.pattern_cycle[2:] == (Pattern.PREVIOUS_ROW, Pattern.DENSE)


@pytest.mark.parametrize(
    ("hps", "seconds"),
    [
        ({}, (60, 600)),
        ({"min_duration": None, "max_duration": 300}, (60, 300)),
        # Older settings of the 5b model with lyrics: in samples.
        ({"t_ranges": ((1049580.0, 26460000.0), (0.0, 26460000.0), (0.0, 1.0)), "min_duration": 30.0}, (23.8, 600)),
    ],
)
def test_how_long_songs_are_reaches_the_config(hps, seconds):
    hps = prior_hps(2, labels=True, y_bins=(5, 4), prior_depth=1, **hps)
    tensors = {"prior.transformer._attn_mods.0.ln_0.bias": torch.ones(1)}
    labels = prior_config(Model("file", tensors, hps), 2, VQVAE_CONFIG)[0].labels
    assert (labels.min_seconds, labels.max_seconds, labels.time_bins, labels.genre_slots) == (*seconds, 64, 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("half", [False, True])
def test_labels_and_lyrics_are_converted(tmp_path, networks, files, kind, half):
    config = dataclasses.replace(KINDS[kind], codebook_size=16)
    if kind == "upsampler":
        config = dataclasses.replace(config, conditioner=PRIOR_CONFIGS[1].conditioner)
    prior = Prior(config)
    for tensor in prior.state_dict().values():
        tensor.normal_()
    order = {"before": 12, "encoder": 10}.get(kind, 2)
    sizes = {"attn_order": order, "prior_width": 32, "prior_depth": config.depth, "blocks": config.num_rows}
    hps = prior_hps(config.level, **sizes, **label_hps(config))
    path = save(tmp_path / "file", prior_state(prior, half=half), hps)
    assert convert(files, {config.level: path}, tmp_path / "out").priors[config.level] == config
    assert_same(load_file(tmp_path / "out" / f"prior_{config.level}.safetensors"), prior, half)


PUBLISHED = ("upsampler-0-72", "upsampler-1-18", "top-24", "top-5", "upsampler-0-5b", "upsampler-1-5b", "top-5b")


@pytest.mark.parametrize("name", [*PUBLISHED, "top-5b-lyrics", "top-1b-lyrics"])
def test_without_settings_the_published_size_of_that_depth_is_taken(name):
    family, _, depth = name.rpartition("-")
    config = PRESETS.get(name) or dataclasses.replace(PRESETS[f"{family}-72"], depth=int(depth))
    with torch.device("meta"):
        state = prior_state(Prior(config))
    # Tensors that take no memory, and differ unless they are the same.
    seen = {}
    for tensor in state.values():
        seen.setdefault(id(tensor), torch.full((), float(len(seen))).expand(tensor.shape))
    model = Model("file", {key: seen[id(tensor)] for key, tensor in state.items()}, {})
    assert prior_config(model, config.level, VQVAEConfig())[0] == config


def names(network, config):
    return {openai_name(name, config) for name in network.state_dict()}


def test_names_are_those_of_the_published_vqvae():
    with torch.device("meta"):
        network = VQVAE(VQVAEConfig())
    found = names(network, network.config)
    assert {
        "encoders.2.level_blocks.0.model.3.weight",
        "encoders.0.level_blocks.0.model.2.1.model.7.model.3.bias",
        "decoders.1.level_blocks.1.model.2.0.model.3.model.1.weight",
        "decoders.1.level_blocks.1.model.2.1.weight",
    } <= found
    assert found == set(vqvae_state(network))
