"""Files that cannot be converted: one clear error each, nothing executed, nothing left behind."""

import dataclasses
import os
import pickle

import numpy
import pytest
import torch
from fastjukebox.engine import openai_format
from fastjukebox.engine.checkpoint import CheckpointError
from fastjukebox.engine.openai_config import prior_config
from fastjukebox.engine.openai_format import convert
from fastjukebox.engine.openai_pickle import Model, load_codes, read_model
from fastjukebox.engine.prior import Prior
from openai_files import (
    PRESETS_OF_STACK,
    PRIOR_CONFIGS,
    VQVAE_CONFIG,
    VQVAE_HPS,
    prior_hps,
    prior_state,
    refused,
    save,
    vqvae_state,
)


def test_a_missing_file(tmp_path, files):
    refused(
        r"prior_level_1.pth.tar: does not exist", files, {1: files / "no" / "prior_level_1.pth.tar"}, tmp_path / "o"
    )
    (files / "vqvae.pth.tar").unlink()
    refused(r"vqvae.pth.tar: does not exist", files, None, tmp_path / "o")


def test_a_folder_as_a_file(tmp_path, files):
    refused(r"5b: cannot be read", files, {2: files}, tmp_path / "o")


@pytest.mark.parametrize("content", [b"", b"hello" * 100, b"\x89PNG....", pickle.dumps({"model": 1}), b"PK\x03\x04"])
def test_a_file_that_is_no_torch_file(tmp_path, content):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"file: is (empty|not a file of torch.save|truncated or damaged)"):
        read_model(path)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_truncated_file(tmp_path, networks, legacy):
    whole = save(tmp_path / "whole", vqvae_state(networks[0]), VQVAE_HPS, legacy=legacy).read_bytes()
    path = tmp_path / "file"
    for length in (1, 10, 20, 100, 2000, len(whole) // 2, len(whole) - 1000, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"file: is (truncated or damaged|not a file of torch.save)") as error:
            read_model(path)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_damaged_pickle_never_fails_otherwise(tmp_path, legacy):
    path = save(tmp_path / "file", {"prior.x_emb.weight": torch.zeros(2, 2)}, legacy=legacy)
    whole = path.read_bytes()
    for position in range(0, min(len(whole), 600), 7):
        path.write_bytes(whole[:position] + b"\xfe" + whole[position + 1 :])
        try:
            read_model(path)
        except CheckpointError:
            continue


class Evil:
    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


class EvilBuiltin(Evil):
    def __reduce__(self):
        return eval, (f"open({self.marker!r}, 'w')",)


class EvilInitializer:
    pass


@pytest.mark.parametrize("evil", [Evil, EvilBuiltin])
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("place", ["model", "hps", "opt"])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path, networks, evil, legacy, place):
    marker = tmp_path / "marker"
    path = save(tmp_path / "file", **{"model": vqvae_state(networks[0]), place: {"a": evil(marker)}}, legacy=legacy)
    refused(r"file: asks to run code .*(system|eval).*refused", path, None, tmp_path / "o")
    path.write_bytes(pickle.dumps(evil(marker)))
    refused(r"file: is not a file of torch.save", path, None, tmp_path / "o")
    assert not marker.exists()
    assert not (tmp_path / "o").exists()


def test_an_unknown_class_is_refused(tmp_path):
    path = save(tmp_path / "file", {"prior.x_emb.weight": torch.zeros(2, 2)}, metrics=EvilInitializer())
    refused(r"asks to run code .*EvilInitializer", path, None, tmp_path / "o")


def test_numpy_objects_are_dropped_without_being_built(tmp_path):
    things = numpy.array([EvilInitializer()], dtype=object), numpy.array([1.0]), numpy.dtype("f4"), numpy.bool_(True)
    path = save(tmp_path / "file", {"prior.x_emb.weight": torch.zeros(2, 2)}, things=things[1:])
    assert read_model(path).tensors["prior.x_emb.weight"].shape == (2, 2)
    path = save(tmp_path / "file", {"prior.x_emb.weight": torch.zeros(2, 2)}, things=things)
    refused("EvilInitializer", path, None, tmp_path / "o")


