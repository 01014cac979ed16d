"""Comparing results: what exceeds the noise, which way is better, where the machines differ."""

import copy
import json
import random

import pytest
from fastjukebox.bench import compare

HERE = {"device": "A CPU", "cores": 2, "threads": 2, "torch": "2.0", "commit": "abc", "time": "2026"}


def q(p50, spread):
    return {"p20": p50 * (1 - spread), "p50": p50, "p80": p50 * (1 + spread)}


def record(row, **figures):
    return {"bench": "decode", "row": row, "depth": 18, **HERE, **figures}


def random_records(seed):
    draw = random.Random(seed)
    fields = ("us_per_step", "total_s", "eager_ms", "codes_per_s", "gb_per_s", "percent", "real_time", "native_speedup")
    return [
        record(f"row {i}", **{field: q(10 ** draw.uniform(-3, 5), draw.uniform(0.001, 0.15)) for field in fields})
        for i in range(5)
    ]


def scaled(records, factor):
    records = copy.deepcopy(records)
    for r in records:
        for value in r.values():
            if isinstance(value, dict):
                value.update({name: factor * v for name, v in value.items()})
    return records


def write(path, records):
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return str(path)


@pytest.mark.parametrize("seed", range(5))
def test_a_set_against_itself_is_the_same_in_any_order(seed):
    records = random_records(seed)
    lines, found, failed = compare.report(records, records[::-1])
    assert len(found) == 40 and failed == 0 and not any("warning" in line for line in lines)
    assert all(c.verdict == "same" and c.ratio == 1.0 for c in found)


@pytest.mark.parametrize("seed", range(5))
def test_twice_as_much_is_told_by_the_direction_of_the_field(seed):
    records = random_records(seed)
    lines, found, _ = compare.report(records, scaled(records, 2.0))
    assert all(c.ratio == pytest.approx(2.0) for c in found) and sum("2.000x" in line for line in lines) == 40
    lower = {"us_per_step", "total_s", "eager_ms"}
    assert all(c.verdict == ("slower" if c.field in lower else "faster") for c in found)
    back = compare.report(scaled(records, 2.0), records)[1]
    assert [c.verdict for c in back] == ["faster" if c.verdict == "slower" else "slower" for c in found]


def test_noise_is_of_both_and_decides():
    def verdict(old_spread, new_spread, ratio):
        old, new = record("r", us_per_step=q(100.0, old_spread)), record("r", us_per_step=q(100.0 * ratio, new_spread))
        return next(compare.changes(old, new)).verdict

    assert verdict(0.01, 0.01, 1.05) == "slower" and verdict(0.01, 0.01, 0.95) == "faster"
    assert verdict(0.2, 0.01, 1.05) == verdict(0.01, 0.2, 1.05) == "same"
    # sqrt(2) x 4 %.
    assert verdict(0.04, 0.04, 1.05) == "same" and verdict(0.04, 0.04, 1.07) == "slower"
    assert verdict(0.0, 0.0, 1.0) == "same"
    # A quantile below zero tells nothing of a ratio.
    old, new = (record("r", rest_s={"p20": -0.1, "p50": value, "p80": 0.5}) for value in (0.1, 0.4))
    assert next(compare.changes(old, new)).verdict == "noisy"
    assert verdict(0.3, 0.01, 1.05) == "noisy" and verdict(0.3, 0.01, 2.0) == "slower"
    assert not list(compare.changes(record("r", rest_s=q(-1.0, 0.1)), new))


def test_direction_by_name():
    for field in (
        "steps_per_s",
        "codes_per_s",
        "gb_per_s",
        "percent",
        "speed_up",
        "native_speedup",
        "real_time",
        "ratio",
        "matrix_tflops",
    ):
        assert compare.direction(field) == 1
    for field in ("us_per_step", "prefill_ms", "decode_s", "seconds", "ours_us"):
        assert compare.direction(field) == -1
    assert (
        compare.direction("speedup_over_sdpa") == compare.direction("native_over_growing-cache") == 1
        and compare.direction("bits") == 0
    )


