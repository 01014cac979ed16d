"""Table 1 in small: three depths, parts that add up, speed-ups within rounds."""

import argparse
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from fastjukebox.bench import harness, memory, request_parts, table1
from fastjukebox.bench.tables import newest
from fastjukebox.kernels import native_library

TINY = ["--sizes", "tiny", "--threads", "1", "--device", "cpu"]


@pytest.fixture
def _no_processes(monkeypatch):
    """Memory that takes no time to measure."""
    monkeypatch.setattr(table1, "alone", lambda *words: {"peak_bytes": 1})


@pytest.mark.usefixtures("_no_processes")
def test_rows_of_three_depths(tmp_path, capsys):
    path = tmp_path / "t.jsonl"
    # Long enough for each that its work outweighs what is no part, as packing weights for the native decoder is.
    lengths = {"auto": 0.5, "eager": 0.05}
    for backend, seconds in lengths.items():
        words = [*TINY, "--audio-seconds", str(seconds), "--rounds", "2", "--backends", backend]
        assert table1.main([*words, "--json", str(path)]) == 0
    rows = harness.read(path)
    assert [row["depth"] for row in rows] == [72, 24, 18] * 2 and rows[-1]["backend"] == "eager"
    assert all(row["speed_up"] == {"p20": 1.0, "p50": 1.0, "p80": 1.0} for row in (rows[0], rows[3]))
    for number, row in enumerate(rows):
        first, seconds = rows[number // 3 * 3], list(lengths.values())[number // 3]
        assert row["steps"] == first["steps"] > 0 and row["audio_seconds"] == seconds and row["device"]
        parts = sum(row[f"{part}_s"]["p50"] for part in table1.PARTS)
        assert abs(parts - row["total_s"]["p50"]) < 0.5 * row["total_s"]["p50"]
        assert row["system_peak_bytes"] == 1 and "peak_bytes" not in row
        # The same length again is the same time; fifteen times as much is about fifteen times.
        assert row["windows"] <= row["windows_of_60_s"]
        assert row["extrapolated_60_s"]["p50"] > 10 * row["total_s"]["p50"]
    assert "paper 4.0x" in capsys.readouterr().out


def test_a_request_as_long_as_itself_takes_as_long():
    cost = request_parts.LevelCost(windows=4, prompted=3, prefill=0.6, steps=100, decode=2.0)
    spent = request_parts.Spent(total=2.0, condition=0.8, vqvae=0.5, file=0.1, levels={0: cost})
    assert abs(spent.extrapolated({0: (4, 100)}, 1.0) - spent.total) < 1e-9
    # Three prompts become six, steps, VQ-VAE, file double; seven windows of four for conditions. Half of it overlaps.
    assert abs(spent.extrapolated({0: (7, 200)}, 2.0) - (1.2 + 4.0 + 1.2 + 0.8 * 7 / 4) / 2) < 1e-9


def test_figures_are_of_the_timed_requests_within_rounds():
    """The first request of each has warmed up."""

    def stack(*totals):
        cost = request_parts.LevelCost(windows=2, prompted=1, prefill=0.5, steps=100, decode=0.25)
        spent = [request_parts.Spent(total, 0.125, 0.5, 0.0625, {0: cost}) for total in totals]
        return SimpleNamespace(requests=spent, seconds=4.0, backend="native", work=lambda seconds: {0: (30, 1500)})

    stacks = {(72, "native"): stack(99.0, 6.0, 4.0), (24, "native"): stack(77.0, 2.0, 1.0)}
    options = argparse.Namespace(sizes="tiny", audio_seconds=4.0)
    records = table1.Records(None, options, stacks, dict.fromkeys(stacks), 2)
    records.rounds = 2
    found = records.made()["tiny 24 layers, native, 4 s"]
    assert {name: value["p50"] for name, value in found.items() if isinstance(value, dict)} == {
        # 6 / 2 and 4 / 1; 4 s of audio in 2 s and in 1 s.
        **{"speed_up": 3.5, "real_time": 3.0, "total_s": 1.5, "us_per_step": 2500.0},
        **{"decode_s": 0.25, "prefill_s": 0.5, "condition_s": 0.125, "vqvae_s": 0.5, "file_s": 0.0625},
        # Of the parts, 1.4375 s: 29 prompts, 15 times as many steps and conditions, all else 15 times as long.
        "extrapolated_60_s": pytest.approx(1.5 * (14.5 + 3.75 + 1.875 + 15 * 0.5625) / 1.4375, 1e-4),
    }
    assert (found["windows"], found["steps"], found["windows_of_60_s"], found["rounds"]) == (2, 100, 30, 2)


def test_each_window_is_counted_with_its_steps():
    costs, nothing = [], lambda *_: None
    decoder = SimpleNamespace(begin=nothing, prefill=nothing, extend=nothing, run=nothing)
    timed = request_parts.Timed(decoder, torch.device("cpu"), costs, [])
    timed.begin(SimpleNamespace(level=1, prompt_len=0))
    timed.run(0, 5)
    timed.run(5, 8)
    timed.prefill(SimpleNamespace(level=0, prompt_len=4))
    timed.run(4, 6)
    timed.begin(SimpleNamespace(level=0, prompt_len=4))
    timed.extend(0, 4)
    timed.run(4, 5)
    found = [
        (level, cost.windows, cost.prompted, cost.steps, cost.prefill > 0, cost.decode > 0) for level, cost in costs
    ]
    assert found == [(1, 1, 0, 8, False, True), (0, 1, 1, 2, True, True), (0, 1, 1, 1, True, True)]


@pytest.mark.usefixtures("_no_processes")
@pytest.mark.skipif(native_library.missing() is not None, reason=f"native decoder: {native_library.missing()}")
def test_windows_that_overlap_are_counted_once(tmp_path):
    path = tmp_path / "t.jsonl"
    words = ["--sizes", "tiny", "--audio-seconds", "0.05", "--rounds", "1", "--threads", "2", "--device", "cpu"]
    assert table1.main([*words, "--backends", "native", "eager", "--json", str(path)]) == 0
    native, eager = (row for row in harness.read(path) if row["depth"] == 18)
    assert [native[count] for count in ("steps", "windows")] == [eager[count] for count in ("steps", "windows")]
    assert all(native[f"{part}_s"]["p50"] > 0 for part in table1.PARTS)


@pytest.mark.usefixtures("_no_processes")
def test_rows_are_of_a_decoder_and_a_length(tmp_path, capsys):
    path = tmp_path / "t.jsonl"
    # Twice the same decoder: measured once.
    words = [*TINY, "--backends", "auto", "auto", "--rounds", "1", "--json", str(path), "--resume"]
    for seconds in ("0.04", "0.05", "0.04"):
        assert table1.main([*words, "--audio-seconds", seconds]) == 0
    assert "recorded before" in capsys.readouterr().out
    rows = harness.read(path)
    backend = rows[0]["backend"]
    expected = [f"tiny {depth} layers, {backend}, {seconds} s" for seconds in (0.04, 0.05) for depth in (72, 24, 18)]
    assert [row["row"] for row in rows] == expected


@pytest.mark.usefixtures("_no_processes")
def test_rounds_and_seconds_are_those_asked_for(tmp_path):
    path = tmp_path / "t.jsonl"
    words = [*TINY, "--backends", "auto", "--audio-seconds", "0.04", "--json", str(path)]
    assert table1.main([*words, "--rounds", "4"]) == 0
    assert {row["rounds"] for row in harness.read(path)} == {4}
    assert table1.main([*words, "--seconds", "-1"]) == harness.CUT
    assert len(harness.read(path)) == 3


def test_quick_is_one_round_and_says_so(tmp_path):
    path = tmp_path / "t.jsonl"
    assert table1.main([*TINY, "--backends", "auto", "--audio-seconds", "0.04", "--quick", "--json", str(path)]) == 0
    for row in harness.read(path):
        assert (row["rounds"], row["quick"]) == (1, True) and "system_peak_bytes" not in row


def test_memory_is_that_of_a_process_of_its_own(tmp_path):
    ballast = torch.ones(125_000_000)
    options = argparse.Namespace(sizes="tiny", audio_seconds=0.04, threads=1, device="cpu", quick=False)
    _, found = table1.prepared(options, 18, "auto", tmp_path)
    # Of PyTorch and the model, but not of what this process holds.
    assert 50e6 < found < memory.peak() - ballast.nbytes / 2


@pytest.mark.usefixtures("_no_processes")
@pytest.mark.parametrize(("worth", "rounds"), [(0.0, [1, 2, 3]), (1e9, [3])])
def test_a_run_that_is_stopped_keeps_its_rounds(tmp_path, monkeypatch, worth, rounds):
    path = tmp_path / "t.jsonl"
    monkeypatch.setattr(table1, "WORTH_KEEPING", worth)
    words = [*TINY, "--backends", "auto", "--audio-seconds", "0.04", "--rounds", "5", "--json", str(path), "--resume"]
    calls, request = [], request_parts.Stack.request

    def stopped(stack, *given):
        calls.append(stack)
        # One of three warms up; the fourth round is under way.
        if len(calls) == 3 + 3 * 3 + 2:
            raise SystemExit(143)
        request(stack, *given)

    monkeypatch.setattr(request_parts.Stack, "request", stopped)
    with pytest.raises(SystemExit):
        table1.main(words)
    found = harness.read(path)
    assert [row["rounds"] for row in found] == [count for count in rounds for _ in range(3)]
    assert all(row["unfinished"] for row in found) and found[0]["speed_up"]["p50"] == 1.0
    # It is not what was asked for.
    assert table1.main(words) == 0
    assert all(row["rounds"] == 5 and "unfinished" not in row for row in harness.read(path)[-3:])
    assert len(newest(harness.read(path))) == 3


@pytest.mark.parametrize("alone", [[], ["--alone", "72", "eager"]])
def test_a_run_that_is_terminated_leaves_no_folders(tmp_path, alone):
    words = [*TINY, "--quick", "--backends", "eager", "--audio-seconds", "9", *alone]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    child = subprocess.Popen([sys.executable, "bench", "table1", *words], cwd=harness.ROOT, env=environment)
    try:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("*/*")) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert list(tmp_path.iterdir())
        child.terminate()
        assert child.wait(60) == 143
    finally:
        child.kill()
        child.wait()
    assert not list(tmp_path.iterdir())


def test_a_stop_that_comes_while_python_frees_something_is_not_lost():
    code = (
        "import runpy, signal, sys, time, weakref\n"
        "def script(*args, **options):\n"
        "    weakref.finalize(type('Freed', (), {})(), signal.raise_signal, signal.SIGTERM)\n"
        "    time.sleep(60)\n"
        "runpy.run_module, sys.argv = script, ['bench', 'table1']\n"
        "runpy.run_path('bench', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=harness.ROOT, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (143, "")
