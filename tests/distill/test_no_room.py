"""A full disk and too little memory: one line that names the file or the way out, and nothing is lost."""

import contextlib
import errno
import os
import resource
import shutil

import pytest
import torch
from fastjukebox.distill import commands
from fastjukebox.distill.corpus import write_corpus
from fastjukebox.distill.run_folder import RunError, read_state, write_state
from fastjukebox.engine import checkpoint
from safetensors import SafetensorError


@contextlib.contextmanager
def room(size):
    """Files hold at most `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_state_without_room_keeps_the_one_of_before(tmp_path):
    path = tmp_path / "state.pt"
    write_state(path, {"weight": torch.zeros(10)})
    with room(100_000), pytest.raises(RunError, match=r"state.pt cannot be written .*what was saved before is kept"):
        write_state(path, {"weight": torch.zeros(100_000)})
    assert read_state(path)["weight"].shape == (10,) and list(tmp_path.iterdir()) == [path]


def test_a_corpus_without_room_names_the_song(tmp_path):
    with room(20_000), pytest.raises(RunError, match=r"song-0000.flac cannot be written"):
        write_corpus(tmp_path, 1, 2.0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), SafetensorError("I/O error")])
def test_an_export_without_room_names_the_file(stack, tmp_path, monkeypatch, refused, error):
    def full(*_, **settings):
        raise error

    monkeypatch.setattr(checkpoint, "save_network", full)
    told = refused(stack, "export", "--system", "teacher-72", "--out", str(tmp_path))
    assert told.startswith(f"error: {tmp_path / 'vqvae.safetensors'} cannot be written (")


def test_codes_without_room_name_the_shard(stack, tmp_path, refused):
    folder = tmp_path / "w"
    shutil.copytree(stack, folder)
    (folder / "codes/manifest.json").rename(folder / "codes/plan.json")
    shard = folder / "codes/level_0/shard-00000.npy"
    shard.unlink()
    # A manifest has more bytes than the smallest shard.
    shard.with_suffix(".npy.part").mkdir()
    assert f"error: {shard} cannot be written" in refused(folder, "encode")


@pytest.mark.parametrize("text", ["DefaultCPUAllocator: can't allocate memory: you tried 9 bytes", "not enough memory"])
def test_an_allocator_that_fails_is_told_in_one_line(tmp_path, monkeypatch, refused, text):
    def fail(*_):
        raise RuntimeError(text)

    monkeypatch.setattr(commands, "run_all", fail)
    assert refused(tmp_path / "w", "stack").startswith("error: not enough memory; `--dry-run` tells how much is needed")
