"""Gradients of prefill_attention. One program of the kernel here computes the gradients of all queries, keys and values
of one group, head and batch item; groups that do not fit one tile go to prefill_attention_blocks.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .pattern_groups import (
    LN_2,
    at_head,
    capability,
    gradient_tiles,
    groups,
    load_tile,
    members,
    own_block,
    products,
    run,
    scores,
    softmax,
    store_tile,
    strides,
)
from .prefill_attention_blocks import backward_keys, backward_queries


@triton.jit
def _backward_group(
    dq_ptr,  # [B, T, H, D], contiguous, as is all that is written
    dk_ptr,  # [B, S, H, D]
    dv_ptr,  # [B, S, H, D]
    dout_ptr,  # [B, T, H, D], contiguous
    q_ptr,  # [B, T, H, D]
    k_ptr,  # [B, S, H, D]
    v_ptr,  # [B, S, H, D], with the strides of k
    stride_qb,
    stride_qt,
    stride_qh,
    stride_kb,
    stride_kt,
    stride_kh,
    row_len,
    query_start,
    key_start,
    stop,
    first_group,
    num_queries,
    num_keys,
    offset,
    scale,
    PATTERN: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    group, key_group, _ = own_block(first_group, 1, PATTERN, BLOCK_Q)
    heads, length, key_length = tl.num_programs(1), (stop - query_start).to(tl.int64), (stop - key_start).to(tl.int64)
    q_head, k_head = at_head(q_ptr, stride_qb, stride_qh), at_head(k_ptr, stride_kb, stride_kh)
    v_head, dout_head = at_head(v_ptr, stride_kb, stride_kh), at_head(dout_ptr, length * heads * HEAD_DIM, HEAD_DIM)
    q_member, q_index, q_valid = members(group, 0, row_len, query_start, stop, PATTERN, BLOCK_Q)
    k_member, k_index, k_valid = members(key_group, 0, row_len, key_start, stop, PATTERN, BLOCK_K)
    q_rows, dout_rows = q_head + q_index * stride_qt, dout_head + q_index * heads * HEAD_DIM
    k_rows, v_rows = k_head + k_index * stride_kt, v_head + k_index * stride_kt
    dq_rows = at_head(dq_ptr, length * heads * HEAD_DIM, HEAD_DIM) + q_index * heads * HEAD_DIM
    dk_rows = at_head(dk_ptr, key_length * heads * HEAD_DIM, HEAD_DIM) + k_index * heads * HEAD_DIM
    dv_rows = at_head(dv_ptr, key_length * heads * HEAD_DIM, HEAD_DIM) + k_index * heads * HEAD_DIM
    queries, keys = (q_rows, q_valid, q_member), (k_rows, k_valid, k_member)
    p = softmax(scores(queries, keys, offset, scale, PATTERN, HEAD_DIM, BLOCK_D))
    # In a loop of its own, dv shares its memory with what the next loop holds.
    p_keys = tl.trans(p.to(q_ptr.dtype.element_ty))
    for start in range(0, HEAD_DIM, BLOCK_D):
        dout = load_tile(dout_rows, q_valid, start, HEAD_DIM, BLOCK_D)
        store_tile(dv_rows, k_valid, start, tl.dot(p_keys, dout, input_precision="ieee"), HEAD_DIM, BLOCK_D)
    dp = products(dout_rows, q_valid, v_rows, k_valid, HEAD_DIM, BLOCK_D)
    ds = (p * (dp - tl.expand_dims(tl.sum(p * dp, axis=1), 1))).to(q_ptr.dtype.element_ty)
    ds_keys = tl.trans(ds)
    for start in range(0, HEAD_DIM, BLOCK_D):
        k = load_tile(k_rows, k_valid, start, HEAD_DIM, BLOCK_D)
        dq = tl.dot(ds, k, input_precision="ieee") * (scale * LN_2)
        store_tile(dq_rows, q_valid, start, dq, HEAD_DIM, BLOCK_D)
        q = load_tile(q_rows, q_valid, start, HEAD_DIM, BLOCK_D)
        dk = tl.dot(ds_keys, q, input_precision="ieee") * (scale * LN_2)
        store_tile(dk_rows, k_valid, start, dk, HEAD_DIM, BLOCK_D)


def attention_gradients(
    dout: Tensor,  # [B, T, H, D]
    q: Tensor,  # [B, T, H, D]
    k: Tensor,  # [B, S, H, D]
    v: Tensor,  # [B, S, H, D]
    log_sums: Tensor,  # [B, H, T], from the forward pass
    pattern: str,
    row_len: int,
    query_start: int,
    key_start: int,
    stop: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients towards q, k and v, each contiguous."""
    batch, _, heads, head_dim = q.shape
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    sizes = groups(pattern, row_len, query_start, key_start, stop)
    whole, tile = gradient_tiles(sizes, head_dim, q.dtype, capability(q))
    options = {"PATTERN": pattern, "HEAD_DIM": head_dim, **tile.sizes, **tile.options}
    dout = dout.contiguous()
    inputs = (q, k, v, *strides(q, k), row_len, query_start, key_start, stop)
    inputs = (*inputs, sizes.first, sizes.queries, sizes.keys, sizes.offset, math.log2(math.e) / math.sqrt(head_dim))
    if whole:
        run(_backward_group, (sizes.number, heads, batch), dq, dk, dv, dout, *inputs, **options)
        return dq, dk, dv
    delta = torch.empty_like(log_sums)
    grid = (sizes.number * triton.cdiv(sizes.queries, tile.queries), heads, batch)
    run(backward_queries, grid, dq, delta, dout, log_sums, *inputs, **options)
    grid = (sizes.number * triton.cdiv(sizes.keys, tile.keys), heads, batch)
    run(backward_keys, grid, dk, dv, dout, log_sums, delta, *inputs, **options)
    return dq, dk, dv
