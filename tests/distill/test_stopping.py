"""`fastjukebox-train` stopped at any moment: one line, the signal's exit code, and it goes on when run again."""

import os
import signal
import subprocess
import sys

import pytest

# The command in the checkout's namespace, stopped at a moment of its own choice.
COMMAND = """
import os, signal, sys, types
package = types.ModuleType("fastjukebox")
package.__path__ = [sys.argv.pop(1)]
sys.modules["fastjukebox"] = package
moment, number = sys.argv.pop(1), int(sys.argv.pop(1))
stop = lambda *_: os.kill(os.getpid(), number)
from fastjukebox.distill import __main__ as entry
if moment == "import":
    class Finder:
        def find_spec(self, name, *_):
            if name == "torch":
                stop()
    sys.meta_path.insert(0, Finder())
else:
    from fastjukebox.distill import vqvae, work
    if moment == "scan":
        work.scan = stop
    else:
        owner = vqvae.CodebookAverage if moment == "update" else vqvae.LevelObjective
        whole = getattr(owner, moment)
        setattr(owner, moment, lambda *given: (stop(), whole(*given))[1])
entry.main()
"""


def run(folder, moment, number):
    words = ["vqvae", "--work", folder / "w", "--preset", "tiny", "--level", "2", "--device", "cpu", "--threads", "1"]
    root = pytest.importorskip("fastjukebox.distill").__path__[0]
    command = [sys.executable, "-c", COMMAND, os.path.dirname(root), moment, str(int(number)), *map(str, words)]
    reset = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
    return subprocess.run(command, capture_output=True, text=True, preexec_fn=reset)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from fastjukebox.distill.work import Work

    folder = tmp_path_factory.mktemp("stopped")
    Work(folder / "w", "tiny").write_corpus()
    return folder


@pytest.mark.parametrize(
    ("moment", "number", "line"),
    [
        ("import", signal.SIGINT, "interrupted; run the same command again to go on"),
        ("import", signal.SIGTERM, "terminated; run the same command again to go on"),
        ("scan", signal.SIGTERM, "terminated; run the same command again to go on"),
        ("update", signal.SIGINT, "stopped after step 2 of 3; the same command goes on from there"),
        ("measure", signal.SIGTERM, "stopped after step 3 of 3; the same command goes on from there"),
    ],
)
def test_a_signal_is_one_line_and_its_exit_code(folder, moment, number, line):
    done = run(folder, moment, number)
    assert done.returncode == 128 + number, done.stderr
    assert done.stderr.splitlines()[-1] == line
    assert "Traceback" not in done.stderr
    assert (folder / "w/vqvae/level_2/state.pt").exists() == (moment in ("update", "measure"))
    assert not (folder / "w/vqvae/level_2/figures.json").exists()
