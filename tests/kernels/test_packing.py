"""What int8 weights stand for, and how weights lie in memory."""

import pytest
import torch
from fastjukebox.kernels.packing import pack_weight, quantize_int8, round_inputs


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_int8_is_the_nearest_of_255_steps(dtype):
    weight = (torch.randn(37, 29) * torch.logspace(-3, 3, 29)).to(dtype)
    whole, scale = quantize_int8(weight)
    assert (whole.dtype, scale.dtype, scale.shape) == (torch.int8, torch.float32, (29,))
    # The largest weight of an output becomes 127 or -127, so none is cut off.
    assert (whole.abs().amax(dim=0) == 127).all()
    off = (whole.double() * scale.double() - weight.double()).abs()
    assert (off <= scale.double() * 0.5001).all()


def test_outputs_without_weights_stay_zero():
    weight = torch.zeros(5, 2)
    weight[3, 1] = -1e-30
    whole, scale = quantize_int8(weight)
    assert whole[:, 0].eq(0).all() and scale[0] == 0
    assert whole[:, 1].tolist() == [0, 0, 0, -127, 0]


@pytest.mark.parametrize(("count", "size"), [(1, 14), (128, 14), (1032, 14), (1040, 13), (1920, 13), (4096, 12)])
def test_inputs_of_int8_products_are_rounded_as_finely_as_32_bits_allow(count, size):
    x = torch.randn(5, count) * torch.tensor([1e-20, 1e-3, 0, 1, 1e10])[:, None]
    found = round_inputs(x)
    largest = x.abs().amax(dim=1, keepdim=True)
    # Between 2^(size - 1) and 2^size steps; none is off by more than half of one.
    assert ((found - x).abs() <= largest * 2.0**-size).all() and torch.equal(found[2], x[2])
    steps = found / 2.0 ** (torch.frexp(largest).exponent - size)
    assert torch.equal(steps, steps.round())
    assert 127 * 2**size * count < 2**31 <= 127 * 2 ** (size + 1) * count or size == 14


@pytest.mark.parametrize("int8", [False, True])
def test_the_inputs_of_an_output_are_contiguous(int8):
    weight = torch.randn(5, 7)
    stored, scale = pack_weight(weight, int8)
    assert stored.shape == (5, 7) and stored.t().is_contiguous()
    torch.testing.assert_close(stored * scale if int8 else stored, weight, rtol=0, atol=0.02 if int8 else 0)


def test_an_embedding_that_serves_as_a_head_is_not_copied():
    embedding = torch.randn(7, 5)
    assert pack_weight(embedding.t()).weight.data_ptr() == embedding.data_ptr()
