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
    """The positions that a check of so many lanes looks at."""
    first = min(int(reached), int(limit) - 1)
    return range(first, min(first + lanes, first // row_len * row_len + row_len, int(limit)))


def begin_check(
    x: Tensor,  # [lanes, W], written
    positions: Tensor,  # [lanes] int64, written
    reached: Tensor,  # [1] int64
    limit: Tensor,  # [1] int64
    codes: Tensor,  # [1, context] int64
    token_embedding: Tensor,  # [V, W]
    pos_embedding: Tensor,  # [context, W]
    frame_cond: Tensor | None,  # [1, context, W]
    row_len: int,
) -> None:
    """What the positions from `reached` on take in, those of its row and before `limit`; lanes that are left over
    repeat the last."""
    checked = _checked(reached, limit, len(x), row_len)
    for lane in range(len(x)):
        pos = min(checked[0] + lane, checked[-1])
        cond = None if frame_cond is None else frame_cond[0]
        positions[lane] = pos
        x[lane] = embed(codes[0, pos - 1], pos, token_embedding, pos_embedding, cond, x.dtype)


def end_check(
    codes: Tensor,  # [1, context] int64, corrected
    x: Tensor,  # [1, W], written
    positions: Tensor,  # [1] int64, written
    reached: Tensor,  # [1] int64, moved on
    counts: Tensor,  # [3] int64, added to: codes drafted right, checks, codes checked
    limit: Tensor,  # [1] int64
    found: Tensor,  # [lanes, context] int64, each lane at its own position
    token_embedding: Tensor,  # [V, W]
    pos_embedding: Tensor,  # [context, W]
    frame_cond: Tensor | None,  # [1, context, W]
    row_len: int,
) -> None:
    """Keep the codes up to the first that is not as it was found, correct that one, and go on behind it; where `limit`
    was reached before, nothing is counted."""
    checked = _checked(reached, limit, len(found), row_len)
    right = torch.stack([found[lane, pos] for lane, pos in enumerate(checked)])
    wrong = (codes[0, checked.start : checked.stop] != right).nonzero()
    same = int(wrong[0]) if len(wrong) else len(checked)
    kept = min(same + 1, len(checked))
    if int(reached) < int(limit):
        counts += torch.tensor([same, 1, len(checked)], device=counts.device)
    codes[0, checked.start : checked.start + kept] = right[:kept]
    reached.fill_(checked.start + kept)
    pos = min(checked.start + kept, int(limit) - 1)
    positions.fill_(pos)
    cond = None if frame_cond is None else frame_cond[0]
    x[0] = embed(codes[0, pos - 1], pos, token_embedding, pos_embedding, cond, x.dtype)