def test_a_file_without_a_model(tmp_path):
    torch.save({"zs": [torch.zeros(1, 3).long()], "x": 1}, tmp_path / "file")
    refused(r"file: has no `model`; it holds zs, x; a run's codes\?", tmp_path / "file", None, tmp_path / "o")
    torch.save([1, 2], tmp_path / "file")
    refused(r"file: holds a list", tmp_path / "file", None, tmp_path / "o")
    torch.save({"model": {"a": 3}}, tmp_path / "file")
    refused(r"file: `model` holds a, a int", tmp_path / "file", None, tmp_path / "o")
    torch.save({"model": {"a": torch.eye(3).to_sparse()}}, tmp_path / "file")
    refused(r"file: `model` holds a, .* dense floating-point", tmp_path / "file", None, tmp_path / "o")


def test_a_file_of_the_wrong_part_or_level(tmp_path, files):
    vqvae, priors = files / "vqvae.pth.tar", [files / f"prior_level_{level}.pth.tar" for level in range(3)]
    out = tmp_path / "o"
    refused(r"prior_level_2.pth.tar: is a prior's file, given as the VQ-VAE", priors[2], None, out)
    refused(r"vqvae.pth.tar: is the VQ-VAE's file, given as the level 0 prior", vqvae, {0: vqvae}, out)
    refused(r"prior_level_1.pth.tar: is a prior of level 1 .*given as level 0", vqvae, {0: priors[1]}, out)
    refused(r"priors of level 0, 2 are given", vqvae, {0: priors[0], 2: priors[2]}, out)
    refused(r"given as level 3, .* levels 0 to 2", files, {3: save(tmp_path / "3", read_model(priors[2]).tensors)}, out)


def test_a_top_prior_as_an_upsampler_and_the_reverse_without_settings(tmp_path, files, networks):
    path = save(tmp_path / "file", prior_state(networks[3]))
    refused(r"file: is a top prior \(no conditioner_blocks\), given as level 0 of 3", files, {0: path}, tmp_path / "o")
    path = save(tmp_path / "file", prior_state(networks[1]))
    refused(r"file: is an upsampler .* given as level 2 of 3", files, {2: path}, tmp_path / "o")


@pytest.mark.parametrize("with_hps", [False, True])
def test_a_tensor_of_another_shape_names_file_tensor_and_both_shapes(tmp_path, files, networks, with_hps):
    state = prior_state(networks[1])
    state["prior.transformer._attn_mods.1.mlp.c_fc.w"] = torch.zeros(16, 12)
    path = save(tmp_path / "file", state, prior_hps(0) if with_hps else None)
    source = r"its own config \(hps\) asks" if with_hps else "the given preset asks"
    refused(
        rf"file: tensor prior\.transformer\._attn_mods\.1\.mlp\.c_fc\.w has shape \(16, 12\), {source} for \(16, 16\)",
        files,
        {0: path},
        tmp_path / "o",
        presets=None if with_hps else PRESETS_OF_STACK,
    )


def test_missing_and_unknown_tensors(tmp_path, files, networks):
    state = prior_state(networks[1])
    state["prior.extra.w"] = torch.zeros(2)
    path = save(tmp_path / "file", state, prior_hps(0))
    refused(r"file: has 1 tensors .* the first prior.extra.w \(2,\)", files, {0: path}, tmp_path / "o")
    del state["prior.extra.w"], state["conditioner_blocks.0.cond.model.1.0.blocks.2.model.3.bias"]
    path = save(tmp_path / "file", state, prior_hps(0))
    refused(
        r"lacks tensor conditioner_blocks\.0\.cond\.model\.1\.0\.\w+\.2\.model\.3\.bias \(8,\)",
        files,
        {0: path},
        tmp_path / "o",
    )
    path = save(tmp_path / "file", prior_state(networks[1]), prior_hps(0, prior_depth=5))
    refused(r"file: has 3 layers, its own config \(hps\) asks for 5", files, {0: path}, tmp_path / "o")
    path = save(tmp_path / "file", vqvae_state(networks[0]), {**VQVAE_HPS, "depth": 2})
    refused(r"file: lacks tensor encoders\.0\.level_blocks\.0\.model\.0\.1\.model\.2\.", path, None, tmp_path / "o")


