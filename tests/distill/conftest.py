"""Makes the helper modules beside the tests importable; the commands of `fastjukebox-train`, and what they leave."""

import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from fastjukebox.distill import __main__ as entry
from fastjukebox.distill.commands import train

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work") / "w"

    def command(*words, preset="tiny"):
        options = ["--work", str(folder), "--preset", preset, "--threads", "1", "--device", "cpu"]
        return CliRunner().invoke(train, [words[0], *options, *words[1:]], catch_exceptions=True)

    command.folder = folder
    return command


@pytest.fixture(scope="session")
def stack(run):
    """Everything that a teacher's stack and one student need, by the commands that a user types."""
    for words in (
        ("corpus",),
        ("vqvae",),
        ("encode",),
        ("prior", "--system", "teacher-72"),
        ("distill", "--system", "student-18-layers", "--level", "2"),
        ("distill", "--system", "student-18", "--level", "2"),
    ):
        done = run(*words)
        assert done.exit_code == 0, (words, done.output, done.exception)
    return run.folder


@pytest.fixture
def refused(monkeypatch, capsys):
    """The one line that a command's refusal prints."""

    def command(folder, *words):
        words = [words[0], "--work", str(folder), "--preset", "tiny", "--device", "cpu", *words[1:]]
        monkeypatch.setattr("sys.argv", ["fastjukebox-train", *words])
        # What the test itself printed before.
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            entry.main()
        *before, last = capsys.readouterr().err.splitlines()
        # Beside what the folder is and what works on it, and a progress bar.
        told = [line for line in before if line and "step/s" not in line]
        assert stop.value.code == 2 and told in ([], [f"{folder}: preset tiny, seed 0; on cpu, 1 threads"]), told
        return last

    return command
