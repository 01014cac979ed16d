"""Whole runs of decode steps in C++, for CPUs (kernels/csrc/decode.cpp)."""

from __future__ import annotations

import time

import torch

from ..kernels import native
from .decoder import WindowTask
from .kv_cache import KVCache
from .prior import Prior


class NativeDecoder:
    """FP32 arithmetic on weights stored as FP32, as FP16 where that loses nothing, or as int8. The prompt goes through
    Prior.prefill in PyTorch.

    An item's codes depend neither on the batch nor on the number of threads.
    """

    # A call into C++ cannot be interrupted: it is kept to about this long.
    SECONDS_PER_CALL = 0.25

    def __init__(self, prior: Prior, batch: int, int8: bool = False) -> None:
        if prior.device.type != "cpu" or prior.dtype != torch.float32:
            raise ValueError(f"the native decoder takes FP32 priors on the CPU, not {prior.dtype} on {prior.device}")
        config = prior.config
        self.prior = prior
        self.cache = KVCache(config, batch, prior.device, torch.float32)
        self.threads = torch.get_num_threads()
        weights = native.PackedWeights(int8)
        self.model = native.NativeModel(
            weights,
            [
                native.pack_layer(weights, dict(layer.named_parameters()), cache.keys, cache.values, cache.pattern)
                for layer, cache in zip(prior.layers, self.cache.layers, strict=True)
            ],
            weights.matrix(prior.token_embedding.T),
            prior.token_embedding,
            prior.pos_embedding,
            prior.start_token,
            attn_width=config.attn_width,
            heads=config.heads,
            mlp_width=config.mlp_width,
            row_len=config.row_len,
            res_scale=config.res_scale,
        )
        self.seconds_per_step = self.SECONDS_PER_CALL

    @torch.inference_mode()
    def prefill(self, task: WindowTask) -> None:
        self.task = task
        self.prior.prefill_prompt(task.codes[:, : task.prompt_len], self.cache, task.frame_cond, task.start_cond)

    def run(self, start: int, stop: int) -> None:
        task = self.task
        native.rest_pytorch_threads()
        while start < stop:
            steps = min(max(1, int(self.SECONDS_PER_CALL / self.seconds_per_step)), stop - start)
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
                threads=self.threads,
            )
            self.seconds_per_step = (time.perf_counter() - begun) / steps
            start += steps
