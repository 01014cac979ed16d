"""The command line when it is stopped, or when the disk is full: one line, and nothing is lost."""

import errno
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from command_line import command
from fastjukebox.engine import Jukebox, runs

RATE = 44100
# Shorter than a window at every level, and no whole number of codes.
SECONDS, SAMPLES = 0.02, 882


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory"), torch.OutOfMemoryError("CUDA")]
)
def test_too_little_memory_is_one_line(fails, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(Jukebox, "from_pretrained", fail)
    assert "not enough memory: try a smaller --batch-size or fewer --seconds" in fails("sample", "a.wav")


def test_a_full_disk_is_one_line_and_loses_nothing(run_cli, ok, monkeypatch):
    ok("sample", "whole.wav", "--seconds", SECONDS)
    saves = []

    def full(path, codes, vqvae=None):
        saves.append(path)
        if len(saves) > 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save_codes(path, codes, vqvae)

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
        patch.setattr(os, "replace", full_replace(os.replace))
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


STOPS = pytest.mark.parametrize(
    ("number", "word"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")], ids=["ctrl-c", "terminate"]
)


def stopped_in(name, number, *args):
    """The exit code and stderr of a command that is stopped in that method of Jukebox, where exceptions get lost."""
    before = (
        "from fastjukebox.engine.jukebox import Jukebox\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "def stop(*args, **options):\n"
        f"    try: signal.raise_signal({int(number)})\n"
        "    except BaseException: pass\n"
        f"Jukebox.{name} = stop"
    )
    done = subprocess.run(command(*args, before=before), capture_output=True, text=True, timeout=60)
    assert done.stdout == ""
    return done.returncode, done.stderr


@STOPS
def test_a_stop_before_the_run_is_made_says_that_nothing_is_saved(tiny_model, tmp_path, monkeypatch, number, word):
    monkeypatch.chdir(tmp_path)
    args = ("sample", "a.wav", "--seconds", SECONDS, "--model", tiny_model)
    expected = 128 + number, f"fastjukebox: {word}; nothing is saved yet\n"
    assert stopped_in("from_pretrained", number, *args) == expected
    assert not list(Path().iterdir())
    # Nor is another run that stands there what to go on with.
    Path("a.run").mkdir()
    Path("a.run/request.json").write_text("{}")
    assert stopped_in("from_pretrained", number, *args, "--overwrite") == expected


@STOPS
def test_a_stop_before_the_first_code_says_how_to_go_on(tiny_model, tmp_path, monkeypatch, number, word):
    monkeypatch.chdir(tmp_path)
    args = ("sample", "a.wav", "--seconds", SECONDS, "--model", tiny_model)
    hint = f"fastjukebox: {word}; go on with: fastjukebox resume a.run\n"
    assert stopped_in("prior", number, *args) == (128 + number, hint)
    assert stopped_in("prior", number, "resume", "a.run") == (128 + number, hint)


def test_an_ignored_ctrl_c_stays_ignored(tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = (
        "from fastjukebox.engine.jukebox import Jukebox\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "prior = Jukebox.prior\n"
        "def stop(*args, **options):\n"
        "    signal.raise_signal(signal.SIGINT)\n"
        "    return prior(*args, **options)\n"
        "Jukebox.prior = stop"
    )
    args = ("sample", "a.wav", "--seconds", SECONDS, "--model", tiny_model)
    subprocess.run(command(*args, before=before), check=True, capture_output=True, timeout=60)
    assert Path("a.wav").exists()


@STOPS
def test_a_stop_that_comes_while_python_frees_something_is_not_lost(tiny_model, tmp_path, monkeypatch, number, word):
    monkeypatch.chdir(tmp_path)
    before = (
        "import weakref\n"
        "from fastjukebox.engine import runs\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "save_codes, saves = runs.save_codes, []\n"
        "def stop(*args, **options):\n"
        "    save_codes(*args, **options)\n"
        "    saves.append(args)\n"
        "    if len(saves) == 2:\n"
        f"        weakref.finalize(type('Freed', (), {{}})(), signal.raise_signal, {int(number)})\n"
        "runs.save_codes = stop"
    )
    args = ("sample", "a.wav", "--seconds", 0.15, "--backend", "eager", "--model", tiny_model)
    done = subprocess.run(command(*args, before=before), capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (
        128 + number,
        f"fastjukebox: {word}; go on with: fastjukebox resume a.run\n",
    )
