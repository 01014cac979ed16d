"""A prior's pass over whole windows, for training: what a loss needs of it, and no more kept than that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..engine.prior import Prior
from ..engine.transformer import PrefillAttention
from ..kernels import reference


class Windows(NamedTuple):
    """Windows of one level: codes [B, context_len] and, where the prior has a conditioner, the upper codes
    [B, context_len / ratio], int64."""

    codes: Tensor
    upper: Tensor | None = None

    def part(self, items: slice) -> Windows:
        return Windows(*(None if tensor is None else tensor[items] for tensor in self))

    def to(self, device: torch.device) -> Windows:
        return Windows(*(None if tensor is None else tensor.to(device) for tensor in self))


class Trace(NamedTuple):
    """Logits [B, T, V], and of each layer that was asked for its output [B, T, W] and its queries and keys
    [B, T, H, D]."""

    logits: Tensor
    hidden: list[Tensor]
    queries_keys: list[tuple[Tensor, Tensor]]


def training_attention(device: torch.device) -> PrefillAttention:
    """Triton's factored attention on a GPU, plain PyTorch elsewhere. Raises ImportError without Triton on a GPU."""
    if device.type != "cuda":
        return reference.prefill_attention
    from ..kernels import fused

    return fused.prefill_attention


def forward(
    prior: Prior,
    windows: Windows,
    wanted: Sequence[int] = (),
    recompute: bool = False,
) -> Trace:
    """The trace of layers `wanted`, in their order. With `recompute`, a layer keeps only its input for the backward
    pass (gradient checkpointing, Chen et al. 2016)."""
    attention = training_attention(prior.device)
    # The conditioner on the whole batch; `prior.condition` goes item by item for the sake of sampling.
    codes, upper = windows
    frame_cond = None if upper is None or prior.conditioner is None else prior.conditioner(upper)
    x = prior.embed(codes[:, :-1], 0, frame_cond, None)
    hidden: dict[int, Tensor] = {}
    seen: dict[int, tuple[Tensor, Tensor]] = {}
    for index, layer in enumerate(prior.layers):
        operation = _noting(attention, seen, index) if index in wanted else attention
        if recompute and torch.is_grad_enabled():
            x = checkpoint(layer, x, attention=operation, use_reentrant=False)
        else:
            x = layer(x, attention=operation)
        if index in wanted:
            hidden[index] = x
    return Trace(prior.logits(x, frame_cond), [hidden[index] for index in wanted], [seen[index] for index in wanted])


def _noting(attention: PrefillAttention, seen: dict[int, tuple[Tensor, Tensor]], index: int) -> PrefillAttention:
    """`attention`, with queries and keys kept in seen[index]."""

    def noting(q: Tensor, k: Tensor, v: Tensor, pattern: str, row_len: int, start: int, key_start: int) -> Tensor:
        # A recomputed layer comes here twice; the first pass is the one that the loss hangs on.
        seen.setdefault(index, (q, k))
        return attention(q, k, v, pattern, row_len, start, key_start)

    return noting
