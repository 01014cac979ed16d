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
    words = ["--depth", "1", "--width", "64", "--context", "256", "--segments", "2", "4", "--windows", "1.5"]
    words += ["--rounds", "2", "--hops", "0.5", "1"]
    try:
        done = segments.main([*words, "--device", "cpu", "--backends", "native", "--threads", "2", "--json", str(path)])
    finally:
        torch.set_num_threads(threads)
    assert done == 0, capsys.readouterr().out
    (gain,) = map(json.loads, path.read_text().splitlines())
    assert gain["codes"] == 4 * 384 and gain["whole_s"]["p50"] > 0
    assert gain["ways"] == [[n, hop] for n in (1, 2, 4) for hop in (0.5, 1)]
    assert all(gain[f"{segments.key(n, hop)}_speedup"]["p50"] > 0 for n, hop in gain["ways"][1:])
    found = tables.tables(tmp_path)["segments"]
    assert found.rows[0][:2] == ("1 x 64, native", "1,536")
    assert found.header[3] == "as a whole, windows move by 1"
    assert found.header[-1] == "4 segments, windows move by 1"


def test_what_beginnings_cost_the_demo(tmp_path, capsys):
    path, threads = tmp_path / "beginnings.jsonl", torch.get_num_threads()
    try:
        assert beginnings.main(["--songs", "1", "--windows", "2", "--json", str(path)]) == 0, capsys.readouterr().out
    finally:
        torch.set_num_threads(threads)
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert [cost["level"] for cost in found] == [2, 1, 0]
    for cost in found:
        # Less is known at a beginning, above all of its first codes; windows that move farther begin more often.
        half, whole = beginnings.bits_per_code(cost, 4), beginnings.bits_per_code(cost, 8)
        assert half < whole and cost["bits_lost_at_first"] > 0
        assert abs(cost["bits_lost"] - cost["bits_lost_at_first"]) < 0.05 * 1024 * half
        # The same codes: what a window of 2,048 loses more than its second half does.
        assert 2048 * (whole - half) == pytest.approx(cost["bits_lost"], rel=1e-3)
    assert [row[0] for row in tables.tables(tmp_path)["beginnings"].rows] == [f"demo level {n}" for n in (2, 1, 0)]


class Counting(torch.nn.Module):
    """A network whose loss tells how many codes it was given before."""

    config = Namespace(context_len=64, conditioner=None)

    def forward(self, codes, cond):
        places = torch.arange(64, dtype=torch.float32)
        return torch.stack((torch.log(torch.expm1(places + 1)), torch.zeros(64)), 1)[None]


def test_each_code_is_judged_after_all_lengths_of_context():
    # A code of the first kind costs log(e^(places + 1) - 1 + 1) minus the second's logit, 0: places + 1.
    vqvae = Namespace(encode=lambda audio, level: torch.ones(1, 300, dtype=torch.long))
    vqvae.samples_per_code = lambda level: 1
    jukebox = Namespace(prior=lambda level: Counting(), vqvae=vqvae, config=Namespace(vqvae=vqvae), sample_rate=1000)
    found = beginnings.measure(jukebox, [torch.zeros(1)], 0, 3)
    expected = [(8 * part + 4.5) / torch.log(torch.tensor(2.0)).item() for part in range(8)]
    assert found["bits_by_context"] == pytest.approx(expected, rel=1e-5)
    assert beginnings.bits_per_code(found, 4) == pytest.approx(sum(expected[4:]) / 4, rel=1e-5)
    assert found["codes"] == 3 * 64


def test_a_song_is_sampled_as_a_whole_or_each_segment_from_its_beginning():
    options = Namespace(width=64, depth=2, context=256, segments=[2, 3], windows=1)
    base = load_config(DEMO)
    song = segments.Song(base, options, "eager", torch.device("cpu"))
    whole, cut = song.sample(1, 0.5), song.sample(3, 0.5)
    assert whole.shape == cut.shape == (1, 768)
    assert torch.equal(whole[:, :256], cut[:, :256])
    assert not torch.equal(whole[:, 256:], cut[:, 256:])
    assert len(cut.unique()) > 100
