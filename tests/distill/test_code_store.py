"""Stores that survive anything."""

import dataclasses
import json
import multiprocessing
import os
import shutil
import signal

import numpy as np
import pytest
import soundfile
import torch
from fastjukebox.distill.code_store import CodeStore, StoreError, fingerprint, write_store
from fastjukebox.distill.code_windows import CodeWindows
from fastjukebox.engine.audio import read_audio
from fastjukebox.engine.config import VQVAEConfig
from fastjukebox.engine.vqvae import VQVAE
from hypothesis import given, settings
from hypothesis import strategies as st

CONFIG = VQVAEConfig(codebook_size=16, code_dim=8, width=8, depth=1, multipliers=(1, 1, 1))
RATE = CONFIG.sample_rate
# Name, seconds, rate, channels; the last is shorter than a code of the top level.
FILES = [
    ("a.wav", 0.30, RATE, 1),
    ("x/a.wav", 0.15, RATE, 2),
    ("x/y/b.flac", 0.25, 48000, 2),
    ("x/ü 音.ogg", 0.20, 8000, 1),
    ("z.wav", 0.10, 22050, 1),
    ("zz.wav", 0.002, RATE, 1),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audio")
    for index, (name, seconds, rate, channels) in enumerate(FILES):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        noise = 0.2 * np.random.default_rng(index).standard_normal((round(seconds * rate), channels))
        soundfile.write(folder / name, noise, rate)
    (folder / "broken.wav").write_text("no audio")
    (folder / "labels.csv").write_text("file,mood\nx/a.wav,calm\n")
    return folder


def _vqvae(seed=0):
    torch.manual_seed(seed)
    vqvae = VQVAE(CONFIG).eval().requires_grad_(False)
    for level in range(CONFIG.levels):
        # Latents of noise, so that all codes are used.
        latents = vqvae.encoders[level](0.2 * torch.randn(1, 1, 64 * 128))[0].T
        vqvae.codebook(level).copy_(latents[torch.randperm(len(latents))[: CONFIG.codebook_size]])
    return vqvae


# Shards of two songs or so.
OPTIONS = {"held_out": 2, "seed": 0, "shard_codes": 3000}


def _bytes(store):
    return {path.relative_to(store).as_posix(): path.read_bytes() for path in store.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def undisturbed(folder, tmp_path_factory):
    store = tmp_path_factory.mktemp("stores") / "store"
    write_store(folder, store, _vqvae(), **OPTIONS)
    return store


def test_codes_are_those_of_the_whole_song(folder, undisturbed):
    store, vqvae = CodeStore(undisturbed), _vqvae()
    assert [song.path for song in store.songs] == sorted(name for name, *_ in FILES)
    assert store.samples_per_code == (8, 32, 128) and store.levels == (0, 1, 2)
    for index, song in enumerate(store.songs):
        audio = read_audio(folder / song.path, RATE)[:, : song.samples(RATE)]
        for level in range(3):
            codes = store.codes(index, level)
            assert codes.dtype == np.int16 and not codes.flags.writeable
            np.testing.assert_array_equal(codes, vqvae.encode(audio, level)[0].numpy())
    assert len(np.unique(store.codes(0, 0))) == CONFIG.codebook_size
    assert len(store.codes(5, 2)) == 0 < len(store.codes(5, 0))


def test_manifest_tells_about_every_file(undisturbed):
    manifest = json.loads((undisturbed / "manifest.json").read_text())
    assert [entry["file"] for entry in manifest["skipped"]] == ["broken.wav"] and manifest["skipped"][0]["reason"]
    song = next(entry for entry in manifest["songs"] if entry["file"] == "x/a.wav")
    assert (song["seconds"], song["sample_rate"], song["channels"]) == (0.15, RATE, 2)
    assert song["labels"] == {"mood": "calm"} and set(song["codes"]) == {"0", "1", "2"}
    assert manifest["vqvae_fingerprint"] == fingerprint(_vqvae()) == CodeStore(undisturbed).fingerprint
    store = CodeStore(undisturbed)
    assert sorted(store.indices("train") + store.indices("held_out")) == list(range(6))
    assert len(store.indices("held_out")) == 2 and store.skipped[0].path == "broken.wav"


def test_shards_are_plain_arrays_of_whole_songs_up_to_a_size(undisturbed):
    lengths = [np.load(path).size for path in sorted(undisturbed.glob("level_0/*"))]
    assert len(lengths) > 2 and all(0 < length <= 3000 for length in lengths)
    assert len(list(undisturbed.glob("level_2/*"))) == 1
    store = CodeStore(undisturbed)
    assert sum(lengths) == sum(len(store.codes(song, 0)) for song in range(6))


def test_a_song_that_is_longer_than_a_shard_has_one_to_itself(tmp_path):
    folder, store = _small(tmp_path)
    write_store(folder, store, _vqvae(), 1, 0, shard_codes=10)
    assert [np.load(path).size for path in sorted(store.glob("level_0/*"))] == [75, 75]


def test_codes_of_a_large_codebook_are_kept_whole(tmp_path):
    folder, store = _small(tmp_path)
    vqvae = VQVAE(dataclasses.replace(CONFIG, codebook_size=1 << 16)).requires_grad_(False)
    for level in range(CONFIG.levels):
        # The last code is the nearest.
        vqvae.codebook(level).fill_(1e6)[-1] = 0.0
    codes = write_store(folder, store, vqvae, 1, 0).codes(0, 0)
    assert codes.dtype == np.int32 and set(codes.tolist()) == {(1 << 16) - 1}


class Interrupted(Exception):
    pass


def _stop_after(songs, stop):
    def progress(done, total):
        assert total == len(FILES)
        if done == songs:
            stop()

    return progress


def _raise():
    raise Interrupted


@pytest.fixture(scope="module")
def interrupted(folder, tmp_path_factory):
    """A store after each number of songs."""
    stores = [tmp_path_factory.mktemp("interrupted") for _ in FILES]
    for songs, store in enumerate(stores, start=1):
        with pytest.raises(Interrupted):
            write_store(folder, store, _vqvae(), **OPTIONS, progress=_stop_after(songs, _raise))
    return stores


@pytest.mark.parametrize("songs", range(1, len(FILES) + 1))
def test_an_interrupted_store_goes_on_to_the_same_bytes(folder, undisturbed, interrupted, tmp_path, songs, monkeypatch):
    store = shutil.copytree(interrupted[songs - 1], tmp_path / "store")
    with pytest.raises(StoreError, match="not complete"):
        CodeStore(store)
    vqvae, encoded = _vqvae(), []
    encode = vqvae.encode
    monkeypatch.setattr(vqvae, "encode", lambda audio, level: encoded.append(level) or encode(audio, level))
    whole = write_store(folder, store, vqvae, **OPTIONS)
    missing = [level for song in range(songs, len(FILES)) for level in range(3) if len(whole.codes(song, level))]
    assert encoded == missing, "a finished song was encoded again, or one was left out"
    assert _bytes(store) == _bytes(undisturbed)


@settings(max_examples=10, deadline=None)
@given(songs=st.integers(1, len(FILES) - 1), data=st.data())
def test_a_torn_write_is_written_again(folder, undisturbed, interrupted, tmp_path_factory, songs, data):
    store = shutil.copytree(interrupted[songs - 1], tmp_path_factory.mktemp("torn") / "store")
    (store / ".plan.json.part").write_text("{")
    parts = sorted(store.rglob("*.npy.part"))
    if parts:
        part = data.draw(st.sampled_from(parts))
        size = part.stat().st_size
        # Within its header, or less is lost.
        os.truncate(part, data.draw(st.integers(1, 100) | st.integers(max(0, size - 400), size)))
    write_store(folder, store, _vqvae(), **OPTIONS)
    assert _bytes(store) == _bytes(undisturbed)


def _killed(folder, store, songs):
    progress = _stop_after(songs, lambda: os.kill(os.getpid(), signal.SIGKILL))
    write_store(folder, store, _vqvae(), **OPTIONS, progress=progress)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_killed_store_goes_on_to_the_same_bytes(folder, undisturbed, tmp_path):
    for songs in (1, 2, 4):
        process = multiprocessing.get_context("fork").Process(target=_killed, args=(folder, tmp_path, songs))
        process.start()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
    write_store(folder, tmp_path, _vqvae(), **OPTIONS)
    assert _bytes(tmp_path) == _bytes(undisturbed)


def test_a_kill_between_the_last_write_and_the_name_is_mended(folder, undisturbed, tmp_path):
    store = tmp_path / "store"
    write_store(folder, store, _vqvae(), **OPTIONS)
    (store / "manifest.json").rename(store / "plan.json")
    (store / "level_1" / "shard-00000.npy").rename(store / "level_1" / "shard-00000.npy.part")
    write_store(folder, store, _vqvae(), **OPTIONS)
    assert _bytes(store) == _bytes(undisturbed)


def test_only_some_levels_and_their_windows(folder, tmp_path):
    store = write_store(folder, tmp_path / "s", _vqvae(), **OPTIONS, levels=(2,))
    assert store.levels == (2,) and not (tmp_path / "s" / "level_0").exists()
    assert CodeWindows(store, 2, 16, 1, 0, with_upper=False).batch(0, 3)[0].shape == (3, 16)
    with pytest.raises(StoreError, match="not of 1"):
        store.codes(0, 1)
    with pytest.raises(StoreError, match=r"\[3\]"):
        write_store(folder, tmp_path / "t", _vqvae(), **OPTIONS, levels=(3,))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "seed 0, not 1; write to another folder"),
        ({"held_out": 1}, "held_out 2, not 1"),
        ({"shard_codes": 10}, "shard_codes 3000, not 10"),
        ({"levels": (1, 2)}, r"levels \[0, 1, 2\], not \[1, 2\]"),
        ({"vqvae": 1}, "vqvae_fingerprint .*write to another folder"),
    ],
)
@pytest.mark.parametrize("complete", [True, False])
def test_another_store_is_not_written_over(folder, undisturbed, tmp_path, change, message, complete):
    store = undisturbed
    if not complete:
        store = tmp_path
        with pytest.raises(Interrupted):
            write_store(folder, store, _vqvae(), **OPTIONS, progress=_stop_after(2, _raise))
    before = _bytes(store)
    change = dict(change)
    vqvae = _vqvae(change.pop("vqvae", 0))
    with pytest.raises(StoreError, match=message):
        write_store(folder, store, vqvae, **{**OPTIONS, **change})
    assert _bytes(store) == before


