"""Every operation in plain PyTorch, in any dtype: the specification that all other backends are held against.

Attention takes [B, T, H, D]: batch, positions, heads, head dim. Patterns are named by the strings of
`engine.patterns.Pattern`; position t lies in row t // row_len and column t % row_len.
"""

from __future__ import annotations

import math
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from . import philox
from .reference_check_drafts import begin_check as begin_check
from .reference_check_drafts import embed
from .reference_check_drafts import end_check as end_check

Positions = TypeVar("Positions", int, Tensor)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """Normalize `x` [..., width] over its last axis, statistics in FP32 at least; the result has `x`'s dtype."""
    if x.dtype in (torch.float32, torch.float64):
        return F.layer_norm(x, weight.shape, weight, bias, eps)
    return F.layer_norm(x.float(), weight.shape, weight.float(), bias.float(), eps).to(x.dtype)


# A CPU's product of fewer rows takes other paths, with another rounding: of one row everywhere, of up to three where
# MKL meets AMD's processors. From here on a row's result does not depend on the rows beside it.
FEWEST_ROWS = 4


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x @ weight + bias with `weight` [in, out], as the checkpoints store it."""
    rows = x.reshape(-1, x.shape[-1])
    count = len(rows)
    if count < FEWEST_ROWS and x.device.type == "cpu":
        rows = F.pad(rows, (0, 0, 0, FEWEST_ROWS - count))
    return torch.addmm(bias, rows, weight)[:count].view(*x.shape[:-1], -1)


def quick_gelu(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x) (Hendrycks & Gimpel 2016)."""
    return torch.sigmoid(1.702 * x) * x


def prefill_attention(
    q: Tensor,  # [B, T, H, D], positions query_start ... query_start + T - 1
    k: Tensor,  # [B, S, H, D], positions key_start ... query_start + T - 1
    v: Tensor,  # [B, S, H, D]
    pattern: str,
    row_len: int,
    query_start: int = 0,
    key_start: int = 0,
) -> Tensor:
    """Attention of a chunk of queries over what `pattern` lets each of them see: [B, T, H, D].

    `key_start` lies at the start of a row, early enough for the first query. Positions are padded to whole rows, which
    makes each pattern a batch of small attentions; no [T, S] matrix exists but in DENSE.
    """
    length = q.shape[1]
    stop = query_start + length
    if k.shape[1] != stop - key_start:
        raise ValueError(
            f"keys {tuple(k.shape)} from {key_start} do not end where queries {tuple(q.shape)} end, {stop}"
        )
    if pattern == "dense":
        visible = torch.ones(length, stop - key_start, dtype=torch.bool, device=q.device)
        visible = visible.tril(query_start - key_start)
        return _attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), visible).transpose(1, 2)
    first_row, last_row = query_start // row_len, (stop - 1) // row_len
    column = query_start % row_len
    queries = _rows(q, column, first_row, first_row, last_row, row_len)
    key_row = key_start // row_len
    if pattern == "row":
        keys, values = (_rows(t, 0, key_row, first_row, last_row, row_len) for t in (k, v))
        visible = torch.ones(row_len, row_len, dtype=torch.bool, device=q.device).tril()
        out = _attend(queries.transpose(2, 3), keys.transpose(2, 3), values.transpose(2, 3), visible).transpose(2, 3)
    elif pattern == "previous_row":
        keys, values = (_rows(t, 0, key_row, first_row - 1, last_row - 1, row_len) for t in (k, v))
        out = _attend(queries.transpose(2, 3), keys.transpose(2, 3), values.transpose(2, 3)).transpose(2, 3)
        if first_row == 0:
            # Row 0 sees nothing.
            out = torch.cat([torch.zeros_like(out[:, :1]), out[:, 1:]], dim=1)
    elif pattern == "column":
        keys, values = (_rows(t, 0, key_row, key_row, last_row, row_len) for t in (k, v))
        visible = torch.ones(last_row - first_row + 1, last_row - key_row + 1, dtype=torch.bool, device=q.device)
        visible = visible.tril(first_row - key_row)
        # [B, rows, columns, H, D] -> [B, columns, H, rows, D]
        queries, keys, values = (t.permute(0, 2, 3, 1, 4) for t in (queries, keys, values))
        out = _attend(queries, keys, values, visible).permute(0, 3, 1, 2, 4)
    else:
        raise ValueError(f"unknown pattern {pattern!r}")
    return out.flatten(1, 2)[:, column : column + length]


def lyric_attention(q: Tensor, k: Tensor, v: Tensor, query_start: int | None = None) -> Tensor:
    """Attention of queries [B, T, H, D] over the keys [B, S, H, D] of lyrics: [B, T, H, D].

    query_start: the position of the first query, where the keys are those of positions from 0 on and a query sees none
    after its own; None: the lyrics lie outside the window, and all of them are seen.
    """
    visible = None
    if query_start is not None:
        positions = torch.arange(query_start, query_start + q.shape[1], device=q.device)
        visible = torch.arange(k.shape[1], device=q.device) <= positions[:, None]
    return _attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), visible).transpose(1, 2)


