"""What plain code reaches of the memory's bandwidth, to hold kernels against; timed by turns with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from ..kernels.native import LargePages
from .harness import rounds_of


class Mover(NamedTuple):
    """`run` moves `nbytes` through memory that no cache holds."""

    nbytes: int
    run: Callable[[], object]


def plain(device: torch.device, nbytes: int = 1 << 30) -> Mover:
    """What decoders and kernels are held against: on a GPU a copy, on a CPU a read."""
    return copying(device, nbytes // 2) if device.type == "cuda" else reading(device, nbytes)


def reading(device: torch.device, nbytes: int) -> Mover:
    """A read with all threads of the device by the fastest of a few reductions; on a CPU of large pages."""
    if device.type == "cuda":
        flat = torch.empty(nbytes // 4, device=device).normal_()
    else:
        flat = LargePages().take(torch.float32, nbytes // 4).fill_(1.0)
    rows = flat.view(-1, min(1 << 14, len(flat)))
    ones = torch.ones(rows.shape[1], device=device)
    ways = {"sum": flat.sum, "rows": lambda: rows.sum(dim=1), "matrix": lambda: torch.mv(rows, ones)}
    times = rounds_of(ways, device, 3)
    return Mover(flat.nbytes, ways[min(ways, key=lambda name: min(times[name]))])


def copying(device: torch.device, nbytes: int) -> Mover:
    """A copy of `nbytes` within the device's memory; bytes read and bytes written are counted."""
    source = torch.empty(nbytes // 4, device=device).normal_()
    target = torch.zeros_like(source)
    return Mover(2 * source.nbytes, lambda: target.copy_(source))