def test_a_size_that_is_not_published_asks_for_a_preset(tmp_path, files, networks):
    path = save(tmp_path / "file", prior_state(networks[1]))
    refused(r"has shape \(16, 16\), the published size .* asks for \(2048, 1920\)", files, {0: path}, tmp_path / "o")
    hps = prior_hps(0)
    del hps["heads"]
    path = save(tmp_path / "file", prior_state(networks[1]), hps)
    refused(r"file: its hps lack heads, .* give a preset", files, {0: path}, tmp_path / "o")


def test_presets_that_do_not_go_with_the_files(tmp_path, files):
    out = tmp_path / "o"
    refused(r"its hps say width 16, the given preset 2048", files, None, out, presets={2: "top-72"})
    refused(r"no preset top for it; there are upsampler-0-72", files, None, out, presets={2: "top"})
    refused(r"no preset vqvae for it", files, None, out, presets={2: "vqvae"})
    refused(r"a preset for 4, but no such file", files, None, out, presets={4: "top-72"})
    refused(r"level 0, its preset is one of level 1", files, None, out, presets={0: "upsampler-1-72"})


@pytest.mark.parametrize(
    ("tensors", "hps", "message"),
    [
        ({"y_emb.artist_emb.emb.weight": torch.zeros(3, 16)}, {}, "no place for, the first y_emb.artist_emb"),
        ({"prime_state_proj.w": torch.zeros(3, 16)}, {}, "no place for, the first prime_state_proj.w"),
        ({"prior.x_out.weight": torch.zeros(16, 16)}, {}, r"an output head of its own \(x_out\), its own config"),
        ({}, {"labels": True, "y_bins": (5, 4)}, "lacks tensor y_emb.artist_emb.emb.weight"),
        ({}, {"labels": True, "y_bins": 5}, "its hps hold y_bins 5"),
        ({}, {"labels": True, "y_bins": (5,)}, "its hps cannot be used"),
        ({}, {"labels": True, "y_bins": (5, 4), "max_duration": 1}, "songs of 60.0 to 1.0 s"),
        ({}, {"single_enc_dec": True}, "its hps hold n_tokens None"),
        ({}, {"single_enc_dec": True, "n_tokens": 8, "n_vocab": 79}, "lyrics need labels"),
        ({}, {"attn_order": 12}, "pattern lyrics without such lyrics"),
        ({}, {"attn_order": 10}, "pattern cross without such lyrics"),
        ({}, {"attn_order": 3}, r"attn_order 3 \(summary attention\) is not supported"),
        ({}, {"copy_input": True}, r"takes its own codes for lyrics \(copy_input\)"),
    ],
)
def test_labels_and_lyrics_that_do_not_fit_the_settings_are_refused(tmp_path, files, networks, tensors, hps, message):
    state = {**prior_state(networks[3]), **tensors}
    path = save(tmp_path / "file", state, prior_hps(2, **hps))
    refused(rf"file: .*{message}", files, {2: path}, tmp_path / "o")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": "two"}, "its hps hold heads 'two'"),
        ({"cond_width": None}, "its hps hold cond_width None"),
        ({"heads": 0}, "its hps cannot be used"),
        ({"blocks": 5}, "its hps cannot be used: context_len 32 is not a multiple of num_rows 5"),
    ],
)
def test_settings_that_make_no_config(networks, changes, message):
    model = Model("file", prior_state(networks[1]), prior_hps(0, **changes))
    with pytest.raises(CheckpointError, match=message):
        prior_config(model, 0, VQVAE_CONFIG)


