"""How the native decoder stores weights: FP16 where that loses nothing, with the same codes as FP32 storage."""

import os

import pytest
import torch
from fastjukebox.engine.config import PriorConfig
from fastjukebox.engine.decoder import EagerDecoder, LevelSampling, WindowTask
from fastjukebox.engine.native_decoder import NativeDecoder
from fastjukebox.engine.prior import Prior
from fastjukebox.kernels import native, native_library

pytestmark = pytest.mark.skipif(
    native_library.missing() is not None, reason=f"native decoder: {native_library.missing()}"
)

FP16_VALUES = [0.0, -0.0, 1.0, -65504.0, 2.0**-14, 2.0**-24, -3 * 2.0**-24, 1 + 2.0**-10]


def fp16_prior() -> Prior:
    """Weights as a released checkpoint has them: FP16 values in FP32 tensors."""
    torch.manual_seed(0)
    prior = Prior(PriorConfig(0, 40, 6, 2, 96, 8, 77, attn_ratio=0.5)).eval().requires_grad_(False)
    for parameter in prior.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.1 + 0.02)
        parameter.copy_(parameter.half())
    # Subnormals, and a zero of either sign.
    prior.token_embedding[:3] *= 2.0**-12
    prior.token_embedding.copy_(prior.token_embedding.half())
    prior.token_embedding[0, :2] = torch.tensor([-0.0, 0.0])
    return prior


def decode(decoder, prior: Prior, batch: int) -> torch.Tensor:
    codes = torch.full((batch, prior.config.context_len), -1)
    decoder.prefill(WindowTask(codes, 0, torch.arange(batch), 5, 0, 0, LevelSampling()))
    decoder.run(0, codes.shape[1])
    return codes


@pytest.mark.parametrize("values, fits", [(FP16_VALUES, True), ([1 + 2.0**-11], False), ([65520.0], False)])
def test_fp16_is_used_only_where_nothing_is_lost(values, fits):
    weight = torch.tensor(values).repeat(2, 1)
    assert native.holds_fp16(weight) is fits
    matrix = native.PackedWeights().matrix(weight)
    assert matrix.stored == native.STORED[torch.float16 if fits else torch.float32]


def test_values_that_are_not_finite_stay_fp32():
    for value in (float("nan"), float("inf")):
        assert not native.holds_fp16(torch.tensor([[value]]))


def test_keys_and_values_of_lyrics_stay_within_fp16():
    for dtype, largest in ((torch.float16, 65504.0), (torch.float32, 1e6)):
        cache = native.LayerCache(native.LargePages(), 2, 1, 3, 4, dtype)
        cache.fill(torch.tensor([1e6, -1e6]).view(2, 1, 1, 1, 1).expand(2, 1, 3, 1, 4))
        assert cache.keys[..., :3].eq(largest).all() and cache.values.eq(-largest).all()


@pytest.mark.parametrize("isa", native_library.INSTRUCTION_SETS)
@pytest.mark.parametrize("batch", [1, 5])
def test_fp16_storage_gives_the_codes_of_fp32_storage(isa, batch, monkeypatch):
    prior = fp16_prior()
    with native_library.limited_to(isa):
        stored_as_fp16 = decode(NativeDecoder(prior, batch), prior, batch)
        monkeypatch.setattr(native, "holds_fp16", lambda weight: False)
        stored_as_fp32 = decode(NativeDecoder(prior, batch), prior, batch)
    assert torch.equal(stored_as_fp16, stored_as_fp32)
    assert torch.equal(stored_as_fp16, decode(EagerDecoder(prior, batch), prior, batch))


def test_fp16_storage_takes_half_the_memory(monkeypatch):
    weight = torch.ones(64, 96)
    small = native.PackedWeights()
    small.matrix(weight)
    monkeypatch.setattr(native, "holds_fp16", lambda weight: False)
    large = native.PackedWeights()
    large.matrix(weight)
    assert small.nbytes * 2 == large.nbytes


def test_a_forked_process_writes_to_memory_of_its_own():
    piece = native.LargePages().take(torch.float32, 3)
    piece[0] = 1
    child = os.fork()
    if not child:
        piece += 1
        os._exit(int(piece.sum()))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 4
    assert piece.tolist() == [1, 0, 0]
