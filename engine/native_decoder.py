"""Whole runs of decode steps in C++, for CPUs (kernels/csrc/decode.cpp)."""

from __future__ import annotations

import copy
import statistics
import time
from collections import deque
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from ..kernels import native, native_library
from ..kernels.native_condition import NativeConditioner
from .decoder import WindowTask
from .kv_cache import num_slots
from .prior import Prior
from .threads import one_thread, usable_threads

if TYPE_CHECKING:
    from .convolution import ResidualBlock, ResidualStack


class TeamSize:
    """How many threads decode: one, two, four and so on, or as many as are allowed.

    The threads meet dozens of times in a step. Small networks have work for few of them, and where other work has one
    of the cores, the scheduler may put two of them on the same core, where each meeting waits for a time slice: then
    one thread is faster by far. So the next smaller and the next larger number are tried by turns, again from time to
    time; the codes do not depend on it. A single call tells little on a busy machine: what counts is the median of the
    last three.
    """

    # What trials lose may be this part of the time between them. They are long enough for a second core to wake up,
    # which takes milliseconds in a virtual machine.
    TRIAL_SECONDS, TRIAL_CALLS, LOSS = 0.03, 3, 0.02
    SHORTEST_PAUSE = 0.05

    def __init__(self, most: int) -> None:
        self.counts = sorted({most, *(1 << power for power in range(most.bit_length()))})
        # Seconds per step of each count's last calls.
        self.recent: dict[int, deque[float]] = {}
        # The count that is tried, or was last, and the one that it is held against.
        self.trial, self.base = 0, 0
        self.calls_left, self.lost, self.next_trial = 0, 0.0, 0.0

    def cost(self, count: int) -> float:
        """Seconds per step as far as is known."""
        return statistics.median(self.recent[count])

    @property
    def best(self) -> int:
        """The fastest count as far as is known."""
        return min(self.recent, key=self.cost)

    def next_call(self, seconds: float) -> tuple[int, int]:
        """Threads and steps of the next call, which is to last about `seconds`, or far less if it is a trial."""
        if not self.recent:
            return self.counts[0], 1
        if not self.calls_left and len(self.counts) > 1:
            base = self.best
            trial = self._neighbour(base)
            new = trial not in self.recent
            if new or time.monotonic() >= self.next_trial:
                self.base, self.trial = base, trial
                # The first call of all only tells how long the others may be.
                self.calls_left, self.lost = self.TRIAL_CALLS + new, 0.0
        if self.calls_left:
            known = self.recent.get(self.trial)
            if not known:
                # It may be slower by any factor.
                return self.trial, 1
            steps = self.TRIAL_SECONDS / max(self.TRIAL_CALLS * self.cost(self.base), min(known))
            return self.trial, max(1, int(steps))
        best = self.best
        return best, max(1, int(seconds / self.cost(best)))

    def _neighbour(self, base: int) -> int:
        """What to try beside `base`: a count that was never tried, the larger first, or the one whose turn it is."""
        place = self.counts.index(base)
        neighbours = [*self.counts[place + 1 : place + 2], *self.counts[max(place - 1, 0) : place]]
        return min(neighbours, key=lambda count: (count in self.recent, count == self.trial))

    def measured(self, threads: int, steps: int, seconds: float) -> None:
        """What a call has taken."""
        if self.calls_left:
            self.lost += seconds - steps * self.cost(self.base)
            self.calls_left -= 1
            self.next_trial = time.monotonic() + max(self.SHORTEST_PAUSE, self.lost / self.LOSS)
        self.recent.setdefault(threads, deque(maxlen=3)).append(seconds / steps)


def _conditioner(prior: Prior) -> NativeConditioner | None:
    network, config = prior.conditioner, prior.config.conditioner
    if network is None or config is None:
        return None
    blocks = [cast("ResidualBlock", block) for block in cast("ResidualStack", network.upsampler.stacks[0])]
    return NativeConditioner(
        dict(network.named_parameters()),
        stages=config.stages,
        stride=config.stride,
        dilations=[block.dilated.dilation[0] for block in blocks],
        res_scale=blocks[0].res_scale if blocks else 1.0,
    )


# Of priors; FP16 takes half the memory beside what is packed, and gives the codes of the same values in FP32.
DTYPES = (torch.float32, torch.float16)


