"""A prior's pass over whole windows, for training: what a loss needs of it, and no more kept than that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..engine.label_embedding import Conditions
from ..engine.prior import Prior
from ..engine.transformer import PrefillAttention
from ..kernels import reference


class Windows(NamedTuple):
    """Windows of one level, int64: `codes` [B, context_len], characters of lyrics among them where they lie before the
    codes, and the `upper` codes [B, window_len / ratio] where the prior has a conditioner. What it is told of the songs
    where it takes labels (`Prior.label_conditions`): `start` [B, 1, W], `frames` [B, context_len, W], `lyrics`
    [B, S, W]."""

    codes: Tensor
    upper: Tensor | None = None
    start: Tensor | None = None
    frames: Tensor | None = None
    lyrics: Tensor | None = None

    def part(self, items: slice) -> Windows:
        return Windows(self.codes[items], *(None if tensor is None else tensor[items] for tensor in self[1:]))

    def to(self, device: torch.device) -> Windows:
        return Windows(self.codes.to(device), *(None if tensor is None else tensor.to(device) for tensor in self[1:]))

    def with_conditions(self, told: Sequence[Conditions]) -> Windows:
        """These, with what the prior is told of each."""
        prompts = torch.tensor([each.prompt for each in told], dtype=torch.long)
        # Inference tensors, which no backward pass may keep; joined they are none.
        start, frames, lyrics = (
            None if tensors[0] is None else torch.cat(cast("tuple[Tensor]", tensors))
            for tensors in zip(*(each[:3] for each in told), strict=True)
        )
        return Windows(torch.cat([prompts, self.codes], dim=1), self.upper, start, frames, lyrics)


class Trace(NamedTuple):
    """Logits [B, window_len, V] of the codes, and of each layer that was asked for its output [B, T, W] and its queries
    and keys [B, T, H, D]; None of one that attends to lyrics."""

    logits: Tensor
    hidden: list[Tensor]
    queries_keys: list[tuple[Tensor, Tensor] | None]


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
    frame_cond = windows.frames
    if windows.upper is not None and prior.conditioner is not None:
        frame_cond = prior.conditioner(windows.upper)
    x = prior.embed(windows.codes[:, :-1], 0, frame_cond, windows.start)
    hidden: dict[int, Tensor] = {}
    seen: dict[int, tuple[Tensor, Tensor]] = {}
    for index, layer in enumerate(prior.layers):
        operation = _noting(attention, seen, index) if index in wanted else attention
        if recompute and torch.is_grad_enabled():
            x = checkpoint(layer, x, attention=operation, lyrics=windows.lyrics, use_reentrant=False)
        else:
            x = layer(x, attention=operation, lyrics=windows.lyrics)
        if index in wanted:
            hidden[index] = x
    # Lyrics are given.
    first = prior.config.lyric_len
    logits = prior.logits(x[:, first:], None if frame_cond is None else frame_cond[:, first:])
    return Trace(logits, [hidden[index] for index in wanted], [seen.get(index) for index in wanted])


def _noting(attention: PrefillAttention, seen: dict[int, tuple[Tensor, Tensor]], index: int) -> PrefillAttention:
    """`attention`, with queries and keys kept in seen[index]."""

    def noting(q: Tensor, k: Tensor, v: Tensor, pattern: str, row_len: int, start: int, key_start: int) -> Tensor:
        # A recomputed layer comes here twice; the first pass is the one that the loss hangs on.
        seen.setdefault(index, (q, k))
        return attention(q, k, v, pattern, row_len, start, key_start)

    return noting