def _rows(x: Tensor, column: int, x_row: int, first_row: int, last_row: int, row_len: int) -> Tensor:
    """[B, T, H, D] that starts in row `x_row` at `column` -> rows first_row ... last_row, [B, rows, row_len, H, D];
    what lies outside `x` is zero."""
    before = (x_row - first_row) * row_len + column
    after = (last_row - first_row + 1) * row_len - before - x.shape[1]
    if before or after:
        x = F.pad(x, (0, 0, 0, 0, before, after))
    return x.unflatten(1, (-1, row_len))


def _attend(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(D)) v over [..., T, D], softmax in FP32 at least."""
    # The fused implementation takes four dimensions.
    q4, k4, v4 = (t.flatten(0, -4) for t in (q, k, v))
    return F.scaled_dot_product_attention(q4, k4, v4, attn_mask=visible).view(*q.shape[:-1], v.shape[-1])


def decode_attention(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """One query per item over all of `keys`: q [B, H, 1, D], keys and values [B, H, S, D] -> [B, H, 1, D]."""
    return F.scaled_dot_product_attention(q, keys, values)


def filter_logits(logits: Tensor, temperature: float, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """[..., V] logits / temperature, then -inf outside the top k, then outside the nucleus.

    top_k 0 and top_p 1 keep everything. Codes that tie with the last one kept are kept. The nucleus is the shortest run
    of most likely codes whose probability exceeds `top_p` (Holtzman et al. 2020).
    """
    logits = logits / temperature
    if top_k:
        last = logits.topk(min(top_k, logits.shape[-1])).values[..., -1:]
        logits = logits.masked_fill(logits < last, float("-inf"))
    if top_p < 1.0:
        ranked = logits.sort(dim=-1, descending=True).values
        # The code at rank r stays while the codes before it do not exceed top_p.
        mass = ranked.softmax(dim=-1).cumsum(dim=-1)
        kept = 1 + (mass[..., :-1] <= top_p).sum(dim=-1, keepdim=True)
        logits = logits.masked_fill(logits < ranked.gather(-1, kept - 1), float("-inf"))
    return logits


def sample_logits(logits: Tensor, noise: Tensor, temperature: float, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """[B, V] logits and Gumbel noise -> [B] codes, distributed as the softmax of the filtered logits."""
    return (filter_logits(logits.float(), temperature, top_k, top_p) + noise).argmax(dim=-1)


def attention_parts(pattern: str, row_len: int, slots: int) -> tuple[int, int]:
    """How a decode step's attention is cut: number of parts, at most 16, and keys in each."""
    keys = {"row": row_len, "column": slots // row_len, "previous_row": row_len}.get(pattern, slots)
    part = max(16, -(-keys // 256) * 16)
    return -(-keys // part), part


def cache_slot(pos: Positions, pattern: str, row_len: int, slots: int) -> Positions:
    """Where a position, or each of a tensor, is kept in a cache of `slots` slots; `slots` or more: it is not."""
    row, column = pos // row_len, pos % row_len
    if pattern == "column":
        return column * (slots // row_len) + row
    return {"row": column, "previous_row": row % 2 * row_len + column}.get(pattern, pos)


def cache_visible(pos: int, pattern: str, row_len: int, slots: int) -> tuple[int, int]:
    """First slot and number of slots that position `pos` sees, itself included where the pattern includes it."""
    row, column = divmod(pos, row_len)
    if pattern == "previous_row":
        return (row + 1) % 2 * row_len, row_len if row else 0
    if pattern == "column":
        return column * (slots // row_len), row + 1
    if pattern == "cross":
        return 0, slots
    return 0, column + 1 if pattern == "row" else min(pos + 1, slots)


def _scaled_linear(x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None) -> Tensor:
    """x weight + bias; int8 weights stand for weight * scale."""
    y = x @ weight.to(x.dtype)
    y = y if scale is None else y * scale.to(x.dtype)
    return y if bias is None else y + bias.to(x.dtype)


def norm_qkv(
    q: Tensor,  # [B, H D], written
    kv: Tensor,  # [2, B, H, slots, D], written where `positions` are kept; or [2, I, H, slots, D], of I items'
    x: Tensor,  # [B, W]
    positions: Tensor,  # [B] int64
    ln_weight: Tensor,  # [W]
    ln_bias: Tensor,  # [W]
    weight: Tensor,  # [W, 3 H D]; under CROSS [W, H D], and bias and scale likewise
    bias: Tensor,  # [3 H D]
    scale: Tensor | None,  # [3 H D], for int8 weights
    pattern: str,
    row_len: int,
    eps: float = 1e-5,
) -> None:
    """LayerNorm and query-key-value projection of one position per item; keys and values go into the cache, but under
    CROSS, which has none."""
    y = layer_norm(x, ln_weight.to(x.dtype), ln_bias.to(x.dtype), eps)
    parts = _scaled_linear(y, weight, bias, scale).unflatten(1, (-1, kv.shape[2], kv.shape[4]))
    q.copy_(parts[:, 0].flatten(1))
    for item, pos in enumerate(positions.tolist()):
        slot = cache_slot(pos, pattern, row_len, kv.shape[3])
        if pattern != "cross" and slot < kv.shape[3]:
            kv[:, item % kv.shape[1], :, slot] = parts[item, 1:].to(kv.dtype)


def cache_attention(
    sums: Tensor,  # [B, parts, H, D], written
    peaks: Tensor,  # [B, parts, H], written
    masses: Tensor,  # [B, parts, H], written
    q: Tensor,  # [B, H D]
    kv: Tensor,  # [2, B, H, slots, D], or [2, I, H, slots, D] of I items
    positions: Tensor,  # [B] int64
    pattern: str,
    row_len: int,
) -> None:
    """Attention of one query per item over what its position sees, in the parts of `attention_parts`.

    With scores in units of log2, a part's peak is its largest score, its mass the sum of 2^(score - peak), its sum the
    values weighted with that. A part that sees no key has peak -inf, mass 0 and sum 0.
    """
    batch, (_, lanes, heads, slots, head_dim) = len(positions), kv.shape
    part = attention_parts(pattern, row_len, slots)[1]
    queries = q.view(batch, heads, head_dim)
    peaks.fill_(float("-inf"))
    masses.zero_()
    sums.zero_()
    for item, pos in enumerate(positions.tolist()):
        first, count = cache_visible(pos, pattern, row_len, slots)
        for index, start in enumerate(range(0, count, part)):
            # [H, S, D]
            keys, values = kv[:, item % lanes, :, first + start : first + min(start + part, count)].to(q.dtype)
            scores = (keys @ queries[item, :, :, None]).squeeze(-1) * (head_dim**-0.5 / math.log(2))
            peaks[item, index] = scores.amax(dim=-1)
            weights = torch.exp2(scores - scores.amax(dim=-1, keepdim=True))
            masses[item, index] = weights.sum(dim=-1)
            sums[item, index] = (weights[:, None] @ values).squeeze(1)


def project_attention(
    out: Tensor,  # [B, W], written
    sums: Tensor,  # [B, parts, H, D]
    peaks: Tensor,  # [B, parts, H]
    masses: Tensor,  # [B, parts, H]
    x: Tensor,  # [B, W]
    weight: Tensor,  # [H D, W]
    bias: Tensor,  # [W]
    scale: Tensor | None,  # [W], for int8 weights
) -> None:
    """x + attention weight + bias, from the parts of `cache_attention`; attention over nothing is zero."""
    peak = peaks.amax(dim=1, keepdim=True)
    share = torch.where(peaks == float("-inf"), 0.0, torch.exp2(peaks - peak))
    attended = (share[..., None] * sums).sum(dim=1)
    mass = (share * masses).sum(dim=1)[..., None]
    attended = torch.where(mass > 0, attended / mass, 0.0).flatten(1).to(x.dtype)
    out.copy_(x + _scaled_linear(attended, weight, bias, scale))


def norm_up(
    out: Tensor,  # [B, M], written
    x: Tensor,  # [B, W]
    ln_weight: Tensor,  # [W]
    ln_bias: Tensor,  # [W]
    weight: Tensor,  # [W, M]
    bias: Tensor,  # [M]
    scale: Tensor | None,  # [M], for int8 weights
    eps: float = 1e-5,
) -> None:
    """quick_gelu(LayerNorm(x) weight + bias)."""
    y = layer_norm(x, ln_weight.to(x.dtype), ln_bias.to(x.dtype), eps)
    out.copy_(quick_gelu(_scaled_linear(y, weight, bias, scale)))


def down_residual(
    out: Tensor,  # [B, W], written; may be x
    hidden: Tensor,  # [B, M]
    x: Tensor,  # [B, W], the layer's input
    h: Tensor,  # [B, W], x + attention
    weight: Tensor,  # [M, W]
    bias: Tensor,  # [W]
    scale: Tensor | None,  # [W], for int8 weights
    res_scale: float = 1.0,
) -> None:
    """x + res_scale * (h - x + hidden weight + bias)."""
    out.copy_(x + res_scale * (h - x + _scaled_linear(hidden, weight, bias, scale)))


def head_logits(
    logits: Tensor,  # [B, V], written
    x: Tensor,  # [B, W]
    frame_cond: Tensor | None,  # [B, context, W], or [I, context, W] of I items
    positions: Tensor,  # [B] int64
    weight: Tensor,  # [W, V]
    scale: Tensor | None,  # [V], for int8 weights
) -> None:
    """(x + the frame condition at `positions`) weight."""
    if frame_cond is not None:
        lanes = torch.arange(len(x), device=x.device) % len(frame_cond)
        x = x + frame_cond[lanes, positions].to(x.dtype)
    logits.copy_(_scaled_linear(x, weight, None, scale))


def sample_step(
    codes: Tensor,  # [B, context] int64, written at `positions`
    x: Tensor,  # [B, W], written where there is a next position
    positions: Tensor,  # [B] int64, moved on by one
    logits: Tensor,  # [B, V]
    items: Tensor,  # [B] int64
    noise_key: Tensor,  # [4] int64: low and high half of the seed, level, position in the song of the window's start
    filters: Tensor,  # [3]: temperature, top-k, top-p
    token_embedding: Tensor,  # [V or more, W]
    pos_embedding: Tensor,  # [context, W]
    frame_cond: Tensor | None,  # [B, context, W], or [I, context, W] of I items
    row_len: int = 0,  # or that of a draft, which waits at the end of a row
) -> None:
    """Draw the codes of one position per item and embed them as the next position's input."""
    low, high, level, offset = noise_key.tolist()
    temperature, top_k, top_p = filters.tolist()
    for item, pos in enumerate(positions.tolist()):
        one = slice(item, item + 1)
        noise = philox.gumbel_noise(low | high << 32, items[one], level, positions[one] + offset, logits.shape[1])
        code = sample_logits(logits[one], noise[:, 0], temperature, int(top_k), top_p)
        codes[item, pos] = code
        positions[item] = following = pos if row_len and (pos + 1) % row_len == 0 else pos + 1
        if following < codes.shape[1]:
            before = codes[item, following - 1] if following else codes.new_zeros(())
            cond = None if frame_cond is None else frame_cond[item % len(frame_cond)]
            x[item] = embed(before, following, token_embedding, pos_embedding, cond, x.dtype)


def attention_distance(
    q: Tensor,  # [B, T, H, D]
    k: Tensor,  # [B, T, H, D]
    teacher_q: Tensor,  # [B, T, H, D]
    teacher_k: Tensor,  # [B, T, H, D]
    pattern: str,
    row_len: int,
) -> Tensor:
    """Squared distance between a student's and a teacher's attention maps, a scalar in FP32 at least.

    The mean over batch items, heads and queries of the sum over visible keys of (p - p_teacher)^2, each in 0 ... 2.
    Divided by T it is the mean squared error of two T x T maps. Queries that see nothing count with a distance of 0.
    No gradient reaches the teacher.
    """
    if not q.shape == k.shape == teacher_q.shape == teacher_k.shape:
        raise ValueError(
            f"student {tuple(q.shape)} and {tuple(k.shape)}, teacher {tuple(teacher_q.shape)} and "
            f"{tuple(teacher_k.shape)} must have one shape"
        )
    batch, length, heads, _ = q.shape
    student = _attention_maps(q, k, pattern, row_len)
    teacher = _attention_maps(teacher_q.detach(), teacher_k.detach(), pattern, row_len)
    return (student - teacher).square().sum() / (batch * heads * length)


def _attention_maps(q: Tensor, k: Tensor, pattern: str, row_len: int) -> Tensor:
    """softmax(q k^T / sqrt(D)) of every group of queries and keys that see each other: [..., queries, keys], zero where
    a query does not see a key. Queries and keys beyond the end are zeros, which makes their maps uniform."""
    last_row = (q.shape[1] - 1) // row_len
    if pattern == "dense":
        queries, keys = q.transpose(1, 2), k.transpose(1, 2)
    elif pattern in ("row", "column", "previous_row"):
        queries, keys = (_rows(x, 0, 0, 0, last_row, row_len) for x in (q, k))
        if pattern == "previous_row":
            queries, keys = queries[:, 1:], keys[:, :-1]
        # [B, rows, columns, H, D] -> [B, rows, H, columns, D] or [B, columns, H, rows, D]
        order = (0, 2, 3, 1, 4) if pattern == "column" else (0, 1, 3, 2, 4)
        queries, keys = queries.permute(order), keys.permute(order)
    else:
        raise ValueError(f"unknown pattern {pattern!r}")
    scores = (queries @ keys.transpose(-1, -2)) * q.shape[-1] ** -0.5
    if scores.dtype not in (torch.float32, torch.float64):
        scores = scores.float()
    if pattern != "previous_row":
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(hidden, float("-inf"))
    return scores.softmax(dim=-1)
