"""One process of a run: python parallel_worker.py KIND FOLDER, started by torchrun or alone."""

import os
import signal
import sys
from pathlib import Path
from typing import NoReturn

# The checkout is made importable as the tests do it.
sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]
# ruff: noqa: E402
import conftest  # noqa: F401
import torch
from array_store import melody_windows
from fastjukebox.distill import __main__ as entry
from fastjukebox.distill.forward import Windows
from fastjukebox.distill.objectives import Computing, Distillation, NextCode, SoftTargets
from fastjukebox.distill.parallel import Processes, processes
from fastjukebox.distill.pipeline import run_all, stages
from fastjukebox.distill.prior import PriorTraining, train_prior
from fastjukebox.distill.student import new_student
from fastjukebox.distill.trainer import TrainingStopped
from fastjukebox.distill.vqvae import LevelObjective, VQVAETraining
from fastjukebox.distill.work import Work
from fastjukebox.engine.config import ConditionerConfig, PriorConfig, VQVAEConfig
from fastjukebox.engine.prior import Prior
from fastjukebox.engine.vqvae import VQVAE

CONFIG = PriorConfig(0, 32, 6, 2, 32, 4, codebook_size=8, conditioner=ConditionerConfig(16, 2))
STEPS = 4


def priors(folder: Path, group: Processes, micro_batch: int | None = None) -> None:
    """A teacher, and a student unless it is sharded."""
    settings = PriorTraining(batch=4, micro_batch=micro_batch, learning_rate=5e-3, warm_up=2, measured_windows=1)
    teacher = Prior(CONFIG)
    train_prior(folder / "teacher", NextCode(teacher, Computing()), melody_windows(), STEPS, settings, group)
    if group.sharded:
        return
    student = new_student(teacher, 3)
    objective = SoftTargets(student, teacher, Distillation(), Computing())
    train_prior(folder / "student", objective, melody_windows(), STEPS, settings, group)


def micro(folder: Path, group: Processes) -> None:
    """The same, one window at a time."""
    priors(folder, group, micro_batch=1)


def resumed(folder: Path, group: Processes) -> None:
    """A prior in one sitting, and one that a signal to the first process stops and a new network goes on with."""
    settings = PriorTraining(batch=4, learning_rate=5e-3, warm_up=2, measured_windows=1)
    whole, stopped = melody_windows(), melody_windows()
    batch = stopped.batch

    def stop(step: int, *given: int) -> Windows:
        if step == 1 and group.is_first:
            os.kill(os.getpid(), signal.SIGTERM)
        return batch(step, *given)

    stopped.batch = stop
    for name, windows, seed in (("whole", whole, 0), ("resumed", stopped, 0), ("resumed", whole, 1)):
        torch.manual_seed(seed)
        try:
            train_prior(folder / name, NextCode(Prior(CONFIG), Computing()), windows, STEPS, settings, group)
            assert windows is whole, "was stopped"
        except TrainingStopped:
            assert windows is stopped


def vqvae(folder: Path, group: Processes) -> None:
    """Loss and gradients of a batch whose items are loud, quiet and silent."""
    config = VQVAEConfig(codebook_size=16, code_dim=8, width=8, depth=1, multipliers=(1, 1, 1))
    batch = torch.randn(4, 2048) * torch.tensor([0.5, 0.01, 0.0, 0.0])[:, None]
    objective = LevelObjective(VQVAE(config), 0, VQVAETraining(1, quantize_from=0), 0, group)
    wrapped = group.wrap(objective)
    loss = wrapped(batch.chunk(group.count)[group.rank], 0)
    loss.backward()
    loss = group.mean(loss.detach())
    if group.is_first:
        gradients = {name: parameter.grad for name, parameter in objective.named_parameters()}
        torch.save({"loss": loss, **gradients, "codebook": objective.average.codebook}, folder / "vqvae.pt")


def stack(folder: Path, group: Processes) -> None:
    """All that a teacher of the top level needs, and that teacher, by a preset that asks for Muon."""
    work = Work(folder / "work", "tiny", processes=group)
    run_all(work, stages(work, {2: ("teacher-72",)}))


def failing(folder: Path) -> NoReturn:
    """The command that trains a level of the corpus in `folder`; the second process fails at a step."""
    whole = LevelObjective.forward

    def forward(self: LevelObjective, audio: torch.Tensor, step: int) -> torch.Tensor:
        if step == 1 and os.environ["RANK"] == "1":
            raise ValueError("a song is gone")
        return whole(self, audio, step)

    LevelObjective.forward = forward
    options = ["--work", str(folder), "--preset", "tiny", "--level", "2", "--device", "cpu", "--threads", "1"]
    sys.argv[1:] = ["vqvae", *options]
    entry.main()
    raise SystemExit("did not fail")


if __name__ == "__main__":
    if sys.argv[1] == "failing":
        failing(Path(sys.argv[2]))
    torch.set_num_threads(1)
    with processes(torch.device("cpu"), sharded=sys.argv[1].startswith("sharded")) as group:
        torch.manual_seed(0)
        kinds = {"priors": priors, "micro": micro, "resumed": resumed, "vqvae": vqvae, "stack": stack}
        kind = kinds[sys.argv[1].removeprefix("sharded-")]
        kind(Path(sys.argv[2]), group)
    # As the command leaves.
    entry._leave(0)
