"""The two ends of a check of drafted codes (engine/draft_cycle.py), so that the host need not look at each.

An item's positions from `reached` on are checked side by side, as if they were items of a decode step that share a
cache: a lane for each, to the end of the row at most, since a new row takes the place of an older one in the cache.
Lanes that are left over repeat the last position, and write what it writes. The first lanes are all items' first
positions, then come the second ones, and so on. At `limit` it ends: one check too many checks the last code again.

`begin_check`: one program embeds what one lane takes in. `end_check`: one program compares all codes of one item, keeps
those up to the first wrong one, puts the right one there, and prepares the draft's next step. Bytes moved: 4 vectors of
width W each, and a few numbers.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .launch import launch
from .pattern_groups import Specialization
from .sample_step import check_embeddings, embed


@triton.jit
def _checked(reached, limit, ROW_LEN: tl.constexpr):
    """The first and the last position that a check looks at, however many lanes it has."""
    first = tl.minimum(reached, limit - 1)
    return first, tl.minimum(first // ROW_LEN * ROW_LEN + ROW_LEN, limit) - 1


@triton.jit(do_not_specialize=["items"])
def _begin_check(
    x_ptr,  # [lanes * I, W]
    positions_ptr,  # [lanes * I]
    reached_ptr,  # [I]
    limit_ptr,  # [1]
    codes_ptr,  # [I, CONTEXT]
    token_embedding_ptr,  # [V, W]
    pos_embedding_ptr,  # [CONTEXT, W]
    frame_cond_ptr,  # [I, CONTEXT, W] or None
    items,
    CONTEXT: tl.constexpr,
    ROW_LEN: tl.constexpr,
    W: tl.constexpr,
    BLOCK_W: tl.constexpr,
    PDL: tl.constexpr,
):
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    lane = tl.program_id(0).to(tl.int64)
    item = lane % items
    first, last = _checked(tl.load(reached_ptr + item), tl.load(limit_ptr), ROW_LEN)
    pos = tl.minimum(first + lane // items, last)
    tl.store(positions_ptr + lane, pos)
    code = tl.load(codes_ptr + item * CONTEXT + pos - 1)
    cond_ptr = None if frame_cond_ptr is None else frame_cond_ptr + item * CONTEXT * W
    embed(x_ptr + lane * W, code, pos, token_embedding_ptr, pos_embedding_ptr, cond_ptr, W, BLOCK_W)


@triton.jit
def _end_check(
    codes_ptr,  # [I, CONTEXT]
    x_ptr,  # [I, W]
    positions_ptr,  # [I]
    reached_ptr,  # [I]
    counts_ptr,  # [I, 3]
    limit_ptr,  # [1]
    found_ptr,  # [LANES * I, CONTEXT]
    token_embedding_ptr,  # [V, W]
    pos_embedding_ptr,  # [CONTEXT, W]
    frame_cond_ptr,  # [I, CONTEXT, W] or None
    LANES: tl.constexpr,
    CONTEXT: tl.constexpr,
    ROW_LEN: tl.constexpr,
    W: tl.constexpr,
    BLOCK_LANES: tl.constexpr,
    BLOCK_W: tl.constexpr,
    PDL: tl.constexpr,
):
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    item = tl.program_id(0).to(tl.int64)
    items = tl.num_programs(0)
    codes_ptr += item * CONTEXT
    counts_ptr += item * 3
    reached = tl.load(reached_ptr + item)
    limit = tl.load(limit_ptr)
    first, last = _checked(reached, limit, ROW_LEN)
    count = tl.minimum(last - first + 1, LANES)
    lane = tl.arange(0, BLOCK_LANES)
    valid = lane < count
    drafted = tl.load(codes_ptr + first + lane, mask=valid, other=0)
    right = tl.load(found_ptr + (lane * items + item) * CONTEXT + first + lane, mask=valid, other=0)
    same = tl.min(tl.where(valid & (drafted != right), lane, count), axis=0)
    kept = tl.minimum(same, count - 1) + 1
    before = tl.load(codes_ptr + first - 1)
    # All warps must have read what the first of them replaces.
    tl.debug_barrier()
    tl.store(codes_ptr + first + lane, right, mask=lane < kept)
    tl.store(reached_ptr + item, first + kept)
    new = reached < limit
    tl.store(counts_ptr, tl.load(counts_ptr) + tl.where(new, same, 0))
    tl.store(counts_ptr + 1, tl.load(counts_ptr + 1) + tl.where(new, 1, 0))
    tl.store(counts_ptr + 2, tl.load(counts_ptr + 2) + tl.where(new, count, 0))
    pos = tl.minimum(first + kept, limit - 1)
    tl.store(positions_ptr + item, pos)
    # One of those that were just kept, or the one before them.
    code = tl.where(pos > first, tl.sum(tl.where(lane == pos - 1 - first, right, 0), axis=0), before)
    cond_ptr = None if frame_cond_ptr is None else frame_cond_ptr + item * CONTEXT * W
    embed(x_ptr + item * W, code, pos, token_embedding_ptr, pos_embedding_ptr, cond_ptr, W, BLOCK_W)


def _check_conditions(frame_cond: Tensor | None, items: int, context: int) -> None:
    if frame_cond is not None and frame_cond.shape[:2] != (items, context):
        raise ValueError(f"conditions {tuple(frame_cond.shape)} of {items} items")


def begin_check(
    x: Tensor,
    positions: Tensor,
    reached: Tensor,
    limit: Tensor,
    codes: Tensor,
    token_embedding: Tensor,
    pos_embedding: Tensor,
    frame_cond: Tensor | None,
    row_len: int,
) -> Specialization | None:
    """Prepare a step of several positions side by side of each of I items: from its `reached` [I] on, before `limit`
    [1], in its row.

    Written are `positions` [lanes * I] and the inputs `x` [lanes * I, W] from the drafted `codes` [I, context], the
    first position of all items first. Position 0 is not among them: it takes in no code.

    token_embedding [V, W], pos_embedding [context, W], frame_cond [I, context, W] or None.
    """
    items, (lanes, width) = len(reached), x.shape
    context = len(pos_embedding)
    check_embeddings(token_embedding, pos_embedding)
    if len(positions) != lanes or lanes % items or codes.shape != (items, context):
        raise ValueError(f"x {tuple(x.shape)} for {len(positions)} positions, codes {tuple(codes.shape)}")
    _check_conditions(frame_cond, items, context)
    return launch(
        _begin_check,
        (lanes,),
        *(x, positions, reached, limit, codes, token_embedding, pos_embedding, frame_cond, items),
        num_warps=4,
        CONTEXT=context,
        ROW_LEN=row_len,
        W=width,
        BLOCK_W=triton.next_power_of_2(width),
    )


def end_check(
    codes: Tensor,
    x: Tensor,
    positions: Tensor,
    reached: Tensor,
    counts: Tensor,
    limit: Tensor,
    found: Tensor,
    token_embedding: Tensor,
    pos_embedding: Tensor,
    frame_cond: Tensor | None,
    row_len: int,
) -> Specialization | None:
    """Keep each item's drafted `codes` [I, context] up to the first that is not as `found` [lanes * I, context], where
    each lane has the code of its position (see `begin_check`); correct that one, and move `reached` [I] on behind it.

    Written are also the draft's next inputs `x` [I, W] and `positions` [I], and added to `counts` [I, 3] are the codes
    that were drafted right, one check, and the codes that it looked at, unless `limit` [1] was reached before.

    token_embedding [V, W], pos_embedding [context, W], frame_cond [I, context, W] or None: the draft's.
    """
    items, (all_lanes, context) = len(reached), found.shape
    width, lanes = x.shape[1], all_lanes // items
    check_embeddings(token_embedding, pos_embedding)
    shaped = codes.shape == (items, context) and len(x) == len(positions) == items and counts.shape == (items, 3)
    if not shaped or all_lanes % items or pos_embedding.shape != (context, width):
        raise ValueError(f"codes {tuple(codes.shape)}, found {tuple(found.shape)}, x {tuple(x.shape)}")
    _check_conditions(frame_cond, items, context)
    return launch(
        _end_check,
        (items,),
        *(codes, x, positions, reached, counts, limit, found, token_embedding, pos_embedding, frame_cond),
        num_warps=4,
        LANES=lanes,
        CONTEXT=context,
        ROW_LEN=row_len,
        W=width,
        BLOCK_LANES=triton.next_power_of_2(lanes),
        BLOCK_W=triton.next_power_of_2(width),
    )
