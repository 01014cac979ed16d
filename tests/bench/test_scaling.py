"""Scaling in small: points, paired rows, records, and memory that does not grow with the audio."""

from types import SimpleNamespace

import pytest
import torch
from fastjukebox.bench import harness, scaling
from fastjukebox.bench.roofline import sizes_of

SMALL = ["--device", "cpu", "--threads", "1", "--rounds", "3", "--aim", "0.002", "--base", "demo-1x32"]


@pytest.mark.parametrize("axis", ["batch", "depth", "width", "context", "threads"])
def test_a_point_moves_on_one_axis_only(axis):
    config, _ = sizes_of("demo-18x128")
    base = scaling.Point(config, 1, 1)
    moved = base.moved(axis, 4 * base.value(axis))
    assert [a for a in scaling.AXES[:-1] if moved.value(a) != base.value(a)] == [axis]
    assert moved.value(axis) == 4 * base.value(axis)
    assert moved.config.row_len == config.row_len
    assert base.moved(axis, base.value(axis)) == base


def test_the_defaults_hold_the_base_point_and_make_models():
    for kind, name in scaling.BASES.items():
        base = scaling.Point(sizes_of(name)[0], 1, 1)
        for axis, values in scaling.VALUES[kind].items():
            assert base.value(axis) in values
            for value in values:
                config = base.moved(axis, value).config
                assert config.attn_width % config.heads == 0 and config.num_rows % 2 == 0


def test_batches_go_up_to_64_on_every_machine():
    assert all(values["batch"][-1] == 64 for values in scaling.VALUES.values())


def test_rows_are_paired_with_the_base_point(tmp_path):
    path = tmp_path / "s.jsonl"
    words = [*SMALL, "--decoder", "eager", "--json", str(path)]
    assert scaling.main([*words, "--axes", "batch", "--values", "1", "3"]) == 0
    assert scaling.main([*words, "--axes", "context", "--values", "256"]) == 0
    records = harness.read(path)
    names = ["batch 1 of 1x32 eager", "batch 3 of 1x32 eager", "context 256 of 1x32 eager"]
    assert [r["row"] for r in records] == names
    for r in records:
        assert r["bench"] == "scaling" and r["decoder"] == "eager" and r["width"] == 32 and "error" not in r
        for key in ("codes_per_s", "us_per_step", "base_codes_per_s", "ratio"):
            assert set(r[key]) == {"p20", "p50", "p80"}
    assert [(r["axis"], r["value"]) for r in records] == [("batch", 1), ("batch", 3), ("context", 256)]
    assert (records[2]["context_len"], records[2]["num_rows"]) == (256, 8)
    # A step of a batch writes a code for each item.
    assert records[1]["codes_per_s"]["p50"] == pytest.approx(3e6 / records[1]["us_per_step"]["p50"], 1e-3)


def test_each_turn_has_its_number_of_threads(monkeypatch):
    seen = []
    monkeypatch.setattr(scaling.Stepping, "turn", lambda self: seen.append(torch.get_num_threads()))
    monkeypatch.setattr(scaling.Stepping, "middle", lambda self: 0)
    base = scaling.Point(sizes_of("demo-1x32")[0], 1, 1)
    found = scaling.measure(base, "threads", 2, True, "eager", torch.device("cpu"), 1, 0.001)
    # By turns, in the other order in the second round.
    assert sorted(seen[-2:]) == [1, 2] and seen[-4:-2] == seen[-2:][::-1]
    assert found["point_threads"] == 2 and torch.get_num_threads() == 1


def test_codes_per_second_are_those_of_all_items_and_the_ratio_is_of_them(monkeypatch):
    def stepping(case, *_):
        return SimpleNamespace(steps=10 * case.batch, turn=None, middle=lambda: 0)

    monkeypatch.setattr(scaling, "Stepping", stepping)
    monkeypatch.setattr(scaling, "rounds_of", lambda *_: {"base": [2.0, 1.0], "row": [0.5, 1.0]})
    base = scaling.Point(sizes_of("demo-1x32")[0], 2, 1)
    found = scaling.measure(base, "batch", 4, True, "eager", torch.device("cpu"), 2, 0.1)
    # 40 steps of 4 items in 0.5 and 1 s beside 20 of 2 in 2 and 1 s: 320 / 20 and 160 / 40.
    middles = {key: found[key]["p50"] for key in ("us_per_step", "codes_per_s", "base_codes_per_s", "ratio")}
    assert middles == {"us_per_step": 18750.0, "codes_per_s": 240.0, "base_codes_per_s": 30.0, "ratio": 10.0}


def test_values_belong_to_one_axis():
    with pytest.raises(SystemExit):
        scaling.main([*SMALL, "--values", "1"])


def test_memory_does_not_grow_with_the_audio(tmp_path):
    path = tmp_path / "a.jsonl"
    assert scaling.main([*SMALL, "--axes", "audio", "--audio-seconds", "6", "24", "--json", str(path)]) == 0
    short, long = harness.read(path)
    assert (short["row"], short["axis"], short["value"]) == ("audio 6 s", "audio", 6.0)
    assert long["samples"] == 4 * short["samples"] == 24 * 44100
    # 8 bytes for each code of the three levels: one per 8, 32 and 128 samples.
    assert long["codes_bytes"] == pytest.approx(8 * 24 * 7235, rel=0.001)
    assert long["peak_bytes"] >= long["start_bytes"] > 50e6
    grown = long["peak_bytes"] - long["start_bytes"] - (short["peak_bytes"] - short["start_bytes"])
    # Some 1 MB comes and goes; one activation of the whole audio at once would be 24 MB more.
    assert grown < long["codes_bytes"] + 4e6
