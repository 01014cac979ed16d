"""A level's codes cut into segments that are sampled side by side, as rows of a batch. Pure functions on integers, and
the way from rows to songs.

A step of a wide network waits for its weights, whatever the batch: eight segments of a song take little longer than
one. Below the top a code follows from the upper level's codes and from those before it; a segment begins without the
latter, as the song does. Rows are ordered by item: row `item * count + number` is segment `number` of an item.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# Segments draw noise as other items would that lie far apart: an odd number, so that no two of an item are the same.
_ITEMS_APART = 0x9E3779B1


@dataclass(frozen=True)
class Segments:
    """Segment `number` has the codes starts[number] ... starts[number] + length - 1 of `total`."""

    starts: tuple[int, ...]
    length: int
    total: int

    @classmethod
    def of(cls, total: int, most: int, window_len: int, unit: int) -> Segments:
        """At most `most` segments, each at least a window long, that begin at multiples of `unit`, of which `total` is
        one. They are equally long: the last one is moved back for that, as the last window of a level is."""
        units, count = total // unit, max(1, min(most, total // window_len))
        length = math.ceil(units / count)
        return cls(tuple(unit * min(first, units - length) for first in range(0, units, length)), length * unit, total)

    @property
    def count(self) -> int:
        return len(self.starts)

    def place(self, row: int) -> tuple[int, int]:
        """The item of a row, and its segment's first code."""
        item, number = divmod(row, self.count)
        return item, self.starts[number]

    def noise_item(self, row: int, first_item: int) -> int:
        """The 32-bit number by which a row's noise is drawn; of the first segment the item's own."""
        item, number = divmod(row, self.count)
        return (first_item + item + number * _ITEMS_APART) & 0xFFFFFFFF

    def join(self, rows: Tensor) -> Tensor:
        """Rows [items * count, length] -> [items, total]. What two segments have is the first one's: it follows from
        what is before it."""
        if self.count == 1:
            return rows
        segments = rows.unflatten(0, (-1, self.count))
        whole = rows.new_empty(len(segments), self.total)
        for number in reversed(range(self.count)):
            start = self.starts[number]
            whole[:, start : start + self.length] = segments[:, number]
        return whole

    def windows(self, codes: Tensor, rows: range, first: int, count: int, ratio: int) -> Tensor:
        """[len(rows), count] of `codes` [items, n], another level's with one code for `ratio` of this one's: what lies
        beside the codes from `first` on of each row's segment."""
        found = []
        for row in rows:
            item, start = self.place(row)
            begin = (start + first) // ratio
            found.append(codes[item, begin : begin + count])
        return torch.stack(found)
