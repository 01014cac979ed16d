"""A trained prior of any width: its values, and so its codes, several times over. Speed needs a width, the share of
drafts that are right needs training; what is widened has both."""

from __future__ import annotations

import dataclasses
import math
from typing import cast

import torch
from torch import Tensor

from ..engine.prior import Prior
from ..engine.transformer import TransformerLayer


@torch.no_grad()
def widened(prior: Prior, times: int) -> Prior:
    """A prior of `times` the width whose activations are those of `prior`, `times` over, and its logits `times` as
    large, for conditions that are `times` over as well; it has no conditioner. Its weights are rounded to FP16 values.
    """
    config = dataclasses.replace(prior.config, width=prior.config.width * times, conditioner=None)
    with torch.device("meta"):
        wide = Prior(config)
    found = {
        "token_embedding": prior.token_embedding.repeat(1, times),
        "pos_embedding": prior.pos_embedding.repeat(1, times),
    }
    if prior.start_token is not None:
        found["start_token"] = prior.start_token.repeat(1, times)
    heads = config.heads
    for number, layer in enumerate(cast("list[TransformerLayer]", prior.layers)):
        tensors = {
            **{f"{ln}.{part}": value.repeat(times) for ln in ("ln_0", "ln_1") for part, value in _parts(layer, ln)},
            **{f"{name}.bias": getattr(layer, name).bias.repeat(times) for name in ("proj", "up", "down")},
            # Each output adds up all copies of the inputs.
            **{f"{name}.weight": getattr(layer, name).weight.repeat(times, times) / times for name in ("up", "down")},
            # Copies lie within a head.
            "proj.weight": _by_head(layer.proj.weight.T, heads, times).T.repeat(1, times) / times,
            "qkv.weight": _queries(_by_head(layer.qkv.weight, 3 * heads, times), times).repeat(times, 1) / times,
            "qkv.bias": _queries(_by_head(layer.qkv.bias, 3 * heads, times), times),
        }
        found |= {f"layers.{number}.{name}": value for name, value in tensors.items()}
    wide.load_state_dict({name: value.half().float() for name, value in found.items()}, assign=True)
    return wide.eval().requires_grad_(False)


def _parts(layer: TransformerLayer, name: str) -> list[tuple[str, Tensor]]:
    return list(getattr(layer, name).named_parameters())


def _by_head(x: Tensor, parts: int, times: int) -> Tensor:
    """[..., parts * n] -> [..., parts * times * n]"""
    return x.unflatten(-1, (parts, -1)).repeat(*[1] * x.dim(), times).flatten(-2)


def _queries(qkv: Tensor, times: int) -> Tensor:
    """Scores are sums over `times` as many products, divided by the root of their number."""
    queries, others = qkv.tensor_split([qkv.shape[-1] // 3], dim=-1)
    return torch.cat([queries / math.sqrt(times), others], dim=-1)
