"""Decoding with fused kernels: five per layer and two per step, recorded once and replayed as a CUDA graph.

Everything that changes from step to step or from window to window lies in device tensors: the positions, which the
last kernel of a step moves on, the codes, the noise key, the filters. So one graph serves every step of every window.
Activations are FP32; the cache has the weights' dtype.
"""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..kernels import reference
from ..kernels.packing import PackedWeight, pack_weight
from .kv_cache import KVCache, LayerCache
from .prior import Prior
from .threads import one_thread
from .transformer import TransformerLayer

if TYPE_CHECKING:
    from .decoder import WindowTask


def missing(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why this decoder cannot run priors in `dtype` on `device`, or None."""
    if device.type != "cuda":
        return "it needs an NVIDIA GPU"
    try:
        from triton import __version__ as version
    except ImportError:
        return "the package triton is not installed"
    # Before, programmatic dependent launch and products of few items do not compile.
    if tuple(map(int, version.split(".")[:2])) < (3, 5):
        return f"it needs triton 3.5 or newer, not {version}"
    if dtype == torch.bfloat16 and torch.cuda.get_device_capability(device) < (8, 0):
        return "bfloat16 needs compute capability 8.0"
    return None


class _Parts(NamedTuple):
    """What cache_attention writes; see there."""

    sums: Tensor
    peaks: Tensor
    masses: Tensor


class _Layer(NamedTuple):
    module: TransformerLayer
    cache: LayerCache
    parts: _Parts
    qkv: PackedWeight
    proj: PackedWeight
    up: PackedWeight
    down: PackedWeight


class GraphDecoder:
    """Fused kernels in a CUDA graph; on a CPU the same steps one by one, for tests (in Triton's interpreter).

    int8: weight-only int8, one scale per output; the embedding as the input stays as it is.
    steps_per_graph: steps that one graph launch covers.
    ops: the operations: `kernels.fused` unless given, or another module of the same names.

    The decoder keeps its own copy of the projections: they are stored output by output for it.
    """

    def __init__(
        self, prior: Prior, batch: int, int8: bool = False, steps_per_graph: int = 8, ops: ModuleType | None = None
    ) -> None:
        if ops is None:
            from ..kernels import fused as ops
        self.prior, self.lanes, self.steps_per_graph, self.ops = prior, batch, steps_per_graph, ops
        self.graphs: dict[tuple[bool, int], torch.cuda.CUDAGraph] = {}
        self.behind: torch.cuda.Event | None = None
        with torch.inference_mode():
            self._allocate(prior, batch, int8)

    def _allocate(self, prior: Prior, batch: int, int8: bool) -> None:
        config, device = prior.config, prior.device
        dtype = torch.promote_types(prior.dtype, torch.float32)

        def buffer(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
            return torch.zeros(batch, *shape, device=device, dtype=dtype)

        self.x, self.h = buffer(config.width), buffer(config.width)
        self.q, self.hidden = buffer(config.attn_width), buffer(config.mlp_width)
        self.logits = buffer(config.codebook_size)
        self.codes = buffer(config.context_len, dtype=torch.int64)
        self.positions, self.items = buffer(dtype=torch.int64), buffer(dtype=torch.int64)
        self.frame_cond: Tensor | None = None
        self.noise_key = torch.zeros(4, dtype=torch.int64, device=device)
        self.filters = torch.ones(3, dtype=torch.float32, device=device)
        self.cache = KVCache(config, batch, device, prior.dtype)
        self.head = pack_weight(prior.head.t(), int8)
        # Layers of one pattern take turns with one buffer.
        parts: dict[str, _Parts] = {}
        self.layers: list[_Layer] = []
        for module, cache in zip(prior.layers, self.cache.layers, strict=True):
            assert isinstance(module, TransformerLayer)
            pattern = cache.pattern.value
            if pattern not in parts:
                count, _ = reference.attention_parts(pattern, config.row_len, cache.kv.shape[3])
                sums = buffer(count, config.heads, config.head_dim)
                parts[pattern] = _Parts(sums, buffer(count, config.heads), buffer(count, config.heads))
            packed = (pack_weight(p.weight, int8) for p in (module.qkv, module.proj, module.up, module.down))
            self.layers.append(_Layer(module, cache, parts[pattern], *packed))

    @torch.inference_mode()
    def condition(self, upper_codes: Tensor) -> Tensor:
        with one_thread():
            return self.prior.condition(upper_codes)

    @torch.inference_mode()
    def prefill(self, task: WindowTask) -> None:
        batch, pos = len(task.codes), task.prompt_len
        if batch > self.lanes:
            raise ValueError(f"{batch} items for a decoder of {self.lanes}")
        prior, device = self.prior, self.prior.device
        # Lanes without an item repeat the last one.
        pick = torch.arange(self.lanes, device=device).clamp(max=batch - 1)
        conditions = task.frame_cond, task.start_cond
        frame_cond, start_cond = (None if cond is None else cond[pick].to(prior.dtype) for cond in conditions)
        if frame_cond is None:
            self.cond = None
        else:
            if self.frame_cond is None:
                self.frame_cond = torch.zeros_like(frame_cond, memory_format=torch.contiguous_format)
            self.cond = self.frame_cond
        if device.type == "cuda":
            # The recording runs a step, which leaves its traces in the buffers.
            with torch.cuda.device(device):
                self._record()
        if self.cond is not None and frame_cond is not None:
            self.cond.copy_(frame_cond)
        self.task, self.pos = task, pos
        self.codes.copy_(task.codes[pick])
        self.items.copy_(task.items[pick])
        self.positions.fill_(pos)
        seed, sampling = task.seed, task.sampling
        self.noise_key.copy_(torch.tensor([seed & 0xFFFFFFFF, seed >> 32, task.level, task.offset]))
        self.filters.copy_(torch.tensor([sampling.temperature, float(sampling.top_k), sampling.top_p]))
        prior.read_lyrics(task.lyrics, self.cache.layers)
        if pos:
            prior.prefill_prompt(self.codes[:, :pos], self.cache, frame_cond, start_cond, self.ops.prefill_attention)
            first = prior.token_embedding[self.codes[:, pos - 1]]
        else:
            first = prior.start(start_cond, self.lanes)
        if pos < prior.config.context_len:
            # In the order and precision of sample_step.
            x = first.to(self.x.dtype) + prior.pos_embedding[pos].to(self.x.dtype)
            self.x.copy_(x if frame_cond is None else x + frame_cond[:, pos].to(self.x.dtype))

    @torch.inference_mode()
    def run(self, start: int, stop: int) -> None:
        if start != self.pos:
            raise ValueError(f"positions from {start}, but {self.pos} is next")
        if self.behind:
            # The host stays one call ahead: the GPU has work, and progress tells what was done.
            self.behind.synchronize()
        if self.prior.device.type == "cuda":
            with torch.cuda.device(self.prior.device):
                self._replay(stop - start)
        else:
            for _ in range(start, stop):
                self._step()
        self.task.codes[:, start:stop] = self.codes[: len(self.task.codes), start:stop]
        self.pos = stop

    def _replay(self, steps: int) -> None:
        several, one = (self.graphs[self.cond is not None, count] for count in (self.steps_per_graph, 1))
        for _ in range(steps // self.steps_per_graph):
            several.replay()
        for _ in range(steps % self.steps_per_graph):
            one.replay()
        self.behind = torch.cuda.Event()
        self.behind.record()

    def _step(self) -> None:
        """One position of all lanes, the one that `positions` says."""
        ops, x, h, q, hidden = self.ops, self.x, self.h, self.q, self.hidden
        row_len, res_scale = self.prior.config.row_len, self.prior.config.res_scale
        for module, cache, parts, qkv, proj, up, down in self.layers:
            pattern, ln_0, ln_1 = cache.pattern.value, module.ln_0, module.ln_1
            norm_0, norm_1 = (ln_0.weight, ln_0.bias), (ln_1.weight, ln_1.bias)
            ops.norm_qkv(
                q, cache.kv, x, self.positions, *norm_0, qkv.weight, module.qkv.bias, qkv.scale, pattern, row_len
            )
            ops.cache_attention(*parts, q, cache.kv, self.positions, pattern, row_len)
            ops.project_attention(h, *parts, x, proj.weight, module.proj.bias, proj.scale)
            ops.norm_up(hidden, h, *norm_1, up.weight, module.up.bias, up.scale)
            ops.down_residual(x, hidden, x, h, down.weight, module.down.bias, down.scale, res_scale)
        last_cond = None if self.prior.own_head is not None else self.cond
        ops.head_logits(self.logits, x, last_cond, self.positions, *self.head)
        # What is drawn is a code, whatever else a prompt may hold.
        embeddings = (self.prior.token_embedding[: self.prior.config.codebook_size], self.prior.pos_embedding)
        drawn = (self.logits, self.items, self.noise_key, self.filters)
        ops.sample_step(self.codes, x, self.positions, *drawn, *embeddings, self.cond)

    def _record(self) -> None:
        """Record the graphs of one step and of several, unless they are there."""
        for steps in (1, self.steps_per_graph):
            key = (self.cond is not None, steps)
            if key in self.graphs:
                continue
            # Compiles the kernels, which a recording must not.
            self.positions.zero_()
            self._step()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                for _ in range(steps):
                    self._step()
            self.graphs[key] = graph


def int8_decoder(prior: Prior, batch: int) -> GraphDecoder:
    """The decoder with weight-only int8."""
    return GraphDecoder(prior, batch, int8=True)
