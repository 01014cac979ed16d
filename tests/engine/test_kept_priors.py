"""Which priors stay in memory between requests."""

import shutil
from types import SimpleNamespace

import pytest
import torch
from fastjukebox.engine import Jukebox, SamplingParams

FEW = SamplingParams(seconds=25 * 128 / 44100, hop_fraction=1.0)


@pytest.mark.parametrize(("limit", "left"), [(1 << 28, 3), (0, 1)])
def test_small_priors_stay_for_the_next_request(tiny_model, monkeypatch, limit, left):
    monkeypatch.setattr(Jukebox, "KEPT_BYTES", limit)
    jukebox = Jukebox.from_pretrained(tiny_model, backend="eager")
    jukebox.sample(FEW)
    assert len(jukebox._priors) == left


def test_what_is_in_memory_needs_no_file(tiny_model, tmp_path):
    jukebox = Jukebox.from_pretrained(shutil.copytree(tiny_model, tmp_path / "model"), backend="eager")
    expected = jukebox.sample(FEW)
    for path in (tmp_path / "model").glob("prior_*"):
        path.unlink()
    assert torch.equal(jukebox.sample(FEW).audio, expected.audio)


def test_a_gpu_keeps_what_takes_a_quarter_of_its_memory(tiny_model, monkeypatch):
    jukebox = Jukebox.from_pretrained(tiny_model, backend="eager")
    assert jukebox._kept_bytes() == 1 << 28
    jukebox.device = torch.device("cuda")
    for memory, limit in ((80 << 30, 20 << 30), (1 << 29, 1 << 28)):
        found = SimpleNamespace(total_memory=memory)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device, found=found: found)
        assert jukebox._kept_bytes() == limit
