"""Keys and values of a window, preallocated per layer to what that layer can still see.

A position is stored in a slot such that one decode step reads a contiguous run: ROW keeps one row; COLUMN keeps the
window column by column; PREVIOUS_ROW keeps two rows in turns; DENSE keeps the window as it is, LYRICS its first
positions. CROSS keeps the lyrics, which are put there before the first step.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from ..kernels import reference
from .config import PriorConfig
from .patterns import Pattern


class LayerCache:
    """One layer's keys and values: `keys` and `values` [B, H, slots, D]."""

    def __init__(
        self, pattern: Pattern, config: PriorConfig, batch: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.pattern, self.row_len = pattern, config.row_len
        size = (2, batch, config.heads, num_slots(pattern, config), config.head_dim)
        self._bind(torch.zeros(size, device=device, dtype=dtype))

    def _bind(self, kv: Tensor) -> None:
        self.kv = kv
        self.keys, self.values = kv.unbind(0)
        # [slots, B, 2, H, 1, D]: where one step writes.
        self.by_slot = kv.permute(3, 1, 0, 2, 4).unsqueeze(4)

    def lane(self, item: int) -> LayerCache:
        """A view of one item's keys and values."""
        view = copy.copy(self)
        view._bind(self.kv[:, item : item + 1])
        return view

    def slot(self, pos: int) -> int | None:
        """Where position `pos` is kept; None: it is not."""
        slots = self.kv.shape[3]
        own = reference.cache_slot(pos, self.pattern.value, self.row_len, slots)
        return None if self.pattern is Pattern.CROSS or own >= slots else own

    def visible(self, pos: int) -> tuple[int, int]:
        """First slot and number of slots that position `pos` sees, itself included where the pattern includes it."""
        return reference.cache_visible(pos, self.pattern.value, self.row_len, self.kv.shape[3])

    def first_seen(self, start: int) -> int:
        """The first position, at the start of a row, that any position from `start` on can see."""
        row = start // self.row_len
        if self.pattern is Pattern.ROW:
            return row * self.row_len
        if self.pattern is Pattern.PREVIOUS_ROW:
            return max(0, row - 1) * self.row_len
        return 0

    def past(self, start: int) -> Tensor:
        """Keys and values [2, B, n, H, D] of positions first_seen(start) ... start - 1."""
        return self.kv.index_select(3, self._slots(self.first_seen(start), start)).transpose(2, 3)

    def store(self, kv: Tensor, start: int) -> None:
        """Keep keys and values [2, B, T, H, D] of positions start ... start + T - 1."""
        stop = start + kv.shape[2]
        if self.pattern is Pattern.LYRICS:
            stop = max(start, min(stop, self.kv.shape[3]))
            kv = kv[:, :, : stop - start]
        # A chunk of many rows would write a slot more than once; only what can still be seen is written.
        first = max(start, self.first_seen(stop - 1))
        self.kv.index_copy_(3, self._slots(first, stop), kv[:, :, first - start :].transpose(2, 3))

    def fill(self, kv: Tensor) -> None:
        """Take the keys and values [2, 1, slots, H, D] of lyrics, the same for all items."""
        self.kv.copy_(kv.transpose(2, 3))

    def _slots(self, start: int, stop: int) -> Tensor:
        """Where positions start ... stop - 1 are kept."""
        positions = torch.arange(start, stop, device=self.kv.device)
        return reference.cache_slot(positions, self.pattern.value, self.row_len, self.kv.shape[3])


def num_slots(pattern: Pattern, config: PriorConfig) -> int:
    """Positions that a layer with `pattern` keeps."""
    if pattern is Pattern.CROSS and config.lyrics:
        return config.lyrics.length
    slots = {
        Pattern.ROW: config.row_len,
        Pattern.PREVIOUS_ROW: 2 * config.row_len,
        Pattern.LYRICS: config.lyric_reach,
    }
    return slots.get(pattern, config.context_len)


class KVCache:
    """The caches of all layers of a prior for `batch` items."""

    def __init__(self, config: PriorConfig, batch: int, device: torch.device, dtype: torch.dtype) -> None:
        self.layers = [LayerCache(pattern, config, batch, device, dtype) for pattern in config.layer_patterns]

    def lane(self, item: int) -> KVCache:
        """A view of one item's cache."""
        view = copy.copy(self)
        view.layers = [layer.lane(item) for layer in self.layers]
        return view

    @property
    def nbytes(self) -> int:
        return sum(layer.kv.nbytes for layer in self.layers)
