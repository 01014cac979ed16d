"""Holds one fused operation of a decode step against the reference, and makes its arguments."""

from collections.abc import Callable, Sequence

import torch
from budget import assert_within_budget
from fastjukebox.kernels import fused, reference
from fastjukebox.kernels.packing import pack_weight
from torch import Tensor

STORED = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "int8": torch.float32}
# Their dtype is the weights', everything else is FP32.
STORED_AS_GIVEN = ("kv", "ln_weight", "ln_bias", "weight", "bias", "frame_cond", "token_embedding", "pos_embedding")


# Elements; keeps the alignment that the kernels are compiled for.
MARGIN = 1024


def draw(*sizes: int, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Numbers that FP16 and BF16 hold exactly, so that every dtype starts from the same inputs."""
    return (mean + std * torch.randn(sizes)).bfloat16().half().float()


def packed(n_in: int, n_out: int, int8: bool) -> tuple[Tensor, Tensor | None]:
    return pack_weight(draw(n_in, n_out, std=n_in**-0.5), int8)


def assert_step_within_budget(
    name: str, args: dict, outputs: Sequence[str], device: torch.device, kind: str = "fp32", floor: float = 0.0
) -> dict[str, Tensor]:
    """Operation `name` of a decode step, weights stored as `kind`, all else FP32, is within budget of the reference;
    and it writes what the reference writes and nothing else. Returns what it wrote."""
    # Plain PyTorch computes in the weights' dtype, from what that dtype holds of the inputs.
    values = [
        value.to(STORED[kind]) if isinstance(value, Tensor) and value.is_floating_point() else value
        for value in args.values()
    ]
    functions = (_operation(module, name, list(args), outputs, device) for module in (fused, reference))
    found = assert_within_budget(*functions, *values, poisoned=True, floor=floor)
    return dict(zip(outputs, found, strict=True))


def _operation(module, name: str, names: Sequence[str], outputs: Sequence[str], device: torch.device) -> Callable:
    """The operation as a function of its arguments `names`, on outputs full of NaN, that returns them on the host."""

    def run_reference(*values):
        given = {key: value.clone() if isinstance(value, Tensor) else value for key, value in zip(names, values)}
        for key in outputs:
            given[key].fill_(float("nan"))
        getattr(module, name)(**given)
        return {key: given[key] if key in STORED_AS_GIVEN else _at_least_fp32(given[key]) for key in outputs}

    def run_fused(*values):
        given, rooms = {}, {}
        for key, value in zip(names, values, strict=True):
            if isinstance(value, Tensor):
                value = value if key in STORED_AS_GIVEN else _at_least_fp32(value)
                value, rooms[key] = _among_nan(value.to(device))
            given[key] = value
        for key in outputs:
            given[key].fill_(float("nan"))
        getattr(module, name)(**given)
        for key, room in rooms.items():
            for margin in (room[:MARGIN], room[-MARGIN:]):
                assert (margin.isnan() if margin.is_floating_point() else margin == 0).all(), f"wrote beside {key}"
        return {key: given[key].cpu() for key in outputs}

    return run_fused if module is fused else run_reference


def _among_nan(value: Tensor) -> tuple[Tensor, Tensor]:
    """A copy of `value`, its axes in the same order in memory, and all that memory: NaN (or 0) lies before and behind,
    which shows what is read or written there."""
    room = value.new_full((value.numel() + 2 * MARGIN,), float("nan") if value.is_floating_point() else 0)
    return room.as_strided(value.shape, value.stride(), MARGIN).copy_(value), room


def _at_least_fp32(value: Tensor) -> Tensor:
    return value.to(torch.promote_types(value.dtype, torch.float32)) if value.is_floating_point() else value