def test_parts_of_different_stacks(tmp_path, files):
    config = dataclasses.replace(PRIOR_CONFIGS[2], codebook_size=8)
    path = save(tmp_path / "file", prior_state(Prior(config)), prior_hps(2, l_bins=8))
    refused(r"file: does not go with .*vqvae.pth.tar: the level 2 prior has 8 codes", files, {2: path}, tmp_path / "o")


def test_a_failed_conversion_leaves_nothing(tmp_path, files, monkeypatch):
    (files / "prior_level_2.pth.tar").write_bytes(b"")
    refused("prior_level_2.pth.tar: is empty", files, None, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    old = tmp_path / "old"
    old.mkdir()
    (old / "notes.txt").write_text("mine")
    refused("prior_level_2.pth.tar: is empty", files, None, old)
    assert [path.name for path in old.iterdir()] == ["notes.txt"]

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(openai_format, "save_network", full)
    refused("new: cannot be written .*No space left", files, None, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_nothing_is_overwritten(tmp_path, files):
    convert(files, None, tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    refused("out: already holds a checkpoint", files, None, tmp_path / "out")
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "prior_1.safetensors").write_text("mine")
    refused("notes: already holds prior_1.safetensors", files, None, tmp_path / "notes")
    assert (tmp_path / "notes" / "prior_1.safetensors").read_text() == "mine"
    (tmp_path / "file").write_text("mine")
    refused("file: cannot be written", files, None, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("legacy", [False, True])
def test_codes_of_a_run(tmp_path, legacy):
    codes = [
        torch.zeros(2, 0, dtype=torch.int64),
        torch.arange(8).view(2, 4),
        torch.tensor([[1], [2]], dtype=torch.int32),
    ]
    labels = [{"y": torch.zeros(2, 4), "info": [{"artist": "n/a", "lyrics": "é", "full_tokens": numpy.arange(3)}]}]
    kwargs = [{"temp": 0.99, "fp16": True, "chunk_size": None, "sample_tokens": numpy.int64(3)}]
    data = {"zs": codes, "labels": labels, "sampling_kwargs": kwargs, "x": torch.zeros(2, 512, 1)}
    torch.save(data, tmp_path / "data.pth.tar", _use_new_zipfile_serialization=not legacy)
    loaded = load_codes(tmp_path / "data.pth.tar")
    assert [(z.dtype, z.tolist()) for z in loaded] == [(torch.int64, z.tolist()) for z in codes]
    assert loaded[0].shape == (2, 0)
    torch.save({"zs": [None, codes[1]]}, tmp_path / "data.pth.tar")
    assert load_codes(tmp_path / "data.pth.tar")[0] is None
    assert torch.equal(loaded[1], codes[1])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": {}}, r"has no list `zs` .* it holds model; a model\?"),
        ({"zs": []}, "has no list `zs`"),
        ({"zs": [torch.zeros(2, 3)]}, r"zs\[0\] is torch.float32 \(2, 3\)"),
        ({"zs": [torch.zeros(3).long()]}, r"zs\[0\] is torch.int64 \(3,\)"),
        ({"zs": [torch.zeros(1, 3).long(), "no"]}, r"zs\[1\] is str"),
        ({"zs": [torch.zeros(1, 3).long(), torch.zeros(2, 3).long()]}, r"\(1, 3\), \(2, 3\)"),
        ({"zs": [torch.zeros(1, 3).long()], "labels": EvilInitializer()}, "asks to run code .*EvilInitializer"),
    ],
)
def test_codes_that_cannot_be_used(tmp_path, content, message):
    torch.save(content, tmp_path / "data.pth.tar")
    with pytest.raises(CheckpointError, match=message):
        load_codes(tmp_path / "data.pth.tar")
