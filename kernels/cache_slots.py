"""Where a decode step finds keys and values, computed on the device: the arithmetic of `engine.kv_cache`.

ROW keeps one row; COLUMN keeps the window column by column; PREVIOUS_ROW keeps two rows in turns; DENSE keeps all;
LYRICS keeps the first SLOTS positions; CROSS keeps what was put there before the first step.
"""

import triton
import triton.language as tl


@triton.jit
def slot(pos, PATTERN: tl.constexpr, ROW_LEN: tl.constexpr, SLOTS: tl.constexpr):
    """The slot of position `pos` in a cache of SLOTS slots; SLOTS or more: it has none."""
    row = pos // ROW_LEN
    column = pos % ROW_LEN
    if PATTERN == "row":
        found = column
    elif PATTERN == "column":
        found = column * (SLOTS // ROW_LEN) + row
    elif PATTERN == "previous_row":
        found = row % 2 * ROW_LEN + column
    else:
        tl.static_assert(PATTERN == "dense" or PATTERN == "lyrics")
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
    elif PATTERN == "cross":
        first = pos * 0
        count = first + SLOTS
    else:
        tl.static_assert(PATTERN == "dense" or PATTERN == "lyrics")
        first = pos * 0
        count = tl.minimum(pos + 1, SLOTS)
    return first, count
