"""Weights as the decoders read them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


def quantize_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """weight [in, out] -> int8 [in, out] and FP32 scale [out] with weight ~ int8 * scale.

    Symmetric, rounded to nearest, one scale per output: its largest weight becomes 127. A scale that is zero stands
    for an output whose weights are all zero.
    """
    weight = weight.float()
    scale = weight.abs().amax(dim=0) / 127
    whole = (weight / scale.clamp_min(torch.finfo(torch.float32).tiny)).round()
    return whole.to(torch.int8), scale


def round_inputs(x: Tensor) -> Tensor:
    """x [..., in] as the native decoder's int8 products see it: whole multiples, in FP32, of a step per row.

    The step is a power of two, the least with which no multiple exceeds 2^14 and no sum of `in` products with int8
    weights leaves 32 bits.
    """
    size = min(14, ((2**31 - 1) // (127 * x.shape[-1])).bit_length() - 1)
    step = torch.exp2(torch.frexp(x.abs().amax(dim=-1, keepdim=True)).exponent - float(size))
    return (x / step).round() * step


class PackedWeight(NamedTuple):
    """`weight` [in, out] stored output by output, and `scale` [out] (FP32) if it is int8, otherwise None."""

    weight: Tensor
    scale: Tensor | None


def pack_weight(weight: Tensor, int8: bool = False) -> PackedWeight:
    """weight [in, out], in its own dtype or as int8, with the inputs of one output contiguous.

    What is stored that way already, as an embedding that serves as a head is, is not copied.
    """
    scale = None
    if int8:
        weight, scale = quantize_int8(weight)
    return PackedWeight(weight.t().contiguous().t(), scale)
