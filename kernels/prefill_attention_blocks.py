"""Gradients of prefill_attention for groups larger than a tile.

backward_queries: one program computes dq of BLOCK_Q queries of one group, head and batch item, and each query's sum of
p dp. backward_keys: one computes dk and dv of BLOCK_K keys from all queries that see them. Both compute the softmax
and its gradient again for each chunk of BLOCK_D elements of the head dim, so that no program holds more than one chunk.
FP32 but for the operands of the products.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .pattern_groups import LN_2, at_head, key_blocks, load_tile, members, own_block, products, scores, store_tile


@triton.jit
def softmax_and_gradient(
    dout_rows,
    log_total,
    queries,  # rows, valid, member
    keys,  # rows, valid, member
    v_rows,
    offset,
    scale,
    PATTERN: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The softmax p [queries, keys] and the loss's gradient towards it."""
    score = scores(queries, keys, offset, scale, PATTERN, HEAD_DIM, BLOCK_D)
    dp = products(dout_rows, queries[1], v_rows, keys[1], HEAD_DIM, BLOCK_D)
    return tl.exp2(score - log_total[:, None]), dp


@triton.jit
def backward_queries(
    dq_ptr,  # [B, T, H, D]
    delta_ptr,  # [B, H, T] FP32: sum of p dp over the keys
    dout_ptr,  # [B, T, H, D], contiguous
    log_sum_ptr,  # [B, H, T] FP32, base 2
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
    group, key_group, block = own_block(first_group, num_queries, PATTERN, BLOCK_Q)
    heads, length = tl.num_programs(1), (stop - query_start).to(tl.int64)
    q_head, k_head = at_head(q_ptr, stride_qb, stride_qh), at_head(k_ptr, stride_kb, stride_kh)
    v_head, dout_head = at_head(v_ptr, stride_kb, stride_kh), at_head(dout_ptr, length * heads * HEAD_DIM, HEAD_DIM)
    log_sums = at_head(log_sum_ptr, length * heads, length)
    q_member, q_index, q_valid = members(group, block, row_len, query_start, stop, PATTERN, BLOCK_Q)
    queries, dout_rows = (q_head + q_index * stride_qt, q_valid, q_member), dout_head + q_index * heads * HEAD_DIM
    log_total = tl.load(log_sums + q_index, mask=q_valid, other=0.0)
    delta = tl.zeros([BLOCK_Q], tl.float32)
    blocks = key_blocks(block, num_keys, offset, PATTERN, BLOCK_Q, BLOCK_K)
    for key_block in range(blocks):
        k_member, k_index, k_valid = members(key_group, key_block, row_len, key_start, stop, PATTERN, BLOCK_K)
        keys, v_rows = (k_head + k_index * stride_kt, k_valid, k_member), v_head + k_index * stride_kt
        p, dp = softmax_and_gradient(
            dout_rows, log_total, queries, keys, v_rows, offset, scale, PATTERN, HEAD_DIM, BLOCK_D
        )
        delta += tl.sum(p * dp, axis=1)
    tl.store(at_head(delta_ptr, length * heads, length) + q_index, delta, mask=q_valid)
    dq_rows = at_head(dq_ptr, length * heads * HEAD_DIM, HEAD_DIM) + q_index * heads * HEAD_DIM
    for start in range(0, HEAD_DIM, BLOCK_D):
        dq = tl.zeros([BLOCK_Q, BLOCK_D], tl.float32)
        for key_block in range(blocks):
            k_member, k_index, k_valid = members(key_group, key_block, row_len, key_start, stop, PATTERN, BLOCK_K)
            k_rows, v_rows = k_head + k_index * stride_kt, v_head + k_index * stride_kt
            keys = k_rows, k_valid, k_member
            p, dp = softmax_and_gradient(
                dout_rows, log_total, queries, keys, v_rows, offset, scale, PATTERN, HEAD_DIM, BLOCK_D
            )
            ds = (p * (dp - delta[:, None])).to(q_ptr.dtype.element_ty)
            dq = tl.dot(ds, load_tile(k_rows, k_valid, start, HEAD_DIM, BLOCK_D), dq, input_precision="ieee")
        store_tile(dq_rows, q_valid, start, dq * (scale * LN_2), HEAD_DIM, BLOCK_D)


@triton.jit
def backward_keys(
    dk_ptr,  # [B, S, H, D]
    dv_ptr,  # [B, S, H, D]
    dout_ptr,  # [B, T, H, D], contiguous
    log_sum_ptr,  # [B, H, T] FP32, base 2
    delta_ptr,  # [B, H, T] FP32
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
    group, key_group, block = own_block(first_group, num_keys, PATTERN, BLOCK_K)
    heads, length, key_length = tl.num_programs(1), (stop - query_start).to(tl.int64), (stop - key_start).to(tl.int64)
    q_head, k_head = at_head(q_ptr, stride_qb, stride_qh), at_head(k_ptr, stride_kb, stride_kh)
    v_head, dout_head = at_head(v_ptr, stride_kb, stride_kh), at_head(dout_ptr, length * heads * HEAD_DIM, HEAD_DIM)
    log_sums = at_head(log_sum_ptr, length * heads, length)
    deltas = at_head(delta_ptr, length * heads, length)
    k_member, k_index, k_valid = members(key_group, block, row_len, key_start, stop, PATTERN, BLOCK_K)
    k_rows, v_rows = k_head + k_index * stride_kt, v_head + k_index * stride_kt
    keys = k_rows, k_valid, k_member
    dk_rows = at_head(dk_ptr, key_length * heads * HEAD_DIM, HEAD_DIM) + k_index * heads * HEAD_DIM
    dv_rows = at_head(dv_ptr, key_length * heads * HEAD_DIM, HEAD_DIM) + k_index * heads * HEAD_DIM
    first_block = 0
    if PATTERN != "previous_row":
        # The first query that sees a key of this block.
        first_block = tl.maximum(block * BLOCK_K - offset, 0) // BLOCK_Q
    for start in range(0, HEAD_DIM, BLOCK_D):
        dk = tl.zeros([BLOCK_K, BLOCK_D], tl.float32)
        dv = tl.zeros([BLOCK_K, BLOCK_D], tl.float32)
        for query_block in range(first_block, tl.cdiv(num_queries, BLOCK_Q)):
            q_member, q_index, q_valid = members(group, query_block, row_len, query_start, stop, PATTERN, BLOCK_Q)
            q_rows, dout_rows = q_head + q_index * stride_qt, dout_head + q_index * heads * HEAD_DIM
            queries = q_rows, q_valid, q_member
            log_total = tl.load(log_sums + q_index, mask=q_valid, other=0.0)
            delta = tl.load(deltas + q_index, mask=q_valid, other=0.0)
            p, dp = softmax_and_gradient(
                dout_rows, log_total, queries, keys, v_rows, offset, scale, PATTERN, HEAD_DIM, BLOCK_D
            )
            ds = tl.trans((p * (dp - delta[:, None])).to(q_ptr.dtype.element_ty))
            dk = tl.dot(ds, load_tile(q_rows, q_valid, start, HEAD_DIM, BLOCK_D), dk, input_precision="ieee")
            p = tl.trans(p.to(q_ptr.dtype.element_ty))
            dv = tl.dot(p, load_tile(dout_rows, q_valid, start, HEAD_DIM, BLOCK_D), dv, input_precision="ieee")
        store_tile(dk_rows, k_valid, start, dk * (scale * LN_2), HEAD_DIM, BLOCK_D)
        store_tile(dv_rows, k_valid, start, dv, HEAD_DIM, BLOCK_D)
