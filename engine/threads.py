"""PyTorch's threads kept out of the results: a sum that several of them share is rounded otherwise than one thread's.
So on CPUs each piece of work is computed by one, and several pieces by several at the same time."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor


def alone(threads: int) -> None:
    """From now on PyTorch computes with one thread in this Python thread, and with `threads` in those to come."""
    torch.set_num_threads(1)
    # That is also what a thread begins with when it first asks. So this one does so now, and then another one, which
    # ends, has the last word on those to come.
    torch.get_num_threads()
    other = threading.Thread(target=torch.set_num_threads, args=(threads,))
    other.start()
    other.join()


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch computes with one thread, in this Python thread only."""
    threads = torch.get_num_threads()
    if threads == 1:
        yield
        return
    try:
        # Here, so that an interruption of it is mended too.
        alone(threads)
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
        with ThreadPoolExecutor(threads, initializer=alone, initargs=(threads,)) as pool:
            return list(pool.map(compute, pieces))
