"""PyTorch's threads kept out of the results: a sum that several of them share is rounded otherwise than one thread's.
So on CPUs each piece of work is computed by one, and several pieces by several at the same time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch computes with one thread, in this Python thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def side_by_side(pieces: Sequence[Callable[[], Tensor]], device: torch.device) -> list[Tensor]:
    """What `pieces` return, without gradients; on a CPU each computed by one thread, as many at a time as there are."""
    threads = torch.get_num_threads()

    def compute(piece: Callable[[], Tensor]) -> Tensor:
        with torch.no_grad():
            return piece()

    if device.type != "cpu":
        return list(map(compute, pieces))
    with one_thread():
        if threads == 1 or len(pieces) == 1:
            return list(map(compute, pieces))
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(compute, pieces))
