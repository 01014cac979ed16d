"""Tables from records: golden small files, the newest record of one device, whatever the order of the lines."""

import json
import random

import pytest
from fastjukebox.bench.tables import NOT_YET, Table, markdown, tables
from fastjukebox.distill.systems import SYSTEMS

NAMES = ["peers", "decode", "int8", "table1", "roofline", "what-if", "scaling", "systems", "table2"]
HERE = {"device": "A CPU", "cores": 2, "threads": 2, "torch": "2.0", "commit": "abc"}


def q(p50, spread=0.1):
    return {"p20": p50 * (1 - spread), "p50": p50, "p80": p50 * (1 + spread)}


def at(minute, **fields):
    return {**HERE, "time": f"2026-01-01T00:{minute:02d}:00+00:00", **fields}


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def decoded(minute, depth, us, batch=1, **fields):
    figures = {"us_per_step": q(us), "codes_per_s": q(1e6 * batch / us), "gb_per_s": q(2.0), "percent": q(50.0)}
    row = {"bench": "decode", "row": f"{depth}x128 native fp32 batch {batch}", "size": f"{depth}x128", "batch": batch}
    row |= {"depth": depth, "width": 128, "decoder": "native", "dtype": "fp32", "values": "fp16", "rounds": 11}
    return at(minute, **row, **figures, **fields)


def test_without_files_nothing_is_measured(tmp_path):
    found = tables(tmp_path)
    assert list(found) == NAMES
    for name, table in found.items():
        assert table.name == name and table.rows == () and table.note == NOT_YET and table.header
        assert markdown(table) == f"**{table.title}**: not yet measured\n"


def test_decode_says_what_the_records_say(tmp_path):
    write(tmp_path / "decode-cpu.jsonl", [decoded(1, 72, 500.0), decoded(2, 18, 125.0), decoded(3, 18, 250.0, 8)])
    table = tables(tmp_path)["decode"]
    assert table.rows == (
        ("18 x 128", "native", "FP16", "125 (112, 138)", "2.00", "50 % (45, 55)", "8,000", "32,000"),
        ("72 x 128", "native", "FP16", "500 (450, 550)", "2.00", "50 % (45, 55)", "2,000", "–"),
    )
    for words in ("`python bench decode`", "A CPU, 2 cores, 2 threads", "11 rounds", "PyTorch 2.0", "commit abc"):
        assert words in table.note


def test_newest_wins_in_any_order(tmp_path):
    draw = random.Random(1)
    for _ in range(20):
        records = [decoded(minute, draw.choice([18, 24, 72]), draw.uniform(1, 1e5)) for minute in range(12)]
        newest = {record["depth"]: record["us_per_step"]["p50"] for record in records}
        # Two of one time: some one of them, but always the same.
        records += [decoded(30, 5, 1000.0), decoded(30, 5, 2000.0)]
        write(tmp_path / "decode-cpu.jsonl", records)
        table = tables(tmp_path)["decode"]
        draw.shuffle(records)
        write(tmp_path / "decode-cpu.jsonl", records)
        assert tables(tmp_path)["decode"] == table
        steps = {int(row[0].split()[0]): float(row[3].split()[0].replace(",", "")) for row in table.rows}
        assert list(steps) == sorted(steps) and steps.keys() == {*newest, 5}
        assert all(steps[depth] == pytest.approx(us, rel=0.01, abs=0.5) for depth, us in newest.items())


def test_one_device_per_table(tmp_path):
    other = decoded(1, 18, 10.0, device="Another CPU")
    write(tmp_path / "decode-cpu.jsonl", [other, decoded(2, 72, 500.0), decoded(3, 24, 1.0, cores=64)])
    table = tables(tmp_path)["decode"]
    assert [row[0] for row in table.rows] == ["24 x 128"]
    assert "64 cores" in table.note and "also has rows of A CPU, Another CPU" in table.note


def test_a_newest_row_that_failed_is_told_and_not_shown(tmp_path):
    broken = at(2, bench="decode", row="18x128 native fp32 batch 1", error="RuntimeError: no")
    write(tmp_path / "decode-cpu.jsonl", [decoded(1, 18, 10.0), decoded(1, 72, 20.0), broken])
    table = tables(tmp_path)["decode"]
    assert [row[0] for row in table.rows] == ["72 x 128"]
    assert "Failed: 18x128 native fp32 batch 1." in table.note


