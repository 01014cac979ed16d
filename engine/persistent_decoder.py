"""Decoding by one kernel that stays on the GPU for many steps (kernels/cuda/persistent.cu).

A step of a CUDA graph has five kernels a layer, each of which begins and ends. Here blocks stay, read the next layer's
weights while they wait for each other, and tell each other numbers without barriers. Prompts, caches and buffers are
those of graph_decoder.py.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..kernels import persistent, reference
from ..kernels.native import PATTERNS
from ..kernels.packing import PackedWeight
from . import graph_decoder
from .graph_decoder import GraphDecoder
from .prior import Prior
from .transformer import Projection

# Runs the kernel with its arguments.
Program = Callable[[persistent.Arguments], None]


def missing(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why this decoder cannot run priors in `dtype` on `device`, or None."""
    # Prompts go through Triton's kernels.
    reason = graph_decoder.missing(device, dtype) or persistent.missing()
    if reason is None and torch.cuda.get_device_capability(device) < (7, 5):
        return "it needs compute capability 7.5"
    return reason


def shape_of(prior: Prior, batch: int, int8: bool = False) -> persistent.Shape:
    """Raises ValueError for what the kernel is not made for."""
    config = prior.config
    sizes = config.width, config.attn_width, config.heads, config.mlp_width, config.codebook_size
    return persistent.Shape(*sizes, config.context_len, config.row_len, batch, prior.dtype, int8)


class PersistentDecoder(GraphDecoder):
    """As GraphDecoder, with all steps of a call of `run` in one launch.

    program: what makes the kernel's program for a shape; None: it is compiled for the prior's GPU.
    """

    def __init__(
        self,
        prior: Prior,
        batch: int,
        int8: bool = False,
        program: Callable[[persistent.Shape], Program] | None = None,
    ) -> None:
        shape = shape_of(prior, batch, int8)
        super().__init__(prior, batch, int8, ops=None if program is None else reference)
        self.program = persistent.GpuProgram(shape, prior.device) if program is None else program(shape)
        self.recorded = ()
        # What the pointers point to.
        self.kept: list[Tensor] = []
        self.tag = 1
        with torch.inference_mode():
            self.words = {
                name: torch.zeros(count, dtype=torch.int64, device=prior.device)
                for name, count in shape.words().items()
            }
            self.arguments = persistent.Arguments(
                layers=self._keep(self._layers()),
                head_weight=self._weight(self.head),
                head_scale=self._vector(self.head.scale),
                token_embedding=self._keep(prior.token_embedding),
                pos_embedding=self._keep(prior.pos_embedding),
                **{name: self._keep(tensor) for name, tensor in self.words.items()},
                depth=prior.config.depth,
                res_scale=prior.config.res_scale,
            )

    def _keep(self, tensor: Tensor) -> int:
        if not tensor.is_contiguous():
            raise ValueError("the kernel takes contiguous tensors")
        self.kept.append(tensor)
        return tensor.data_ptr()

    def _vector(self, vector: Tensor | None) -> int | None:
        return None if vector is None else self._keep(vector.float().contiguous())

    def _weight(self, packed: PackedWeight) -> int:
        return self._keep(packed.weight.t())

    def _layers(self) -> Tensor:
        """The layers' descriptions, on the device."""
        config = self.prior.config

        def matrix(module: Projection, packed: PackedWeight) -> persistent.Matrix:
            return persistent.Matrix(self._weight(packed), self._vector(module.bias), self._vector(packed.scale))

        layers = (persistent.Layer * config.depth)()
        for to, (module, cache, qkv, proj, up, down) in zip(layers, self.layers, strict=True):
            for i, norm in enumerate((module.ln_0, module.ln_1)):
                setattr(to, f"norm_{i}_weight", self._vector(norm.weight))
                setattr(to, f"norm_{i}_bias", self._vector(norm.bias))
            to.qkv, to.proj = matrix(module.qkv, qkv), matrix(module.proj, proj)
            to.up, to.down = matrix(module.up, up), matrix(module.down, down)
            to.kv, to.slots = self._keep(cache.kv), cache.kv.shape[3]
            to.pattern = PATTERNS[cache.pattern.value]
            to.part = reference.attention_parts(cache.pattern.value, config.row_len, to.slots)[1]
            to.projected = module.qkv.bias.numel() // config.attn_width
        described = torch.frombuffer(bytearray(bytes(layers)), dtype=torch.uint8)
        return described.to(self.prior.device)

    def _steps(self, steps: int) -> None:
        """One launch; `x` is what the position `pos` takes in."""
        arguments, cond = self.arguments, self.cond
        arguments.frame_cond = None if cond is None else cond.data_ptr()
        arguments.head_cond = None if self.prior.own_head is not None else arguments.frame_cond
        for name in ("x", "codes", "items", "noise_key", "filters"):
            setattr(arguments, name, getattr(self, name).data_ptr())
        arguments.start, arguments.steps, arguments.tag = self.pos, steps, self.tag
        self.program(arguments)
        self.tag = (self.tag + steps * (arguments.depth + 1)) % 2**32


def int8_decoder(prior: Prior, batch: int) -> PersistentDecoder:
    """The decoder with weight-only int8."""
    return PersistentDecoder(prior, batch, int8=True)
