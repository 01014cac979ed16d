"""Decoding with fused kernels: five per layer and two per step, recorded once and replayed as a CUDA graph.

Everything that changes from step to step or from window to window lies in device tensors: the positions, which the
last kernel of a step moves on, the codes, the noise key, the filters. So one graph serves every step of every window.
Activations are FP32; the cache has the weights' dtype. With drafts, see draft_cycle.py.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..kernels import reference
from ..kernels.packing import PackedWeight, pack_weight
from .convolution import repeatable
from .kv_cache import KVCache, LayerCache
from .prior import Prior
from .threads import one_thread
from .transformer import TransformerLayer
from .trials import TeamSize

if TYPE_CHECKING:
    from .decoder import WindowTask
    from .draft_cycle import DraftCycle


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
        self.prior, self.steps_per_graph, self.ops = prior, steps_per_graph, ops
        config, device = prior.config, prior.device
        # Of the host's threads.
        self.team = TeamSize(1)
        self.cycles: dict[int, DraftCycle] = {}
        # Items that the cache has room for.
        self.batch = batch
        # How many steps the graphs have.
        self.recorded: tuple[int, ...] = (1, steps_per_graph)
        with torch.inference_mode():
            self.noise_key = torch.zeros(4, dtype=torch.int64, device=device)
            self.filters = torch.ones(3, dtype=torch.float32, device=device)
            self.cache = KVCache(config, batch, device, prior.dtype)
            self.head = pack_weight(prior.head.t(), int8)
            self.layers: list[_Layer] = []
            for module, cache in zip(prior.layers, self.cache.layers, strict=True):
                assert isinstance(module, TransformerLayer)
                packed = (pack_weight(p.weight, int8) for p in (module.qkv, module.proj, module.up, module.down))
                self.layers.append(_Layer(module, cache, *packed))
            self._allocate(batch)

    def _allocate(self, lanes: int) -> None:
        """All that holds something for each lane, but the cache."""
        config, device = self.prior.config, self.prior.device
        dtype = torch.promote_types(self.prior.dtype, torch.float32)

        def buffer(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
            return torch.zeros(lanes, *shape, device=device, dtype=dtype)

        self.lanes = lanes
        self.x, self.h = buffer(config.width), buffer(config.width)
        self.q, self.hidden = buffer(config.attn_width), buffer(config.mlp_width)
        self.logits = buffer(config.codebook_size)
        self.codes = buffer(config.context_len, dtype=torch.int64)
        self.positions, self.items = buffer(dtype=torch.int64), buffer(dtype=torch.int64)
        self.frame_cond: Tensor | None = None
        self.cond: Tensor | None = None
        # Layers of one pattern take turns with one buffer.
        self.parts: dict[str, _Parts] = {}
        for layer in self.cache.layers:
            count, _ = reference.attention_parts(layer.pattern.value, config.row_len, layer.kv.shape[3])
            sums = buffer(count, config.heads, config.head_dim)
            self.parts[layer.pattern.value] = _Parts(sums, *(buffer(count, config.heads) for _ in range(2)))
        self.graphs: dict[tuple[bool, int], torch.cuda.CUDAGraph] = {}
        self.behind: torch.cuda.Event | None = None

    def side_by_side(self, positions: int) -> GraphDecoder:
        """Another one with the same weights, noise and cache, whose lanes are so many positions of each of this one's
        items, the first of all before the second of all; its conditions are the items', too."""
        other = copy.copy(self)
        with torch.inference_mode():
            other._allocate(positions * self.batch)
        return other

    def expect_drafts(self, draft: GraphDecoder, lengths: Sequence[int]) -> None:
        """From here on `draft` only drafts for this decoder, so many codes at a time (`speculate`)."""
        from .draft_cycle import DraftCycle

        # One has guessed them, the other corrects them.
        draft.codes, draft.recorded = self.codes, ()
        # Position 0 is not drafted.
        drafted = self.prior.config.context_len > 1
        self.cycles = {length: DraftCycle(self, draft, length) for length in lengths if drafted}

    @torch.inference_mode()
    def condition(self, upper_codes: Tensor) -> Tensor:
        with one_thread():
            return self.prior.condition(upper_codes)

    def prefill(self, task: WindowTask) -> None:
        self.begin(task)
        self.extend(0, task.prompt_len)

    @torch.inference_mode()
    def begin(self, task: WindowTask) -> None:
        """Take the task, whose prompt `extend` puts into the cache; if drafts are expected, after their decoder."""
        prior, device, sampling = self.prior, self.prior.device, task.sampling
        self.task, self.pos = task, 0
        self.start_cond = self._take_conditions(task)
        for cycle in self.cycles.values():
            cycle.check.cond = self.cond
        if device.type == "cuda":
            # The recording runs steps, which leave their traces in the buffers.
            with torch.cuda.device(device):
                self._record()
                for cycle in self.cycles.values():
                    cycle.record()
        self.take_items(task)
        for cycle in self.cycles.values():
            cycle.check.take_items(task)
        self.noise_key.copy_(
            torch.tensor([task.seed & 0xFFFFFFFF, task.seed >> 32, task.level, task.offset], device="cpu")
        )
        self.filters.copy_(torch.tensor([sampling.temperature, float(sampling.top_k), sampling.top_p], device="cpu"))
        with repeatable(device):
            prior.read_lyrics(task.lyrics, self.cache.layers)

    def _of_lanes(self, task: WindowTask) -> Tensor:
        """The item of each lane: lanes without one repeat the last."""
        if len(task.codes) > self.batch:
            raise ValueError(f"{len(task.codes)} items for a decoder of {self.batch}")
        return (torch.arange(self.lanes, device=self.prior.device) % self.batch).clamp(max=len(task.codes) - 1)

    def of_lanes(self, positions: Sequence[int]) -> Tensor:
        """[lanes] int64: the last one, again and again, after those of the items."""
        repeated = [*positions, *[positions[-1]] * (self.lanes - len(positions))]
        return torch.tensor(repeated, device=self.prior.device)

    def _take_conditions(self, task: WindowTask) -> Tensor | None:
        """Copy the frame conditions to where recorded steps read them; returns those of the start."""
        pick, dtype = self._of_lanes(task), self.prior.dtype
        self.cond = None
        if task.frame_cond is not None:
            frame_cond = task.frame_cond[pick].to(dtype)
            if self.frame_cond is None:
                self.frame_cond = torch.empty_like(frame_cond, memory_format=torch.contiguous_format)
            self.cond = self.frame_cond.copy_(frame_cond)
        return None if task.start_cond is None else task.start_cond[pick].to(dtype)

    def take_items(self, task: WindowTask) -> None:
        pick = self._of_lanes(task)
        self.codes.copy_(task.codes[pick])
        self.items.copy_(task.items[pick])

    @torch.inference_mode()
    def extend(self, start: int, stop: int) -> None:
        """Put positions `start` ... `stop` - 1 of the codes into the cache, which holds those before."""
        prior, attention = self.prior, self.ops.prefill_attention
        self.codes[:, start:stop] = self.task.codes[self._of_lanes(self.task), start:stop]
        with repeatable(prior.device):
            prior.prefill_prompt(self.codes[:, :stop], self.cache, self.cond, self.start_cond, attention, start)
        self.go_to(stop)

    @torch.inference_mode()
    def go_to(self, *reached: int) -> None:
        """Make these the items' next positions, or one of all, those before being in the cache; none is 0 but all."""
        prior, lanes = self.prior, torch.arange(self.lanes, device=self.prior.device)
        self.pos = min(reached)
        pos = self.of_lanes(reached)
        self.positions.copy_(pos)
        if max(reached) < prior.config.context_len:
            start = prior.start(self.start_cond, self.lanes) if self.pos == 0 else None
            first = prior.token_embedding[self.codes[lanes, pos - 1]] if start is None else start
            # In the order and precision of sample_step.
            x = first.to(self.x.dtype) + prior.pos_embedding[pos].to(self.x.dtype)
            self.x.copy_(x if self.cond is None else x + self.cond[lanes, pos].to(self.x.dtype))

    @torch.inference_mode()
    def run(self, start: int, stop: int) -> None:
        if start != self.pos:
            raise ValueError(f"positions from {start}, but {self.pos} is next")
        if self.behind:
            # The host stays one call ahead: the GPU has work, and progress tells what was done.
            self.behind.synchronize()
        if self.prior.device.type == "cuda":
            with torch.cuda.device(self.prior.device):
                self._steps(stop - start)
                self.behind = torch.cuda.Event()
                self.behind.record()
        else:
            self._steps(stop - start)
        self.task.codes[:, start:stop] = self.codes[: len(self.task.codes), start:stop]
        self.pos = stop

    def decode(self, start: int, stop: int, threads: int = 1) -> None:
        """As `run`, and waits for it."""
        self.run(start, stop)
        self.wait()

    def wait(self) -> None:
        """Until all is done that was begun."""
        if self.prior.device.type == "cuda":
            torch.cuda.synchronize(self.prior.device)

    @torch.inference_mode()
    def speculate(
        self, draft: GraphDecoder, positions: list[int], stop: int, length: int, checks: int, threads: int = 1
    ) -> tuple[int, int, int]:
        """See speculative_decoder.CheckingDecoder; `draft` is the decoder that drafts are expected of. No position is
        beyond `stop`."""
        start = min(positions)
        if start != self.pos:
            raise ValueError(f"positions from {start}, but {self.pos} is next")
        if not start:
            # What position 0 takes in is no code.
            self.decode(0, 1)
            draft.extend(0, 1)
            positions[:] = [1] * len(positions)
        counts = 0, len(positions), len(positions)
        if min(positions) < stop:
            counts = self.cycles[length].run(positions, stop, checks)
        self.task.codes[:, start:stop] = self.codes[: len(self.task.codes), start:stop]
        self.pos = min(positions)
        if self.pos == max(positions):
            self.go_to(self.pos)
        return counts

    def _steps(self, steps: int) -> None:
        if self.prior.device.type != "cuda":
            for _ in range(steps):
                self.step()
            return
        several, one = (self.graphs[self.cond is not None, count] for count in (self.steps_per_graph, 1))
        for _ in range(steps // self.steps_per_graph):
            several.replay()
        for _ in range(steps % self.steps_per_graph):
            one.replay()

    def step(self, row_len: int = 0) -> None:
        """One position of all lanes, the one that `positions` says; see sample_step for `row_len`."""
        ops, x, h, q, hidden = self.ops, self.x, self.h, self.q, self.hidden
        res_scale = self.prior.config.res_scale
        for module, cache, qkv, proj, up, down in self.layers:
            pattern, ln_0, ln_1 = cache.pattern.value, module.ln_0, module.ln_1
            norm_0, norm_1 = (ln_0.weight, ln_0.bias), (ln_1.weight, ln_1.bias)
            where, parts = (pattern, self.prior.config.row_len), self.parts[pattern]
            ops.norm_qkv(q, cache.kv, x, self.positions, *norm_0, qkv.weight, module.qkv.bias, qkv.scale, *where)
            ops.cache_attention(*parts, q, cache.kv, self.positions, *where)
            ops.project_attention(h, *parts, x, proj.weight, module.proj.bias, proj.scale)
            ops.norm_up(hidden, h, *norm_1, up.weight, module.up.bias, up.scale)
            ops.down_residual(x, hidden, x, h, down.weight, module.down.bias, down.scale, res_scale)
        last_cond = None if self.prior.own_head is not None else self.cond
        ops.head_logits(self.logits, x, last_cond, self.positions, *self.head)
        embeddings = self.prior.token_embedding, self.prior.pos_embedding
        drawn = (self.logits, self.items, self.noise_key, self.filters)
        ops.sample_step(self.codes, x, self.positions, *drawn, *embeddings, self.cond, row_len)

    def _record(self) -> None:
        """Record the graphs, unless they are there."""
        for steps in self.recorded:
            key = (self.cond is not None, steps)
            if key not in self.graphs:
                self.positions.zero_()
                self.graphs[key] = recorded(self.step, steps)


def recorded(work: Callable[[], None], times: int = 1) -> torch.cuda.CUDAGraph:
    """`work`, so many times, as a CUDA graph; it is also done once."""
    # Compiles the kernels, which a recording must not.
    work()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(times):
            work()
    return graph


def int8_decoder(prior: Prior, batch: int) -> GraphDecoder:
    """The decoder with weight-only int8."""
    return GraphDecoder(prior, batch, int8=True)
