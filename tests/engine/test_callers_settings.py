"""What a caller has set of PyTorch for its own purposes changes nothing here."""

import contextlib
import dataclasses

import pytest
import torch
from fastjukebox.engine import Jukebox, SamplingParams
from fastjukebox.kernels import native_library
from labelled_models import PARAMS, top_priors, write_model
from resumed import assert_same


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def default_device(name):
    torch.set_default_device(name)
    try:
        yield
    finally:
        torch.set_default_device(None)


# On "meta" nothing is computed: what is put there by accident shows.
SETTINGS = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "device": lambda: default_device("meta"),
    "dtype": lambda: default_dtype(torch.float64),
    "gradients": torch.enable_grad,
    "inference": torch.inference_mode,
}
native = pytest.param("native", marks=pytest.mark.skipif(bool(native_library.missing()), reason="no native decoder"))


def everything(folder, backend, labels, run_dir):
    """All that a user asks of a model."""
    jukebox = Jukebox.from_pretrained(folder, "cpu", backend=backend)
    params = dataclasses.replace(PARAMS, num_samples=2, labels=labels)
    first = jukebox.sample(params, run_dir=run_dir)
    longer = SamplingParams(0.2, seed=5, labels=labels)
    yield first
    yield jukebox.continue_audio(first.audio[0], longer, first.sample_rate)
    yield jukebox.upsample([None, None, first.codes[2]], dataclasses.replace(params, seed=6))
    yield Jukebox.resume(run_dir)
    yield jukebox.encode(first.audio)
    yield jukebox.decode(first.codes[1], 1)
    yield list(jukebox.stream(longer))


@pytest.mark.parametrize("backend", ["eager", native])
@pytest.mark.parametrize("kind", ["none", *top_priors()])
def test_results_are_the_same_whatever_a_caller_has_set(kind, backend, tiny_model, tiny_config, tmp_path):
    folder = tiny_model if kind == "none" else write_model(tmp_path / kind, kind, tiny_config)
    labels = None if kind == "none" else PARAMS.labels
    if kind == "labels":
        labels = dataclasses.replace(PARAMS.labels, lyrics="")
    expected = list(everything(folder, backend, labels, tmp_path / "run"))
    for name, settings in SETTINGS.items():
        with settings():
            found = list(everything(folder, backend, labels, tmp_path / f"{name}.run"))
        for ours, wanted in zip(found, expected, strict=True):
            if isinstance(wanted, list):
                assert all(map(torch.equal, ours, wanted)), name
            elif isinstance(wanted, torch.Tensor):
                assert torch.equal(ours, wanted), name
            else:
                assert_same(ours, wanted)


def test_a_caller_s_settings_are_its_own_between_chunks(tiny_model):
    jukebox = Jukebox.from_pretrained(tiny_model, "cpu", backend="eager")
    with torch.autocast("cpu", torch.bfloat16):
        for _ in jukebox.stream(SamplingParams(0.2)):
            assert torch.is_autocast_enabled("cpu")
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is torch.bfloat16
