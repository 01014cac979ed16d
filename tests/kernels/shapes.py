"""Sizes over which the operations of a decode step are tested: nothing is a multiple of anything, tiles are partial."""

from dataclasses import dataclass

import torch
from budget import EPS
from hypothesis import Phase, register_random, settings
from hypothesis import strategies as st


class _TorchRandom:
    """PyTorch's generator, which Hypothesis then seeds anew for every example."""

    seed = staticmethod(torch.manual_seed)
    getstate = staticmethod(torch.get_rng_state)
    setstate = staticmethod(torch.set_rng_state)


@dataclass(frozen=True)
class Window:
    """A cache and the positions, one per item, that are decoded in it."""

    pattern: str
    row_len: int
    num_rows: int
    positions: tuple[int, ...]

    @property
    def context_len(self) -> int:
        return self.row_len * self.num_rows

    @property
    def slots(self) -> int:
        rows = {"row": 1, "previous_row": 2}.get(self.pattern, self.num_rows)
        # As many characters, and codes after them, as are no whole number of rows.
        lyrics = {"lyrics": self.num_rows * 3 // 4 + 1, "cross": self.num_rows + 2}
        return lyrics.get(self.pattern, rows * self.row_len)


PATTERNS = ("row", "column", "previous_row", "dense", "lyrics", "cross")
_random = _TorchRandom()
register_random(_random)

# A program takes the interpreter milliseconds per item, whatever its size.
# Shrinking runs hundreds of examples.
few_examples = settings(max_examples=12, deadline=None, derandomize=True, phases=[Phase.generate])
# Of a single output plain PyTorch may find the exact value by luck; a budget needs a floor then.
FLOOR = 8 * EPS

# A program computes 64 outputs in the interpreter, and takes 8 items one after another.
batches = st.one_of(st.integers(1, 8), st.sampled_from([9, 17, 33]))
widths = st.integers(1, 150)
heads = st.integers(1, 3)
head_dims = st.integers(1, 40)
kinds = st.sampled_from(["fp32", "fp16", "int8"])
# How many items have positions side by side, as in a check of drafts; 0: all are items of their own.
shared = st.sampled_from([0, 1, 2, 3])


def lanes(batch: int, shared: int) -> int:
    """Of a cache, or of conditions, for `batch` positions of so many items, if they divide evenly."""
    return shared if shared and batch % shared == 0 else batch


@st.composite
def windows(draw, batch=batches):
    """Positions anywhere, the first and last of rows and of the window more often than others."""
    pattern = draw(st.sampled_from(PATTERNS))
    row_len, num_rows = draw(st.integers(1, 24)), draw(st.integers(1, 20))
    last = row_len * num_rows - 1
    edges = st.integers(0, num_rows).flatmap(lambda row: st.integers(row * row_len - 1, row * row_len + 1))
    position = st.one_of(st.integers(0, last), edges.map(lambda pos: min(max(pos, 0), last)))
    count = draw(batch)
    return Window(pattern, row_len, num_rows, tuple(draw(st.lists(position, min_size=count, max_size=count))))
