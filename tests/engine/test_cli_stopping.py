"""The command line when it is stopped, or when the disk is full: one line, and nothing is lost."""

import errno
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from command_line import command
from fastjukebox.engine import audio as audio_module
from fastjukebox.engine import runs

RATE = 44100
# Shorter than a window at every level, and no whole number of codes.
SECONDS, SAMPLES = 0.02, 882


def test_a_full_disk_is_one_line_and_loses_nothing(run_cli, ok, monkeypatch):
    ok("sample", "whole.wav", "--seconds", SECONDS)
    saves = []

    def full(path, codes):
        saves.append(path)
        if len(saves) > 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save_codes(path, codes)

    save_codes = runs.save_codes
    with monkeypatch.context() as patch:
        patch.setattr(runs, "save_codes", full)
        code, _, err = run_cli("sample", "a.wav", "--seconds", SECONDS)
    assert code == 2
    assert err.count("\n") == 1
    assert "No space left on device" in err
    assert "fastjukebox resume a.run" in err
    assert not Path("a.wav").exists()

    with monkeypatch.context() as patch:
        patch.setattr(audio_module.os, "replace", full_replace(audio_module.os.replace))
        code, _, err = run_cli("resume", "a.run")
    assert code == 2
    assert err.count("\n") == 1
    assert "No space left on device; all codes are saved" in err
    assert sorted(path.name for path in Path().iterdir()) == ["a.run", "whole.run", "whole.wav"]
    ok("resume", "a.run")
    assert Path("a.wav").read_bytes() == Path("whole.wav").read_bytes()


def full_replace(replace):
    def fail(source, target):
        if Path(target).suffix == ".wav":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    return fail


def start_and_wait_for_codes(*args, codes):
    """Starts a command and returns when the run has saved so many codes."""
    process = subprocess.Popen(
        command(*args),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A suite that runs in the background would hand on an ignored SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while process.poll() is None:
        try:
            if sum(tensor.shape[1] for tensor in runs.load_codes(Path("a.run/codes.safetensors"))) >= codes:
                return process
        except runs.RunError:
            pass
        time.sleep(0.005)
    raise AssertionError(f"ended too early: {process.communicate()}")


@pytest.mark.parametrize(
    ("number", "exit_code", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated"), (signal.SIGKILL, -9, None)],
    ids=["ctrl-c", "terminate", "kill"],
)
def test_a_stopped_run_resumes_to_the_same_bytes(tiny_model, ok, number, exit_code, word):
    # Slow enough to be caught in the middle.
    settings = ("--seconds", 0.15, "--backend", "eager")
    ok("sample", "whole.wav", *settings)
    process = start_and_wait_for_codes("sample", "a.wav", *settings, "--model", tiny_model, codes=100)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == exit_code
    if word:
        assert err == f"fastjukebox: {word}; go on with: fastjukebox resume a.run\n"
    assert not Path("a.wav").exists()
    before = sum(tensor.shape[1] for tensor in runs.load_codes(Path("a.run/codes.safetensors")))
    after = sum(tensor.shape[1] for tensor in runs.load_codes(Path("whole.run/codes.safetensors")))
    assert 100 <= before < after
    assert "wrote" in ok("resume", "a.run")
    assert Path("a.wav").read_bytes() == Path("whole.wav").read_bytes()
