"""Priors with random weights, for timing: speed does not depend on the weights, as long as every number is finite."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from ..engine.config import PRESETS, PriorConfig
from ..engine.kv_cache import KVCache
from ..engine.patterns import Pattern
from ..engine.prior import Prior
from ..engine.transformer import PrefillAttention, TransformerLayer
from ..kernels import reference


def size(name: str) -> tuple[PriorConfig, bool]:
    """A preset's name, or LAYERSxWIDTH for a window of 8192 codes -> its sizes, and whether it has a frame condition.

    The conditioner is left out: it runs once per window. Raises ValueError on another name.
    """
    preset = PRESETS.get(name)
    if isinstance(preset, PriorConfig):
        timed = preset.labels is not None and preset.labels.time_bins > 0
        return dataclasses.replace(preset, conditioner=None), preset.conditioner is not None or timed
    depth, _, width = name.partition("x")
    if not (depth.isdecimal() and width.isdecimal()):
        known = [key for key, value in PRESETS.items() if isinstance(value, PriorConfig)]
        raise ValueError(f"{name} is neither LAYERSxWIDTH nor one of {', '.join(known)}")
    return PriorConfig(0, int(width), int(depth), 1, 8192, 128), True


class StandIn(Prior):
    """A prior whose prompt costs nothing: keys and values are filled with numbers instead of computed ones."""

    def prefill(
        self,
        codes: Tensor,
        cache: KVCache,
        start: int = 0,
        frame_cond: Tensor | None = None,
        start_cond: Tensor | None = None,
        attention: PrefillAttention = reference.prefill_attention,
    ) -> Tensor:
        rows = min(2 * codes.shape[1] // self.config.row_len + 1, self.config.num_rows)
        noise = torch.randn(max(rows, 2 * self.config.row_len), self.config.head_dim, device=self.device)
        for layer in cache.layers:
            kv = layer.kv
            if layer.pattern is Pattern.COLUMN:
                # Only what is read is touched, and with it only so much of the memory is taken.
                kv = kv.unflatten(3, (self.config.row_len, self.config.num_rows))[..., :rows, :]
            kv.copy_(noise[: kv.shape[-2]])
        return torch.empty(0)


@torch.no_grad()
def build(kind: type[Prior], config: PriorConfig, device: torch.device, dtype: torch.dtype) -> Prior:
    """A prior of random weights, spread as training starts from."""
    with torch.device("meta"):
        prior = kind(config)
    prior = prior.to(dtype).to_empty(device=device).eval().requires_grad_(False)
    generator = torch.Generator(device).manual_seed(1)
    noise = (0.02 * torch.randn((1 << 22) + 1024, device=device, generator=generator)).to(dtype)
    for index, (name, values) in enumerate(prior.named_parameters()):
        if ".ln_" in name and name.endswith("weight"):
            values.fill_(1)
            continue
        # Another stretch of the noise for every tensor.
        stretch = noise[7 * index % 1024 :][: 1 << 22]
        for piece in values.view(-1).split(len(stretch)):
            piece.copy_(stretch[: len(piece)])
    return prior


def release_projections(prior: Prior) -> None:
    """Free what a decoder with its own copy of the projections does not read."""
    for layer in prior.layers:
        assert isinstance(layer, TransformerLayer)
        for projection in (layer.qkv, layer.proj, layer.up, layer.down):
            projection.weight = nn.Parameter(torch.empty(0), requires_grad=False)
