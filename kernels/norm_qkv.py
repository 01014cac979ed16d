"""LayerNorm, query-key-value projection and cache append of a decode step.

One program computes BLOCK_N of the 3 A outputs (see gemv) and writes queries to a buffer, keys and values to the
cache slot of the item's position; under CROSS there are A outputs, queries alone. Statistics, products and sums are
FP32.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .cache_slots import slot
from .gemv import load_outputs, load_vector, load_weights, norm_multiply, outputs, places, tile
from .launch import launch
from .pattern_groups import Specialization


@triton.jit(do_not_specialize=["batch", "lanes"])
def _norm_qkv(
    q_ptr,  # [B, H D]
    kv_ptr,  # [2, lanes, H, SLOTS, D]
    x_ptr,  # [B, N_IN]
    positions_ptr,  # [B]
    ln_weight_ptr,  # [N_IN]
    ln_bias_ptr,  # [N_IN]
    weight_ptr,  # [3 H D, N_IN]
    bias_ptr,  # [3 H D]
    scale_ptr,  # [3 H D] or None
    batch,
    lanes,
    eps,
    PATTERN: tl.constexpr,
    ROW_LEN: tl.constexpr,
    SLOTS: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    N_IN: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    ITEMS: tl.constexpr,
    STAGES: tl.constexpr,
    TENSOR: tl.constexpr,
    PDL: tl.constexpr,
):
    ATTN_WIDTH: tl.constexpr = HEADS * HEAD_DIM
    # CROSS finds its keys and values in the cache.
    CROSS: tl.constexpr = PATTERN == "cross"
    LYRICS: tl.constexpr = PATTERN == "lyrics"
    N_OUT: tl.constexpr = ATTN_WIDTH if CROSS else 3 * ATTN_WIDTH
    if PDL:
        gdc_launch_dependents()
    row = outputs(BLOCK_N)
    weights = load_weights(weight_ptr, 0, N_IN, N_OUT, BLOCK_N, BLOCK_K, TENSOR)
    ln_weight = load_vector(ln_weight_ptr, 0, N_IN, BLOCK_K)
    ln_bias = load_vector(ln_bias_ptr, 0, N_IN, BLOCK_K)
    bias = load_outputs(bias_ptr, row, N_OUT)
    scale = None if scale_ptr is None else load_outputs(scale_ptr, row, N_OUT)
    part = (row // ATTN_WIDTH)[:, None]
    head = (row % ATTN_WIDTH // HEAD_DIM)[:, None]
    col = (row % HEAD_DIM)[:, None]
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
        place, mask = places(row, item, batch, ATTN_WIDTH)
        tl.store(q_ptr + place, y.to(q_ptr.dtype.element_ty), mask=mask & (part == 0))
        if not CROSS:
            # Positions of one item share its cache, those of all items take turns.
            place = ((part - 1).to(tl.int64) * lanes + (item % lanes)[None, :]) * HEADS + head
            pos = tl.load(positions_ptr + item, mask=item < batch, other=0)
            own = slot(pos, PATTERN, ROW_LEN, SLOTS)
            place = place * SLOTS + own[None, :]
            kept = (part > 0) & (row < N_OUT)[:, None] & (item < batch)[None, :]
            if LYRICS:
                kept &= (own < SLOTS)[None, :]
            tl.store(kv_ptr + place * HEAD_DIM + col, y.to(kv_ptr.dtype.element_ty), mask=kept)


def norm_qkv(
    q: Tensor,
    kv: Tensor,
    x: Tensor,
    positions: Tensor,
    ln_weight: Tensor,
    ln_bias: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None,
    pattern: str,
    row_len: int,
    eps: float = 1e-5,
) -> Specialization | None:
    """Project LayerNorm(x) [B, W] by `weight` [W, 3 H D] to queries, written to `q` [B, H D], and to keys and values,
    written to `kv` [2, B, H, slots, D] where `positions` [B] (int64) are kept; under CROSS by [W, H D] to queries. In
    `kv` [2, I, H, slots, D] they are several positions of each of I items, in different slots or the same: the first of
    all, then the second of all, and so on.

    scale: [3 H D] FP32 for int8 weights, otherwise None.
    """
    batch, (_, lanes, heads, slots, head_dim) = len(positions), kv.shape
    parts = 1 if pattern == "cross" else 3
    shaped = q.shape == (batch, heads * head_dim) and weight.shape == (x.shape[1], parts * heads * head_dim)
    if not shaped or batch % lanes:
        raise ValueError(
            f"x {tuple(x.shape)}, weight {tuple(weight.shape)} and q {tuple(q.shape)} for {tuple(kv.shape)}"
        )
    size = tile(weight, batch, scale)
    return launch(
        _norm_qkv,
        size.grid,
        *(q, kv, x, positions, ln_weight, ln_bias, weight, bias, scale, batch, lanes, eps),
        num_warps=size.num_warps,
        fp_fusion=not size.tensor,
        PATTERN=pattern,
        ROW_LEN=row_len,
        SLOTS=slots,
        HEADS=heads,
        HEAD_DIM=head_dim,
        N_IN=x.shape[1],
        STAGES=size.stages,
        **size.constants,
    )
