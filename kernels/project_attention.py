"""Output projection of a decode step's attention, with the sum over its parts before and the residual after.

One program computes BLOCK_N of the W outputs (see gemv). Each adds the parts anew: they are a few KB out of L2, less
than a kernel boundary costs. Statistics, products and sums are FP32.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .gemv import dot, load_outputs, load_rows, tile
from .launch import launch
from .pattern_groups import Specialization


@triton.jit
def _add_parts(
    sums_ptr,  # [PARTS, H, D] of one item
    peaks_ptr,  # [PARTS, H]
    masses_ptr,  # [PARTS, H]
    start,
    PARTS: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Elements start ... start + BLOCK_K - 1 of the attention's result [H D]; zeros where no key was seen."""
    col = start + tl.arange(0, BLOCK_K)
    attended = tl.zeros([BLOCK_K], tl.float32)
    for head in tl.static_range(HEADS):  # pyright: ignore[reportGeneralTypeIssues]
        mask = col // HEAD_DIM == head
        peak = tl.load(peaks_ptr + head)
        for part in tl.static_range(1, PARTS):  # pyright: ignore[reportGeneralTypeIssues]
            peak = tl.maximum(peak, tl.load(peaks_ptr + part * HEADS + head))
        # Where every peak is -inf, all sums and masses are 0 and any finite number will do.
        peak = tl.where(peak == float("-inf"), 0.0, peak)
        mass = 0.0
        total = tl.zeros([BLOCK_K], tl.float32)
        for part in tl.static_range(PARTS):  # pyright: ignore[reportGeneralTypeIssues]
            share = tl.exp2(tl.load(peaks_ptr + part * HEADS + head) - peak)
            mass += share * tl.load(masses_ptr + part * HEADS + head)
            total += share * tl.load(sums_ptr + part * HEADS * HEAD_DIM + col, mask=mask, other=0.0)
        attended = tl.where(mask, total / tl.where(mass > 0.0, mass, 1.0), attended)
    return attended


@triton.jit(do_not_specialize=["batch"])
def _project_attention(
    out_ptr,  # [B, N_OUT]
    sums_ptr,  # [B, PARTS, H, D]
    peaks_ptr,  # [B, PARTS, H]
    masses_ptr,  # [B, PARTS, H]
    x_ptr,  # [B, N_OUT]
    weight_ptr,  # [N_OUT, H D]
    bias_ptr,  # [N_OUT]
    scale_ptr,  # [N_OUT] or None
    batch,
    PARTS: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    N_OUT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
    PDL: tl.constexpr,
):
    N_IN: tl.constexpr = HEADS * HEAD_DIM
    if PDL:
        gdc_launch_dependents()
    row = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    first = load_rows(weight_ptr, row, 0, N_IN, N_OUT, BLOCK_K)
    bias = load_outputs(bias_ptr, row, N_OUT)
    scale = None if scale_ptr is None else load_outputs(scale_ptr, row, N_OUT)
    if PDL:
        gdc_wait()
    group = tl.program_id(1) * GROUP
    for item in tl.range(group, tl.minimum(group + GROUP, batch), disable_licm=True):  # pyright: ignore[reportGeneralTypeIssues]
        item_sums = sums_ptr + item * PARTS * N_IN
        item_peaks = peaks_ptr + item * PARTS * HEADS
        item_masses = masses_ptr + item * PARTS * HEADS
        attended = _add_parts(item_sums, item_peaks, item_masses, 0, PARTS, HEADS, HEAD_DIM, BLOCK_K)
        y = dot(first, attended, item)
        for start in tl.static_range(BLOCK_K, N_IN, BLOCK_K):  # pyright: ignore[reportGeneralTypeIssues]
            attended = _add_parts(item_sums, item_peaks, item_masses, start, PARTS, HEADS, HEAD_DIM, BLOCK_K)
            y += dot(load_rows(weight_ptr, row, start, N_IN, N_OUT, BLOCK_K), attended, item)
        if scale is not None:
            y *= scale
        y += bias + load_outputs(x_ptr + item * N_OUT, row, N_OUT)
        tl.store(out_ptr + item * N_OUT + row, y.to(out_ptr.dtype.element_ty), mask=row < N_OUT)


def project_attention(
    out: Tensor,
    sums: Tensor,
    peaks: Tensor,
    masses: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None,
) -> Specialization | None:
    """out [B, W] = x + attention weight + bias, the attention [B, H D] given in parts (see `cache_attention`).

    weight: [H D, W]; scale: [W] FP32 for int8 weights, otherwise None.
    """
    batch, parts, heads, head_dim = sums.shape
    if weight.shape != (heads * head_dim, x.shape[1]) or out.shape != x.shape:
        raise ValueError(f"out {tuple(out.shape)}, weight {tuple(weight.shape)}, sums {tuple(sums.shape)}")
    size = tile(weight, batch, scale)
    return launch(
        _project_attention,
        size.grid,
        *(out, sums, peaks, masses, x, weight, bias, scale, batch),
        num_warps=size.num_warps,
        PARTS=parts,
        HEADS=heads,
        HEAD_DIM=head_dim,
        N_OUT=x.shape[1],
        **size.constants,
    )
