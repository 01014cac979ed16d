"""A training stage that ends when its steps or its minutes are used up, and goes on where it was interrupted.

The learning rate follows the share of the budget that is gone, whichever of the two limits is nearer, so a stage that
runs out of time has decayed as far as one that ran out of steps. Batches depend on (seed, step) alone: a stage that is
limited by steps gives the same weights with and without interruption.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

SAVE_SECONDS = 90.0


class Stateful(Protocol):
    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: Any, /) -> Any: ...


@dataclass(frozen=True)
class Budget:
    """How long to train, and how fast: the peak learning rate after `warm_up` steps, falling to `final` of itself."""

    steps: int
    minutes: float
    learning_rate: float
    warm_up: int = 100
    final: float = 0.02
    clip: float = 1.0
    log_every: int = 100

    def rate(self, step: int, seconds: float) -> float:
        """The learning rate of a step that starts `seconds` into the stage: linear warm-up, cosine decay."""
        decay = self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * min(1.0, self.progress(step, seconds))))
        return self.learning_rate * decay * min(1.0, (step + 1) / self.warm_up)

    def progress(self, step: int, seconds: float) -> float:
        """The share of the budget that is used, 1 or more at the end."""
        return max(step / self.steps, seconds / (60 * self.minutes))


@dataclass
class Progress:
    """Steps taken and seconds spent, over all sittings."""

    step: int = 0
    seconds: float = 0.0


class TrainingDiverged(RuntimeError):
    """The loss is not a number; the last saved state is kept."""


def train(
    path: Path,
    budget: Budget,
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Stateful],
    step_loss: Callable[[int], Tensor],
    after_step: Callable[[int], None] = lambda step: None,
    evaluate: Callable[[], dict[str, float]] = dict,
    log: Callable[[str], None] = print,
) -> Progress:
    """Minimize `step_loss(step)` until the budget is used; `path` holds the state, every 90 s and at the end.

    `after_step` runs after each optimizer step (averages, codebooks). `evaluate` gives the figures of a log line.

    Raises:
        TrainingDiverged: the loss is NaN or infinite.
    """
    progress = Progress()
    everything = {"optimizer": optimizer, **state}
    if path.exists():
        saved = torch.load(path, weights_only=True)
        for name, item in everything.items():
            item.load_state_dict(saved[name])
        progress = Progress(saved["step"], saved["seconds"])
        log(f"{path.stem}: resumed at step {progress.step}, {progress.seconds / 60:.1f} min")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    started = time.monotonic() - progress.seconds
    saved_at = progress.seconds
    loss = torch.zeros(())
    while budget.progress(progress.step, progress.seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = budget.rate(progress.step, progress.seconds)
        optimizer.zero_grad(set_to_none=True)
        loss = step_loss(progress.step)
        if not bool(loss.isfinite()):
            raise TrainingDiverged(
                f"{path.stem}: the loss is {float(loss.detach())} at step {progress.step}; {path} is kept"
            )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, budget.clip)
        optimizer.step()
        after_step(progress.step)
        progress.step += 1
        progress.seconds = time.monotonic() - started
        if progress.step % budget.log_every == 0:
            figures = "  ".join(f"{name} {value:.3f}" for name, value in evaluate().items())
            minutes = progress.seconds / 60
            log(f"{path.stem}: step {progress.step}  {minutes:.1f} min  loss {float(loss.detach()):.4f}  {figures}")
        if progress.seconds - saved_at > SAVE_SECONDS:
            _save(path, everything, progress)
            saved_at = progress.seconds
    _save(path, everything, progress)
    return progress


def _save(path: Path, everything: Mapping[str, Stateful], progress: Progress) -> None:
    states = {name: item.state_dict() for name, item in everything.items()}
    part = path.with_suffix(".part")
    torch.save({**states, "step": progress.step, "seconds": progress.seconds}, part)
    os.replace(part, path)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """All or nothing: a stage whose figures exist is done."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(values, indent=2) + "\n")
    os.replace(part, path)
