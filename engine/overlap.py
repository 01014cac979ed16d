"""Windows of all levels at the same time, for small networks on several cores.

A decode step of a small network is too short to be shared: threads that meet twice a layer gain little. But steps of
different windows are there to be computed side by side. Each level has two decoders with the same weights, in turns:
while one samples a window, the other prepares the next, whose prompt comes code by code, and begins where the first
ends. So a core samples the bottom level without pause, and what else there is to do, prompts, conditions and the levels
above, is done by the others in time.
"""

from __future__ import annotations

import atexit
import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from queue import SimpleQueue
from typing import TYPE_CHECKING, cast

import torch

from .threads import alone, one_thread

if TYPE_CHECKING:
    from .decoder import Backend, OverlappingDecoder
    from .prior import Prior
    from .sampler import PriorSource, Sampling
    from .windows import Window

# Positions of a prompt that are taken in at once: as soon as the first number of codes is there, at most the second.
PROMPT_PART, LONGEST_PROMPT_PART = 64, 256
# Positions that are sampled at once at first; then as many as take about so long: a stop waits for them. Above the
# bottom level at most a few: who is nearer to the audio waits for them, too.
FIRST_PART, PART_SECONDS, UPPER_PART = 16, 0.25, 32

# Work of least rank goes first: nearest to the audio, then sampling before preparing, then in the order of windows.
Rank = tuple[int, int, int]


class _Stopped(Exception):
    """The request ended early."""


class _Board:
    """What the threads of a request tell each other: how many codes there are, and who may compute."""

    def __init__(self, cores: int, filled: Sequence[int], batches: int) -> None:
        self.free, self.waiting = cores, list[Rank]()
        # Codes of each level, for each batch of samples.
        self.filled = [[count] * batches for count in filled]
        self.stopped = False
        self.changed = threading.Condition()

    @contextlib.contextmanager
    def core(self, rank: Rank) -> Iterator[None]:
        """Holds a core; of those that wait, the one of least rank goes first."""
        with self.changed:
            self._take(rank)
        try:
            yield
        finally:
            with self.changed:
                self._leave()

    def give_way(self, rank: Rank) -> None:
        """Lets those that wait with less than the holder's rank go first."""
        with self.changed:
            if self.stopped or (self.waiting and min(self.waiting) < rank):
                self._leave()
                self._take(rank)

    def _take(self, rank: Rank) -> None:
        self.waiting.append(rank)
        self.changed.wait_for(lambda: self.stopped or (self.free and rank == min(self.waiting)))
        self.waiting.remove(rank)
        if self.stopped:
            raise _Stopped
        self.free -= 1
        self.changed.notify_all()

    def _leave(self) -> None:
        self.free += 1
        self.changed.notify_all()
        if self.stopped:
            raise _Stopped

    def wait(self, level: int, batch: int, needed: int) -> None:
        """Until there are so many codes."""
        with self.changed:
            self.changed.wait_for(lambda: self.stopped or self.filled[level][batch] >= needed)
            if self.stopped:
                raise _Stopped

    def fill(self, level: int, batch: int, count: int) -> None:
        with self.changed:
            self.filled[level][batch] = count
            self.changed.notify_all()

    def stop(self) -> None:
        with self.changed:
            self.stopped = True
            self.changed.notify_all()


