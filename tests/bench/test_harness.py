"""Rows of a script: what is measured again, what a failure leaves, and when rounds end."""

import argparse

import pytest
import torch
from fastjukebox.bench import harness

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
