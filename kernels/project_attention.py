"""Output projection of a decode step's attention, with the sum over its parts before and the residual after.

One program computes BLOCK_N of the W outputs (see gemv) of GROUP items: their parts are as many bytes as its weights.
Each adds the parts anew: they are a few KB out of L2, less than a kernel boundary costs. Statistics, products and sums
are FP32.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .gemv import load_outputs, load_weights, multiply, outputs, places, tile
from .launch import launch
from .pattern_groups import Specialization

_GROUP = 8


@triton.jit
def _add_parts(
    sums_ptr,  # [batch, PARTS, H, D]
    peaks_ptr,  # [batch, PARTS, H]
    masses_ptr,  # [batch, PARTS, H]
    item,  # [ITEMS]
    batch,
    start,
    PARTS: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Elements start ... start + BLOCK_K - 1 of the attention's results [batch, H D], zeros where no key was seen:
    [ITEMS, BLOCK_K]."""
    col = start + tl.arange(0, BLOCK_K)
    valid = item < batch
    # Of an item's part 0 and head 0.
    place = item * PARTS * HEADS
    if HEADS > 2:
        # Each column finds its head: of many heads, most columns would be left out of each turn of the loop below.
        inside = valid[:, None] & (col < HEADS * HEAD_DIM)[None, :]
        lane = place[:, None] + (col // HEAD_DIM)[None, :]
        top = tl.load(peaks_ptr + lane, mask=inside, other=0.0)
        for part in range(1, PARTS):
            top = tl.maximum(top, tl.load(peaks_ptr + lane + part * HEADS, mask=inside, other=0.0))
        top = tl.where(top == float("-inf"), 0.0, top)
        masses = tl.zeros([item.shape[0], BLOCK_K], tl.float32)
        totals = tl.zeros([item.shape[0], BLOCK_K], tl.float32)
        for part in range(PARTS):
            shares = tl.exp2(tl.load(peaks_ptr + lane + part * HEADS, mask=inside, other=0.0) - top)
            masses += shares * tl.load(masses_ptr + lane + part * HEADS, mask=inside, other=0.0)
            offset = (place + part * HEADS)[:, None] * HEAD_DIM + col[None, :]
            totals += shares * tl.load(sums_ptr + offset, mask=inside, other=0.0)
        return tl.where(inside, totals / tl.where(masses > 0.0, masses, 1.0), 0.0)
    attended = tl.zeros([item.shape[0], BLOCK_K], tl.float32)
    for head in tl.static_range(HEADS):  # pyright: ignore[reportGeneralTypeIssues]
        mask = valid[:, None] & (col // HEAD_DIM == head)[None, :]
        peak = tl.load(peaks_ptr + place + head, mask=valid, other=0.0)
        for part in tl.static_range(1, PARTS):  # pyright: ignore[reportGeneralTypeIssues]
            peak = tl.maximum(peak, tl.load(peaks_ptr + place + part * HEADS + head, mask=valid, other=0.0))
        # Where every peak is -inf, all sums and masses are 0 and any finite number will do.
        peak = tl.where(peak == float("-inf"), 0.0, peak)
        mass = tl.zeros([item.shape[0]], tl.float32)
        total = tl.zeros([item.shape[0], BLOCK_K], tl.float32)
        for part in tl.static_range(PARTS):  # pyright: ignore[reportGeneralTypeIssues]
            one = place + part * HEADS + head
            share = tl.exp2(tl.load(peaks_ptr + one, mask=valid, other=0.0) - peak)
            mass += share * tl.load(masses_ptr + one, mask=valid, other=0.0)
            offset = (place + part * HEADS)[:, None] * HEAD_DIM + col[None, :]
            total += share[:, None] * tl.load(sums_ptr + offset, mask=mask, other=0.0)
        attended = tl.where(mask, total / tl.where(mass > 0.0, mass, 1.0)[:, None], attended)
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
    ITEMS: tl.constexpr,
    TENSOR: tl.constexpr,
    GROUP: tl.constexpr,
    PDL: tl.constexpr,
):
    N_IN: tl.constexpr = HEADS * HEAD_DIM
    if PDL:
        gdc_launch_dependents()
    row = outputs(BLOCK_N)
    first_weights = load_weights(weight_ptr, 0, N_IN, N_OUT, BLOCK_N, BLOCK_K, TENSOR)
    bias = load_outputs(bias_ptr, row, N_OUT)
    scale = None if scale_ptr is None else load_outputs(scale_ptr, row, N_OUT)
    if PDL:
        gdc_wait()
    group = tl.program_id(1) * GROUP
    last = tl.minimum(group + GROUP, batch)
    for first in tl.range(group, last, ITEMS, num_stages=1, disable_licm=True):  # pyright: ignore[reportGeneralTypeIssues]
        item = first + tl.arange(0, ITEMS)
        attended = _add_parts(sums_ptr, peaks_ptr, masses_ptr, item, batch, 0, PARTS, HEADS, HEAD_DIM, BLOCK_K)
        y = multiply(first_weights, attended, first, BLOCK_N, TENSOR)
        for start in tl.static_range(BLOCK_K, N_IN, BLOCK_K):  # pyright: ignore[reportGeneralTypeIssues]
            attended = _add_parts(sums_ptr, peaks_ptr, masses_ptr, item, batch, start, PARTS, HEADS, HEAD_DIM, BLOCK_K)
            weights = load_weights(weight_ptr, start, N_IN, N_OUT, BLOCK_N, BLOCK_K, TENSOR)
            y += multiply(weights, attended, first, BLOCK_N, TENSOR)
        if scale is not None:
            y *= scale
        place, mask = places(row, item, batch, N_OUT)
        y += bias + tl.load(x_ptr + place, mask=mask, other=0.0).to(tl.float32)
        tl.store(out_ptr + place, y.to(out_ptr.dtype.element_ty), mask=mask)


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
        (size.blocks, triton.cdiv(batch, _GROUP)),
        *(out, sums, peaks, masses, x, weight, bias, scale, batch),
        num_warps=size.num_warps,
        fp_fusion=not size.tensor,
        PARTS=parts,
        HEADS=heads,
        HEAD_DIM=head_dim,
        N_OUT=x.shape[1],
        GROUP=_GROUP,
        **size.constants,
    )
