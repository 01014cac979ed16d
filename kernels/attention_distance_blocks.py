"""attention_distance for groups larger than a tile, in two kernels.

distance_queries: one program computes the distance of BLOCK_Q queries of one group, head and batch item, their dq, and
three numbers per query. distance_keys: one computes dk of BLOCK_K keys from those and all queries that see them. Both
compute the maps again for each chunk of BLOCK_D elements of the head dim. FP32 but for the operands of the products.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .pattern_groups import LN_2, at_head, fold, key_blocks, load_tile, log_sum, members, own_block, scores, store_tile


@triton.jit
def both_blocks(
    heads,  # this program's in the student and in the teacher
    strides_t,
    group,
    block,
    row_len,
    length,
    PATTERN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A block's (rows, valid, member) in the student and in the teacher, and where it lies."""
    member, index, valid = members(group, block, row_len, 0, length, PATTERN, BLOCK)
    return (heads[0] + index * strides_t[0], valid, member), (heads[1] + index * strides_t[1], valid, member), index


@triton.jit
def softmax_and_difference(
    q,  # rows, valid, member
    teacher_q,
    k,
    teacher_k,
    log_total,
    teacher_log_total,
    scale,
    PATTERN: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The student's softmax p [queries, keys] and p - p_teacher."""
    student = scores(q, k, 0, scale, PATTERN, HEAD_DIM, BLOCK_D)
    teacher = scores(teacher_q, teacher_k, 0, scale, PATTERN, HEAD_DIM, BLOCK_D)
    p = tl.exp2(student - log_total[:, None])
    return p, p - tl.exp2(teacher - teacher_log_total[:, None])


@triton.jit
def distance_queries(
    part_ptr,  # [B, H, T] FP32
    dq_ptr,  # [B, T, H, D], contiguous, written if GRADIENT
    stats_ptr,  # [3, B, H, T] FP32: both log-sums in base 2 and the sum of p (p - p_teacher), written if GRADIENT
    q_ptr,  # [B, T, H, D]
    k_ptr,  # [B, T, H, D], with the strides of q
    teacher_q_ptr,  # [B, T, H, D]
    teacher_k_ptr,  # [B, T, H, D], with the strides of teacher_q
    stride_b,
    stride_t,
    stride_h,
    stride_teacher_b,
    stride_teacher_t,
    stride_teacher_h,
    row_len,
    length,
    num_members,
    scale,
    PATTERN: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    GRADIENT: tl.constexpr,
):
    group, key_group, block = own_block(0, num_members, PATTERN, BLOCK_Q)
    heads, positions = tl.num_programs(1), tl.cast(length, tl.int64)
    q_heads = at_head(q_ptr, stride_b, stride_h), at_head(teacher_q_ptr, stride_teacher_b, stride_teacher_h)
    k_heads = at_head(k_ptr, stride_b, stride_h), at_head(teacher_k_ptr, stride_teacher_b, stride_teacher_h)
    strides_t = stride_t, stride_teacher_t
    q, teacher_q, q_index = both_blocks(q_heads, strides_t, group, block, row_len, length, PATTERN, BLOCK_Q)
    q_valid = q[1]

    top, total = tl.full([BLOCK_Q], float("-inf"), tl.float32), tl.zeros([BLOCK_Q], tl.float32)
    teacher_top, teacher_total = top, total
    blocks = key_blocks(block, num_members, 0, PATTERN, BLOCK_Q, BLOCK_K)
    for key_block in range(blocks):
        k, teacher_k, _ = both_blocks(k_heads, strides_t, key_group, key_block, row_len, length, PATTERN, BLOCK_K)
        top, total = fold(scores(q, k, 0, scale, PATTERN, HEAD_DIM, BLOCK_D), top, total)
        teacher = scores(teacher_q, teacher_k, 0, scale, PATTERN, HEAD_DIM, BLOCK_D)
        teacher_top, teacher_total = fold(teacher, teacher_top, teacher_total)
    log_total, teacher_log_total = log_sum(top, total), log_sum(teacher_top, teacher_total)

    distance, inner = tl.zeros([BLOCK_Q], tl.float32), tl.zeros([BLOCK_Q], tl.float32)
    for key_block in range(blocks):
        k, teacher_k, _ = both_blocks(k_heads, strides_t, key_group, key_block, row_len, length, PATTERN, BLOCK_K)
        p, difference = softmax_and_difference(
            q, teacher_q, k, teacher_k, log_total, teacher_log_total, scale, PATTERN, HEAD_DIM, BLOCK_D
        )
        distance += tl.sum(difference * difference, axis=1)
        inner += tl.sum(p * difference, axis=1)
    tl.store(at_head(part_ptr, positions * heads, positions) + q_index, distance, mask=q_valid)

    if GRADIENT:
        stats = at_head(stats_ptr, positions * heads, positions) + q_index
        one_stat = positions * heads * tl.num_programs(2)
        tl.store(stats, log_total, mask=q_valid)
        tl.store(stats + one_stat, teacher_log_total, mask=q_valid)
        tl.store(stats + 2 * one_stat, inner, mask=q_valid)
        dq_rows = at_head(dq_ptr, positions * heads * HEAD_DIM, HEAD_DIM) + q_index * heads * HEAD_DIM
        for start in range(0, HEAD_DIM, BLOCK_D):
            dq = tl.zeros([BLOCK_Q, BLOCK_D], tl.float32)
            for key_block in range(blocks):
                k, teacher_k, _ = both_blocks(
                    k_heads, strides_t, key_group, key_block, row_len, length, PATTERN, BLOCK_K
                )
                p, difference = softmax_and_difference(
                    q, teacher_q, k, teacher_k, log_total, teacher_log_total, scale, PATTERN, HEAD_DIM, BLOCK_D
                )
                ds = (2.0 * p * (difference - inner[:, None])).to(q_ptr.dtype.element_ty)
                dq = tl.dot(ds, load_tile(k[0], k[1], start, HEAD_DIM, BLOCK_D), dq, input_precision="ieee")
            store_tile(dq_rows, q_valid, start, dq * (scale * LN_2), HEAD_DIM, BLOCK_D)


@triton.jit
def distance_keys(
    dk_ptr,  # [B, T, H, D], contiguous
    stats_ptr,  # [3, B, H, T] FP32, see distance_queries
    q_ptr,  # [B, T, H, D]
    k_ptr,  # [B, T, H, D], with the strides of q
    teacher_q_ptr,  # [B, T, H, D]
    teacher_k_ptr,  # [B, T, H, D], with the strides of teacher_q
    stride_b,
    stride_t,
    stride_h,
    stride_teacher_b,
    stride_teacher_t,
    stride_teacher_h,
    row_len,
    length,
    num_members,
    scale,
    PATTERN: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    group, key_group, block = own_block(0, num_members, PATTERN, BLOCK_K)
    heads, positions = tl.num_programs(1), tl.cast(length, tl.int64)
    q_heads = at_head(q_ptr, stride_b, stride_h), at_head(teacher_q_ptr, stride_teacher_b, stride_teacher_h)
    k_heads = at_head(k_ptr, stride_b, stride_h), at_head(teacher_k_ptr, stride_teacher_b, stride_teacher_h)
    strides_t = stride_t, stride_teacher_t
    stats_head = at_head(stats_ptr, positions * heads, positions)
    one_stat = positions * heads * tl.num_programs(2)
    k, teacher_k, k_index = both_blocks(k_heads, strides_t, key_group, block, row_len, length, PATTERN, BLOCK_K)
    dk_rows = at_head(dk_ptr, positions * heads * HEAD_DIM, HEAD_DIM) + k_index * heads * HEAD_DIM
    first_block = 0
    if PATTERN != "previous_row":
        first_block = block * BLOCK_K // BLOCK_Q
    for start in range(0, HEAD_DIM, BLOCK_D):
        dk = tl.zeros([BLOCK_K, BLOCK_D], tl.float32)
        for query_block in range(first_block, tl.cdiv(num_members, BLOCK_Q)):
            q, teacher_q, q_index = both_blocks(
                q_heads, strides_t, group, query_block, row_len, length, PATTERN, BLOCK_Q
            )
            stats = stats_head + q_index
            log_total = tl.load(stats, mask=q[1], other=0.0)
            teacher_log_total = tl.load(stats + one_stat, mask=q[1], other=0.0)
            inner = tl.load(stats + 2 * one_stat, mask=q[1], other=0.0)
            p, difference = softmax_and_difference(
                q, teacher_q, k, teacher_k, log_total, teacher_log_total, scale, PATTERN, HEAD_DIM, BLOCK_D
            )
            ds = (2.0 * p * (difference - inner[:, None])).to(q_ptr.dtype.element_ty)
            queries = load_tile(q[0], q[1], start, HEAD_DIM, BLOCK_D)
            dk = tl.dot(tl.trans(ds), queries, dk, input_precision="ieee")
        store_tile(dk_rows, k[1], start, dk * (scale * LN_2), HEAD_DIM, BLOCK_D)
