"""Windows of all levels at the same time, for small networks on several cores.

A decode step of a small network is too short to be shared: threads that meet twice a layer gain little. But steps of
different windows are there to be computed side by side. Each level has two decoders with the same weights, in turns:
while one samples a window, the other prepares the next, whose prompt comes code by code, and begins where the first
ends. So a core samples the bottom level without pause, and what else there is to do, prompts, conditions and the levels
above, is done by the others in time. That keeps two cores busy; on more of them samples are divided into groups, each
with decoders of its own.

What a decoder does is a chain of short pieces of work, each told by what it waits for. There are no more threads than
pieces are computed at once, and each takes the most urgent one that can be done: so no two of them are put on the same
core, and none waits to be woken up while there is work.
"""

from __future__ import annotations

import atexit
import math
import os
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, cast

import torch

from .threads import alone, one_thread, usable_threads

if TYPE_CHECKING:
    from .decoder import Backend, OverlappingDecoder
    from .prior import Prior
    from .sampler import PriorSource, Sampling
    from .windows import Window

# Positions of a prompt that are taken in at once: PROMPT_PART as soon as so many codes exist, at the bottom level up to
# LONGEST_PROMPT_PART.
PROMPT_PART, LONGEST_PROMPT_PART = 64, 256
# A window's first piece samples FIRST_PART positions. Later ones last about PART_SECONDS, since a stop waits for them;
# above the bottom level they have at most UPPER_PART, since those nearer to the audio wait for them.
FIRST_PART, PART_SECONDS, UPPER_PART = 16, 0.25, 32
# Towards a window's end parts get smaller, down to this: the next window begins when the last one has been taken in.
LAST_PART = 16
# How often, at most, the caller is told of codes.
TOLD_SECONDS = 0.05
# Samples in a batch where there are several groups of them: so many share what a step reads for little more than one's
# time, and each takes a cache.
GROUP_BATCH = 4

# Work of least rank goes first: nearest to the audio, then sampling before preparing, then in the order of windows.
Rank = tuple[int, int, int]


class Need(NamedTuple):
    """What the next piece of a chain waits for: so many codes of a level, in a batch of samples; and its rank."""

    rank: Rank
    level: int
    batch: int
    codes: int


Chain: TypeAlias = Generator[Need, None, None]


