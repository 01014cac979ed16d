"""The end of a decode step: a code drawn from the logits, and the input of the next step.

One program does both for one item, in FP32: temperature, top-k and top-p as thresholds, Gumbel noise from Philox,
argmax, then token embedding plus position embedding plus frame condition, and the item's position moves on by one. A
draft waits at the end of a row for its check (check_drafts.py): it does the row's last position again.

A threshold is found bit by bit on a whole number that orders as the logits do: 32 sums over the logits instead of a
sort. Bytes moved: the logits, 4 vectors of width W, 3 numbers.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .launch import conditions, launch
from .pattern_groups import Specialization


@triton.jit
def philox4x32(c0, c1, c2, c3, k0, k1):
    """Ten rounds on four counter words and two key words, all int64 that hold 32 bits; see `philox.philox4x32`."""
    c0 = c0.to(tl.uint64)
    c1 = c1.to(tl.uint64)
    c2 = c2.to(tl.uint64)
    c3 = c3.to(tl.uint64)
    k0 = k0.to(tl.uint64)
    k1 = k1.to(tl.uint64)
    for _ in tl.static_range(10):  # pyright: ignore[reportGeneralTypeIssues]
        product_0 = c0 * 0xD2511F53
        product_2 = c2 * 0xCD9E8D57
        c0 = (product_2 >> 32) ^ c1 ^ k0
        c2 = (product_0 >> 32) ^ c3 ^ k1
        c1 = product_2 & 0xFFFFFFFF
        c3 = product_0 & 0xFFFFFFFF
        k0 = (k0 + 0x9E3779B9) & 0xFFFFFFFF
        k1 = (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c0, c1, c2, c3


@triton.jit
def random_bits(noise_key_ptr, item, pos, BLOCK_V: tl.constexpr):
    """[BLOCK_V] uint64 words of 32 random bits for the codes at position `pos` of a window."""
    block = tl.arange(0, BLOCK_V // 4)
    zero = (block * 0).to(tl.int64)
    position = tl.load(noise_key_ptr + 3) + pos
    w0, w1, w2, w3 = philox4x32(
        zero + item,
        zero + tl.load(noise_key_ptr + 2),
        zero + position,
        zero + block,
        tl.load(noise_key_ptr),
        tl.load(noise_key_ptr + 1),
    )
    # Code v takes word v % 4 of block v // 4.
    return tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), [BLOCK_V])


@triton.jit
def threshold(order, share, limit):
    """The largest t for which the `share` of all elements with order >= t sums to more than `limit`; 0 if none."""
    found = tl.full([], 0, tl.uint32)
    bit = tl.full([], 1 << 31, tl.uint32)
    for _ in range(32):
        tried = found | bit
        more = tl.sum(tl.where(order >= tried, share, 0.0), axis=0) > limit
        found = tl.where(more, tried, found)
        bit = bit >> 1
    return found


@triton.jit
def filtered(logits, filters_ptr, valid, V: tl.constexpr):
    """Logits [BLOCK_V] / temperature, -inf outside the top k, then outside the nucleus."""
    logits = logits / tl.load(filters_ptr)
    top_k = tl.load(filters_ptr + 1)
    top_p = tl.load(filters_ptr + 2)
    # Read as whole numbers, floats of one sign are in order; flipping the sign, and all else of the negative ones,
    # orders all. In 32 bits: where four programs fill a multiprocessor a thread has 32 registers, and ptxas may rather
    # spill than leave it part empty.
    bits = logits.to(tl.uint32, bitcast=True)
    order = tl.where(bits < 0x80000000, bits ^ 0x80000000, bits ^ 0xFFFFFFFF)
    if top_k > 0:
        last = threshold(order, valid.to(tl.float32), tl.minimum(top_k, V) - 0.5)
        # Compared as floats, so that a negative zero ties with a positive one.
        least = tl.min(tl.where(order >= last, logits, float("inf")), axis=0)
        logits = tl.where(logits >= least, logits, float("-inf"))
    if top_p < 1.0:
        mass = tl.exp(logits - tl.max(logits, axis=0))
        # A code goes if the mass of those above it exceeds top_p.
        last = threshold(order, mass, top_p * tl.sum(mass, axis=0))
        least = tl.min(tl.where(order >= last, logits, float("inf")), axis=0)
        logits = tl.where(logits >= least, logits, float("-inf"))
    return logits


@triton.jit
def embed(
    x_ptr,  # [W]
    code,
    pos,
    token_embedding_ptr,  # [V, W]
    pos_embedding_ptr,  # [CONTEXT, W]
    frame_cond_ptr,  # [CONTEXT, W] or None
    W: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """Write what position `pos` takes in after `code`."""
    col = tl.arange(0, BLOCK_W)
    mask = col < W
    x = tl.load(token_embedding_ptr + code * W + col, mask=mask).to(tl.float32)
    x += tl.load(pos_embedding_ptr + pos * W + col, mask=mask).to(tl.float32)
    if frame_cond_ptr is not None:
        x += tl.load(frame_cond_ptr + pos * W + col, mask=mask).to(tl.float32)
    tl.store(x_ptr + col, x.to(x_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["lanes"])
def _sample_step(
    codes_ptr,  # [B, CONTEXT] int64
    x_ptr,  # [B, W]
    positions_ptr,  # [B] int64
    logits_ptr,  # [B, V] FP32
    items_ptr,  # [B] int64
    noise_key_ptr,  # [4] int64
    filters_ptr,  # [3] FP32
    token_embedding_ptr,  # [V or more, W]
    pos_embedding_ptr,  # [CONTEXT, W]
    frame_cond_ptr,  # [lanes, CONTEXT, W] or None
    lanes,
    CONTEXT: tl.constexpr,
    ROW_LEN: tl.constexpr,
    V: tl.constexpr,
    W: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_W: tl.constexpr,
    PDL: tl.constexpr,
):
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    lane = tl.program_id(0).to(tl.int64)
    pos = tl.load(positions_ptr + lane)
    code = tl.arange(0, BLOCK_V)
    valid = code < V
    bits = random_bits(noise_key_ptr, tl.load(items_ptr + lane), pos, BLOCK_V)
    uniform = ((bits >> 9).to(tl.int32).to(tl.float32) + 0.5) * 1.1920928955078125e-07
    logits = tl.load(logits_ptr + lane * V + code, mask=valid, other=float("-inf"))
    noisy = filtered(logits, filters_ptr, valid, V) - tl.log(-tl.log(uniform))
    # Logits that are not numbers must not lead out of the embedding.
    drawn = tl.minimum(tl.argmax(noisy, axis=0), V - 1).to(tl.int64)
    if BLOCK_V <= 32:
        # All warps must have read the position that the first of them moves; of more codes, they have met by now.
        tl.debug_barrier()
    tl.store(codes_ptr + lane * CONTEXT + pos, drawn)
    following = pos + 1
    if ROW_LEN > 0:
        again = following % ROW_LEN == 0
        following = tl.where(again, pos, following)
        drawn = tl.where(again, tl.load(codes_ptr + lane * CONTEXT + pos - 1, mask=pos > 0, other=0), drawn)
    tl.store(positions_ptr + lane, following)
    if following < CONTEXT:
        # Positions of one item share its condition.
        cond_ptr = None if frame_cond_ptr is None else frame_cond_ptr + lane % lanes * CONTEXT * W
        embed(x_ptr + lane * W, drawn, following, token_embedding_ptr, pos_embedding_ptr, cond_ptr, W, BLOCK_W)


def check_embeddings(*embeddings: Tensor) -> None:
    """Raises ValueError for those that `embed` does not read right."""
    if not all(embedding.is_contiguous() for embedding in embeddings):
        raise ValueError("embeddings must be contiguous")


def sample_step(
    codes: Tensor,
    x: Tensor,
    positions: Tensor,
    logits: Tensor,
    items: Tensor,
    noise_key: Tensor,
    filters: Tensor,
    token_embedding: Tensor,
    pos_embedding: Tensor,
    frame_cond: Tensor | None,
    row_len: int = 0,
) -> Specialization | None:
    """Draw a code from each row of `logits` [B, V] (FP32) and prepare the next step.

    Written are the codes at `positions` [B] of `codes` [B, context], the next input `x` [B, W] where there is a next
    position, and `positions`, moved on by one. With `row_len` the next position after the last one of a row of so many
    is that one again, from the code before it.

    items: [B] int64 item numbers. noise_key: [4] int64: the low and the high half of the seed, the level, the
    position in the song of the window's first code. filters: [3] FP32: temperature, top-k (0: all), top-p (1: all).
    token_embedding [V or more, W]: what else a prompt may hold comes after the codes; pos_embedding [context, W];
    frame_cond [B, context, W], [I, context, W] where they are several positions of each of I items, or None. row_len:
    see above, or 0.
    """
    batch, size = logits.shape
    context, width = pos_embedding.shape
    embedded, wide = token_embedding.shape
    if codes.shape != (batch, context) or x.shape != (batch, width) or embedded < size or wide != width:
        raise ValueError(f"codes {tuple(codes.shape)}, x {tuple(x.shape)} for logits {tuple(logits.shape)}")
    check_embeddings(token_embedding, pos_embedding)
    embeddings = token_embedding, pos_embedding, frame_cond, conditions(frame_cond, batch)
    return launch(
        _sample_step,
        (batch,),
        *(codes, x, positions, logits, items, noise_key, filters, *embeddings),
        num_warps=16,
        CONTEXT=context,
        ROW_LEN=row_len,
        V=size,
        W=width,
        BLOCK_V=max(4, triton.next_power_of_2(size)),
        BLOCK_W=triton.next_power_of_2(width),
    )
