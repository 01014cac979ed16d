"""One process at a time works on a run."""

import dataclasses
import errno
import fcntl
import os
import signal
import time

import pytest
from fastjukebox.engine import Jukebox, RunError, SamplingParams
from fastjukebox.engine.runs import Run
from run_case import NEW, OLD, REQUEST, assert_holds, begun


@pytest.fixture
def run(tmp_path):
    return begun(tmp_path / "run")


def test_a_forked_process_does_not_keep_a_run(run):
    run.acquire()
    child = os.fork()
    if not child:
        time.sleep(60)
        os._exit(0)
    try:
        run.release()
        Run.open(run.folder).acquire()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_forked_process_does_not_end_it_for_its_parent(run):
    run.acquire()
    child = os.fork()
    if not child:
        run.release()
        os._exit(0)
    os.waitpid(child, 0)
    with pytest.raises(RunError, match="being worked on"):
        Run.open(run.folder).acquire()
    run.release()


@pytest.mark.linux
@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOLCK])
def test_a_lock_that_is_not_had_holds_no_file(run, monkeypatch, number):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(fcntl, "flock", fail)
    if number == errno.EAGAIN:
        with pytest.raises(RunError, match="being worked on"):
            run.acquire()
    else:
        # A file system without locks.
        run.acquire()
    assert len(os.listdir("/proc/self/fd")) == before
    run.release()


def test_a_run_that_cannot_be_gone_on_with_is_let_go(run, monkeypatch):
    failures, read = [], Run.open
    with pytest.raises(RunError, match="needs its model") as failure:
        Jukebox.resume(run.folder)
    failures.append(failure.value)
    Run.open(run.folder).acquire()
    requests = iter([read(run.folder)])
    monkeypatch.setattr(Run, "open", lambda folder: next(requests))
    with pytest.raises(StopIteration) as failure:
        Run.reopen(run.folder)
    failures.append(failure.value)
    read(run.folder).acquire()
    # Who has the errors has what they came from, and that not the run.
    assert len(failures) == 2


def test_one_at_a_time_works_on_a_run(run, tiny_model, tmp_path):
    run.acquire()
    for other in (
        lambda: Run.create(run.folder, REQUEST, NEW, overwrite=True),
        lambda: Run.open(run.folder).acquire(),
    ):
        with pytest.raises(RunError, match=f"{run.folder} is being worked on already"):
            other()
    # Reading is free.
    assert_holds(run.folder, OLD)
    run.release()
    Run.open(run.folder).acquire()
    # A request that has ended, well or not, holds nothing.
    jukebox = Jukebox.from_pretrained(tiny_model, backend="eager")
    params, folder = SamplingParams(seconds=128 / 44100), tmp_path / "other"

    def stop(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as raised:
        jukebox.sample(params, run_dir=folder, progress=stop)
    assert raised.value and Jukebox.resume(folder).audio.shape[1] == 128
    chunks = jukebox.stream(params, run_dir=folder, overwrite=True)
    with pytest.raises(RunError, match="being worked on"):
        Jukebox.resume(folder)
    chunks.close()


def test_what_replaces_a_run_until_it_is_acquired_is_gone_on_with(run, monkeypatch):
    other = dataclasses.replace(REQUEST, output="other.wav")
    acquire, taken = Run.acquire, []

    def slowly(self):
        if not taken:
            taken.append(True)
            Run.create(run.folder, other, NEW, overwrite=True).release()
        acquire(self)

    monkeypatch.setattr(Run, "acquire", slowly)
    assert Run.reopen(run.folder).request == other
    assert_holds(run.folder, NEW)