class Crew:
    """Threads that compute the pieces of chains, each piece on one of them.

    count: of threads; each of them, and no other, computes with one thread of PyTorch's `threads`.
    filled: the codes of each level that are there, for each batch of samples; chains say here what they add.
    failed: called, on any thread, with what a chain raises.
    """

    def __init__(
        self, count: int, threads: int, filled: list[list[int]], failed: Callable[[BaseException], None]
    ) -> None:
        self.threads, self.filled, self.failed = threads, filled, failed
        self.process = os.getpid()
        self.waiting = list[tuple[Need, Chain]]()
        self.idle, self.stopped = 0, False
        # Taken by itself: an interruption while the condition takes it would leave it taken.
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        self.workers = [threading.Thread(target=self._work, name="sampling", daemon=True) for _ in range(count)]

    def start(self) -> None:
        for worker in self.workers:
            worker.start()

    def check_process(self) -> None:
        """Raises RuntimeError in a forked process, which would wait for threads that it does not have."""
        if os.getpid() != self.process:
            raise RuntimeError(
                "a forked process does not have the threads of its parent's sampling: let the parent go on with it, or "
                "begin another here"
            )

    def add(self, chain: Chain) -> None:
        """Up to what it needs first, a chain runs here."""
        self.check_process()
        need = next(chain)
        with self.lock:
            self.waiting.append((need, chain))
            self.changed.notify()

    def compute(self, rank: Rank, work: Callable[[], Any]) -> Any:
        """What `work` returns or raises, computed as a piece of that rank."""
        done = Future[Any]()

        def chain() -> Chain:
            yield Need(rank, 0, 0, 0)
            try:
                done.set_result(work())
            except BaseException as error:
                done.set_exception(error)

        self.add(chain())
        return done.result()

    def _work(self) -> None:
        try:
            alone(self.threads)
        except BaseException as error:
            # Else the caller would wait for what nobody computes.
            self.failed(error)
        while (chain := self._take()) is not None:
            try:
                need = next(chain, None)
            except BaseException as error:
                # The thread goes on: the caller may wait for it to compute something.
                self.failed(error)
                continue
            if need is not None:
                with self.lock:
                    self.waiting.append((need, chain))

    def _take(self) -> Chain | None:
        """The chain whose next piece is the most urgent that can be computed; None: no more."""
        with self.lock:
            place = None
            while not self.stopped and (place := self._most_urgent()) is None:
                self.idle += 1
                self.changed.wait()
                self.idle -= 1
            if self.stopped or place is None:
                return None
            _, chain = self.waiting.pop(place)
            # What this thread has just done may have made more than one possible.
            if self.idle and self._most_urgent() is not None:
                self.changed.notify()
            return chain

    def _most_urgent(self) -> int | None:
        best = None
        for place, (need, _) in enumerate(self.waiting):
            if need.codes and self.filled[need.level][need.batch] < need.codes:
                continue
            if best is None or need.rank < self.waiting[best][0].rank:
                best = place
        return best

    def end(self) -> None:
        """Stop all threads, and wait for them whatever happens: one in C++ must not outlive the interpreter."""
        if os.getpid() != self.process:
            # One of those that are not here may have had the lock.
            return
        if threading.current_thread() in self.workers:
            # A request that nobody holds is collected where memory is asked for, here too: no thread waits for itself.
            with self.lock:
                self.stopped = True
                self.changed.notify_all()
            return
        interrupted = None
        while not self.stopped or any(worker.is_alive() for worker in self.workers):
            try:
                with self.lock:
                    self.stopped = True
                    self.changed.notify_all()
                for worker in self.workers:
                    if worker.is_alive():
                        worker.join()
            except KeyboardInterrupt as again:
                interrupted = again
        # Their caches go now.
        self.waiting.clear()
        if interrupted:
            raise interrupted


