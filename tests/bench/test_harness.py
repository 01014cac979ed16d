"""Rows of a script: what is measured again, what a failure leaves, and when rounds end."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fastjukebox.bench import harness, machine

CPU = torch.device("cpu")


def rows_of(path, *words):
    parser = argparse.ArgumentParser()
    harness.add_options(parser)
    options = parser.parse_args(["--device", "cpu", "--threads", "1", "--json", str(path), *words])
    return harness.Rows("decode", options)


def fails():
    raise RuntimeError("no")


@pytest.mark.parametrize(("words", "again"), [(["--resume"], True), (["--resume", "--no-retry"], False)])
def test_a_row_that_failed_is_measured_again_unless_told_otherwise(tmp_path, words, again):
    path = tmp_path / "r.jsonl"
    rows_of(path).add("good", lambda: {"us": 1}, str)
    rows_of(path).add("bad", fails, str)
    rows = rows_of(path, *words)
    rows.add("good", fails, str)
    rows.add("bad", lambda: {"us": 2}, str)
    assert rows.status == 0
    assert [("error" in r, r.get("us")) for r in harness.read(path)] == [(False, 1), (True, None), (False, 2)][
        : 2 + again
    ]
    # The last record of a row counts.
    rows_of(path, *words).add("bad", lambda: {"us": 3}, str)
    assert len(harness.read(path)) == 2 + again


@pytest.mark.parametrize("words", [["--threads", "2"], ["--rounds", "7"], ["--quick"]])
def test_a_row_that_was_measured_in_another_way_is_measured_again(tmp_path, words):
    path = tmp_path / "r.jsonl"
    for us, way in enumerate(([], words, words)):
        rows_of(path, "--resume", *way).add("row", lambda us=us: {"us": us}, str)
    assert [r["us"] for r in harness.read(path)] == [0, 1]


@pytest.mark.parametrize("field", ["bench", "sources", "device"])
def test_rows_of_another_script_machine_or_state_of_the_code_are_not_these(tmp_path, field):
    path = tmp_path / "r.jsonl"
    rows_of(path).add("row", lambda: {"us": 1}, str)
    (record,) = harness.read(path)
    path.write_text(json.dumps(record | {field: "another"}) + "\n")
    rows_of(path, "--resume").add("row", lambda: {"us": 2}, str)
    assert [r["us"] for r in harness.read(path)] == [1, 2]


def test_a_line_that_was_cut_short_spoils_no_other(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text('{"row": "whole"}\n{"row": "cut')
    for row in "ab":
        harness.append(path, {"row": row})
    assert [r["row"] for r in harness.read(path)] == ["whole", "a", "b"]


def test_after_its_time_no_row_is_measured_and_the_status_says_so(tmp_path):
    path = tmp_path / "r.jsonl"
    rows = rows_of(path, "--seconds", "-1")
    rows.add("row", fails, str)
    assert rows.status == harness.CUT and not path.exists()


def test_sources_are_the_code_of_kernels_engine_and_benchmarks(tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "ROOT", tmp_path)
    found = [harness.sources.__wrapped__()]
    for name in ("kernels/a.cpp", "kernels/b.h", "kernels/c.inc", "engine/a.py", "bench/part/a.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
        found.append(harness.sources.__wrapped__())
    (tmp_path / "kernels" / "a.cpp").rename(tmp_path / "kernels" / "z.cpp")
    found.append(harness.sources.__wrapped__())
    assert len(set(found)) == len(found)
    # Neither results nor tests are what figures come from.
    (tmp_path / "bench" / "r.jsonl").write_text("1")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "a.py").write_text("1")
    assert harness.sources.__wrapped__() == found[-1]


def test_seconds_are_seconds(monkeypatch):
    clock = iter((1.0, 3.5))
    monkeypatch.setattr(harness.time, "perf_counter", lambda: next(clock))
    assert harness.seconds(int, CPU) == 2.5


def test_quantiles():
    assert harness.quantiles([5.0, 0.0, 4.0, 1.0, 3.0, 2.0]) == {"p20": 1.0, "p50": 2.5, "p80": 4.0}
    assert harness.quantiles([2 / 3])["p50"] == 0.66667


@pytest.mark.parametrize(("words", "times"), [([], 2), (["--no-retry"], 1)])
def test_a_row_that_could_not_be_measured_is_tried_again(tmp_path, words, times):
    def missing():
        raise harness.Unavailable("no such decoder")

    path = tmp_path / "r.jsonl"
    for _ in range(2):
        rows_of(path, "--resume", *words).add("row", missing, str)
    assert len(harness.read(path)) == times


def test_a_failure_is_recorded_beside_its_settings(tmp_path):
    path = tmp_path / "r.jsonl"
    rows = rows_of(path)
    rows.add("bad", fails, str, {"depth": 18})
    rows.add("good", lambda: {"us": 1}, str, {"depth": 24})
    bad, good = harness.read(path)
    assert (bad["depth"], bad["error"]) == (18, "RuntimeError: no") and (good["depth"], good["us"]) == (24, 1)


def test_quick_rows_say_so(tmp_path):
    path = tmp_path / "r.jsonl"
    for words in ([], ["--quick"]):
        rows = rows_of(path, *words)
        rows.add("a row", lambda: {"us": 1}, str)
    assert [r.get("quick") for r in harness.read(path)] == [None, True] and rows.rounds == 3


def test_after_the_deadline_no_round_but_the_first_starts():
    calls = []
    times = harness.rounds_of({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, CPU, 5, deadline=0.0)
    # One to warm up, and one.
    assert {name: len(taken) for name, taken in times.items()} == {"a": 1, "b": 1} and len(calls) == 4


def git(folder, *words):
    who = ("-c", "user.name=a", "-c", "user.email=a@b")
    return subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def test_the_commit_is_the_projects_own(tmp_path, monkeypatch):
    outer, project = tmp_path, tmp_path / "project"
    results = project / "bench" / "results" / "r.jsonl"
    results.parent.mkdir(parents=True)
    for path in (results, project / "README.md", project / "code.py"):
        path.write_text("1")
    monkeypatch.setattr(harness, "ROOT", project)
    found = harness.commit.__wrapped__
    assert found() == "none"
    # A copy inside of somebody else's repository.
    git(outer, "init")
    git(outer, "commit", "--allow-empty", "-m", "theirs")
    assert found() == "none"
    git(project, "init")
    assert found() == "none"
    git(project, "add", ".")
    git(project, "commit", "-m", "ours")
    git(project, "tag", "-a", "v1", "-m", "a tag")
    ours = git(project, "rev-parse", "--short=10", "HEAD")
    assert found() == ours
    # What benchmarks write is no change.
    results.write_text("2")
    (results.parent / "new.jsonl").write_text("2")
    (project / "README.md").write_text("2")
    assert found() == ours
    (project / "new.py").write_text("2")
    assert found() == f"{ours}+"
    (project / "new.py").unlink()
    (project / "code.py").write_text("2")
    assert found() == f"{ours}+"


def test_a_record_says_with_what_it_was_made_and_no_path_of_the_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("LD_PRELOAD", f"{tmp_path}/libone.so:{tmp_path}/libtwo.so")
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "cpuinfo")
    (tmp_path / "cpuinfo").write_text(
        "".join(
            f"processor\t: {n}\ncpu family\t: 6\nmodel\t\t: 85\nmodel name\t: A CPU\ncpu MHz\t\t: {2000 + n}.000\n\n"
            for n in (0, 2)
        )
    )
    monkeypatch.setitem(sys.modules, "transformers", torch)
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--sizes", nargs="+")
    parser.add_argument("--missing")
    harness.add_options(parser)
    words = ["--work", f"{tmp_path}/w", "--model", f"{tmp_path}/m", "--sizes", "1x32", f"{tmp_path}/s", "--quick"]
    words += ["--device", "cpu", "--threads", "1", "--json", f"{tmp_path}/r.jsonl", "--rounds", "5", "--resume"]
    harness.Rows("decode", parser.parse_args(words)).add("row", lambda: {"us": 1}, str)
    (found,) = harness.read(tmp_path / "r.jsonl")
    assert (found["device"], found["cpu_mhz"], found["LD_PRELOAD"]) == (
        "A CPU (family 6, model 85)",
        2001,
        "libone.so libtwo.so",
    )
    assert found["threads"] == 1 and found["transformers"].startswith("4.")
    assert found["options"] == {
        **{"work": "w", "model": "m", "sizes": ["1x32", "s"], "device": "cpu", "threads": 1, "quick": True, "rounds": 5}
    }
    assert str(tmp_path) not in (tmp_path / "r.jsonl").read_text()


def test_what_is_not_there_is_not_recorded(tmp_path, monkeypatch):
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "none")
    monkeypatch.delitem(sys.modules, "transformers", raising=False)
    assert not {"LD_PRELOAD", "cpu_mhz", "transformers"} & set(harness.circumstances(CPU))
