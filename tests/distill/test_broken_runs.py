"""Damaged and foreign states, and training that diverges: one line each, and nothing is lost."""

import dataclasses
import io
import shutil
import struct
import zipfile

import pytest
from fastjukebox.distill.presets import PRESETS
from fastjukebox.distill.run_folder import read_state, write_state


def cut_short(content):
    return content[: len(content) // 2]


def flipped(content):
    """A bit of the largest tensor: what is between tensors means nothing."""
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        largest = max(file.infolist(), key=lambda entry: entry.file_size)
    # Before a record's data: 30 bytes, its name, and what fills up.
    at = largest.header_offset + 30 + sum(struct.unpack_from("<HH", content, largest.header_offset + 26))
    at += largest.file_size // 2
    return content[:at] + bytes([content[at] ^ 64]) + content[at + 1 :]


@pytest.mark.parametrize("damage", [cut_short, flipped, lambda content: b"", lambda content: b"hello"])
def test_a_damaged_state_is_one_line_and_stays_as_it_is(stack, tmp_path, refused, damage):
    folder = tmp_path / "w"
    shutil.copytree(stack, folder)
    for name in ("student-18", "vqvae"):
        run_folder = folder / name / "level_2"
        state = run_folder / "state.pt"
        state.write_bytes(damage(state.read_bytes()))
        before = state.read_bytes()
        if name == "student-18":
            assert f"{state} is damaged" in refused(folder, "eval", "--system", name, "--level", "2")
            (run_folder / "figures.json").unlink()
            assert f"{state} is damaged" in refused(folder, "distill", "--system", name, "--level", "2")
        else:
            assert f"{state} is damaged" in refused(folder, "export", "--system", "teacher-72", "--out", str(tmp_path))
        assert state.read_bytes() == before
    assert not (tmp_path / "config.json").exists()


def test_another_networks_state_is_one_line(stack, tmp_path, refused):
    folder = tmp_path / "w"
    shutil.copytree(stack, folder)
    state = folder / "teacher-72" / "level_2" / "state.pt"
    state.write_bytes((folder / "teacher-72" / "level_1" / "state.pt").read_bytes())
    assert f"{state} does not fit this run" in refused(folder, "eval", "--system", "teacher-72", "--level", "2")
    (state.parent / "figures.json").unlink()
    assert f"{state} does not fit this run" in refused(folder, "prior", "--system", "teacher-72", "--level", "2")


def test_divergence_is_one_line_and_keeps_the_last_state(stack, tmp_path, monkeypatch, refused):
    tiny = PRESETS["tiny"]
    folder = tmp_path / "w"
    shutil.copytree(stack, folder)
    wild = {
        "vqvae": tuple(dataclasses.replace(each, steps=9, learning_rate=1e30) for each in tiny.vqvae),
        "prior": dataclasses.replace(tiny.prior, learning_rate=1e30, matrix_learning_rate=1e30),
        "epochs": tuple(dataclasses.replace(each, layers=9.0) for each in tiny.epochs),
    }
    monkeypatch.setitem(PRESETS, "tiny", dataclasses.replace(tiny, **wild))
    # Both go on from a finished run's state, which is shorter than what is asked for now.
    for name, words in (("vqvae", ["vqvae"]), ("student-18-layers", ["distill", "--system", "student-18-layers"])):
        run_folder = folder / name / "level_2"
        (run_folder / "figures.json").unlink()
        # Else its state would be that of a run with other settings.
        (run_folder / "run.json").unlink()
        before = (run_folder / "state.pt").read_bytes()
        error = refused(folder, *words, "--level", "2")
        assert f"error: {run_folder}: at step " in error and "state.pt, saved before that, is kept" in error
        assert (run_folder / "state.pt").read_bytes() == before and not (run_folder / "figures.json").exists()


def test_codes_of_another_vqvae_are_refused(stack, tmp_path, refused):
    folder = tmp_path / "w"
    shutil.copytree(stack, folder)
    path = folder / "vqvae" / "level_2" / "state.pt"
    state = read_state(path)
    state["codebook"]["codebook"] += 1
    write_state(path, state)
    for words in (
        ["prior", "--system", "plain-18", "--level", "2"],
        ["export", "--system", "teacher-72", "--out", "o"],
    ):
        assert f"{folder / 'codes'} holds codes of another VQ-VAE" in refused(folder, *words)
