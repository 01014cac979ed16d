"""The head of a decode step: logits of all codes from the last layer's result and the frame condition.

One program computes BLOCK_N logits (see gemv). Products and sums are FP32. The weights are the token embedding.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .gemv import dot, load_outputs, load_rows, load_vector, tile
from .launch import launch
from .pattern_groups import Specialization


@triton.jit(do_not_specialize=["batch"])
def _head_logits(
    logits_ptr,  # [B, N_OUT] FP32
    x_ptr,  # [B, N_IN]
    frame_cond_ptr,  # [B, CONTEXT, N_IN] or None
    positions_ptr,  # [B]
    weight_ptr,  # [N_OUT, N_IN]
    scale_ptr,  # [N_OUT] or None
    batch,
    CONTEXT: tl.constexpr,
    N_IN: tl.constexpr,
    N_OUT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
    PDL: tl.constexpr,
):
    if PDL:
        gdc_launch_dependents()
    row = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    first = load_rows(weight_ptr, row, 0, N_IN, N_OUT, BLOCK_K)
    scale = None if scale_ptr is None else load_outputs(scale_ptr, row, N_OUT)
    if PDL:
        gdc_wait()
    group = tl.program_id(1) * GROUP
    for item in tl.range(group, tl.minimum(group + GROUP, batch), disable_licm=True):  # pyright: ignore[reportGeneralTypeIssues]
        cond = (item * CONTEXT + tl.load(positions_ptr + item)) * N_IN
        x = load_vector(x_ptr + item * N_IN, 0, N_IN, BLOCK_K).to(tl.float32)
        if frame_cond_ptr is not None:
            x += load_vector(frame_cond_ptr + cond, 0, N_IN, BLOCK_K).to(tl.float32)
        y = dot(first, x, item)
        for start in tl.static_range(BLOCK_K, N_IN, BLOCK_K):  # pyright: ignore[reportGeneralTypeIssues]
            x = load_vector(x_ptr + item * N_IN, start, N_IN, BLOCK_K).to(tl.float32)
            if frame_cond_ptr is not None:
                x += load_vector(frame_cond_ptr + cond, start, N_IN, BLOCK_K).to(tl.float32)
            y += dot(load_rows(weight_ptr, row, start, N_IN, N_OUT, BLOCK_K), x, item)
        if scale is not None:
            y *= scale
        tl.store(logits_ptr + item * N_OUT + row, y, mask=row < N_OUT)


def head_logits(
    logits: Tensor, x: Tensor, frame_cond: Tensor | None, positions: Tensor, weight: Tensor, scale: Tensor | None
) -> Specialization | None:
    """logits [B, V] (FP32) = (x + frame_cond at `positions` [B]) weight, with x [B, W] and weight [W, V].

    frame_cond: [B, context, W] or None; scale: [V] FP32 for int8 weights, otherwise None.
    """
    batch, n_in = x.shape
    if weight.shape[0] != n_in or logits.shape != (batch, weight.shape[1]):
        raise ValueError(f"logits {tuple(logits.shape)} of x {tuple(x.shape)} and weight {tuple(weight.shape)}")
    size = tile(weight, batch, scale)
    return launch(
        _head_logits,
        size.grid,
        *(logits, x, frame_cond, positions, weight, scale, batch),
        num_warps=size.num_warps,
        CONTEXT=1 if frame_cond is None else frame_cond.shape[1],
        N_IN=n_in,
        N_OUT=weight.shape[1],
        **size.constants,
    )
