"""Launching the decode kernels: one call for a GPU, for the interpreter, and for compiling ahead of time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .pattern_groups import Specialization, capability

TYPES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int8: "i8",
    torch.int64: "i64",
}


def launch(
    kernel: Any, grid: tuple[int, ...], *args: Any, num_warps: int, fp_fusion: bool = True, **constants: Any
) -> Specialization | None:
    """Run `kernel` over `grid` with `constants` for its constexpr parameters, PDL aside, which is added here.

    fp_fusion: whether the compiler may make a product and a sum one instruction. Where it does depends on the sizes of
        a program's blocks, and so on the batch. Where an item's result must not depend on the batch this is off, and
        tl.fma is written where fusion is meant.

    From sm_90 on the kernels run with programmatic dependent launch: a kernel starts while the one before it still
    runs, fetches what no kernel writes (its weights), and waits for that one's end before it touches anything else.
    On meta tensors nothing runs; what would have run is returned, for compilation ahead of time.
    """
    tensor = args[0]
    pdl = capability(tensor) >= 90
    constants["PDL"] = pdl
    if tensor.device.type == "meta":
        return specialization(kernel, args, constants, {"num_warps": num_warps, "enable_fp_fusion": fp_fusion})
    options = {"launch_pdl": True} if pdl else {}
    kernel[grid](*args, **constants, num_warps=num_warps, enable_fp_fusion=fp_fusion, **options)
    return None


def conditions(frame_cond: Tensor | None, batch: int) -> int:
    """Of how many items the frame condition is: `batch`, or fewer, of each of which there are several positions. Raises
    ValueError for others."""
    lanes = batch if frame_cond is None else len(frame_cond)
    if batch % lanes:
        raise ValueError(f"conditions of {lanes} items for {batch}")
    return lanes


def specialization(
    kernel: Any, args: tuple[Any, ...], constants: dict[str, Any], options: dict[str, Any]
) -> Specialization:
    """What Triton compiles for these arguments; tensors lie at multiples of 16 bytes. The name is left open."""
    signature, fixed, attrs = {}, dict(constants), {}
    for index, (name, value) in enumerate(zip(kernel.arg_names, args, strict=False)):
        if value is None:
            signature[name], fixed[name] = "constexpr", None
        elif isinstance(value, Tensor):
            signature[name] = f"*{TYPES[value.dtype]}"
            attrs[(index,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "fp32" if isinstance(value, float) else "i32"
    signature |= dict.fromkeys(constants, "constexpr")
    return Specialization("", kernel, signature, fixed, options, attrs)
