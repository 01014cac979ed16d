"""Table 1 in small: three depths, parts that add up, speed-ups within rounds."""

import pytest
from fastjukebox.bench import harness, request_parts, table1
from fastjukebox.kernels import native


def test_rows_of_three_depths(tmp_path, capsys):
    path = tmp_path / "t.jsonl"
    words = ["--sizes", "tiny", "--audio-seconds", "0.05", "--rounds", "2", "--threads", "1", "--device", "cpu"]
    words += ["--backends", "auto", "eager"]
    assert table1.main([*words, "--json", str(path)]) == 0
    rows = harness.read(path)
    assert [row["depth"] for row in rows] == [72, 24, 18] * 2 and rows[-1]["backend"] == "eager"
    assert all(row["speed_up"] == {"p20": 1.0, "p50": 1.0, "p80": 1.0} for row in (rows[0], rows[3]))
    for row in rows:
        assert row["steps"] == rows[0]["steps"] > 0 and row["audio_seconds"] == 0.05 and row["device"]
        parts = sum(row[f"{part}_s"]["p50"] for part in table1.PARTS)
        assert abs(parts - row["total_s"]["p50"]) < 0.5 * row["total_s"]["p50"]
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


@pytest.mark.skipif(native.missing() is not None, reason=f"native decoder: {native.missing()}")
def test_windows_that_overlap_are_counted_once(tmp_path):
    path = tmp_path / "t.jsonl"
    words = ["--sizes", "tiny", "--audio-seconds", "0.05", "--rounds", "1", "--threads", "2", "--device", "cpu"]
    assert table1.main([*words, "--backends", "native", "eager", "--json", str(path)]) == 0
    native, eager = (row for row in harness.read(path) if row["depth"] == 18)
    assert [native[count] for count in ("steps", "windows")] == [eager[count] for count in ("steps", "windows")]
    assert all(native[f"{part}_s"]["p50"] > 0 for part in table1.PARTS)