def test_the_newest_record_counts_and_peers_have_their_settings_for_a_name():
    old = {"bench": "peers", "depth": 72, "context": 2048, **HERE, "native_ms": q(1.0, 0.01)}
    longer = old | {"context": 8192, "native_ms": q(9.0, 0.01)}
    newer = old | {"time": "2027", "steps": 80, "native_ms": q(2.0, 0.01)}
    found = compare.report([old, longer], [newer, old])[1]
    assert [(c.old, c.new, c.verdict) for c in found] == [(1.0, 2.0, "slower")]


def test_peers_are_paired_by_their_settings_with_a_row_or_without():
    old = {"bench": "peers", "backends": ["native"], "depth": 72, "width": 128, "batch": 4, "rounds": 7, "steps": 10}
    old |= {**HERE, "native_ms": q(1.0, 0.01)}
    new = old | {"row": "72x128 batch 4, 2 threads, windows by 64 steps", "rounds": 5, "window_steps": 64}
    found = compare.report([old], [new | {"native_ms": q(2.0, 0.01)}, new | {"batch": 16, "native_ms": q(9.0, 0.01)}])[
        1
    ]
    assert [(c.old, c.new, c.verdict) for c in found] == [(1.0, 2.0, "slower")]


@pytest.mark.parametrize("key", ["threads", "values", "batch", "context"])
def test_peers_of_other_settings_are_other_rows(key):
    old = {
        "bench": "peers",
        "depth": 72,
        "values": "fp16",
        "batch": 1,
        "context": 64,
        **HERE,
        "native_ms": q(1.0, 0.01),
    }
    with pytest.raises(ValueError, match="no row is in both"):
        compare.report([old], [old | {key: 7}])


def test_requests_of_other_lengths_and_decoders_are_not_paired():
    short = {"bench": "table1", "row": "demo 18 layers", "depth": 18, "sizes": "demo", "backend": "native", **HERE}
    short |= {"audio_seconds": 4.0, "total_s": q(4.0, 0.01)}
    others = [short | {"audio_seconds": 8.0, "time": "2027"}, short | {"backend": "eager", "time": "2028"}]
    with pytest.raises(ValueError, match="no row is in both"):
        compare.report([short], others)
    renamed = short | {"row": "demo 18 layers, native, 4 s", "total_s": q(2.0, 0.01)}
    found = compare.report([short], [renamed, *others])[1]
    assert [(c.old, c.new, c.verdict) for c in found] == [(4.0, 2.0, "faster")]


@pytest.mark.parametrize("key", ["device", "cores", "python", "triton", "cuda", "driver_version", "LD_PRELOAD"])
def test_every_circumstance_is_told(key):
    assert compare.warnings(HERE | {key: "1"}, HERE | {key: "2"}) == [f"{key}: 1 against 2"]


def test_other_circumstances_are_told_once():
    old = random_records(1)
    new = [{**r, "torch": "2.1", "threads": 1} for r in old]
    lines = compare.report(old, new)[0]
    assert lines[:2] == ["warning: threads: 2 against 1 (5 rows)", "warning: torch: 2.0 against 2.1 (5 rows)"]
    assert sum("warning" in line for line in lines) == 2


def test_command(tmp_path, capsys):
    records = random_records(2)
    old, new = write(tmp_path / "a", records), write(tmp_path / "b", [*scaled(records[:3], 2.0), record("another")])
    assert compare.main([old, new]) == 0
    out = capsys.readouterr().out
    assert "2 rows only in old" in out and "1 rows only in new" in out
    assert "15 faster, 9 slower, 0 same, 0 rows fail now" in out
    assert compare.main([old, new, "--fail"]) == 1
    assert compare.main([old, old, "--fail"]) == 0


def test_only_what_is_ours_fails(tmp_path):
    names = ("bandwidth_gb_per_s", "read_gb_per_s", "copy_gb_per_s", "matrix_tflops")
    fast, slow = (
        record("r", **dict.fromkeys(names, q(v, 0.01)), floor_us=q(1 / v, 0.01), us_per_step=q(5.0, 0.01))
        for v in (20.0, 10.0)
    )
    old, new = write(tmp_path / "a", [fast]), write(tmp_path / "b", [slow])
    assert compare.main([old, new, "--fail"]) == 0
    broken = write(tmp_path / "c", [record("r", error="RuntimeError: no")])
    assert compare.main([old, broken, "--fail"]) == 1 and compare.main([broken, broken, "--fail"]) == 0


