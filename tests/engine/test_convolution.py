"""The convolutions against PyTorch's own, in FP64: values and gradients."""

import pytest
import torch
import torch.nn.functional as F
from fastjukebox.engine.convolution import Conv, TransposedConv
from torch import nn


@pytest.mark.parametrize(
    ("taps", "stride", "padding", "dilation"), [(3, 1, 9, 9), (1, 1, 0, 1), (4, 2, 1, 1), (3, 1, 1, 1)]
)
@pytest.mark.parametrize("inputs", [1, 5])
def test_a_convolution_is_pytorchs(taps, stride, padding, dilation, inputs):
    conv = Conv(inputs, 7, taps, stride, padding, dilation).double()
    x = torch.randn(2, inputs, 38, dtype=torch.float64, requires_grad=True)
    agree(conv(x), nn.Conv1d.forward(conv, x), [x, conv.weight, conv.bias])


@pytest.mark.parametrize("stride", [2, 4, 6])
@pytest.mark.parametrize("length", [1, 2, 11])
def test_a_transposed_convolution_is_pytorchs(stride, length):
    conv = TransposedConv(5, 7, stride).double()
    x = torch.randn(2, 5, length, dtype=torch.float64, requires_grad=True)
    expected = F.conv_transpose1d(x, conv.weight, conv.bias, stride, stride // 2)
    assert expected.shape == (2, 7, length * stride)
    agree(conv(x), expected, [x, conv.weight, conv.bias])


def agree(ours, theirs, given):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    weights = torch.randn_like(ours)
    for one, other in zip(*(torch.autograd.grad((out * weights).sum(), given) for out in (ours, theirs)), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)
