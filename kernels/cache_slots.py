"""Where a decode step finds keys and values, computed on the device: the arithmetic of `engine.kv_cache`.

ROW keeps one row; COLUMN keeps the window column by column; PREVIOUS_ROW keeps two rows in turns; DENSE keeps all.
"""

import triton
import triton.language as tl


@triton.jit
def slot(pos, PATTERN: tl.constexpr, ROW_LEN: tl.constexpr, SLOTS: tl.constexpr):
    """The slot of position `pos` in a cache of SLOTS slots."""
    row = pos // ROW_LEN
    column = pos % ROW_LEN
    if PATTERN == "row":
        found = column
    elif PATTERN == "column":
        found = column * (SLOTS // ROW_LEN) + row
    elif PATTERN == "previous_row":
        found = row % 2 * ROW_LEN + column
    else:
        tl.static_assert(PATTERN == "dense")
        found = pos
    return found


@triton.jit
def visible(pos, PATTERN: tl.constexpr, ROW_LEN: tl.constexpr, SLOTS: tl.constexpr):
    """First slot and number of slots that position `pos` sees."""
    row = pos // ROW_LEN
    column = pos % ROW_LEN
    if PATTERN == "row":
        first = pos * 0
        count = column + 1
    elif PATTERN == "column":
        first = column * (SLOTS // ROW_LEN)
        count = row + 1
    elif PATTERN == "previous_row":
        # Row 0 sees nothing.
        first = (row + 1) % 2 * ROW_LEN
        count = tl.where(row > 0, ROW_LEN, 0)
    else:
        tl.static_assert(PATTERN == "dense")
        first = pos * 0
        count = pos + 1
    return first, count
