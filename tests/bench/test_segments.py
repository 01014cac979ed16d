"""What segments gain and cost: measured on something small, the records and their tables."""

import json
from argparse import Namespace

import pytest
import torch
from fastjukebox.bench import beginnings, segments, tables
from fastjukebox.engine.checkpoint import DEMO, load_config
from fastjukebox.kernels import native_library


@pytest.mark.skipif(bool(native_library.missing()), reason="needs the native decoder")
def test_what_a_small_network_gains(tmp_path, capsys):
    path, threads = tmp_path / "segments.jsonl", torch.get_num_threads()
    words = ["--depth", "1", "--width", "64", "--context", "256", "--segments", "2", "4", "--rounds", "2"]
    try:
        done = segments.main([*words, "--device", "cpu", "--backends", "native", "--threads", "2", "--json", str(path)])
    finally:
        torch.set_num_threads(threads)
    assert done == 0, capsys.readouterr().out
    (gain,) = map(json.loads, path.read_text().splitlines())
    assert gain["codes"] == 4 * 256 and gain["whole_s"]["p50"] > 0
    assert {"segments_2_speedup", "segments_4_speedup"} <= gain.keys()
    found = tables.tables(tmp_path)["segments"]
    assert found.rows[0][:2] == ("1 x 64, native", "1,024")
    assert found.header[-1] == "speed-up by 4 segments"


def test_what_beginnings_cost_the_demo(tmp_path, capsys):
    path, threads = tmp_path / "beginnings.jsonl", torch.get_num_threads()
    try:
        assert beginnings.main(["--songs", "1", "--windows", "2", "--json", str(path)]) == 0, capsys.readouterr().out
    finally:
        torch.set_num_threads(threads)
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert [cost["level"] for cost in found] == [1, 0]
    for cost in found:
        # Less is known at a beginning, above all of its first codes.
        assert 0 < cost["bits_lost_at_first"] < cost["codes"] * cost["bits_before"] / 20
        assert abs(cost["bits_lost"] - cost["bits_lost_at_first"]) < 0.02 * cost["codes"] * cost["bits_before"]
    assert [row[0] for row in tables.tables(tmp_path)["beginnings"].rows] == ["demo level 1", "demo level 0"]


def test_a_song_is_sampled_as_a_whole_or_each_segment_from_its_beginning():
    options = Namespace(width=64, depth=2, context=256, segments=[2, 3])
    base = load_config(DEMO)
    song = segments.Song(base, options, "eager", torch.device("cpu"))
    whole, cut = song.sample(1), song.sample(3)
    assert whole.shape == cut.shape == (1, 768)
    assert torch.equal(whole[:, :256], cut[:, :256])
    assert not torch.equal(whole[:, 256:], cut[:, 256:])
    assert len(cut.unique()) > 100
