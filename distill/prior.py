"""Trains a prior for an objective: AdamW or Muon, and a moving average of the weights.

The average is what is measured and served; it takes the noise of the last steps out of the weights.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from ..engine.checkpoint import assign
from ..engine.prior import Prior
from . import losses
from .code_windows import CodeWindows
from .forward import Windows
from .muon import Muon
from .objectives import Computing, Objective, WithTeacher
from .parallel import Processes
from .run_folder import STATE, read_state, unfit
from .settings import above, at_least, below, plain
from .trainer import Budget, Progress, train


@dataclass(frozen=True)
class PriorTraining:
    """What a prior is trained with, beside its steps."""

    batch: int = 4
    # Windows that go through the network at a time, in each process; None: its whole part of the batch. The gradient is
    # that of the batch, up to rounding.
    micro_batch: int | None = None
    learning_rate: float = 1.5e-3
    # Muon's, for the layers' matrices; None: AdamW for all.
    matrix_learning_rate: float | None = None
    warm_up: int = 100
    weight_decay: float = 0.01
    average_decay: float = 0.998
    # Windows of each held-out song in a log line, and in the final figure.
    logged_windows: int = 1
    measured_windows: int = 4
    computing: Computing = field(default_factory=Computing)

    def __post_init__(self) -> None:
        at_least(self, 1, "batch", "micro_batch", "logged_windows", "measured_windows")
        at_least(self, 0.0, "warm_up", "weight_decay", "average_decay")
        above(self, 0.0, "learning_rate", "matrix_learning_rate")
        below(self, 1.0, "average_decay")

    def slower(self, factor: float) -> PriorTraining:
        """The same with learning rates times `factor`."""
        matrix = self.matrix_learning_rate
        return dataclasses.replace(
            self,
            learning_rate=factor * self.learning_rate,
            matrix_learning_rate=None if matrix is None else factor * matrix,
        )


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
            self.tensors[name].lerp_(tensor.detach(), 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the network's parameters and the average; call it again to go back."""
        for name, tensor in self.network.named_parameters():
            held = tensor.detach().clone()
            tensor.copy_(self.tensors[name])
            self.tensors[name].copy_(held)

    def state_dict(self) -> dict[str, Any]:
        """Whole tensors, also of a sharded network."""
        return {name: (t.full_tensor() if isinstance(t, DTensor) else t).cpu() for name, t in self.tensors.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, tensor in self.tensors.items():
            value = state[name].to(tensor.device)
            if isinstance(tensor, DTensor):
                value = distribute_tensor(value, tensor.device_mesh, tensor.placements)
            tensor.copy_(value)


@torch.no_grad()
def bits_per_code(objective: nn.Module, windows: Iterable[Windows]) -> float:
    """Mean over the windows; `objective` as `Processes.wrap` gave it."""
    nats = [float(objective(window, measured=True)) for window in windows]
    return losses.bits(sum(nats) / len(nats))


def accumulated(
    objective: Objective,
    wrapped: nn.Module,
    scaler: torch.amp.GradScaler,
    windows: Windows,
    size: int,
) -> Tensor:
    """The loss of a batch that goes through the network `size` windows at a time, and its terms in
    `objective`. Gradients of all but the last of these parts are added already; the loss has that of the last."""
    count = len(windows.codes)
    total, terms = torch.zeros((), device=windows.codes.device), dict[str, Tensor]()
    for start in range(0, count, size):
        part = windows.part(slice(start, start + size))
        is_last, share = start + size >= count, len(part.codes) / count
        with contextlib.nullcontext() if is_last else unsynchronized(wrapped):
            loss = share * wrapped(part)
            if not is_last:
                scaler.scale(loss).backward()
        terms = {name: share * value + terms.get(name, 0.0) for name, value in objective.terms.items()}
        total = total + (loss if is_last else loss.detach())
    objective.terms = terms
    return total


def unsynchronized(wrapped: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Passes that leave gradients to a later one to exchange, where that is more than adding them up."""
    return wrapped.no_sync() if isinstance(wrapped, DistributedDataParallel) else contextlib.nullcontext()


def parameter_groups(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for matrices and convolutions; none for biases and norms."""
    parameters = list(parameters)
    matrices = [parameter for parameter in parameters if parameter.dim() >= 2]
    vectors = [parameter for parameter in parameters if parameter.dim() < 2]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def count_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def prior_optimizer(prior: Prior, settings: PriorTraining) -> torch.optim.Optimizer:
    """Muon for the layers' matrices where it has a learning rate, AdamW for the rest that is trained."""
    trained = [parameter for parameter in prior.parameters() if parameter.requires_grad]
    if settings.matrix_learning_rate is None:
        groups = parameter_groups(trained, settings.weight_decay)
        return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.98))
    matrices = [parameter for parameter in prior.layers.parameters() if parameter.dim() == 2]
    seen = set(map(id, matrices))
    others = [parameter for parameter in trained if id(parameter) not in seen]
    groups = [
        {
            "params": matrices,
            "momentum": 0.95,
            "weight_decay": settings.weight_decay,
            "rate": settings.matrix_learning_rate / settings.learning_rate,
        },
        *parameter_groups(others, settings.weight_decay),
    ]
    return Muon(groups, lr=settings.learning_rate, betas=(0.9, 0.98))


