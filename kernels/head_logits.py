"""The head of a decode step: logits of all codes from the last layer's result and the frame condition.

One program computes BLOCK_N logits (see gemv). Products and sums are FP32. The weights are the token embedding, or
those of a head of its own.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .gemv import load_items, load_outputs, load_weights, multiply, outputs, places, tile
from .launch import conditions, launch
from .pattern_groups import Specialization


@triton.jit
def _load_inputs(
    x_ptr,
    frame_cond_ptr,
    item,
    pos,
    batch,
    lanes,
    start,
    CONTEXT: tl.constexpr,
    N_IN: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """x + the frame condition at `pos` [ITEMS], elements start ... start + BLOCK_K - 1: [ITEMS, BLOCK_K]."""
    x = load_items(x_ptr, item, batch, start, N_IN, BLOCK_K)
    if frame_cond_ptr is not None:
        # Positions of one item share its condition.
        place = tl.where(item < batch, item % lanes * CONTEXT + pos, lanes * CONTEXT)
        x += load_items(frame_cond_ptr, place, lanes * CONTEXT, start, N_IN, BLOCK_K)
    return x


@triton.jit(do_not_specialize=["batch", "lanes"])
def _head_logits(
    logits_ptr,  # [B, N_OUT] FP32
    x_ptr,  # [B, N_IN]
    frame_cond_ptr,  # [lanes, CONTEXT, N_IN] or None
    positions_ptr,  # [B]
    weight_ptr,  # [N_OUT, N_IN]
    scale_ptr,  # [N_OUT] or None
    batch,
    lanes,
    CONTEXT: tl.constexpr,
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
    scale = None if scale_ptr is None else load_outputs(scale_ptr, row, N_OUT)
    if PDL:
        gdc_wait()
    for first in tl.range(0, batch, ITEMS, num_stages=STAGES, disable_licm=True):  # pyright: ignore[reportGeneralTypeIssues]
        item = first + tl.arange(0, ITEMS)
        pos = tl.load(positions_ptr + item, mask=item < batch, other=0)
        x = _load_inputs(x_ptr, frame_cond_ptr, item, pos, batch, lanes, 0, CONTEXT, N_IN, BLOCK_K)
        y = multiply(first_weights, x, first, BLOCK_N, TENSOR)
        for start in tl.static_range(BLOCK_K, N_IN, BLOCK_K):  # pyright: ignore[reportGeneralTypeIssues]
            x = _load_inputs(x_ptr, frame_cond_ptr, item, pos, batch, lanes, start, CONTEXT, N_IN, BLOCK_K)
            weights = load_weights(weight_ptr, start, N_IN, N_OUT, BLOCK_N, BLOCK_K, TENSOR)
            y += multiply(weights, x, first, BLOCK_N, TENSOR)
        if scale is not None:
            y *= scale
        place, mask = places(row, item, batch, N_OUT)
        tl.store(logits_ptr + place, y, mask=mask)


def head_logits(
    logits: Tensor, x: Tensor, frame_cond: Tensor | None, positions: Tensor, weight: Tensor, scale: Tensor | None
) -> Specialization | None:
    """logits [B, V] (FP32) = (x + frame_cond at `positions` [B]) weight, with x [B, W] and weight [W, V].

    frame_cond: [B, context, W], [I, context, W] where they are several positions of each of I items, or None; scale:
    [V] FP32 for int8 weights, otherwise None.
    """
    batch, n_in = x.shape
    if weight.shape[0] != n_in or logits.shape != (batch, weight.shape[1]):
        raise ValueError(f"logits {tuple(logits.shape)} of x {tuple(x.shape)} and weight {tuple(weight.shape)}")
    size = tile(weight, batch, scale)
    return launch(
        _head_logits,
        size.grid,
        *(logits, x, frame_cond, positions, weight, scale, batch, conditions(frame_cond, batch)),
        num_warps=size.num_warps,
        fp_fusion=not size.tensor,
        CONTEXT=1 if frame_cond is None else frame_cond.shape[1],
        N_IN=n_in,
        N_OUT=weight.shape[1],
        STAGES=size.stages,
        **size.constants,
    )
