"""Which positions a query may see: the factored attention of Jukebox (Dhariwal et al. 2020, figures 2 and 4) as
predicates.

Position t of a window lies in row t // row_len and column t % row_len. Every pattern but PREVIOUS_ROW is causal within
what it sees, and PREVIOUS_ROW lies wholly in the past, so all of them may be used for sampling.
"""

from __future__ import annotations

from enum import Enum

import torch
from torch import Tensor


class Pattern(str, Enum):
    """ROW, COLUMN: the keys of the query's own row (column) up to the query. PREVIOUS_ROW: every key of the row before;
    row 0 sees nothing and its attention output is zero. DENSE: every key up to the query. LYRICS: of those, the first
    `reach`, where lyrics come before the codes. CROSS: all of the lyrics, which lie outside the window."""

    ROW = "row"
    COLUMN = "column"
    PREVIOUS_ROW = "previous_row"
    DENSE = "dense"
    LYRICS = "lyrics"
    CROSS = "cross"


def visible(pattern: Pattern, query: Tensor, key: Tensor, row_len: int, reach: int = 0) -> Tensor:
    """Whether position `query` sees position `key`; the two broadcast against each other. reach: of LYRICS."""
    query_row, key_row = query // row_len, key // row_len
    if pattern is Pattern.ROW:
        return (key_row == query_row) & (key <= query)
    if pattern is Pattern.COLUMN:
        return (key % row_len == query % row_len) & (key <= query)
    if pattern is Pattern.PREVIOUS_ROW:
        return key_row == query_row - 1
    if pattern is Pattern.CROSS:
        raise ValueError("CROSS sees no position of the window")
    return (key <= query) & (key < reach) if pattern is Pattern.LYRICS else key <= query


def mask(pattern: Pattern, length: int, row_len: int, reach: int = 0) -> Tensor:
    """[length, length] booleans, entry [query, key]: the definition that tests hold every kernel against."""
    positions = torch.arange(length)
    return visible(pattern, positions[:, None], positions[None, :], row_len, reach)
