"""What it costs on a GPU that all programs wait for each other, by the two ways there are: a kernel boundary within a
CUDA graph, and a barrier over the grid of one kernel. A decode step has five such exchanges per layer.

Both are differences, taken within rounds: a graph of 2N kernels that do nothing against one of N, a kernel of 2N
barriers against one of N. So launches and whatever else happens once drop out.

The kernels are tested in Triton's interpreter and compiled ahead of time; not yet measured on a GPU.
"""

# The arguments of Triton kernels are described by shape comments.
# ruff: noqa: ANN001, ANN202

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .harness import Rows, Unavailable, quantiles, recorded, rounds_of

# As many warps per program as the decode kernels have. Fusion is named because Triton warns otherwise.
LAUNCH = {"num_warps": 4, "enable_fp_fusion": True}
# Polls of one barrier, some 0.1 s on a GPU: a barrier takes a few.
SPINS = 100_000


@triton.jit
def _nothing(x_ptr, PDL: tl.constexpr):
    """`x_ptr` stands for the arguments that a kernel has."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()


@triton.jit(do_not_specialize=["count", "spins"])
def _grid_barriers(
    arrived_ptr,  # [1] int32, zero
    failed_ptr,  # [1] int32, zero
    count,
    spins,
):
    """`count` barriers one after another over all programs of the grid.

    Each program adds one to the counter per barrier and waits until all have: at barrier i it holds (i + 1) * programs
    at least, whoever runs ahead. All programs must be resident, or they wait for one that cannot start; so a wait ends
    after `spins` polls, and once one has, no other is waited for.
    """
    programs = tl.num_programs(0)
    index = 0
    while index < count:
        goal = (index + 1) * programs
        # Of all threads of the program, what came before comes before.
        tl.debug_barrier()
        # A release of what this program wrote before, an acquire of what others wrote. To add nothing is to read:
        # Triton compiles it to a load.
        arrived = tl.atomic_add(arrived_ptr, 1, sem="acq_rel", scope="gpu") + 1
        left = spins
        while (arrived < goal) & (left > 0):
            arrived = tl.atomic_add(arrived_ptr, 0, sem="acquire", scope="gpu")
            left -= 1
        if arrived < goal:
            tl.atomic_add(failed_ptr, 1, sem="relaxed", scope="gpu")
            spins = 0
        index += 1


class GridBarriers:
    """`run` passes `count` barriers with `programs` programs. Counters are checked by `check`, not in `run`."""

    def __init__(self, device: torch.device, programs: int, count: int, spins: int = SPINS) -> None:
        if device.type == "cuda":
            found = torch.cuda.get_device_properties(device)
            if (found.major, found.minor) < (7, 0):
                raise Unavailable("acquire and release need compute capability 7.0")
            if programs > found.multi_processor_count:
                raise ValueError(f"{programs} programs on {found.multi_processor_count} multiprocessors")
        self.programs, self.count, self.spins = programs, count, spins
        # A cache line for each.
        self.counters = torch.zeros(2, 32, dtype=torch.int32, device=device)
        # The driver refuses the launch unless all programs fit at once.
        self.options = {"launch_cooperative_grid": True} if device.type == "cuda" else {}

    def run(self) -> None:
        self.counters.zero_()
        kernel: Any = _grid_barriers
        arguments = self.counters[0], self.counters[1], self.count, self.spins
        kernel[(self.programs,)](*arguments, **LAUNCH, **self.options)

    def check(self) -> None:
        """Raises RuntimeError if the last run's barriers were not all passed."""
        arrived, failed = (int(counter[0]) for counter in self.counters)
        if failed or arrived != self.programs * self.count:
            raise RuntimeError(f"{arrived} arrivals of {self.programs} x {self.count}, {failed} waits given up")


def measure_boundary(device: torch.device, programs: int, count: int, pdl: bool, rounds: int) -> dict[str, Any]:
    """Microseconds from one kernel of a CUDA graph to the next.

    pdl: with programmatic dependent launch, as the decode kernels have it from compute capability 9.0 on.
    """
    if pdl and torch.cuda.get_device_capability(device) < (9, 0):
        raise Unavailable("programmatic dependent launch needs compute capability 9.0")
    kernel: Any = _nothing
    buffer = torch.zeros(1, device=device)
    options = {"launch_pdl": True} if pdl else {}

    def launch() -> None:
        kernel[(programs,)](buffer, PDL=pdl, **LAUNCH, **options)

    graphs = {"one": recorded(launch, count, device), "two": recorded(launch, 2 * count, device)}
    return differences(rounds_of(graphs, device, rounds), count) | {"programs": programs, "pdl": pdl}


def measure_barrier(device: torch.device, programs: int, count: int, rounds: int) -> dict[str, Any]:
    """Microseconds that a barrier over the grid takes."""
    kernels = {name: GridBarriers(device, programs, n) for name, n in (("one", count), ("two", 2 * count))}
    times = rounds_of({name: kernel.run for name, kernel in kernels.items()}, device, rounds)
    for kernel in kernels.values():
        kernel.check()
    return differences(times, count) | {"programs": programs}


def differences(times: dict[str, list[float]], count: int) -> dict[str, Any]:
    """Microseconds per exchange from the seconds of `count` and of twice as many, round by round."""
    us = [1e6 * (two - one) / count for one, two in zip(times["one"], times["two"], strict=True)]
    return {"us_per_exchange": quantiles(us), "exchanges": count, "rounds": len(us)}


def add_rows(options: argparse.Namespace, say: Callable[[dict[str, Any]], str]) -> int:
    """Measure and record all of them on the GPU; the exit status."""
    rows = Rows("exchanges", options)
    device = rows.device
    programs = torch.cuda.get_device_properties(device).multi_processor_count
    count = 100 if options.quick else 1000
    for pdl in (False, True):
        label = f"kernel boundary in a CUDA graph{', programmatic launch' if pdl else ''}"
        rows.add(label, lambda p=pdl: measure_boundary(device, programs, count, p, rows.rounds), say)
    rows.add("grid barrier", lambda: measure_barrier(device, programs, count, rows.rounds), say)
    return rows.status
