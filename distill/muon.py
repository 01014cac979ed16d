"""Muon for the matrices of a network's layers, AdamW for the rest (Jordan et al. 2024, "Muon: An optimizer for hidden
layers in neural networks").

A matrix moves along its momentum with all singular values made about 1, so that every direction learns, not only the
loudest ones. PyTorch's own `torch.optim.Muon` works on one matrix at a time, in BF16; here all matrices of one shape go
through the products together, in FP32 on a CPU, which has no BF16 to gain from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

# Jordan et al.'s quintic: five rounds bring singular values from (0.001, 1] to about [0.7, 1.2].
_QUINTIC = (3.4445, -4.7750, 2.0315)
_ROUNDS = 5


def orthogonalized(matrices: Tensor) -> Tensor:
    """[N, m, n] -> the same shape: each matrix with its singular values near 1, by Newton-Schulz iteration."""
    x = matrices.to(torch.bfloat16 if matrices.is_cuda else torch.float32)
    if tall := x.shape[1] > x.shape[2]:
        x = x.mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    a, b, c = _QUINTIC
    for _ in range(_ROUNDS):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return (x.mT if tall else x).to(matrices.dtype)


class Muon(torch.optim.AdamW):
    """AdamW, but for groups that hold a `momentum`: their matrices [in, out] follow Muon, with Nesterov momentum and
    decoupled weight decay. A step of length `lr` is scaled by sqrt(max(1, out / in)), so that what comes out of a wide
    projection moves as far as what comes out of a square one.

    Sharded matrices (DTensor) are refused with a ValueError: each must be whole.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], **adamw: Any) -> None:
        super().__init__([{"momentum": 0.0, "rate": 1.0, **group} for group in groups], **adamw)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        for group in self.param_groups:
            if group["momentum"]:
                self._step_matrices(group)
        # AdamW passes over parameters without a gradient.
        return super().step(closure)

    def _step_matrices(self, group: dict[str, Any]) -> None:
        by_shape: dict[torch.Size, list[Tensor]] = {}
        for parameter in group["params"]:
            if parameter.grad is not None:
                by_shape.setdefault(parameter.shape, []).append(parameter)
        for shape, parameters in by_shape.items():
            if any(type(parameter.data) is not Tensor for parameter in parameters):
                raise ValueError("Muon needs whole matrices: train a sharded network with AdamW")
            directions = []
            for parameter in parameters:
                gradient, state = parameter.grad, self.state[parameter]
                assert gradient is not None
                if "momentum" not in state:
                    # AdamW looks for a step count when it loads a state.
                    state["step"], state["momentum"] = torch.zeros(()), torch.zeros_like(parameter)
                state["momentum"].lerp_(gradient, 1 - group["momentum"])
                directions.append(gradient.lerp(state["momentum"], group["momentum"]))
                parameter.grad = None
            length = group["lr"] * max(1.0, shape[1] / shape[0]) ** 0.5
            for parameter, direction in zip(parameters, orthogonalized(torch.stack(directions)), strict=True):
                parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(direction, alpha=length)
