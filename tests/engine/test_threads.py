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

NEEDS_NATIVE = pytest.mark.skipif(
    native_library.missing() is not None, reason=f"native decoder: {native_library.missing()}"
)


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


# Of a program that forks: whoever hangs says where, and a forked process cannot take over the watch.
FORKING = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r}); import conftest, faulthandler, os, torch
from fastjukebox.engine import Jukebox, SamplingParams, threads
def watch(): faulthandler.dump_traceback_later(50, exit=True)
def fork(): faulthandler.cancel_dump_traceback_later(); child = os.fork(); watch(); return child
def code(child): return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
watch(); torch.set_num_threads(2); torch.randn(500, 500) @ torch.randn(500, 500)
jukebox = Jukebox.from_pretrained(sys.argv[1], backend="native")
"""


def run_forking(program, *arguments):
    command = [sys.executable, "-c", FORKING + program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@NEEDS_NATIVE
def test_a_forked_process_samples(tiny_model, tmp_path):
    """The pool of PyTorch's threads is not copied; waiting for it would never end."""
    program = """
jukebox.sample(SamplingParams(seconds=1)).save(sys.argv[2])
child = fork()
if not child:
    torch.set_num_threads(1)
    jukebox.sample(SamplingParams(seconds=0.05)).save(sys.argv[2]); os._exit(7)
print(code(child))
"""
    done = run_forking(program, tiny_model, tmp_path / "a.wav")
    assert done.stdout == "7\n", done.stderr


@NEEDS_NATIVE
def test_a_forked_process_cannot_go_on_with_its_parents_stream(tiny_model):
    """What other threads of the parent do, and hold, at that moment is for ever so in the forked process."""
    program = """
threads.granted_cores = lambda: 0
stream = jukebox.stream(SamplingParams(seconds=1)); chunks = [next(stream)]
child = fork()
if not child:
    try:
        chunks += stream
    except RuntimeError as error:
        print(error, flush=True)
    sys.exit(7)
status = code(child)
chunks += stream
print(status, torch.equal(torch.cat(chunks, 1), jukebox.sample(SamplingParams(seconds=1)).audio))
"""
    done = run_forking(program, tiny_model)
    told, status = done.stdout.splitlines()
    assert told.startswith("a forked process does not have the threads") and status == "7 True", done.stderr
    assert done.stderr == ""
