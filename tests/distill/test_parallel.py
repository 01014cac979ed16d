"""Two processes take the same steps as one, with whole and with sharded networks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fastjukebox.distill.parallel import Processes, processes

WORKER = Path(__file__).parent / "parallel_worker.py"


def run(*words: str, count: int = 1) -> None:
    """The worker alone, or `count` of them under torchrun, in the checkout's namespace."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"] if count > 1 else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
    command = [sys.executable, *launcher, str(WORKER), *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]


def averages(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "state.pt", weights_only=True)["average"]


def assert_close(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert set(ours) == set(theirs)
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], atol=2e-5, rtol=1e-3, msg=lambda m, name=name: f"{name}: {m}")


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    run(str(folder), "4")
    return folder


def test_two_processes_take_the_steps_of_one(alone, tmp_path):
    run(str(tmp_path), "4", count=2)
    for name in ("teacher", "student"):
        assert_close(averages(tmp_path / name), averages(alone / name))


def test_a_sharded_network_takes_the_steps_of_a_whole_one(alone, tmp_path):
    run(str(tmp_path), "4", "--sharded", count=2)
    assert_close(averages(tmp_path / "teacher"), averages(alone / "teacher"))


def test_sharding_needs_torchrun():
    with pytest.raises(ValueError, match="torchrun"), processes(torch.device("cpu"), sharded=True):
        pass


def test_one_process_is_without_wrappers():
    module = torch.nn.Linear(2, 2)
    assert Processes().wrap(module) is module and Processes().is_first
    assert torch.equal(Processes().gather(torch.ones(3))[0], torch.ones(3))