def test_commits_of_one_file(tmp_path, capsys):
    records = random_records(3)
    other = [{**r, "commit": "abd+"} for r in scaled(records, 2.0)]
    path = write(tmp_path / "a", records + other)
    assert compare.main([path, "--commits", "abc", "abd", "--fail"]) == 1
    assert "15 slower" in capsys.readouterr().out
    # A commit and the same with changed files.
    changed = [{**r, "commit": "abc+"} for r in records]
    assert compare.at_commit(records + changed, "abc") == records
    assert compare.at_commit(records + changed, "abc+") == changed
    for commits, message in ((["ab", "abd"], "several records of commit ab"), (["abc", "f"], "no records of commit f")):
        with pytest.raises(SystemExit) as stopped:
            compare.main([path, "--commits", *commits])
        assert stopped.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize("words", [["a"], ["a", "b", "--commits", "x", "y"], ["a", "missing"], ["a", "b"]])
def test_wrong_arguments(tmp_path, words, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a", [record("one")])
    write(tmp_path / "b", [record("other")])
    with pytest.raises(SystemExit) as stopped:
        compare.main(words)
    assert stopped.value.code == 2


def test_bytes_and_bits_are_compared_too(tmp_path, capsys):
    old = record("r", system_peak_bytes=1000, bits_int8=2.0, bits_lost=-0.1, batch=1, us_per_step=q(1.0, 0.01))
    new = old | {"system_peak_bytes": 1200, "bits_int8": 1.9, "bits_lost": 0.1, "batch": 8}
    found = {c.field: (c.verdict, c.ratio) for c in compare.changes(old, new)}
    assert found == {"system_peak_bytes": ("worse", 1.2), "bits_int8": ("better", 0.95), "us_per_step": ("same", 1.0)}
    assert all(c.verdict == "same" for c in compare.changes(old, old | {"system_peak_bytes": 1009}))
    before, after = write(tmp_path / "a", [old]), write(tmp_path / "b", [new])
    assert compare.main([before, after, "--fail"]) == 1 and compare.main([before, before, "--fail"]) == 0
    assert "0 faster, 0 slower, 1 same, 1 better, 1 worse, 0 rows fail now" in capsys.readouterr().out


def test_a_peer_that_got_faster_makes_us_no_slower(tmp_path):
    old = record("r", native_ms=q(1.0, 0.01), transformers_ms=q(80.0, 0.01), triton_us=q(1.0, 0.01))
    old |= {"native_speedup": q(80.0, 0.01), "native_over_growing-cache": q(40.0, 0.01)}
    old |= {"speedup_over_flex": q(2.0, 0.01)}
    halved = {name: q(value["p50"] / 2, 0.01) for name, value in old.items() if "speedup" in name or "_over_" in name}
    theirs = old | halved | {"transformers_ms": q(40.0, 0.01)}
    found = {c.field: (c.verdict, c.ours) for c in compare.changes(old, theirs)}
    assert all(found[name] == ("slower", False) for name in halved) and found["native_ms"] == ("same", True)
    before, after = write(tmp_path / "a", [old]), write(tmp_path / "b", [theirs])
    assert compare.main([before, after, "--fail"]) == 0
    ours = old | halved | {"native_ms": q(2.0, 0.01), "triton_us": q(2.0, 0.01)}
    found = {c.field: (c.verdict, c.ours) for c in compare.changes(old, ours)}
    assert all(found[name] == ("slower", True) for name in (*halved, "native_ms", "triton_us"))


def test_quick_rounds_and_windows_that_differ_are_told():
    old = record("r", us_per_step=q(1.0, 0.01), rounds=11, window_steps=64)
    lines = compare.report([old], [old | {"rounds": 3, "quick": True, "window_steps": 128}])[0]
    assert lines[:3] == [
        "warning: quick: None against True (1 rows)",
        "warning: rounds: 11 against 3 (1 rows)",
        "warning: window_steps: 64 against 128 (1 rows)",
    ]
