"""Table 1 in small: three depths, parts that add up, speed-ups within rounds."""

from fastjukebox.bench import harness, table1


def test_rows_of_three_depths(tmp_path, capsys):
    path = tmp_path / "t.jsonl"
    words = ["--sizes", "tiny", "--audio-seconds", "0.05", "--rounds", "2", "--threads", "1", "--device", "cpu"]
    assert table1.main([*words, "--json", str(path)]) == 0
    rows = harness.read(path)
    assert [row["depth"] for row in rows] == [72, 24, 18]
    assert rows[0]["speed_up"] == {"p20": 1.0, "p50": 1.0, "p80": 1.0}
    for row in rows:
        assert row["steps"] == rows[0]["steps"] > 0 and row["audio_seconds"] == 0.05 and row["device"]
        parts = sum(row[f"{part}_s"]["p50"] for part in table1.PARTS)
        assert abs(parts - row["total_s"]["p50"]) < 0.5 * row["total_s"]["p50"]
    assert "paper 4.0x" in capsys.readouterr().out
