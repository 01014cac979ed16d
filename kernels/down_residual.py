"""The MLP's second projection and both residuals of a decode step.

One program computes BLOCK_N of the outputs (see gemv). Products and sums are FP32. `out` may be `x` itself: an
element is read by the program that writes it.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .gemv import load_items, load_outputs, load_weights, multiply, outputs, places, tile
from .launch import launch
from .pattern_groups import Specialization


@triton.jit(do_not_specialize=["batch"])
def _down_residual(
    out_ptr,  # [B, N_OUT]
    hidden_ptr,  # [B, N_IN]
    x_ptr,  # [B, N_OUT]
    h_ptr,  # [B, N_OUT]
    weight_ptr,  # [N_OUT, N_IN]
    bias_ptr,  # [N_OUT]
    scale_ptr,  # [N_OUT] or None
    batch,
    res_scale,
    N_IN: tl.constexpr,
    N_OUT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    ITEMS: tl.constexpr,
    STAGES: tl.constexpr,
    TENSOR: tl.constexpr,
    PDL: tl.constexpr,
):
    if PDL:
        gdc_launch_dependents()
    row = outputs(BLOCK_N)
    first_weights = load_weights(weight_ptr, 0, N_IN, N_OUT, BLOCK_N, BLOCK_K, TENSOR)
    bias = load_outputs(bias_ptr, row, N_OUT)
    scale = None if scale_ptr is None else load_outputs(scale_ptr, row, N_OUT)
    if PDL:
        gdc_wait()
    for first in tl.range(0, batch, ITEMS, num_stages=STAGES, disable_licm=True):  # pyright: ignore[reportGeneralTypeIssues]
        item = first + tl.arange(0, ITEMS)
        hidden = load_items(hidden_ptr, item, batch, 0, N_IN, BLOCK_K)
        y = multiply(first_weights, hidden, first, BLOCK_N, TENSOR)
        for start in tl.static_range(BLOCK_K, N_IN, BLOCK_K):  # pyright: ignore[reportGeneralTypeIssues]
            hidden = load_items(hidden_ptr, item, batch, start, N_IN, BLOCK_K)
            weights = load_weights(weight_ptr, start, N_IN, N_OUT, BLOCK_N, BLOCK_K, TENSOR)
            y += multiply(weights, hidden, first, BLOCK_N, TENSOR)
        if scale is not None:
            y *= scale
        place, mask = places(row, item, batch, N_OUT)
        x = tl.load(x_ptr + place, mask=mask, other=0.0).to(tl.float32)
        h = tl.load(h_ptr + place, mask=mask, other=0.0).to(tl.float32)
        # h - x is the attention's branch, y + bias the MLP's.
        y = x + res_scale * ((h - x) + (y + bias))
        tl.store(out_ptr + place, y.to(out_ptr.dtype.element_ty), mask=mask)


def down_residual(
    out: Tensor,
    hidden: Tensor,
    x: Tensor,
    h: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None,
    res_scale: float = 1.0,
) -> Specialization | None:
    """out [B, W] = x + res_scale * (h - x + hidden weight + bias): a layer's result from its input x, h = x + attention
    and the MLP's hidden state [B, M].

    weight: [M, W]; scale: [W] FP32 for int8 weights, otherwise None. `out` may be `x`.
    """
    batch, n_out = x.shape
    if weight.shape != (hidden.shape[1], n_out) or out.shape != x.shape or h.shape != x.shape:
        raise ValueError(f"out {tuple(out.shape)} of x {tuple(x.shape)}, h {tuple(h.shape)}, {tuple(weight.shape)}")
    size = tile(weight, batch, scale)
    return launch(
        _down_residual,
        size.grid,
        *(out, hidden, x, h, weight, bias, scale, batch, float(res_scale)),
        num_warps=size.num_warps,
        fp_fusion=not size.tensor,
        N_IN=hidden.shape[1],
        N_OUT=n_out,
        STAGES=size.stages,
        **size.constants,
    )
