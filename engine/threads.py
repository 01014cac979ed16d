"""PyTorch's threads kept out of the results: a sum that several of them share is rounded otherwise than one thread's.
So on CPUs each piece of work is computed by one, and several pieces by several at the same time."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

# Where a container's share of the processor is told: cgroups of version 2, and of version 1.
QUOTA_FILES = ("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")


def granted_cores(cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores that this container may keep busy, however many it sees; 0 where nothing limits it."""
    for names in QUOTA_FILES:
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
            quota, period = " ".join((cgroups / name).read_text() for name in names).split()
            # Elsewhere the quota is "max" or -1.
            return max(1, round(int(quota) / int(period))) if int(quota) > 0 else 0
    return 0


def usable_threads() -> int:
    """Threads to compute with: as many as PyTorch has (`torch.set_num_threads`), at most the cores that this container
    may keep busy. More would wait for each other while none of them may run."""
    threads = torch.get_num_threads()
    return min(threads, granted_cores() or threads)


def allowed_threads(threads: int) -> int:
    """`threads`. Raises ValueError where this container may not keep so many cores busy."""
    granted = granted_cores()
    if granted and threads > granted:
        raise ValueError(f"{threads} threads: this container may keep {granted} cores busy, ask for no more")
    return threads


def take_threads(threads: int | None) -> None:
    """Compute with so many threads; None: as many as there are cores, or as a container may use. Raises ValueError
    where it may not use so many."""
    if threads or granted_cores():
        torch.set_num_threads(allowed_threads(threads) if threads else usable_threads())


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
    threads = usable_threads()

    def compute(piece: Callable[[], Tensor]) -> Tensor:
        with torch.no_grad():
            return piece()

    if device.type != "cpu":
        return list(map(compute, pieces))
    of_pytorch = torch.get_num_threads()
    with one_thread():
        if threads == 1 or len(pieces) == 1:
            return list(map(compute, pieces))
        with ThreadPoolExecutor(threads, initializer=alone, initargs=(of_pytorch,)) as pool:
            return list(pool.map(compute, pieces))
