"""The check of drafted codes in plain PyTorch; part of `reference`."""

from __future__ import annotations

import torch
from torch import Tensor


def embed(
    code: Tensor,
    pos: int,
    token_embedding: Tensor,
    pos_embedding: Tensor,
    frame_cond: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """What position `pos` takes in after `code` []: [W] in `dtype`. frame_cond: [context, W] or None."""
    x = token_embedding[code].to(dtype) + pos_embedding[pos].to(dtype)
    return x if frame_cond is None else x + frame_cond[pos].to(dtype)


def _checked(reached: Tensor, limit: Tensor, lanes: int, row_len: int) -> range:
    """The positions that a check of so many lanes of an item looks at. reached: []."""
    first = min(int(reached), int(limit) - 1)
    return range(first, min(first + lanes, first // row_len * row_len + row_len, int(limit)))


def begin_check(
    x: Tensor,  # [lanes * I, W], written
    positions: Tensor,  # [lanes * I] int64, written
    reached: Tensor,  # [I] int64
    limit: Tensor,  # [1] int64
    codes: Tensor,  # [I, context] int64
    token_embedding: Tensor,  # [V, W]
    pos_embedding: Tensor,  # [context, W]
    frame_cond: Tensor | None,  # [I, context, W]
    row_len: int,
) -> None:
    """What each item's positions from `reached` on take in, those of its row and before `limit`; lanes that are left
    over repeat the last. The first position of all items comes first."""
    items = len(reached)
    for lane in range(len(x)):
        item = lane % items
        checked = _checked(reached[item], limit, len(x) // items, row_len)
        pos = min(checked[0] + lane // items, checked[-1])
        cond = None if frame_cond is None else frame_cond[item]
        positions[lane] = pos
        x[lane] = embed(codes[item, pos - 1], pos, token_embedding, pos_embedding, cond, x.dtype)


def end_check(
    codes: Tensor,  # [I, context] int64, corrected
    x: Tensor,  # [I, W], written
    positions: Tensor,  # [I] int64, written
    reached: Tensor,  # [I] int64, moved on
    counts: Tensor,  # [I, 3] int64, added to: codes drafted right, checks, codes checked
    limit: Tensor,  # [1] int64
    found: Tensor,  # [lanes * I, context] int64, each lane at its own position
    token_embedding: Tensor,  # [V, W]
    pos_embedding: Tensor,  # [context, W]
    frame_cond: Tensor | None,  # [I, context, W]
    row_len: int,
) -> None:
    """Keep each item's codes up to the first that is not as it was found, correct that one, and go on behind it; where
    `limit` was reached before, nothing is counted."""
    items = len(reached)
    for item in range(items):
        lanes = found[item::items]
        checked = _checked(reached[item], limit, len(lanes), row_len)
        right = torch.stack([lanes[lane, pos] for lane, pos in enumerate(checked)])
        wrong = (codes[item, checked.start : checked.stop] != right).nonzero()
        same = int(wrong[0]) if len(wrong) else len(checked)
        kept = min(same + 1, len(checked))
        if int(reached[item]) < int(limit):
            counts[item] += torch.tensor([same, 1, len(checked)], device=counts.device)
        codes[item, checked.start : checked.start + kept] = right[:kept]
        reached[item] = checked.start + kept
        positions[item] = pos = min(checked.start + kept, int(limit) - 1)
        cond = None if frame_cond is None else frame_cond[item]
        x[item] = embed(codes[item, pos - 1], pos, token_embedding, pos_embedding, cond, x.dtype)
