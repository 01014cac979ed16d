"""Two processes take the same steps as one, with whole and with sharded networks."""

import datetime
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from fastjukebox.distill.parallel import Processes, processes
from fastjukebox.distill.work import Work
from torch.utils._pytree import tree_leaves

WORKER = Path(__file__).parent / "parallel_worker.py"


def start(kind: str, folder: Path, count: int = 1) -> subprocess.CompletedProcess[str]:
    """The worker alone, or `count` of them under torchrun, in the checkout's namespace."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"] if count > 1 else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
    command = [sys.executable, *launcher, str(WORKER), kind, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


def run(kind: str, folder: Path, count: int = 1) -> str:
    """What `start` prints."""
    done = start(kind, folder, count)
    assert done.returncode == 0, done.stderr
    return done.stdout


def averages(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "state.pt", weights_only=True)["average"]


def assert_close(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert set(ours) == set(theirs)
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], atol=2e-5, rtol=1e-3, msg=lambda m, name=name: f"{name}: {m}")


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    run("priors", folder)
    return folder


@pytest.mark.parametrize("kind", ["priors", "micro"])
def test_two_processes_take_the_steps_of_one(alone, tmp_path, kind):
    run(kind, tmp_path, count=2)
    for name in ("teacher", "student"):
        assert_close(averages(tmp_path / name), averages(alone / name))


@pytest.mark.parametrize("kind", ["priors", "micro"])
def test_a_sharded_network_takes_the_steps_of_a_whole_one(alone, tmp_path, kind):
    run(f"sharded-{kind}", tmp_path, count=2)
    assert_close(averages(tmp_path / "teacher"), averages(alone / "teacher"))


@pytest.mark.parametrize("kind", ["resumed", "sharded-resumed"])
def test_stopped_processes_go_on_to_the_same_bits(tmp_path, kind):
    run(kind, tmp_path, count=2)
    whole, resumed = (torch.load(tmp_path / name / "state.pt", weights_only=True) for name in ("whole", "resumed"))
    assert whole["step"] == resumed["step"] == 4
    for part in ("model", "optimizer", "average"):
        for ours, theirs in zip(tree_leaves(resumed[part]), tree_leaves(whole[part]), strict=True):
            assert (
                torch.equal(torch.as_tensor(ours), torch.as_tensor(theirs)) if torch.is_tensor(ours) else ours == theirs
            )


def test_two_processes_minimize_the_vqvaes_loss_of_one(tmp_path):
    # One of the two has silence only.
    found = []
    for count in (1, 2):
        run("vqvae", tmp_path, count)
        found.append(torch.load(tmp_path / "vqvae.pt", weights_only=True))
    assert_close(found[1], found[0])


def test_a_sharded_stack_comes_from_one_folder(tmp_path):
    told = run("sharded-stack", tmp_path, count=2)
    assert told.count("corpus: started") == 2, "all processes go the same way"
    assert told.count("AdamW instead of Muon") == 1 and told.count("so not sharded") == 3
    work = Work(tmp_path / "work", "tiny")
    assert work.is_done("teacher-72", 2) and len(work.codes().songs) == work.preset.corpus.songs


def test_all_processes_end_when_one_fails(tmp_path):
    Work(tmp_path, "tiny").write_corpus()
    done = start("failing", tmp_path, count=2)
    assert done.returncode and "error: a song is gone" in done.stderr, done.stderr[-3000:]


def test_processes_wait_longer_than_the_first_one_encodes(monkeypatch):
    asked = {}
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(dist, "init_process_group", lambda *_, timeout: asked.update(timeout=timeout))
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    for name in ("barrier", "destroy_process_group"):
        monkeypatch.setattr(dist, name, lambda: None)
    with processes(torch.device("cpu")) as group:
        assert group.count == 2
    assert asked["timeout"] >= datetime.timedelta(days=1)


def test_sharding_needs_torchrun():
    with pytest.raises(ValueError, match="torchrun"), processes(torch.device("cpu"), sharded=True):
        pass


def test_one_process_is_without_wrappers():
    module = torch.nn.Linear(2, 2)
    assert Processes().wrap(module) is module and Processes().is_first
    assert torch.equal(Processes().gather(torch.ones(3))[0], torch.ones(3))
