"""Options that cannot be: one line and status 2 before anything is measured."""

import argparse
import subprocess
import sys

import pytest
from fastjukebox.bench import (
    attention,
    decode,
    harness,
    held_out,
    int8,
    ops,
    options,
    prefill,
    readme,
    report,
    roofline,
    scaling,
    segments,
    table1,
)
from fastjukebox.engine import threads

HERE = ["--device", "cpu"]


@pytest.fixture(autouse=True)
def _nothing_is_measured(monkeypatch):
    def rows(*_):
        raise AssertionError("rows were begun")

    for module in (attention, decode, held_out, ops, prefill, roofline, scaling, segments, table1):
        monkeypatch.setattr(module, "Rows", rows)
    monkeypatch.setattr(report, "render", rows)


@pytest.mark.parametrize(
    ("script", "words", "message"),
    [
        (table1, ["--audio-seconds", "0"], "'0' is no number above zero"),
        (table1, ["--rounds", "0"], "'0' is no whole number above zero"),
        (table1, ["--threads", "two"], "'two' is no whole number above zero"),
        (table1, ["--backends", "auto", "fast"], "no decoder 'fast'; there are auto, "),
        (table1, ["--backends", "triton"], "the triton decoder cannot run on cpu"),
        (table1, ["--device", "tpu"], "'tpu' is neither cpu nor cuda"),
        (table1, ["--device", "cuda:99"], "PyTorch finds no cuda:99 here"),
        (roofline, ["--batch", "1", "0"], "'0' is no whole number above zero"),
        (roofline, ["--decoders", "fast"], "no decoder 'fast'"),
        (roofline, ["--sizes", "wide"], "wide is neither LAYERSxWIDTH"),
        (roofline, ["--aim", "0"], "'0' is no number above zero"),
        (decode, ["--batch", "0"], "'0' is no whole number above zero"),
        (decode, ["--decoders", "fast"], "no decoder 'fast'"),
        (decode, ["--sizes", "wide"], "wide is neither LAYERSxWIDTH"),
        (scaling, ["--base", "wide"], "wide is neither LAYERSxWIDTH"),
        (scaling, ["--axes", "context", "--values", "1000"], "is not a multiple of"),
        (scaling, ["--decoder", "fast"], "no decoder 'fast'"),
        (prefill, ["--sizes", "0x128"], "depth must be at least 1"),
        (prefill, ["--codes", "9999"], "9999 codes do not fit into the 8192"),
        (ops, ["--sizes", "wide"], "wide is neither LAYERSxWIDTH"),
        (ops, ["--batch", "-1"], "'-1' is no whole number above zero"),
        (attention, ["--head-dim", "0"], "'0' is no whole number above zero"),
        (int8, ["--model", "/nowhere"], "/nowhere/config.json does not exist"),
        (segments, ["--segments", "4", "1"], "--segments: 2 or more"),
        (segments, ["--context", "100"], "--context 100 is not a multiple of 256"),
        (int8, ["--songs", "0"], "'0' is no whole number above zero"),
    ],
)
def test_what_cannot_be_is_said_before_the_rows(script, words, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        script.main([*HERE, *words])
    said = capsys.readouterr()
    assert stopped.value.code == 2 and message in said.err.splitlines()[-1] and not said.out


@pytest.mark.parametrize(("script", "words"), [(readme, ["--readme"]), (readme, ["--results"]), (report, ["--out"])])
def test_files_that_are_not_there(script, words, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        script.main([*words, str(tmp_path / "nowhere" / "x")])
    assert stopped.value.code == 2 and "nowhere/x" in capsys.readouterr().err.splitlines()[-1]


def test_a_file_that_cannot_be_appended_to_is_said_at_once(tmp_path, capsys):
    parser = argparse.ArgumentParser()
    harness.add_options(parser)
    (tmp_path / "file").write_text("kept\n")
    for path in (tmp_path, tmp_path / "file" / "r.jsonl"):
        with pytest.raises(SystemExit) as stopped:
            parser.parse_args(["--json", str(path)])
        assert stopped.value.code == 2 and f"{path} cannot be written" in capsys.readouterr().err
    for path in (tmp_path / "file", tmp_path / "folder" / "r.jsonl"):
        assert parser.parse_args(["--json", str(path)]).json == path
    # Nothing is left of having tried.
    assert (tmp_path / "file").read_text() == "kept\n" and not list((tmp_path / "folder").iterdir())


def test_in_a_container_no_more_threads_than_it_has_cores(monkeypatch, capsys):
    monkeypatch.setattr(threads, "granted_cores", lambda: 2)
    assert options.threads("2") == 2
    with pytest.raises(SystemExit) as stopped:
        table1.main([*HERE, "--threads", "3"])
    assert stopped.value.code == 2 and "this container may keep 2 cores busy" in capsys.readouterr().err


def test_amounts():
    assert options.amount("0.5") == 0.5 and options.positive("12") == 12
    for text in ("nan", "inf", "-1", "x", ""):
        with pytest.raises(argparse.ArgumentTypeError):
            options.amount(text)
    for text in ("1.5", "0", "-3", "²"):
        with pytest.raises(argparse.ArgumentTypeError):
            options.positive(text)


@pytest.mark.parametrize("words", [["nonsense"], []])
def test_an_unknown_script_is_told_which_there_are(words):
    done = subprocess.run([sys.executable, "bench", *words], cwd=harness.ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and not done.stdout and done.stderr.count("\n") == 1
    assert "scripts: attention, beginnings, compare, decode, gpu, int8, ops, peers, " in done.stderr
    assert "harness" not in done.stderr


# What is run by its path is run as `python bench SCRIPT`.
BY_PATH = sorted(
    path.name
    for path in (harness.ROOT / "bench").glob("*.py")
    if "if not __package__:\n" in path.read_text() and path.stem != "by_path"
)


def test_most_scripts_can_be_run_by_their_path():
    missing = {path.name for path in (harness.ROOT / "bench").glob("*.py") if "\ndef main(" in path.read_text()}
    assert missing - {*BY_PATH} <= {"peers.py", "decode.py"}


@pytest.mark.parametrize("name", ["table1.py", "readme.py"])
def test_a_script_that_is_run_by_its_path_is_the_same(name, tmp_path):
    script = harness.ROOT / "bench" / name
    done = subprocess.run([sys.executable, script, "--no-such"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.endswith("error: unrecognized arguments: --no-such\n")
    asked = subprocess.run([sys.executable, script, "--help"], cwd=tmp_path, capture_output=True, text=True)
    assert asked.returncode == 0 and f"python bench {script.stem}" in asked.stdout
