"""A run directory to try things on."""

import torch
from fastjukebox.engine import SamplingParams
from fastjukebox.engine.runs import Request, Run

REQUEST = Request(
    params=SamplingParams(
        seconds=0.1,
        seed=2**64 - 1,
        num_samples=2,
        first_item=2**31,
        temperature=(0.9, 1.0, 1.1),
        top_k=(0, 5, 37),
        top_p=0.9,
        hop_fraction=(0.5, 0.5, 0.125),
    ),
    samples=4410,
    model="/models/tiny",
    fingerprint="0123456789abcdef",
    backend="eager",
    device="cpu",
    dtype="float32",
    output="song.wav",
)
OLD = [torch.arange(6).view(2, 3), torch.zeros(2, 0, dtype=torch.long), torch.full((2, 9), 36)]
NEW = [torch.arange(12).view(2, 6), torch.ones(2, 1, dtype=torch.long), torch.full((2, 11), 35)]


def begun(folder):
    run = Run.create(folder, REQUEST, OLD)
    run.release()
    return run


def assert_holds(folder, codes):
    loaded = Run.open(folder).load()
    assert all(torch.equal(*pair) for pair in zip(loaded, codes, strict=True))
    assert all(tensor.dtype == torch.int64 for tensor in loaded)
