"""Factored attention over a chunk of positions, forward and backward, from strided views of the projection.

Forward: one program computes BLOCK_Q queries of one group (see pattern_groups), head and batch item. Scores, softmax
and sums are FP32; the operands of the matrix products keep the inputs' dtype. The head dim is walked in chunks of
BLOCK_D, once for q k^T and once for p v, so a program holds [BLOCK_Q, BLOCK_K] and [BLOCK_Q, BLOCK_D] tiles and
never a [BLOCK_Q, head dim] one: head dim 480 costs no more registers than 64. A group of the models has at most 128
keys, so its scores fit one tile and are computed once; larger groups compute them again for each chunk.

Backward: where a whole group fits one tile, one program per group, head and batch item computes the gradients of all
its queries, keys and values from one pair of [BLOCK_Q, BLOCK_K] tiles, softmax and its gradient. Otherwise one kernel
walks blocks of queries (dq) and a second walks blocks of keys (dk, dv). Each gradient has one writer: no atomics, and
the same bits every time.

Bytes moved: forward reads q, k, v and writes the output; backward reads q, k, v, the output's gradient, and q, k and
that gradient once more, in the same program, while they are in cache; it writes dq, dk, dv. Per query and head another
4 bytes keep the softmax's denominator.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .pattern_groups import (
    at_head,
    capability,
    fold,
    groups,
    key_blocks,
    load_tile,
    log_sum,
    members,
    own_block,
    run,
    scores,
    softmax,
    store_tile,
    strides,
    tiles,
    unit_stride,
)
from .prefill_attention_backward import attention_gradients


@triton.jit
def _forward(
    out_ptr,  # [B, T, H, D], contiguous
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
    ONE_KEY_BLOCK: tl.constexpr,
):
    group, key_group, block = own_block(first_group, num_queries, PATTERN, BLOCK_Q)
    length, heads = stop - query_start, tl.num_programs(1)
    q_head, k_head = at_head(q_ptr, stride_qb, stride_qh), at_head(k_ptr, stride_kb, stride_kh)
    v_head = at_head(v_ptr, stride_kb, stride_kh)
    out_head = at_head(out_ptr, length.to(tl.int64) * heads * HEAD_DIM, HEAD_DIM)

    q_member, q_index, q_valid = members(group, block, row_len, query_start, stop, PATTERN, BLOCK_Q)
    queries = q_head + q_index * stride_qt, q_valid, q_member
    out_rows = out_head + q_index * heads * HEAD_DIM
    top = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_Q], tl.float32)
    if ONE_KEY_BLOCK:
        k_member, k_index, k_valid = members(key_group, 0, row_len, key_start, stop, PATTERN, BLOCK_K)
        keys, v_rows = (k_head + k_index * stride_kt, k_valid, k_member), v_head + k_index * stride_kt
        score = scores(queries, keys, offset, scale, PATTERN, HEAD_DIM, BLOCK_D)
        top, total = fold(score, top, total)
        log_total = log_sum(top, total)
        p = softmax(score).to(v_ptr.dtype.element_ty)
        for start in range(0, HEAD_DIM, BLOCK_D):
            v = load_tile(v_rows, k_valid, start, HEAD_DIM, BLOCK_D)
            store_tile(out_rows, q_valid, start, tl.dot(p, v, input_precision="ieee"), HEAD_DIM, BLOCK_D)
    else:
        blocks = key_blocks(block, num_keys, offset, PATTERN, BLOCK_Q, BLOCK_K)
        for key_block in range(blocks):
            k_member, k_index, k_valid = members(key_group, key_block, row_len, key_start, stop, PATTERN, BLOCK_K)
            keys = k_head + k_index * stride_kt, k_valid, k_member
            score = scores(queries, keys, offset, scale, PATTERN, HEAD_DIM, BLOCK_D)
            top, total = fold(score, top, total)
        log_total = log_sum(top, total)
        for start in range(0, HEAD_DIM, BLOCK_D):
            out = tl.zeros([BLOCK_Q, BLOCK_D], tl.float32)
            for key_block in range(blocks):
                k_member, k_index, k_valid = members(key_group, key_block, row_len, key_start, stop, PATTERN, BLOCK_K)
                keys, v_rows = (k_head + k_index * stride_kt, k_valid, k_member), v_head + k_index * stride_kt
                score = scores(queries, keys, offset, scale, PATTERN, HEAD_DIM, BLOCK_D)
                p = tl.exp2(score - log_total[:, None]).to(v_ptr.dtype.element_ty)
                v = load_tile(v_rows, k_valid, start, HEAD_DIM, BLOCK_D)
                out = tl.dot(p, v, out, input_precision="ieee")
            store_tile(out_rows, q_valid, start, out, HEAD_DIM, BLOCK_D)
    log_sums = at_head(log_sum_ptr, length.to(tl.int64) * heads, length)
    tl.store(log_sums + q_index, log_total, mask=q_valid)


class _PrefillAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, pattern: str, row_len: int, query_start: int, key_start: int
    ) -> Tensor:
        batch, length, heads, head_dim = q.shape
        stop = query_start + length
        sizes = groups(pattern, row_len, query_start, key_start, stop)
        tile = tiles("forward", sizes, head_dim, q.dtype, capability(q))
        out = torch.empty((batch, length, heads, head_dim), dtype=q.dtype, device=q.device)
        log_sums = torch.empty((batch, heads, length), dtype=torch.float32, device=q.device)
        q, k, v = unit_stride(q), unit_stride(k), unit_stride(v)
        if k.stride() != v.stride():
            # They are the same for views of one projection, and for both halves of a cache.
            k, v = k.contiguous(), v.contiguous()
        grid = (sizes.number * triton.cdiv(sizes.queries, tile.queries), heads, batch)
        run(
            _forward,
            grid,
            out,
            log_sums,
            q,
            k,
            v,
            *strides(q, k),
            row_len,
            query_start,
            key_start,
            stop,
            sizes.first,
            sizes.queries,
            sizes.keys,
            sizes.offset,
            math.log2(math.e) / math.sqrt(head_dim),
            PATTERN=pattern,
            HEAD_DIM=head_dim,
            ONE_KEY_BLOCK=sizes.keys <= tile.keys,
            **tile.sizes,
            **tile.options,
        )
        ctx.save_for_backward(q, k, v, log_sums)
        ctx.positions = pattern, row_len, query_start, key_start, stop
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, log_sums = ctx.saved_tensors
        return *attention_gradients(grad_outputs[0], q, k, v, log_sums, *ctx.positions), None, None, None, None


def prefill_attention(
    q: Tensor,  # [B, T, H, D], positions query_start ... query_start + T - 1
    k: Tensor,  # [B, S, H, D], positions key_start ... query_start + T - 1
    v: Tensor,  # [B, S, H, D]
    pattern: str,
    row_len: int,
    query_start: int = 0,
    key_start: int = 0,
) -> Tensor:
    """Attention of a chunk of queries over what `pattern` lets each of them see: [B, T, H, D], contiguous.

    `key_start` lies at the start of a row, early enough for the first query. The inputs may be views with any strides
    whose last is 1. Raises ValueError on shapes that do not fit.
    """
    if k.shape != v.shape or (k.shape[0], *k.shape[2:]) != (q.shape[0], *q.shape[2:]):
        raise ValueError(f"queries {tuple(q.shape)} do not fit keys {tuple(k.shape)} and values {tuple(v.shape)}")
    stop = query_start + q.shape[1]
    if k.shape[1] != stop - key_start or key_start % row_len:
        raise ValueError(
            f"keys {tuple(k.shape)} from {key_start} do not start a row of {row_len} "
            f"and end where queries {tuple(q.shape)} end, {stop}"
        )
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"queries are {q.dtype}, keys {k.dtype}, values {v.dtype}")
    return _PrefillAttention.apply(q, k, v, pattern, row_len, query_start, key_start)