def _part(most: int, left: int) -> int:
    """Positions of the next part, where so many are left."""
    return min(most, left, max(LAST_PART, left // 2))


class _Windows:
    """The chains of a request."""

    def __init__(self, sampling: Sampling, crew: Crew, tell: Callable[[tuple[int, int] | Window], None]) -> None:
        self.sampling, self.crew, self.tell = sampling, crew, tell

    def chain(
        self, windows: Sequence[Window], batches: Sequence[tuple[int, range]], prior: Prior, decoder: OverlappingDecoder
    ) -> Chain:
        """`windows` one after another, each for some batches with their numbers. Tells of codes sampled at a level, and
        of each window when it is done for a batch."""
        for window in windows:
            for batch, items in batches:
                yield from self.window(window, batch, items, prior, decoder)
                self.tell(window)

    def window(self, window: Window, batch: int, items: range, prior: Prior, decoder: OverlappingDecoder) -> Chain:
        level, sampling, filled = window.level, self.sampling, self.crew.filled
        sample_rank, prepare_rank = (level, 0, window.start), (level, 1, window.start)
        most = sampling.REPORT_EVERY if level == sampling.params.level else UPPER_PART
        yield Need(prepare_rank, level + 1, batch, window.upper_needed)
        task = sampling.task(window, items, prior, decoder)
        decoder.begin(task)
        if lyric_len := prior.config.lyric_len:
            decoder.extend(0, lyric_len)
        taken = window.start
        while taken < window.first:
            yield Need(prepare_rank, level, batch, taken + _part(PROMPT_PART, window.first - taken))
            stop = self.prompt_stop(window, batch, taken)
            own = slice(taken - task.offset, stop - task.offset)
            task.codes[:, own] = sampling.codes[level][items.start : items.stop, taken:stop]
            decoder.extend(own.start, own.stop)
            taken = stop
        first, positions, untold, told = window.first, FIRST_PART, 0, time.perf_counter()
        while first < window.stop:
            # Codes are counted from the left, so windows without a prompt wait for those before, too.
            yield Need(sample_rank, level, batch, first)
            stop, begun = first + _part(positions, window.stop - first), time.perf_counter()
            decoder.run(first - task.offset, stop - task.offset)
            now = time.perf_counter()
            positions = max(1, min(most, int(PART_SECONDS * (stop - first) / (now - begun))))
            sampling.keep(task, items, first, stop)
            filled[level][batch] = stop
            untold += (stop - first) * len(items)
            if now - told > TOLD_SECONDS or stop == window.stop:
                self.tell((level, untold))
                untold, told = 0, now
            first = stop

    def prompt_stop(self, window: Window, batch: int, taken: int) -> int:
        """How far the prompt can be taken in now: by whole parts but for its end."""
        ready = min(self.crew.filled[window.level][batch], window.first)
        if ready < window.first:
            ready -= (ready - taken) % _part(PROMPT_PART, window.first - taken)
        return min(ready, taken + (LONGEST_PROMPT_PART if window.level == self.sampling.params.level else PROMPT_PART))


def run(
    sampling: Sampling,
    windows: Sequence[Window],
    priors: PriorSource,
    backend: Backend,
    sampled: Callable[[int, int], None],
) -> Iterator[Window]:
    """Sample `windows`, of levels with the same rows; each is yielded when its codes are in `sampling.codes`, complete.
    `backend` is a native one. `sampled(level, codes)` is called, from the caller's thread, for every few codes.
    """
    threads, params, level = usable_threads(), sampling.params, windows[0].level
    # The windows of one batch keep two cores busy: on more, samples are divided into groups, each with its decoders.
    pairs = max(1, threads // 2)
    size = min(params.batch_size, math.ceil(sampling.rows(level) / pairs))
    if pairs > 1:
        size = min(size, max(GROUP_BATCH, math.ceil(params.batch_size / pairs)))
    batches = list(enumerate(sampling.batches(level, size)))
    groups = min(len(batches), pairs)
    # Threads of each decoder: several, where there are too few groups for each thread to have a decoder.
    team = max(1, threads // (2 * groups))
    # For the caller's thread: codes sampled at a level, a window done, or what went wrong.
    events: SimpleQueue[tuple[int, int] | Window | BaseException] = SimpleQueue()
    crew = Crew(
        threads // team, torch.get_num_threads(), [[count] * len(batches) for count in sampling.filled], events.put
    )
    chains = _Windows(sampling, crew, events.put)
    # What the caller computes with the first codes is almost as urgent as preparing the next.
    sampling.compute = lambda work: crew.compute((sampling.params.level, 2, 0), work)
    # A generator that is never finished is still there when the interpreter ends.
    atexit.register(crew.end)
    try:
        crew.start()
        # What others wait for begins first, and may soon have all cores.
        with one_thread():
            for level in sorted({window.level for window in windows}, reverse=True):
                prior, own = priors(level, resident=True), [window for window in windows if window.level == level]
                decoder = cast("OverlappingDecoder", backend.build(prior, size))
                for turn in range(min(2, len(own))):
                    for group in range(groups):
                        crew.add(chains.chain(own[turn::2], batches[group::groups], prior, decoder.twin(team)))
        missing = {window: len(batches) for window in windows}
        while missing:
            crew.check_process()
            event = events.get()
            if isinstance(event, BaseException):
                raise event
            if isinstance(event, tuple):
                sampled(*event)
            else:
                missing[event] -= 1
                if missing[event]:
                    continue
                del missing[event]
                # A chain may tell of its window late, when the next one is done as well.
                sampling.filled[event.level] = max(sampling.filled[event.level], event.stop)
                yield event
    finally:
        sampling.compute = lambda work: work()
        atexit.unregister(crew.end)
        crew.end()
