"""The convolutional blocks that the VQ-VAE and the upsamplers' conditioner share. All tensors are [B, channels, T]."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """Without the caller's autocast. On a GPU cuDNN's convolutions give the same bits each time within this context,
    and take no TF32: as PyTorch has them, audio's codes and frame conditions could differ from run to run, and from a
    CPU's by more than rounding."""
    cudnn = nullcontext()
    if device.type == "cuda":
        cudnn = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
    with torch.autocast(device.type, enabled=False), cudnn:
        yield


class Conv(nn.Conv1d):
    """On CPUs computed with a position's channels side by side in memory, as all between convolutions then is: several
    times as fast as with each channel's positions side by side."""

    def forward(self, input: Tensor) -> Tensor:
        if input.device.type != "cpu":
            return super().forward(input)
        return _conv(input, self.weight, self.bias, self.stride[0], int(self.padding[0]), self.dilation[0])


def _conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int = 1, padding: int = 0, dilation: int = 1
) -> Tensor:
    if weight.shape[2] == stride == 1:
        return F.linear(x.transpose(1, 2), weight[:, :, 0], bias).transpose(1, 2)
    # PyTorch has such a layout only for images.
    image, kernel = (t.unsqueeze(2).contiguous(memory_format=torch.channels_last) for t in (x, weight))
    return F.conv2d(image, kernel, bias, (1, stride), (0, padding), (1, dilation)).squeeze(2)


class ResidualBlock(nn.Module):
    """x + res_scale * conv_1x1(relu(conv_3(relu(x)))), the wide convolution dilated; length is kept."""

    def __init__(self, width: int, hidden: int, dilation: int, res_scale: float) -> None:
        super().__init__()
        self.dilated = Conv(width, hidden, 3, padding=dilation, dilation=dilation)
        self.mix = Conv(hidden, width, 1)
        self.res_scale = res_scale

    def forward(self, x: Tensor) -> Tensor:
        branch = self.mix(self.dilated(x.relu()).relu_())
        return x + branch if self.res_scale == 1.0 else x + self.res_scale * branch


class ResidualStack(nn.Sequential):
    """`depth` residual blocks with dilations growth ** 0, growth ** 1, ..., starting over every `cycle` blocks."""

    def __init__(
        self,
        width: int,
        depth: int,
        *,
        conv_ratio: float = 1.0,
        growth: int = 1,
        cycle: int | None = None,
        scale_residual: bool = False,
        widest_first: bool = False,
    ) -> None:
        dilations = [growth ** (block % (cycle or depth)) for block in range(depth)]
        if widest_first:
            dilations.reverse()
        res_scale = 1.0 / math.sqrt(depth) if scale_residual else 1.0
        super().__init__(
            *(ResidualBlock(width, int(conv_ratio * width), dilation, res_scale) for dilation in dilations)
        )
        # How far, in positions, an output looks to either side.
        self.radius = sum(dilations)


class Downsampler(nn.Module):
    """From [B, in, T] to [B, out, T / stride ** stages]."""

    def __init__(self, in_width: int, width: int, out_width: int, stages: int, stride: int, **stack: Any) -> None:
        super().__init__()
        self.down = nn.ModuleList(
            Conv(width if stage else in_width, width, 2 * stride, stride, stride // 2) for stage in range(stages)
        )
        depth = stack.pop("depth")
        self.stacks = nn.ModuleList(ResidualStack(width, depth, **stack) for _ in range(stages))
        self.out = Conv(width, out_width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        for down, stack in zip(self.down, self.stacks, strict=True):
            x = stack(down(x))
        return self.out(x)


class TransposedConv(nn.Module):
    """From [B, in, T] to [B, out, T * stride], for an even stride: a transposed convolution of 2 * stride taps.

    On CPUs computed as a convolution of three taps that gives `stride` outputs for each input: half as many products
    again, of which a third are with zeros, but nothing is left to be added up, which takes longer.
    """

    def __init__(self, in_width: int, out_width: int, stride: int) -> None:
        super().__init__()
        plain = nn.ConvTranspose1d(in_width, out_width, 2 * stride, stride, stride // 2)
        assert plain.bias is not None
        self.weight, self.bias, self.stride = plain.weight, plain.bias, stride

    def forward(self, x: Tensor) -> Tensor:
        stride, half = self.stride, self.stride // 2
        if x.device.type != "cpu":
            return F.conv_transpose1d(x, self.weight, self.bias, stride, half)
        # Tap k of input t goes to output stride * t + k - half: of an input's `stride` outputs the first half also sees
        # the input before, the others the next one.
        weight = self.weight.permute(2, 1, 0)
        own = weight[half : half + stride]
        before = F.pad(weight[half + stride :], (0, 0, 0, 0, 0, stride - half))
        after = F.pad(weight[:half], (0, 0, 0, 0, stride - half, 0))
        kernel = torch.stack((before, own, after), dim=-1).flatten(0, 1)
        out = _conv(x, kernel, self.bias.repeat(stride), padding=1)
        return out.transpose(1, 2).unflatten(2, (stride, -1)).flatten(1, 2).transpose(1, 2)


class Upsampler(nn.Module):
    """From [B, in, T] to [B, out, T * stride ** stages]."""

    def __init__(self, in_width: int, width: int, out_width: int, stages: int, stride: int, **stack: Any) -> None:
        super().__init__()
        self.into = Conv(in_width, width, 3, padding=1)
        depth = stack.pop("depth")
        self.stacks = nn.ModuleList(ResidualStack(width, depth, **stack) for _ in range(stages))
        self.up = nn.ModuleList(
            TransposedConv(width, out_width if stage == stages - 1 else width, stride) for stage in range(stages)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x)
        for stack, up in zip(self.stacks, self.up, strict=True):
            x = up(stack(x))
        return x
