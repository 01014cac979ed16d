"""One process of a run: python parallel_worker.py FOLDER STEPS [--sharded], started by torchrun or alone."""

import sys
from pathlib import Path

# The checkout is made importable as the tests do it.
sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]
# ruff: noqa: E402
import conftest  # noqa: F401
import torch
from array_store import melody_windows
from fastjukebox.distill.objectives import Computing, Distillation, NextCode, SoftTargets
from fastjukebox.distill.parallel import processes
from fastjukebox.distill.prior import PriorTraining, train_prior
from fastjukebox.distill.student import new_student
from fastjukebox.engine.config import ConditionerConfig, PriorConfig
from fastjukebox.engine.prior import Prior

CONFIG = PriorConfig(0, 32, 6, 2, 32, 4, codebook_size=8, conditioner=ConditionerConfig(16, 2))


def main(folder: Path, steps: int, sharded: bool) -> None:
    torch.set_num_threads(1)
    settings = PriorTraining(batch=4, learning_rate=5e-3, warm_up=2, measured_windows=1)
    with processes(torch.device("cpu"), sharded) as group:
        torch.manual_seed(0)
        teacher = Prior(CONFIG)
        train_prior(folder / "teacher", NextCode(teacher, Computing()), melody_windows(), steps, settings, group)
        if sharded:
            return
        student = new_student(teacher, 3)
        objective = SoftTargets(student, teacher, Distillation(), Computing())
        train_prior(folder / "student", objective, melody_windows(), steps, settings, group)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), "--sharded" in sys.argv)