def _small(tmp_path):
    folder = tmp_path / "audio"
    folder.mkdir()
    for name in ("a.wav", "b.wav"):
        soundfile.write(folder / name, np.zeros(600), RATE)
    return folder, tmp_path / "store"


def test_other_files_than_before_are_named(tmp_path):
    folder, store = _small(tmp_path)
    write_store(folder, store, _vqvae(), 1, 0)
    (folder / "a.wav").rename(folder / "c.wav")
    soundfile.write(folder / "b.wav", np.zeros(700), RATE)
    with pytest.raises(StoreError, match=r"1 new \('c.wav'\), 1 gone \('a.wav'\), 1 changed \('b.wav'\)"):
        write_store(folder, store, _vqvae(), 1, 0)


def test_labels_may_come_later(tmp_path):
    folder, store = _small(tmp_path)
    write_store(folder, store, _vqvae(), 1, 0)
    before = _bytes(store)
    (folder / "labels.csv").write_text("path,mood\nb.wav,calm\n")
    assert [song.labels for song in write_store(folder, store, _vqvae(), 1, 0).songs] == [{}, {"mood": "calm"}]
    after = _bytes(store)
    assert {name for name in after if after[name] != before[name]} == {"manifest.json"}


def test_foreign_folders_and_empty_ones_are_refused(tmp_path):
    folder, store = _small(tmp_path)
    store.mkdir()
    (store / "thesis.tex").write_text("")
    with pytest.raises(StoreError, match="not empty"):
        write_store(folder, store, _vqvae(), 1, 0)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "bad.wav").write_text("no audio")
    with pytest.raises(StoreError, match=r"no song(.|\n)*skipped bad\.wav"):
        write_store(tmp_path / "empty", tmp_path / "new", _vqvae(), 1, 0)
    with pytest.raises(StoreError, match="No such file"):
        CodeStore(tmp_path / "nowhere")


