"""How many cores a container may use, and what a forked process has of threads."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fastjukebox.engine import threads
from fastjukebox.engine.native_decoder import NativeDecoder
from fastjukebox.engine.threads import granted_cores, take_threads, usable_threads
from fastjukebox.kernels import native_library
from native_cases import make_prior


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 0),
        ({"cpu.max": "max 100000\n"}, 0),
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "20000 100000\n"}, 1),
        ({"cpu.max": "nonsense\n"}, 0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 0),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
    ],
)
def test_cores_are_those_that_the_container_was_granted(tmp_path, files, cores):
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert granted_cores(tmp_path) == cores


@pytest.fixture
def container(monkeypatch):
    """A container that may keep two cores busy, and PyTorch, which knows nothing of that, with four threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    monkeypatch.setattr(threads, "granted_cores", lambda: 2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("container")
def test_in_a_container_nothing_computes_with_more_threads_than_it_has_cores():
    assert usable_threads() == 2
    if native_library.missing() is None:
        assert NativeDecoder(make_prior(), 1).team.counts == [1, 2]
    # PyTorch's own are the caller's.
    assert torch.get_num_threads() == 4
    torch.set_num_threads(1)
    assert usable_threads() == 1


@pytest.mark.usefixtures("container")
def test_a_command_takes_what_the_container_has_and_refuses_more():
    take_threads(None)
    assert torch.get_num_threads() == 2
    take_threads(1)
    assert torch.get_num_threads() == 1
    with pytest.raises(ValueError, match="3 threads: this container may keep 2 cores busy"):
        take_threads(3)


def test_without_a_limit_the_threads_are_those_of_pytorch(monkeypatch):
    monkeypatch.setattr(threads, "granted_cores", lambda: 0)
    assert usable_threads() == torch.get_num_threads()
    take_threads(None)
    assert usable_threads() == torch.get_num_threads()


@pytest.mark.skipif(native_library.missing() is not None, reason=f"native decoder: {native_library.missing()}")
def test_a_forked_process_samples(tiny_model, tmp_path):
    """The pool of PyTorch's threads is not copied; waiting for it would never end."""
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r}); import conftest, os, torch\n"
        # Whoever hangs says where; a forked process cannot take over the watch.
        "import faulthandler; faulthandler.dump_traceback_later(50, exit=True)\n"
        "from fastjukebox.engine import Jukebox, SamplingParams\n"
        "torch.set_num_threads(2); torch.randn(500, 500) @ torch.randn(500, 500)\n"
        f"jukebox = Jukebox.from_pretrained({str(tiny_model)!r}, backend='native')\n"
        "jukebox.sample(SamplingParams(seconds=1)).save(sys.argv[1])\n"
        "faulthandler.cancel_dump_traceback_later()\n"
        "child = os.fork()\n"
        "faulthandler.dump_traceback_later(50, exit=True)\n"
        "if not child:\n"
        "    torch.set_num_threads(1)\n"
        "    jukebox.sample(SamplingParams(seconds=0.05)).save(sys.argv[1]); os._exit(7)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.wav")], capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "7\n", done.stderr