def test_peers_have_the_peers_that_were_timed(tmp_path):
    base = {"bench": "peers", "backends": ["native"], "depth": 72, "width": 128, "batch": 1, "rounds": 3}
    one = at(1, **base, transformers_ms=q(40.0), native_ms=q(0.5), native_speedup=q(80.0))
    write(tmp_path / "peers.jsonl", [one])
    table = tables(tmp_path)["peers"]
    assert table.header == ("layers x width", "decoder", "ms per step", "against `transformers`")
    assert table.rows[1] == (
        "72 x 128, batch 1, 2 threads",
        "ours, native",
        "0.500 (0.450, 0.550)",
        "80.0x (72.0, 88.0)",
    )
    assert "`python bench peers --batch 1 --rounds 3 --threads 2 --backends native`" in table.note
    # A newer run with a peer more, and times of windows.
    newer = {**one, "time": "2026-01-02T00:00:00+00:00", "growing-cache_ms": q(20.0), "growing-cache_speedup": q(2.0)}
    newer |= {"native_window_ms": q(3000.0), "native_over_growing-cache": q(40.0), "window_steps": 64}
    write(tmp_path / "peers.jsonl", [newer, one])
    table = tables(tmp_path)["peers"]
    assert [row[1] for row in table.rows] == ["`transformers`", "ours, native", "plain PyTorch, growing cache"]
    assert [row[3] for row in table.rows] == ["–", "3,000 (2,700, 3,300)", "–"]
    assert [row[4] for row in table.rows] == ["1", "80.0x (72.0, 88.0)", "2.00x (1.80, 2.20)"]
    assert [row[5] for row in table.rows] == ["–", "40.0x (36.0, 44.0)", "1"]
    assert "--window 64 " in table.note


def test_table1_compares_with_the_paper(tmp_path):
    def row(depth, speed_up, paper):
        parts = {f"{part}_s": q(depth / 10) for part in ("decode", "prefill", "condition", "vqvae")}
        fields = {
            "bench": "table1",
            "backend": "native",
            "row": f"demo {depth} layers",
            "depth": depth,
            "sizes": "demo",
            "audio_seconds": 4.0,
        }
        return at(1, **fields, speed_up=q(speed_up), paper_speed_up=paper, real_time=q(1.0), **parts)

    write(tmp_path / "table1-cpu.jsonl", [row(18, 3.5, 4.0), row(72, 1.0, 1.0), row(24, 2.5, 3.0)])
    table = tables(tmp_path)["table1"]
    assert [row[:3] for row in table.rows] == [
        ("72, native", "1", "1"),
        ("24, native", "2.50x (2.25, 2.75)", "3.0x"),
        ("18, native", "3.50x (3.15, 3.85)", "4.0x"),
    ]
    assert table.rows[2][4] == "1.80 s" and "--sizes demo --audio-seconds 4`" in table.note


def test_roofline_and_what_if_share_a_file(tmp_path):
    fields = {"bench": "roofline", "size": "18x128", "decoder": "native", "dtype": "fp16", "batch": 1, "depth": 18}
    one = at(1, row="18x128 native fp16 batch 1", width=128, bytes_per_step=2_500_000, **fields)
    one |= {"read_gb_per_s": q(20.0), "floor_us": q(125.0), "us_per_step": q(250.0), "percent": q(50.0)}
    card = at(2, bench="roofline", row="what-if P100 18 layers top fp16", card="P100", published_gb_per_s=732, depth=18)
    card |= {"floor_us_at_full_bandwidth": 558.4, "steps_per_s_at_full_bandwidth": 1791.2, "estimated": True}
    other = {**card, "row": "what-if L4 18 layers upsampler fp16", "card": "L4", "published_gb_per_s": 300}
    other["steps_per_s_at_full_bandwidth"] = 500.0
    barrier = at(2, bench="exchanges", row="grid barrier", us=q(1.0))
    write(tmp_path / "roofline-cpu.jsonl", [one, card, other, barrier])
    found = tables(tmp_path)
    assert [row[:5] for row in found["roofline"].rows] == [("18 x 128", "native", "FP16", "1", "2.5")]
    assert found["roofline"].rows[0][-1] == "50 % (45, 55)"
    assert found["what-if"].header == ("card", "GB/s, published", "18 layers top fp16", "18 layers upsampler fp16")
    assert found["what-if"].rows == (("L4", "300", "–", "500"), ("P100", "732", "1,791", "–"))
    assert "not measured" in found["what-if"].note and "A CPU" not in found["what-if"].note