def test_damaged_stores_are_named(tmp_path):
    folder, store = _small(tmp_path)
    write_store(folder, store, _vqvae(), 1, 0)
    shard = store / "level_0" / "shard-00000.npy"
    os.truncate(shard, shard.stat().st_size - 2)
    with pytest.raises(StoreError, match=r"shard-00000\.npy"):
        CodeStore(store)
    (store / "manifest.json").write_text("{}")
    with pytest.raises(StoreError, match=r"manifest\.json: damaged"):
        CodeStore(store)


def test_fingerprints_tell_weights_and_configs_apart():
    vqvae = _vqvae()
    before = fingerprint(vqvae)
    assert before == fingerprint(_vqvae())
    vqvae.codebook(2)[3, 1] += 1e-3
    assert fingerprint(vqvae) != before


def test_windows_of_a_written_store(undisturbed):
    store = CodeStore(undisturbed)
    windows = CodeWindows(store, 1, 32, 4, 0, with_upper=True)
    codes, upper = windows.batch(0, 4)[:2]
    assert codes.shape == (4, 32) and upper.shape == (4, 8) and int(codes.max()) < store.codebook_size
    held = [song for song in store.indices("held_out") if len(store.codes(song, 2)) >= 8]
    upper = torch.cat([window.upper for window in windows.measured(1)])
    for row, song in zip(upper, held, strict=True):
        start = (len(store.codes(song, 2)) - 8 + 1) // 2
        assert row.tolist() == store.codes(song, 2)[start : start + 8].tolist()