class _Overlap:
    def __init__(self, sampling: Sampling, threads: int) -> None:
        self.threads, self.workers = threads, list[threading.Thread]()
        # Of each decoder: on many cores there is more than one for each window.
        self.team = max(1, threads // 2)
        self.sampling = sampling
        self.board = _Board(threads // self.team, sampling.filled, len(sampling.params.batches))
        # For the caller's thread: codes sampled at a level, a window done, or what went wrong.
        self.events: SimpleQueue[tuple[int, int] | Window | BaseException] = SimpleQueue()

    def samples(self, windows: Sequence[Window], prior: Prior, decoder: OverlappingDecoder) -> None:
        """One thread's life."""
        try:
            alone(self.threads)
            for window in windows:
                for batch, items in enumerate(self.sampling.params.batches):
                    self.window(window, batch, items, prior, decoder)
                self.events.put(window)
        except _Stopped:
            pass
        except BaseException as error:
            self.events.put(error)

    def window(self, window: Window, batch: int, items: range, prior: Prior, decoder: OverlappingDecoder) -> None:
        level, sampling, board = window.level, self.sampling, self.board
        sample_rank, prepare_rank = (level, 0, window.start), (level, 1, window.start)
        most = sampling.REPORT_EVERY if level == sampling.params.level else UPPER_PART
        if window.upper_needed:
            board.wait(level + 1, batch, window.upper_needed)
        with board.core(prepare_rank):
            task = sampling.task(window, items, prior, decoder)
        decoder.begin(task)
        taken = window.start
        while taken < window.first:
            board.wait(level, batch, min(taken + PROMPT_PART, window.first))
            with board.core(prepare_rank):
                # All that is there, without leaving the core to others in between.
                while (stop := self.prompt_stop(window, batch, taken)) > taken:
                    own = slice(taken - window.start, stop - window.start)
                    task.codes[:, own] = sampling.codes[level][items.start : items.stop, taken:stop]
                    decoder.extend(own.start, own.stop)
                    board.give_way(prepare_rank)
                    taken = stop
        # Codes are counted from the left, so windows without a prompt wait for those before, too.
        board.wait(level, batch, window.first)
        first, positions = window.first, FIRST_PART
        with board.core(sample_rank):
            while first < window.stop:
                stop, begun = min(first + positions, window.stop), time.perf_counter()
                decoder.run(first - window.start, stop - window.start)
                seconds = (time.perf_counter() - begun) / (stop - first)
                positions = max(1, min(most, int(PART_SECONDS / seconds)))
                sampling.keep(task, items, first, stop)
                board.fill(level, batch, stop)
                self.events.put((level, (stop - first) * len(items)))
                board.give_way(sample_rank)
                first = stop

    def prompt_stop(self, window: Window, batch: int, taken: int) -> int:
        """How far the prompt can be taken in now: by whole parts but for its end."""
        ready = min(self.board.filled[window.level][batch], window.first)
        if ready < window.first:
            ready -= (ready - taken) % PROMPT_PART
        return min(ready, taken + LONGEST_PROMPT_PART)

    def start(self, windows: Sequence[Window], prior: Prior, decoder: OverlappingDecoder) -> None:
        """A thread for `windows`."""
        worker = threading.Thread(target=self.samples, args=(windows, prior, decoder), daemon=True)
        worker.start()
        self.workers.append(worker)

    @contextlib.contextmanager
    def core(self) -> Iterator[None]:
        """What the caller computes with the first codes is almost as urgent as preparing the next."""
        with self.board.core((self.sampling.params.level, 2, 0)), one_thread():
            yield

    def end(self) -> None:
        """Stop all threads, and wait for them whatever happens: one in C++ must not outlive the interpreter."""
        self.board.stop()
        interrupted = None
        for worker in self.workers:
            while worker.is_alive():
                try:
                    worker.join()
                except KeyboardInterrupt as again:
                    interrupted = again
        if interrupted:
            raise interrupted


def run(
    sampling: Sampling,
    windows: Sequence[Window],
    priors: PriorSource,
    backend: Backend,
    sampled: Callable[[int, int], None],
) -> Iterator[Window]:
    """Sample `windows`; each is yielded when its codes are in `sampling.codes`, complete. `backend` is an overlapping
    one. `sampled(level, codes)` is called, from the caller's thread, for every few codes.
    """
    overlap = _Overlap(sampling, torch.get_num_threads())
    sampling.core = overlap.core
    # A generator that is never finished is still there when the interpreter ends.
    atexit.register(overlap.end)
    try:
        # What others wait for begins first, and may soon have all cores.
        with one_thread():
            for level in sorted({window.level for window in windows}, reverse=True):
                prior, own = priors(level, resident=True), [window for window in windows if window.level == level]
                decoder = cast("OverlappingDecoder", backend.build(prior, len(sampling.params.batches[0])))
                for turn in range(min(2, len(own))):
                    overlap.start(own[turn::2], prior, decoder.twin(overlap.team))
        left = len(windows)
        while left:
            event = overlap.events.get()
            if isinstance(event, BaseException):
                raise event
            if isinstance(event, tuple):
                sampled(*event)
            else:
                left -= 1
                # A thread may tell of its window late, when the next one is done as well.
                sampling.filled[event.level] = max(sampling.filled[event.level], event.stop)
                yield event
    finally:
        sampling.core = contextlib.nullcontext
        atexit.unregister(overlap.end)
        overlap.end()