def train_prior(
    folder: Path,
    objective: Objective,
    windows: CodeWindows,
    steps: int,
    settings: PriorTraining,
    processes: Processes | None = None,
) -> tuple[Progress, dict[str, Any]]:
    """Train `objective.prior` for `steps` batches and leave the averaged weights in it; the figures are measured on
    held-out songs. Goes on with the run in `folder`."""
    processes = processes or Processes()
    prior = objective.prior
    device = prior.device
    wrapped = processes.wrap(objective, prior.layers)
    average = WeightAverage(prior, settings.average_decay)

    def measured(per_song: int) -> Iterator[Windows]:
        return (window.to(device) for window in windows.measured(per_song))

    optimizer = prior_optimizer(prior, settings)
    scaler = torch.amp.GradScaler(device.type, enabled=settings.computing.precision == "fp16")

    def step_loss(step: int) -> Tensor:
        batch = windows.batch(step, settings.batch, processes.rank, processes.count).to(device)
        if settings.micro_batch is None or settings.micro_batch >= len(batch.codes):
            return wrapped(batch)
        return accumulated(objective, wrapped, scaler, batch, settings.micro_batch)

    def evaluate() -> dict[str, float]:
        average.swap()
        held_out = bits_per_code(wrapped, measured(settings.logged_windows))
        average.swap()
        return {"held_out_bits": held_out, **{name: float(value) for name, value in objective.terms.items()}}

    progress = train(
        folder,
        Budget(steps, settings.learning_rate, warm_up=min(settings.warm_up, steps // 4)),
        wrapped,
        optimizer,
        step_loss,
        extra={"average": average},
        after_step=average.update,
        evaluate=evaluate,
        scaler=scaler,
        processes=processes,
        made_with={
            "steps": steps,
            "optimizer": type(optimizer).__name__,
            "prior": plain(settings),
            "config": plain(prior.config),
            "codes": windows.store.identity(),
            "labels": windows.told.digest() if windows.told else None,
            "distillation": plain(objective.settings) if isinstance(objective, WithTeacher) else None,
        },
    )
    average.swap()
    return progress, {
        "held_out_bits": bits_per_code(wrapped, measured(settings.measured_windows)),
        "parameters": count_parameters(prior),
        "steps": progress.step,
        "codes": progress.step * settings.batch * prior.config.window_len,
        "minutes": progress.seconds / 60,
    }


@torch.no_grad()
def load_averaged(folder: Path, prior: Prior) -> None:
    """Give `prior` the averaged weights of a run's state, on the CPU. Raises RunError."""
    path = folder / STATE
    state = read_state(path)
    try:
        assign(prior, state["average"].items(), path)
    except (ValueError, KeyError) as error:
        raise unfit(path, error) from None
