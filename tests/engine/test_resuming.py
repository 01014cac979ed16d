"""Runs that were stopped anywhere, resumed: the same codes and audio as undisturbed."""

import dataclasses
from fractions import Fraction

import numpy as np
import pytest
import torch
from fastjukebox.engine import Jukebox, SamplingParams, runs
from fastjukebox.engine.runs import Run
from resumed import assert_same, stopped_and_resumed

FEW = SamplingParams(seconds=25 * 128 / 44100, hop_fraction=1.0)


@pytest.fixture(scope="module")
def jukebox(tiny_model):
    return Jukebox.from_pretrained(tiny_model, backend="eager")


def test_killed_after_any_number_of_windows_and_resumed_equals_undisturbed(jukebox, tmp_path, monkeypatch):
    saved, save = [], Run.save
    monkeypatch.setattr(Run, "save", lambda run, codes: (saved.append([c.clone() for c in codes]), save(run, codes))[1])
    monkeypatch.setattr(runs, "SAVES_APART", 0)
    expected = jukebox.sample(FEW, run_dir=tmp_path / "run")
    monkeypatch.undo()
    # What stands on disk before the first window, and after each one.
    assert len(saved) == 2 + 4 + 9
    for codes in [[codes[:, :0] for codes in saved[0]], *saved]:
        run = Run.open(tmp_path / "run")
        run.save(codes)
        assert_same(Jukebox.resume(tmp_path / "run"), expected)


def test_saving_takes_a_small_part_of_the_time(jukebox, tmp_path, monkeypatch):
    """All codes are written each time, so that saving after each window would write the square of a long run."""
    saves, save = [], Run.save
    monkeypatch.setattr(Run, "save", lambda run, codes: (saves.append(codes), save(run, codes))[1])
    # Once at first, which took so long that it is due no more, and once at the end.
    monkeypatch.setattr(runs, "SAVES_APART", 1e9)
    expected = jukebox.sample(FEW, run_dir=tmp_path / "run")
    assert len(saves) == 2
    assert all(torch.equal(a, b) for a, b in zip(Run.open(tmp_path / "run").load(), expected.codes, strict=True))


def test_what_was_sampled_is_saved_however_a_request_ends(jukebox, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "SAVES_APART", 1e9)
    expected = jukebox.sample(FEW)

    def interrupted(progress):
        # In the last level's last windows.
        if progress.done > 0.9 * progress.total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        jukebox.sample(FEW, run_dir=tmp_path / "run", progress=interrupted)
    there = sum(codes.numel() for codes in Run.open(tmp_path / "run").load())
    assert there > 0.7 * sum(codes.numel() for codes in expected.codes)
    assert_same(Jukebox.resume(tmp_path / "run"), expected)


def test_killed_within_a_window_and_resumed_equals_undisturbed(jukebox, tmp_path):
    params = dataclasses.replace(FEW, num_samples=3, batch_size=2)
    expected = jukebox.sample(params)
    for kill_at in (1, 400, 1000):
        result, progress = stopped_and_resumed(jukebox, params, tmp_path / str(kill_at), kill_at)
        assert_same(result, expected)
        # It went on, it did not begin again.
        total = sum(codes.numel() for codes in expected.codes)
        assert progress[-1].done == progress[-1].total <= total
        assert (progress[-1].total < total) == (kill_at > 3 * 24)


def test_numbers_of_any_kind_are_plain_ones(jukebox, tmp_path):
    params = SamplingParams(seconds=Fraction(1, 100), temperature=np.float32(0.5), top_p=(np.float64(0.9), 1, 1))
    assert (type(params.seconds), type(params.temperature), params.top_p) == (float, float, (0.9, 1.0, 1.0))
    jukebox.sample(params, run_dir=tmp_path / "run")
    assert Run.open(tmp_path / "run").request.params == params
