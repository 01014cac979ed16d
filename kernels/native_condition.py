"""A window's frame condition in C++, for CPUs: the conditioner's weights packed for `csrc/condition.inc`.

At demo size one thread of PyTorch takes 2 to 3 times as long: its products are small, and each is a call of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ctypes import byref

import torch
from torch import Tensor

from .native import PackedWeights, panels
from .native_library import Conditioner, Convolution, check, library


class NativeConditioner:
    """In FP32. A row depends on neither the number of threads nor how many rows there are."""

    def __init__(
        self, tensors: Mapping[str, Tensor], *, stages: int, stride: int, dilations: Sequence[int], res_scale: float
    ) -> None:
        """tensors: named as in engine.prior.Conditioner. dilations: of the residual blocks of each stage."""
        self._weights = PackedWeights()
        self.upper_ratio, self.steps = stride**stages, 1 + stages * (len(dilations) + 1)
        inner, self.width, _ = tensors["upsampler.into.weight"].shape
        hidden = tensors["upsampler.stacks.0.0.dilated.weight"].shape[0] if dilations else inner

        def convolution(name: str, dilation: int = 1) -> Convolution:
            weight, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
            first = -dilation if weight.shape[2] == 3 else 0
            return self._convolution(weight.permute(2, 1, 0), bias, dilation, first)

        convolutions = [convolution("upsampler.into")]
        for stage in range(stages):
            for block, dilation in enumerate(dilations):
                name = f"upsampler.stacks.{stage}.{block}"
                convolutions += [convolution(f"{name}.dilated", dilation), convolution(f"{name}.mix")]
            name = f"upsampler.up.{stage}"
            convolutions += self._transposed(tensors[f"{name}.weight"], tensors[f"{name}.bias"], stride)
        self._convolutions = (Convolution * len(convolutions))(*convolutions)
        self._conditioner = Conditioner(
            width=self.width,
            inner=inner,
            hidden=hidden,
            stages=stages,
            depth=len(dilations),
            stride=stride,
            res_scale=res_scale,
            embedding=self._weights.pointer(tensors["embedding"]),
            ln_weight=self._weights.pointer(tensors["ln.weight"]),
            ln_bias=self._weights.pointer(tensors["ln.bias"]),
            convolutions=self._convolutions,
        )

    def _convolution(self, weight: Tensor, bias: Tensor, dilation: int, first: int) -> Convolution:
        """weight: [taps, in, out]"""
        taps, inputs, outputs = weight.shape
        return Convolution(
            panels=self._weights.pointer(panels(weight.flatten(0, 1))),
            bias=self._weights.pointer(panels(bias[None])),
            inputs=inputs,
            outputs=outputs,
            taps=taps,
            dilation=dilation,
            first=first,
        )

    def _transposed(self, weight: Tensor, bias: Tensor, stride: int) -> list[Convolution]:
        """weight: [in, out, 2 * stride]. Tap k of input t goes to output stride * t + k - half: of an input's outputs
        the first half also sees the input before, the others the one after."""
        half = stride // 2
        found = []
        for phase in range(stride):
            own, first = phase + half, -1 if phase < half else 0
            taps = (own + stride, own) if phase < half else (own, own - stride)
            found.append(self._convolution(weight[:, :, taps].permute(2, 0, 1), bias, 1, first))
        return found

    def __call__(self, upper_codes: Tensor, threads: int) -> Tensor:
        """Upper codes [B, n] (int64) -> frame condition [B, n * upper_ratio, W]. Other Python threads do not wait for
        it, and an interruption waits for one convolution of an item at most, or a residual block."""
        codes = upper_codes.contiguous()
        # Whatever PyTorch's defaults are at the moment: C++ writes here.
        place = {"dtype": torch.float32, "device": "cpu"}
        found = torch.empty(len(codes), codes.shape[1] * self.upper_ratio, self.width, **place)
        room = torch.empty(library().fastjukebox_condition_room(byref(self._conditioner), codes.shape[1]), **place)
        for item, out in zip(codes, found, strict=True):
            room.zero_()
            pointers = item.data_ptr(), len(item), out.data_ptr(), room.data_ptr()
            for step in range(self.steps):
                check(library().fastjukebox_condition(byref(self._conditioner), *pointers, step, threads), threads)
        return found