def test_scaling_by_axis_and_value(tmp_path):
    def row(axis, value, **figures):
        return at(
            1, bench="scaling", row=f"{axis} {value} of 18x128", axis=axis, value=value, decoder="native", **figures
        )

    speed = {"codes_per_s": q(100.0), "us_per_step": q(10.0)}
    audio = row("audio", 60, peak_bytes=3e8, codes_bytes=2e6)
    write(tmp_path / "scaling-cpu.jsonl", [audio, *(row("batch", n, **speed, ratio=q(2.0)) for n in (16, 2, 8))])
    table = tables(tmp_path)["scaling"]
    assert [row[1].split(" of")[0] for row in table.rows] == ["batch 2", "batch 8", "batch 16", "audio 60"]
    assert table.rows[-1][3:] == ("–", "–", "–", "300.0", "2.0")
    assert table.rows[0][3:5] == ("100 (90.0, 110)", "2.00x (1.80, 2.20)")


def test_systems_in_the_papers_order_with_spread_over_seeds(tmp_path):
    records = []
    for name in reversed(SYSTEMS):
        for level, bits in ((0, 3.0), (2, 4.5)):
            fields = {
                "row": f"{name} level {level}",
                "system": name,
                "level": level,
                "parameters": 1_500_000,
                "steps": 100,
            }
            agreement = {} if name == "teacher-72" else {"kl": 0.25, "top_1": 0.5, "acceptance": 0.75}
            records.append(at(1, bench="systems", bits=bits, **fields, **agreement))
        for seed, distance in ((1, 2.0), (2, 4.0)):
            row = f"{name} samples seed {seed}"
            records.append(at(1, bench="systems", row=row, system=name, seed=seed, frechet=distance))
    records.append(at(1, bench="systems", row="corpus samples seed 1", system="corpus", seed=1, frechet=0.5))
    other = {"row": "a control level 2", "system": "a control", "level": 2, "parameters": 2_000_000, "bits": 5.0}
    records.append(at(1, bench="systems", valence={"AP": 0.4, "DP": 0.3, "AU": 0.2, "DU": 0.1}, **other))
    write(tmp_path / "systems.jsonl", records)
    table = tables(tmp_path)["systems"]
    assert [row[0] for row in table.rows] == ["held-out songs", *SYSTEMS, "a control"]
    assert table.rows[0] == ("held-out songs", "–", "–", "–", "–", "–", "0.5", "–")
    assert table.rows[1] == ("teacher-72", "3.0", "100 / 100", "4.50 / 3.00", "–", "–", "3.0 ± 1.4", "–")
    assert table.rows[2][4:6] == ("0.25 / 0.25", "0.75 / 0.75")
    assert table.rows[-1][2:4] == ("–", "5.00 / –") and table.rows[-1][-1] == "0.40 / 0.30 / 0.20 / 0.10"


def test_table2_beside_the_papers(tmp_path):
    def row(system, seed, score):
        scores = {"AP": score, "DP": 0.2, "AU": 0.3, "DU": 0.1}
        return at(1, bench="table2", row=system, system=system, seed=seed, samples=8, valence=scores)

    judge = at(1, bench="table2", row="classifier", held_out_songs=40, pr_auc=0.9, roc_auc=0.95)
    write(
        tmp_path / "table2.jsonl", [row("student-18", 1, 0.4), judge, row("student-18", 2, 0.6), row("corpus", 1, 0.7)]
    )
    table = tables(tmp_path)["table2"]
    assert table.rows[0] == ("held-out songs", "8", "0.700", "0.200", "0.300", "0.100", "0.735 / 0.074 / 0.097 / 0.099")
    assert table.rows[1][:3] == ("student-18", "16", "0.500 ± 0.141")
    assert "40 held-out songs: PR-AUC 0.900, ROC-AUC 0.950" in table.note


def test_a_gpus_file_holds_all_its_tables(tmp_path):
    write(tmp_path / "decode-cpu.jsonl", [decoded(1, 18, 125.0)])
    card = decoded(1, 24, 50.0, device="A GPU", cores=None, threads=None)
    write(tmp_path / "A-GPU.json", [card, at(2, bench="ops", row="an operation", device="A GPU")])
    found = tables(tmp_path, "A-GPU")
    assert [row[0] for row in found["decode"].rows] == ["24 x 128"]
    assert ". A GPU, p50 (p20, p80) of 11 rounds" in found["decode"].note and found["table1"].note == NOT_YET


def test_markdown():
    table = Table("x", "Title", ("a", "b"), (("1", "x|y"),), "word " * 40)
    lines = markdown(table).splitlines()
    assert lines[:6] == ["**Title**", "", "| a | b |", "|---|---|", "| 1 | x\\|y |", ""]
    assert max(map(len, lines)) <= 120 and " ".join(lines[6:]).split() == ["word"] * 40
