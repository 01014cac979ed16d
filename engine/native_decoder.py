"""Whole runs of decode steps in C++, for CPUs (kernels/csrc/decode.cpp)."""

from __future__ import annotations

import copy
import time
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from ..kernels import native, native_library
from ..kernels.native_condition import NativeConditioner
from .convolution import repeatable
from .decoder import WindowTask
from .kv_cache import num_slots
from .prior import Prior
from .threads import one_thread, usable_threads
from .trials import TeamSize

if TYPE_CHECKING:
    from .convolution import ResidualBlock, ResidualStack


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
            torch.zeros(1, config.width, device="cpu") if prior.start_token is None else prior.start_token,
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
        """Decode with at most `most` threads. How many is found by trials, for steps and for prompts apart: a prompt
        may be worth dividing where a step is not."""
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
        self._native_task = self.model.task(
            task.codes,
            task.items,
            task.frame_cond,
            task.start_cond,
            seed=task.seed,
            offset=task.offset,
            level=task.level,
            temperature=task.sampling.temperature,
            top_k=task.sampling.top_k,
            top_p=task.sampling.top_p,
        )
        with torch.inference_mode(), one_thread(), repeatable(self.prior.device):
            self.prior.read_lyrics(task.lyrics, self.cache)

    def extend(self, start: int, stop: int) -> None:
        row_len = self.prior.config.row_len
        native_library.rest_pytorch_threads()
        while start < stop:
            threads, positions = self.prompt_team.next_call(self.SECONDS_PER_CALL)
            # Whole rows, if a call has time for one.
            positions = positions // row_len * row_len or positions
            last = min(start + max(positions, self.FEWEST_POSITIONS), stop)
            begun = time.perf_counter()
            # A prompt may come in pieces.
            self.model.prefill(self._native_task, start, last, max(stop, self.task.prompt_len), threads)
            self.prompt_team.measured(threads, last - start, time.perf_counter() - begun)
            start = last

    def run(self, start: int, stop: int) -> None:
        native_library.rest_pytorch_threads()
        while start < stop:
            threads, steps = self.team.next_call(self.SECONDS_PER_CALL)
            steps = min(steps, stop - start)
            begun = time.perf_counter()
            self.decode(start, start + steps, threads)
            self.team.measured(threads, steps, time.perf_counter() - begun)
            start += steps

    def decode(self, start: int, stop: int, threads: int) -> None:
        """As `run`, in one call of so many threads."""
        self.model.decode(self._native_task, start, stop, threads)

    def wait(self) -> None:
        """Nothing is under way once a call is over."""

    def speculate(
        self, draft: NativeDecoder, positions: list[int], stop: int, length: int, checks: int, threads: int
    ) -> tuple[int, int, int]:
        """See speculative_decoder.CheckingDecoder."""
        models = self._native_task, draft.model, draft._native_task
        return self.model.speculate(*models, positions, stop, length, checks, threads)
