"""Every operation in plain PyTorch, in any dtype: the specification that all other backends are held against.

Attention takes [B, T, H, D]: batch, positions, heads, head dim. Patterns are named by the strings of
`engine.patterns.Pattern`; position t lies in row t // row_len and column t % row_len.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """Normalize `x` [..., width] over its last axis, statistics in FP32 at least; the result has `x`'s dtype."""
    if x.dtype in (torch.float32, torch.float64):
        return F.layer_norm(x, weight.shape, weight, bias, eps)
    return F.layer_norm(x.float(), weight.shape, weight.float(), bias.float(), eps).to(x.dtype)


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x @ weight + bias with `weight` [in, out], as the checkpoints store it."""
    if x.dim() == 2:
        return torch.addmm(bias, x, weight)
    return torch.addmm(bias, x.reshape(-1, x.shape[-1]), weight).view(*x.shape[:-1], -1)


def quick_gelu(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x) (Hendrycks & Gimpel 2016)."""
    return x * torch.sigmoid(1.702 * x)


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
    """One query per item over all of `keys`: q [B, H, D], keys and values [B, H, S, D] -> [B, H, D]."""
    return _attend(q.unsqueeze(2), keys, values).squeeze(2)


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