class NativeDecoder:
    """FP32 arithmetic on weights stored as FP32, or as FP16 where that loses nothing; or int8 weights, whose products
    with inputs of 15 bits are summed exactly (kernels/packing.py), beside keys and values in FP16.

    An item's codes depend neither on the batch nor on the number of threads; nor on what of them was a prompt, nor on
    the processor.
    """

    # A call into C++ cannot be interrupted: it is kept to about this long.
    SECONDS_PER_CALL = 0.25
    # Positions of a prompt that a call takes in at least: so many share what is read of the weights.
    FEWEST_POSITIONS = 16

    def __init__(self, prior: Prior, batch: int, int8: bool = False) -> None:
        if prior.device.type != "cpu" or prior.dtype not in DTYPES:
            raise ValueError(
                f"the native decoder takes FP32 and FP16 priors on the CPU, not {prior.dtype} on {prior.device}"
            )
        config = prior.config
        self.prior = prior
        # Beside rounded weights, rounded keys and values are a small part of the error, and half of what is read.
        self.cache = self._new_cache(batch, torch.float16 if int8 else torch.float32)
        self.use_threads(usable_threads())
        weights = native.PackedWeights(int8)
        self.model = native.NativeModel(
            weights,
            [
                native.pack_layer(weights, dict(layer.named_parameters()), cache, pattern)
                for layer, cache, pattern in zip(prior.layers, self.cache, config.layer_patterns, strict=True)
            ],
            weights.matrix(prior.head.T),
            prior.token_embedding,
            prior.pos_embedding,
            # Labels stand in for it.
            torch.zeros(1, config.width) if prior.start_token is None else prior.start_token,
            attn_width=config.attn_width,
            heads=config.heads,
            mlp_width=config.mlp_width,
            row_len=config.row_len,
            res_scale=config.res_scale,
            cond_again=not config.separate_head,
        )
        self.conditioner = _conditioner(prior)

    def _new_cache(self, batch: int, dtype: torch.dtype) -> list[native.LayerCache]:
        config, memory = self.prior.config, native.LargePages()
        return [
            native.LayerCache(memory, batch, config.heads, num_slots(pattern, config), config.head_dim, dtype)
            for pattern in config.layer_patterns
        ]

    def use_threads(self, most: int) -> None:
        """Let no more threads than `most` decode, or one, whichever is faster; a prompt may be divided where a step is
        too short to be."""
        self.team, self.prompt_team = TeamSize(most), TeamSize(most)

    def twin(self, threads: int) -> NativeDecoder:
        other = copy.copy(self)
        other.cache = self._new_cache(len(self.cache[0].keys), self.cache[0].keys.dtype)
        other.model = self.model.with_cache(other.cache)
        other.use_threads(threads)
        return other

    def condition(self, upper_codes: Tensor) -> Tensor:
        if self.conditioner is None:
            raise ValueError(f"the level {self.prior.config.level} prior has no conditioner")
        return self.conditioner(upper_codes, self.team.counts[-1])

    def prefill(self, task: WindowTask) -> None:
        self.begin(task)
        self.extend(0, task.prompt_len)

    def begin(self, task: WindowTask) -> None:
        lanes = len(self.cache[0].keys)
        if len(task.codes) > lanes:
            raise ValueError(f"{len(task.codes)} items for a decoder of {lanes}")
        self.task = task
        with torch.inference_mode(), one_thread():
            self.prior.read_lyrics(task.lyrics, self.cache)

    def extend(self, start: int, stop: int) -> None:
        task, row_len = self.task, self.prior.config.row_len
        native_library.rest_pytorch_threads()
        while start < stop:
            threads, positions = self.prompt_team.next_call(self.SECONDS_PER_CALL)
            # Whole rows, if a call has time for one.
            positions = positions // row_len * row_len or positions
            last = min(start + max(positions, self.FEWEST_POSITIONS), stop)
            begun = time.perf_counter()
            self.model.prefill(
                task.codes,
                start,
                last,
                frame_cond=task.frame_cond,
                start_cond=task.start_cond,
                threads=threads,
            )
            self.prompt_team.measured(threads, last - start, time.perf_counter() - begun)
            start = last

    def run(self, start: int, stop: int) -> None:
        task = self.task
        native_library.rest_pytorch_threads()
        while start < stop:
            threads, steps = self.team.next_call(self.SECONDS_PER_CALL)
            steps = min(steps, stop - start)
            begun = time.perf_counter()
            self.model.decode(
                task.codes,
                task.items,
                start,
                start + steps,
                frame_cond=task.frame_cond,
                start_cond=task.start_cond,
                seed=task.seed,
                offset=task.offset,
                level=task.level,
                temperature=task.sampling.temperature,
                top_k=task.sampling.top_k,
                top_p=task.sampling.top_p,
                threads=threads,
            )
            self.team.measured(threads, steps, time.perf_counter() - begun)
            start += steps
