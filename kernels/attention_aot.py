"""The attention kernels as the models launch them, to compile ahead of time without a GPU (see aot)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from .attention_distance import _distance_group
from .attention_distance_blocks import distance_keys, distance_queries
from .pattern_groups import Specialization, Tiles, gradient_tiles, groups, tiles
from .prefill_attention import _forward
from .prefill_attention_backward import _backward_group
from .prefill_attention_blocks import backward_keys, backward_queries

_TYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
# Kept in FP32 whatever the inputs are.
_FP32 = {"log_sum_ptr", "delta_ptr", "part_ptr", "stats_ptr"}


def attention_specializations(
    name: str, row_len: int, num_rows: int, head_dim: int, dtype: torch.dtype, capability: int, dense: bool = False
) -> Iterator[Specialization]:
    """Every kernel of prefill attention, its gradient and the attention distance over a whole window of a model; with
    `dense`, of one that has such layers too."""
    for pattern in ("row", "column", "previous_row", *(["dense"] if dense else [])):
        sizes = groups(pattern, row_len, 0, 0, row_len * num_rows)

        def one(kernel: Any, tile: Tiles, pattern: str = pattern, **constants: bool) -> Specialization:
            label = f"{kernel.__name__.lstrip('_')}[{pattern}]/{name}/{_TYPES[dtype]}"
            return _specialization(label, kernel, pattern, head_dim, dtype, tile, constants)

        forward = tiles("forward", sizes, head_dim, dtype, capability)
        whole, tile = gradient_tiles(sizes, head_dim, dtype, capability)
        yield one(_forward, forward, ONE_KEY_BLOCK=sizes.keys <= forward.keys)
        if whole:
            yield one(_backward_group, tile)
            yield one(_distance_group, tile, GRADIENT=True)
        else:
            yield one(backward_queries, tile)
            yield one(backward_keys, tile)
            yield one(distance_queries, tile, GRADIENT=True)
            yield one(distance_keys, tile)


def _specialization(
    label: str,
    kernel: Any,
    pattern: str,
    head_dim: int,
    dtype: torch.dtype,
    tile: Tiles,
    constants: dict[str, bool],
) -> Specialization:
    fixed: dict[str, Any] = {"PATTERN": pattern, "HEAD_DIM": head_dim, **constants, **tile.sizes}
    signature, attrs = {}, {}
    for index, argument in enumerate(kernel.arg_names):
        if argument in fixed:
            signature[argument] = "constexpr"
        elif argument.endswith("_ptr"):
            signature[argument] = "*fp32" if argument in _FP32 else f"*{_TYPES[dtype]}"
        else:
            signature[argument] = "fp32" if argument == "scale" else "i32"
        # A head's stride is its size; batches and positions of a projection are further multiples of all heads'.
        aligned = head_dim % 16 == 0 or not argument.endswith("h")
        if argument.endswith("_ptr") or (argument.startswith("stride") and aligned):
            attrs[(index,)] = [["tt.divisibility", 16]]
    return Specialization(label, kernel, signature, fixed, tile.options, attrs)
