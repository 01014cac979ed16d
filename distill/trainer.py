"""A training run: steps until its budget is used, saved so that a killed run goes on to the same weights.

A run is a folder: `state.pt` (weights, optimizer, averages, step; whole, on the CPU), `run.json` (what it was begun
with), `tensorboard/`, and, when it is done, `figures.json`. Batches are functions of (seed, step), so the step is all
the data position there is. The learning rate follows the share of the budget that is gone.
"""

from __future__ import annotations

import math
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..engine.stopping import Interrupted, on_stop, own_handlers
from .parallel import Processes
from .run_folder import STATE, read_json, read_state, unfit, write_json, write_state
from .settings import refuse_other

RUN = "run.json"

# A large state takes minutes to save: at least so many times that long lies between two.
SAVES_APART = 20


class Stateful(Protocol):
    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: Any, /) -> Any: ...


@dataclass(frozen=True)
class Budget:
    """How long to train, and how fast: the peak learning rate after `warm_up` steps, falling to `final` of itself."""

    steps: int
    learning_rate: float
    warm_up: int = 100
    final: float = 0.02
    clip: float = 1.0
    log_every: int = 50
    save_seconds: float = 90.0

    def rate(self, step: int) -> float:
        """The learning rate of a step: linear warm-up, cosine decay."""
        decay = self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return self.learning_rate * decay * min(1.0, (step + 1) / max(1, self.warm_up))


@dataclass
class Progress:
    """Steps taken and seconds spent, over all sittings."""

    step: int = 0
    seconds: float = 0.0


class TrainingDiverged(RuntimeError):
    """A loss or a gradient is not a number; the last saved state, which is from before that, is kept."""


class TrainingStopped(Interrupted):
    """Ctrl-C or SIGTERM: the state is saved, and the same command goes on from there."""


