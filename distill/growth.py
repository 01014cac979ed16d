"""Deeper networks from shallower ones, the same function at first: a deep teacher for much less work.

A shallow prior learns most of what there is to learn at a fraction of the cost of a step. Blocks that do nothing at
first are put between its layers, and the whole goes on learning (Chen et al. 2016, Net2Net; Wu et al. 2024, LLaMA Pro).
"""

from __future__ import annotations

import copy
import dataclasses
from typing import cast

import torch

from ..engine.config import PriorConfig
from ..engine.prior import Prior
from ..engine.transformer import TransformerLayer
from .student import layer_groups


def grown_groups(config: PriorConfig, depth: int) -> tuple[tuple[int, ...], ...]:
    """For each layer of a prior of `config` those that it becomes in one of `depth` layers (see `deepened`).

    Raises:
        ValueError: `depth` is less than the prior's, or no multiple that keeps the order of its layers.
    """
    deep = dataclasses.replace(config, depth=depth)
    groups = layer_groups(deep.layer_patterns, config.layer_patterns)
    last = [group[-1] for group in groups]
    if last != sorted(last):
        raise ValueError(f"{config.depth} layers do not grow to {depth}: their order would change; a multiple does")
    return groups


@torch.no_grad()
def deepened(prior: Prior, depth: int) -> Prior:
    """A prior of `depth` layers that gives the logits of `prior`.

    Each layer of `prior` becomes the last of the group of layers that it stands for as a student (`layer_groups`); the
    others of the group are copies of it that add nothing to the residual stream yet: their output projections are zero.
    Raises what `grown_groups` raises.
    """
    groups = grown_groups(prior.config, depth)
    deep = Prior(dataclasses.replace(prior.config, depth=depth)).to(prior.device, prior.dtype)
    for name, tensor in deep.named_parameters():
        if not name.startswith("layers."):
            tensor.copy_(prior.get_parameter(name))
    for shallow, group in zip(prior.layers, groups, strict=True):
        for index in group:
            layer = cast("TransformerLayer", copy.deepcopy(shallow))
            if index != group[-1]:
                for projection in (layer.proj, layer.down):
                    projection.weight.zero_()
                    projection.bias.zero_()
            deep.layers[index] = layer
    return deep
