"""LayerNorm, the MLP's first projection and quick-GELU of a decode step.

One program computes BLOCK_N of the outputs (see gemv). Statistics, products and sums are FP32.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .gemv import load_outputs, load_vector, load_weights, norm_multiply, outputs, places, tile
from .launch import launch
from .pattern_groups import Specialization


@triton.jit(do_not_specialize=["batch"])
def _norm_up(
    out_ptr,  # [B, N_OUT]
    x_ptr,  # [B, N_IN]
    ln_weight_ptr,  # [N_IN]
    ln_bias_ptr,  # [N_IN]
    weight_ptr,  # [N_OUT, N_IN]
    bias_ptr,  # [N_OUT]
    scale_ptr,  # [N_OUT] or None
    batch,
    eps,
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
    weights = load_weights(weight_ptr, 0, N_IN, N_OUT, BLOCK_N, BLOCK_K, TENSOR)
    ln_weight = load_vector(ln_weight_ptr, 0, N_IN, BLOCK_K)
    ln_bias = load_vector(ln_bias_ptr, 0, N_IN, BLOCK_K)
    bias = load_outputs(bias_ptr, row, N_OUT)
    scale = None if scale_ptr is None else load_outputs(scale_ptr, row, N_OUT)
    if PDL:
        gdc_wait()
    for first in tl.range(0, batch, ITEMS, num_stages=STAGES, disable_licm=True):  # pyright: ignore[reportGeneralTypeIssues]
        item = first + tl.arange(0, ITEMS)
        y = norm_multiply(
            x_ptr,
            ln_weight_ptr,
            ln_bias_ptr,
            weight_ptr,
            ln_weight,
            ln_bias,
            weights,
            first,
            item,
            batch,
            eps,
            N_IN,
            N_OUT,
            BLOCK_N,
            BLOCK_K,
            TENSOR,
        )
        if scale is not None:
            y *= scale
        y += bias
        y = y / (1.0 + tl.exp(-1.702 * y))
        place, mask = places(row, item, batch, N_OUT)
        tl.store(out_ptr + place, y.to(out_ptr.dtype.element_ty), mask=mask)


def norm_up(
    out: Tensor,
    x: Tensor,
    ln_weight: Tensor,
    ln_bias: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None,
    eps: float = 1e-5,
) -> Specialization | None:
    """out [B, M] = quick_gelu(LayerNorm(x) weight + bias) with x [B, W] and weight [W, M].

    scale: [M] FP32 for int8 weights, otherwise None.
    """
    batch, n_in = x.shape
    if weight.shape[0] != n_in or out.shape != (batch, weight.shape[1]):
        raise ValueError(f"out {tuple(out.shape)} of x {tuple(x.shape)} and weight {tuple(weight.shape)}")
    size = tile(weight, batch, scale)
    return launch(
        _norm_up,
        size.grid,
        *(out, x, ln_weight, ln_bias, weight, bias, scale, batch, eps),
        num_warps=size.num_warps,
        fp_fusion=not size.tensor,
        N_IN=n_in,
        N_OUT=weight.shape[1],
        STAGES=size.stages,
        **size.constants,
    )