def train(
    folder: Path,
    budget: Budget,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    step_loss: Callable[[int], Tensor],
    extra: Mapping[str, Stateful] | None = None,
    after_step: Callable[[int], None] = lambda step: None,
    evaluate: Callable[[], dict[str, float]] = dict,
    scaler: torch.amp.GradScaler | None = None,
    processes: Processes | None = None,
    made_with: Mapping[str, Any] | None = None,
) -> Progress:
    """Minimize `step_loss(step)` until the budget is used, or go on with what `folder` holds.

    module: what is trained; its parameters and the optimizer's state are saved, and `extra`. A parameter group may have
    a `rate`, a factor of the learning rate. `after_step` runs after each optimizer step (averages, codebooks).
    `evaluate` gives the figures of a log line. With several processes `module` is what `Processes.wrap` gave, and
    `step_loss` takes this process's part of the batch. `made_with`: what decides the run, as JSON has it. A run that
    was begun with something else is refused; one that does not say what it was begun with goes on.

    Raises:
        ValueError: the run was begun with something else.
        TrainingDiverged: the loss, the gradient's norm or a weight is NaN or infinite.
        RunError: the state in `folder` is damaged or another network's; it is left as it is.
        TrainingStopped: by a signal; the state is saved.
    """
    processes = processes or Processes()
    scaler = scaler or torch.amp.GradScaler(enabled=False)
    extra = {**(extra or {}), "scaler": scaler}
    progress = Progress()
    path = folder / STATE
    if path.exists():
        refuse_other(read_json(folder / RUN) or {}, made_with or {}, folder, "move it away to train this run anew")
        saved = read_state(path)
        try:
            processes.load(saved, module, optimizer)
            for name, item in extra.items():
                item.load_state_dict(saved[name])
            progress = Progress(saved["step"], saved["seconds"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise unfit(path, error) from None
    elif made_with is not None and processes.is_first:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / RUN, made_with)
    folder.mkdir(parents=True, exist_ok=True)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    device = parameters[0].device
    started = time.monotonic() - progress.seconds
    saved_at, wait = progress.seconds, budget.save_seconds
    # Noted, and looked at between steps, so that what is saved is a whole step.
    signals: list[int] = []

    def stopped() -> TrainingStopped:
        done = f"stopped after step {progress.step} of {budget.steps}; the same command goes on from there"
        # With several processes it may be another one that was told to.
        return TrainingStopped(signals[0] if signals else signal.SIGTERM, done)

    with own_handlers(), _Log(folder, budget, progress, processes) as log:
        on_stop(lambda number, frame: signals.append(number))
        while progress.step < budget.steps:
            rate = budget.rate(progress.step)
            for group in optimizer.param_groups:
                group["lr"] = rate * group.get("rate", 1.0)
            optimizer.zero_grad(set_to_none=True)
            loss = step_loss(progress.step)
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            norm = torch.nn.utils.clip_grad_norm_(parameters, budget.clip)
            # A scaler leaves out a step whose gradients overflowed, and scales less from then on.
            is_finite = bool(loss.isfinite()) and (scaler.is_enabled() or bool(norm.isfinite()))
            if processes.any(not is_finite, device):
                raise TrainingDiverged(
                    f"{folder}: at step {progress.step} the loss is {float(loss.detach())} and the gradient's norm "
                    f"{float(norm)}; {_kept(path, budget)}"
                )
            scaler.step(optimizer)
            scaler.update()
            after_step(progress.step)
            progress.step += 1
            progress.seconds = time.monotonic() - started
            log.step(progress, rate, processes.mean(loss.detach()), evaluate)
            stop = processes.any(bool(signals), device)
            # One clock decides, the first process's.
            due = processes.is_first and progress.seconds - saved_at > wait
            if stop or processes.any(due, device):
                began = time.monotonic()
                _save(path, processes, module, optimizer, extra, progress, budget)
                saved_at = time.monotonic() - started
                wait = max(budget.save_seconds, SAVES_APART * (time.monotonic() - began))
            if stop:
                raise stopped()
        _save(path, processes, module, optimizer, extra, progress, budget)
        if processes.any(bool(signals), device):
            raise stopped()
    return progress


def _kept(path: Path, budget: Budget) -> str:
    kept = f"{path}, saved before that, is kept" if path.exists() else "nothing was saved before that"
    return f"{kept}. A lower learning rate than {budget.learning_rate:g} may help"


class _Log:
    """A progress bar with the time left, and the figures in TensorBoard's format; on the first process."""

    def __init__(self, folder: Path, budget: Budget, progress: Progress, processes: Processes) -> None:
        self.folder, self.budget, self.first = folder, budget, processes.is_first
        self.initial = progress.step
        self.writer: Any = None

    def __enter__(self) -> _Log:
        if self.first:
            from torch.utils.tensorboard.writer import SummaryWriter

            self.writer = SummaryWriter(self.folder / "tensorboard", purge_step=self.initial)
        self.bar = tqdm(
            total=self.budget.steps,
            initial=self.initial,
            desc=f"{self.folder.parent.name} {self.folder.name}",
            unit="step",
            disable=not self.first,
            mininterval=0.5 if sys.stderr.isatty() else 30.0,
            dynamic_ncols=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()
        if self.writer:
            self.writer.close()

    def step(self, progress: Progress, rate: float, loss: Tensor, evaluate: Callable[[], dict[str, float]]) -> None:
        self.bar.update()
        if progress.step % self.budget.log_every and progress.step != self.budget.steps:
            return
        # All processes evaluate: a sharded network needs them all.
        figures = {"loss": float(loss), "learning_rate": rate, **evaluate()}
        if self.writer:
            for name, value in figures.items():
                self.writer.add_scalar(name, value, progress.step)
            self.writer.flush()
        shown = {name: f"{value:.3f}" for name, value in figures.items() if name != "learning_rate"}
        self.bar.set_postfix(shown, refresh=False)


def _save(
    path: Path,
    processes: Processes,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    extra: Mapping[str, Stateful],
    progress: Progress,
    budget: Budget,
) -> None:
    """Raises TrainingDiverged, with the state of before as it was."""
    state = processes.state(module, optimizer) | {name: item.state_dict() for name, item in extra.items()}
    # The whole of it is on the first process; a finite gradient may still have led out of the range of numbers.
    is_finite = all(bool(tensor.isfinite().all()) for tensor in state["model"].values())
    if processes.any(not is_finite, next(module.parameters()).device):
        raise TrainingDiverged(
            f"{path.parent}: after step {progress.step} a weight is NaN or infinite; {_kept(path, budget)}"
        )
    if processes.is_first:
        write_state(path, {**state, "step": progress.step, "seconds": progress.seconds})
    processes.wait()
