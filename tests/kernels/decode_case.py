"""Holds one fused operation of a decode step against the reference, and makes its arguments."""

from collections.abc import Sequence

import torch
from fastjukebox.kernels import fused, reference
from fastjukebox.kernels.packing import pack_weight
from torch import Tensor

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
STORED = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "int8": torch.int8}
# Their dtype is the weights', everything else is FP32.
STORED_AS_GIVEN = ("kv", "ln_weight", "ln_bias", "weight", "bias", "frame_cond", "token_embedding", "pos_embedding")


def draw(*sizes: int, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Numbers that FP16 and BF16 hold exactly, so that every dtype starts from the same inputs."""
    return (mean + std * torch.randn(sizes)).bfloat16().half().float()


def packed(n_in: int, n_out: int, int8: bool) -> tuple[Tensor, Tensor | None]:
    return pack_weight(draw(n_in, n_out, std=n_in**-0.5), int8)


def run(module, name: str, args: dict, outputs: Sequence[str], device: torch.device, dtype, stored) -> dict:
    """Run an operation with everything in `dtype`, but STORED_AS_GIVEN in `stored`, on outputs full of NaN."""
    given = {}
    for key, value in args.items():
        if isinstance(value, Tensor):
            value = value.to(device)
            if value.is_floating_point():
                wanted = stored if key in STORED_AS_GIVEN else torch.float32 if key == "filters" else dtype
                # Keeps the order of the axes in memory.
                value = value.to(wanted, copy=True)
                if key in outputs:
                    value.fill_(float("nan"))
            else:
                value = value.clone()
        given[key] = value
    getattr(module, name)(**given)
    return {key: given[key].cpu() for key in outputs}


def assert_within_budget(
    name: str, args: dict, outputs: Sequence[str], device: torch.device, kind: str = "fp32"
) -> dict[str, Tensor]:
    """The fused operation is off from FP64 by at most twice what PyTorch in the same dtype is, plus a rounding; and it
    writes what the reference writes and nothing else. Returns what it wrote."""
    stored = torch.float32 if kind == "int8" else STORED[kind]
    cpu = torch.device("cpu")
    exact = run(reference, name, args, outputs, cpu, torch.float64, torch.float64)
    own = run(reference, name, args, outputs, cpu, stored, stored)
    actual = run(fused, name, args, outputs, device, torch.float32, stored)
    for key in outputs:
        written = exact[key].isfinite()
        assert (actual[key].isfinite() == written).all(), f"{key}: wrote elsewhere than the reference"
        if not written.any():
            continue
        expected = exact[key][written].double()
        error, allowed = ((found[key][written].double() - expected).abs().max() for found in (actual, own))
        rounding = torch.finfo(actual[key].dtype).eps if actual[key].is_floating_point() else 0
        limit = 2 * allowed + rounding * expected.abs().max()
        assert error <= limit, f"{key}: off by {error:.3g}, allowed {limit:.3g}"
    return actual
