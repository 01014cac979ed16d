"""Attention of one query per item over the keys that its pattern lets it see, in parts.

One program attends one part of the keys of one head and item, PART keys in blocks of BLOCK_S, with the running
softmax of FlashAttention in FP32. It writes what a later sum needs: its largest score, the sum of exp(score - largest)
and that sum's weighted values. Parts make one query wide enough for a GPU: a column of 128 keys of head dim 480 is
246 KB in FP16, too much for one multiprocessor. The output projection adds the parts.

Bytes moved: each visible key and value once; per part, item and head D + 2 FP32 numbers.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .cache_slots import visible
from .launch import launch
from .pattern_groups import Specialization
from .reference import attention_parts


@triton.jit(do_not_specialize=["lanes"])
def _cache_attention(
    sums_ptr,  # [B, PARTS, H, D]
    peaks_ptr,  # [B, PARTS, H]
    masses_ptr,  # [B, PARTS, H]
    q_ptr,  # [B, H, D]
    kv_ptr,  # [2, lanes, H, SLOTS, D]
    positions_ptr,  # [B]
    lanes,
    PATTERN: tl.constexpr,
    ROW_LEN: tl.constexpr,
    SLOTS: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PARTS: tl.constexpr,
    PART: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PDL: tl.constexpr,
):
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    part = tl.program_id(0)
    # Item times heads plus head. Positions of one item share its cache, those of all items take turns.
    lane = tl.program_id(1).to(tl.int64)
    item = lane // HEADS
    cached = item % lanes * HEADS + lane % HEADS
    first, count = visible(tl.load(positions_ptr + item), PATTERN, ROW_LEN, SLOTS)
    col = tl.arange(0, BLOCK_D)
    # The softmax is taken to base 2.
    q = tl.load(q_ptr + lane * HEAD_DIM + col, mask=col < HEAD_DIM, other=0.0).to(tl.float32)
    q *= HEAD_DIM**-0.5 * 1.4426950408889634
    keys_ptr = kv_ptr + (cached * SLOTS + first) * HEAD_DIM
    values_ptr = keys_ptr + lanes.to(tl.int64) * HEADS * SLOTS * HEAD_DIM
    peak = float("-inf")
    mass = 0.0
    total = tl.zeros([BLOCK_D], tl.float32)
    for start in range(part * PART, tl.minimum(part * PART + PART, count), BLOCK_S):
        key = start + tl.arange(0, BLOCK_S)
        offset = key.to(tl.int64)[:, None] * HEAD_DIM + col[None, :]
        mask = (key < count)[:, None] & (col < HEAD_DIM)[None, :]
        keys = tl.load(keys_ptr + offset, mask=mask, other=0.0)
        values = tl.load(values_ptr + offset, mask=mask, other=0.0)
        scores = tl.where(key < count, tl.sum(keys.to(tl.float32) * q[None, :], axis=1), float("-inf"))
        # A block has one visible key at least, or it would not be looked at.
        higher = tl.maximum(peak, tl.max(scores, axis=0))
        weights = tl.exp2(scores - higher)
        shrink = tl.exp2(peak - higher)
        mass = mass * shrink + tl.sum(weights, axis=0)
        total = total * shrink + tl.sum(values.to(tl.float32) * weights[:, None], axis=0)
        peak = higher
    place = (item * PARTS + part) * HEADS + lane % HEADS
    tl.store(sums_ptr + place * HEAD_DIM + col, total, mask=col < HEAD_DIM)
    tl.store(peaks_ptr + place, peak)
    tl.store(masses_ptr + place, mass)


def cache_attention(
    sums: Tensor, peaks: Tensor, masses: Tensor, q: Tensor, kv: Tensor, positions: Tensor, pattern: str, row_len: int
) -> Specialization | None:
    """Attend `q` [B, H D] over the part of `kv` [2, B, H, slots, D] that `positions` [B] see; or of [2, I, H, slots, D]
    where they are several positions of each of I items, the first of all, then the second of all, and so on.

    Keys are taken in the parts of `reference.attention_parts`. Written are, all FP32 and with scores in units of log2:
    `peaks` [B, parts, H], the largest score of each part; `masses` of the same shape, the sum of 2^(score - peak);
    `sums` [B, parts, H, D], the values weighted with that. A part that sees no key has peak -inf, mass 0 and sums 0.
    """
    batch, (_, lanes, heads, slots, head_dim) = len(positions), kv.shape
    parts, part = attention_parts(pattern, row_len, slots)
    if sums.shape != (batch, parts, heads, head_dim) or q.shape != (batch, heads * head_dim) or batch % lanes:
        raise ValueError(f"q {tuple(q.shape)} and sums {tuple(sums.shape)} for {tuple(kv.shape)} in {parts} parts")
    return launch(
        _cache_attention,
        (parts, batch * heads),
        *(sums, peaks, masses, q, kv, positions, lanes),
        num_warps=8,
        PATTERN=pattern,
        ROW_LEN=row_len,
        SLOTS=slots,
        HEADS=heads,
        HEAD_DIM=head_dim,
        PARTS=parts,
        PART=part,
        BLOCK_S=16 if kv.dtype.itemsize == 2 else 8,
        BLOCK_D=triton.next_power_of_2(head_dim),
    )
