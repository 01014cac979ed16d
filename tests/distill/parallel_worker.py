"""One process of a run: python parallel_worker.py KIND FOLDER, started by torchrun or alone."""

import sys
from pathlib import Path

# The checkout is made importable as the tests do it.
sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]
# ruff: noqa: E402
import conftest  # noqa: F401
import torch
from array_store import melody_windows
from fastjukebox.distill.objectives import Computing, Distillation, NextCode, SoftTargets
from fastjukebox.distill.parallel import Processes, processes
from fastjukebox.distill.pipeline import run_all, stages
from fastjukebox.distill.prior import PriorTraining, train_prior
from fastjukebox.distill.student import new_student
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


if __name__ == "__main__":
    torch.set_num_threads(1)
    with processes(torch.device("cpu"), sharded=sys.argv[1].startswith("sharded")) as group:
        torch.manual_seed(0)
        kind = {"priors": priors, "micro": micro, "vqvae": vqvae, "stack": stack}[sys.argv[1].removeprefix("sharded-")]
        kind(Path(sys.argv[2]), group)
