"""Trains the prior of one level: next-code cross-entropy, AdamW, a moving average of the weights.

The average is what is measured and served; it takes the noise of the last steps out of the weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..engine.config import PriorConfig
from ..engine.prior import Prior
from . import losses
from .dataset import CodeWindows
from .stage import Budget, Progress, train


@dataclass(frozen=True)
class PriorTraining:
    """What a prior is trained with, beside its budget."""

    batch: int = 4
    weight_decay: float = 0.01
    average_decay: float = 0.998
    # Windows of each held-out song in a log line, and in the final figure.
    logged_windows: int = 1
    measured_windows: int = 8


class WeightAverage:
    """The exponential moving average of a network's parameters."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network, self.decay = network, decay
        self.tensors = {name: tensor.detach().clone() for name, tensor in network.named_parameters()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        # Short at first: the initial weights should not linger.
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, tensor in self.network.named_parameters():
            self.tensors[name].lerp_(tensor, 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the network's parameters and the average; call it again to go back."""
        for name, tensor in self.network.named_parameters():
            held = tensor.clone()
            tensor.copy_(self.tensors[name])
            self.tensors[name].copy_(held)

    def state_dict(self) -> dict[str, Any]:
        return self.tensors

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, tensor in self.tensors.items():
            tensor.copy_(state[name])


def next_code_loss(prior: Prior, codes: Tensor, upper: Tensor | None) -> Tensor:
    """Mean cross-entropy in nats per code of codes [B, context_len], given upper codes [B, context_len / ratio]."""
    # The conditioner on the whole batch; `prior.condition` goes item by item for the sake of sampling.
    frame_cond = None if upper is None or prior.conditioner is None else prior.conditioner(upper)
    logits = prior(codes, frame_cond)
    return F.cross_entropy(logits.flatten(0, 1), codes.flatten())


@torch.no_grad()
def bits_per_code(prior: Prior, codes: Tensor, upper: Tensor | None) -> float:
    """Mean over the windows of [B, context_len], computed one at a time."""
    nats = [
        float(next_code_loss(prior, codes[item : item + 1], None if upper is None else upper[item : item + 1]))
        for item in range(len(codes))
    ]
    return losses.bits(sum(nats) / len(nats))


def parameter_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for matrices and convolutions; none for biases and norms."""
    matrices = [parameter for parameter in network.parameters() if parameter.dim() >= 2]
    vectors = [parameter for parameter in network.parameters() if parameter.dim() < 2]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def train_prior(
    path: Path,
    config: PriorConfig,
    windows: CodeWindows,
    budget: Budget,
    settings: PriorTraining,
    seed: int,
    log: Callable[[str], None] = print,
) -> tuple[Prior, Progress, dict[str, float]]:
    """The prior with averaged weights, and its held-out figures; resumes the state in `path`."""
    torch.manual_seed(seed)
    prior = Prior(config)
    average = WeightAverage(prior, settings.average_decay)
    logged = windows.measured(settings.logged_windows)
    optimizer = torch.optim.AdamW(
        parameter_groups(prior, settings.weight_decay), lr=budget.learning_rate, betas=(0.9, 0.98)
    )
    recent: list[float] = []

    def step_loss(step: int) -> Tensor:
        loss = next_code_loss(prior, *windows.batch(step, settings.batch))
        recent.append(float(loss.detach()))
        return loss

    def evaluate() -> dict[str, float]:
        average.swap()
        held_out = bits_per_code(prior, *logged)
        average.swap()
        trained = losses.bits(sum(recent) / max(1, len(recent)))
        recent.clear()
        return {"train_bits": trained, "held_out_bits": held_out}

    progress = train(
        path,
        budget,
        optimizer,
        {"prior": prior, "average": average},
        step_loss,
        after_step=average.update,
        evaluate=evaluate,
        log=log,
    )
    average.swap()
    measured = windows.measured(settings.measured_windows)
    return prior, progress, {"held_out_bits": bits_per_code(prior, *measured)}


def load_averaged(path: Path, prior: Prior) -> None:
    """Copy the averaged weights from a stage's state into `prior`."""
    average = torch.load(path, weights_only=True)["average"]
    with torch.no_grad():
        for name, tensor in prior.named_parameters():
            tensor.copy_(average[name])
