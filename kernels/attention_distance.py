"""Squared distance between a student's and a teacher's attention maps, and its gradient, without storing a map.

Where a whole group (see pattern_groups) fits one tile, as in all models, one program computes both [queries, keys]
maps of one group, head and batch item, their distance, and the gradients towards the student's queries and keys, in
one kernel and one pass. Larger groups take two: one program per block of queries (distance, dq, and per query what the
second needs), one per block of keys (dk). Softmax, distance and sums are FP32; operands of products keep the inputs'
dtype.

The forward pass computes the gradients of the sum over all queries, which FP16 holds whatever the number of queries
and the loss scale; the backward pass only scales them. Each program writes its own part of the distance, and the
parts are summed in a fixed order: the same bits every time.

Bytes moved: q and k of both once, and the student's once more from cache; dq and dk.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .attention_distance_blocks import both_blocks, distance_keys, distance_queries
from .pattern_groups import (
    LN_2,
    at_head,
    capability,
    gradient_tiles,
    groups,
    load_tile,
    own_block,
    run,
    scores,
    softmax,
    store_tile,
    strides,
    unit_stride,
)


@triton.jit
def _distance_group(
    part_ptr,  # [groups, H, B] FP32
    dq_ptr,  # [B, T, H, D], contiguous, written if GRADIENT
    dk_ptr,  # [B, T, H, D], contiguous, written if GRADIENT
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
    scale,
    PATTERN: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    GRADIENT: tl.constexpr,
):
    group, key_group, _ = own_block(0, 1, PATTERN, BLOCK_Q)
    heads = tl.num_programs(1)
    q_heads = at_head(q_ptr, stride_b, stride_h), at_head(teacher_q_ptr, stride_teacher_b, stride_teacher_h)
    k_heads = at_head(k_ptr, stride_b, stride_h), at_head(teacher_k_ptr, stride_teacher_b, stride_teacher_h)
    strides_t = stride_t, stride_teacher_t
    q, teacher_q, q_index = both_blocks(q_heads, strides_t, group, 0, row_len, length, PATTERN, BLOCK_Q)
    k, teacher_k, k_index = both_blocks(k_heads, strides_t, key_group, 0, row_len, length, PATTERN, BLOCK_K)
    p = softmax(scores(q, k, 0, scale, PATTERN, HEAD_DIM, BLOCK_D))
    difference = p - softmax(scores(teacher_q, teacher_k, 0, scale, PATTERN, HEAD_DIM, BLOCK_D))
    part = (group * heads + tl.program_id(1)) * tl.num_programs(2) + tl.program_id(2)
    tl.store(part_ptr + part, tl.sum(difference * difference))
    if GRADIENT:
        # 2 (p - p_teacher) through the softmax.
        ds = 2.0 * p * (difference - tl.expand_dims(tl.sum(p * difference, axis=1), 1))
        ds = ds.to(q_ptr.dtype.element_ty)
        ds_keys = tl.trans(ds)
        # `length` is a constant where it is 1, and constants have no `to`.
        stride_out_b = tl.cast(length, tl.int64) * heads * HEAD_DIM
        dq_rows = at_head(dq_ptr, stride_out_b, HEAD_DIM) + q_index * heads * HEAD_DIM
        dk_rows = at_head(dk_ptr, stride_out_b, HEAD_DIM) + k_index * heads * HEAD_DIM
        grad_scale = scale * LN_2
        for start in range(0, HEAD_DIM, BLOCK_D):
            dq = tl.dot(ds, load_tile(k[0], k[1], start, HEAD_DIM, BLOCK_D), input_precision="ieee") * grad_scale
            store_tile(dq_rows, q[1], start, dq, HEAD_DIM, BLOCK_D)
            dk = tl.dot(ds_keys, load_tile(q[0], q[1], start, HEAD_DIM, BLOCK_D), input_precision="ieee") * grad_scale
            store_tile(dk_rows, k[1], start, dk, HEAD_DIM, BLOCK_D)


class _AttentionDistance(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, teacher_q: Tensor, teacher_k: Tensor, pattern: str, row_len: int, gradient: bool
    ) -> Tensor:
        batch, length, heads, head_dim = q.shape
        q, k = _like_strided(q, k)
        teacher_q, teacher_k = _like_strided(teacher_q, teacher_k)
        # Without gradients nothing is written to these.
        dq, dk = (torch.empty(x.shape if gradient else (1,), dtype=x.dtype, device=x.device) for x in (q, k))
        sizes = groups(pattern, row_len, 0, 0, length)
        whole, tile = gradient_tiles(sizes, head_dim, q.dtype, capability(q))
        options = {"PATTERN": pattern, "HEAD_DIM": head_dim, **tile.sizes, **tile.options}
        inputs = (q, k, teacher_q, teacher_k, *strides(q, teacher_q), row_len, length)
        scale = math.log2(math.e) / math.sqrt(head_dim)
        shape = (sizes.number, heads, batch) if whole else (batch, heads, length)
        parts = torch.empty(shape, dtype=torch.float32, device=q.device)
        if whole:
            run(_distance_group, shape, parts, dq, dk, *inputs, scale, GRADIENT=gradient, **options)
        else:
            stats = torch.empty((3, batch, heads, length if gradient else 1), dtype=torch.float32, device=q.device)
            grid = (sizes.number * triton.cdiv(sizes.queries, tile.queries), heads, batch)
            run(distance_queries, grid, parts, dq, stats, *inputs, sizes.queries, scale, GRADIENT=gradient, **options)
            if gradient:
                grid = (sizes.number * triton.cdiv(sizes.keys, tile.keys), heads, batch)
                run(distance_keys, grid, dk, stats, *inputs, sizes.keys, scale, **options)
        ctx.save_for_backward(dq, dk)
        ctx.count = batch * heads * length
        return parts.sum() / ctx.count

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        dq, dk = ctx.saved_tensors
        factor = grad_outputs[0] / ctx.count
        # In FP32: on a GPU the factor would be rounded to the gradients' dtype first.
        dq, dk = ((gradient.float() * factor).to(gradient.dtype) for gradient in (dq, dk))
        return dq, dk, None, None, None, None, None


def _like_strided(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Both with contiguous vectors and the same strides, as views of one projection are, which stay what they are."""
    q, k = unit_stride(q), unit_stride(k)
    return (q, k) if q.stride() == k.stride() else (q.contiguous(), k.contiguous())


def attention_distance(
    q: Tensor,  # [B, T, H, D]
    k: Tensor,  # [B, T, H, D]
    teacher_q: Tensor,  # [B, T, H, D]
    teacher_k: Tensor,  # [B, T, H, D]
    pattern: str,
    row_len: int,
) -> Tensor:
    """The mean over batch items, heads and queries of the sum over visible keys of (p - p_teacher)^2: an FP32 scalar.

    Divided by T it is the mean squared error of two T x T maps. No gradient reaches the teacher. Raises ValueError on
    shapes or dtypes that differ.
    """
    if not q.shape == k.shape == teacher_q.shape == teacher_k.shape:
        raise ValueError(
            f"student {tuple(q.shape)} and {tuple(k.shape)}, teacher {tuple(teacher_q.shape)} and "
            f"{tuple(teacher_k.shape)} must have one shape"
        )
    if not q.dtype == k.dtype == teacher_q.dtype == teacher_k.dtype:
        raise ValueError(f"student {q.dtype} and {k.dtype}, teacher {teacher_q.dtype} and {teacher_k.dtype}")
    gradient = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad)
    return _AttentionDistance.apply(q, k, teacher_q.detach(), teacher_k.detach(), pattern, row_len, gradient)
