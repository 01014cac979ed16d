"""Tables from records: golden small files, the newest record of one device, whatever the order of the lines."""

import json
import random

import pytest
from fastjukebox.bench.tables import NOT_YET, Table, markdown, tables
from fastjukebox.distill.systems import SYSTEMS

NAMES = ["peers", "decode", "speculative", "segments", "beginnings", "int8", "table1", "roofline", "what-if", "scaling"]
NAMES += ["systems", "table2", "prefill", "attention", "ops", "exchanges"]
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


def test_a_gpus_figures_are_shown_only_if_its_tests_have_passed(tmp_path):
    def tested(minute, status, sources):
        return at(minute, bench="gpu", row="tests", status=status, sources=sources, device="A GPU", cores=None)

    def here(minute, depth, sources):
        return decoded(minute, depth, 10.0, device="A GPU", cores=None, threads=None, sources=sources)

    records = [here(1, 18, "old"), tested(2, "passed", "old"), here(3, 24, "new"), tested(4, "failed", "new")]
    write(tmp_path / "A-GPU.json", records)
    table = tables(tmp_path, "A-GPU")["decode"]
    assert [row[0] for row in table.rows] == ["18 x 128"]
    assert "Not shown: 1 rows of sources new, whose tests have not passed." in table.note
    # The last run of the tests decides.
    for status, depths in (("cut", ["18 x 128"]), ("passed", ["18 x 128", "24 x 128"])):
        write(tmp_path / "A-GPU.json", [*records, tested(5, status, "new")])
        assert [row[0] for row in tables(tmp_path, "A-GPU")["decode"].rows] == depths
    write(tmp_path / "A-GPU.json", records[2:])
    table = tables(tmp_path, "A-GPU")["decode"]
    assert table.rows == () and table.note.startswith(f"{NOT_YET}. Not shown: 1 rows")
    # Without tests there are no figures, wherever they are kept.
    write(tmp_path / "A-GPU.json", [here(1, 18, "old")])
    assert tables(tmp_path, "A-GPU")["decode"].rows == ()
    write(tmp_path / "decode-cpu.jsonl", [here(1, 18, "old") | {"capability": "9.0"}])
    assert tables(tmp_path)["decode"].rows == ()


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


def test_a_failing_comparison_takes_the_place_of_the_one_before(tmp_path):
    base = {"bench": "peers", "backends": ["native"], "depth": 72, "width": 128, "batch": 1, "dtype": "float32"}
    old = at(1, **base, transformers_ms=q(40.0), native_ms=q(0.5), native_speedup=q(80.0), rounds=3)
    failed = at(2, **base, row="72x128 batch 1, 2 threads", error="RuntimeError: the codes differ")
    write(tmp_path / "peers.jsonl", [old, failed])
    table = tables(tmp_path)["peers"]
    assert table.rows == () and "Failed: 72x128 batch 1, 2 threads." in table.note


def test_peers_say_what_was_extrapolated_and_how_each_row_was_made(tmp_path):
    base = {"bench": "peers", "backends": ["native"], "depth": 72, "width": 128, "context": 8192}
    short = at(1, **base, batch=1, rounds=7, native_ms=q(0.5))
    long = at(2, **base, batch=4, rounds=5, native_ms=q(2.0), native_window_ms=q(3000.0), window_steps=64)
    whole = at(3, **base, batch=16, rounds=5, native_ms=q(4.0), native_window_ms=q(4000.0), window_steps=4096)
    write(tmp_path / "peers.jsonl", [short, long | {"extrapolated": True}, whole | {"extrapolated": False}])
    table = tables(tmp_path)["peers"]
    assert [row[3] for row in table.rows] == ["–", "~3,000 (2,700, 3,300)", "4,000 (3,600, 4,400)"]
    assert "~: extrapolated from 64 of 4,096 steps" in table.note
    for command in ("--batch 1 --rounds 7 --threads 2 --backends", "--batch 4 --rounds 5 --threads 2 --window 64 "):
        assert f"`python bench peers {command}" in table.note


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
    assert [row[:4] for row in table.rows] == [
        ("72, native", "4 s", "1", "1"),
        ("24, native", "4 s", "2.50x (2.25, 2.75)", "3.0x"),
        ("18, native", "4 s", "3.50x (3.15, 3.85)", "4.0x"),
    ]
    assert table.rows[2][5] == "1.80 s" and "--sizes demo --audio-seconds 4 --backends native`" in table.note


def test_table1_shows_every_length_and_decoder_and_what_was_recorded_of_it(tmp_path):
    def row(minute, seconds, backend, name, **fields):
        about = {"bench": "table1", "row": name, "depth": 18, "sizes": "demo", "backend": backend}
        about |= {"audio_seconds": seconds, "rounds": 3, "speed_up": q(minute), "paper_speed_up": 4.0, "steps": 1000}
        return at(minute, **about, real_time=q(1.0), total_s=q(2.0), us_per_step=q(3000.0), decode_s=q(3.0), **fields)

    # Rows had the same name once, and a peak of memory with all that came before.
    old = [row(1, 4.0, "native", "demo 18 layers", peak_bytes=9e9), row(2, 8.0, "native", "demo 18 layers")]
    new = {"windows": 27, "windows_of_60_s": 476, "extrapolated_60_s": q(30.0), "file_s": q(0.02)}
    new |= {"system_peak_bytes": 250_000_000}
    again = row(3, 4.0, "native-int8", "demo 18 layers, native-int8, 4 s", **new)
    write(tmp_path / "table1-cpu.jsonl", [*old, again, row(4, 4.0, "native", "demo 18 layers, native, 4 s")])
    table = tables(tmp_path)["table1"]
    assert [(*row[:2], row[2][:5]) for row in table.rows] == [
        ("18, native", "4 s", "4.00x"),
        ("18, native-int8", "4 s", "3.00x"),
        ("18, native", "8 s", "2.00x"),
    ]
    cells = dict(zip(table.header, table.rows[1]))
    assert cells["us per step, all in all"].startswith("2,000 ")
    assert cells["us of decoding per step"].startswith("3,000 ") and "all threads together" in " ".join(
        table.note.split()
    )
    assert (cells["file"], cells["peak MB"], cells["windows of 60 s"]) == ("0.02 s", "250", "27 of 476")
    assert cells["60 s would take"] == "30.0 s (27.0, 33.0)"
    assert table.rows[0][table.header.index("peak MB")] == "–"
    for seconds in (4, 8):
        assert f"`python bench table1 --sizes demo --audio-seconds {seconds} --rounds 3 --backends native" in table.note


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
    assert found["roofline"].rows[0][-1] == "50 % (45, 55)" and "MB of" not in " ".join(found["roofline"].header)
    parts = {"projections": 1_500_000, "head": 500_000, "vectors": 250_000, "keys_values": 240_000, "embedding": 10_000}
    write(tmp_path / "roofline-cpu.jsonl", [{**one, "bytes": parts, "copy_gb_per_s": q(10.0)}])
    table = tables(tmp_path)["roofline"]
    cells = dict(zip(table.header, table.rows[0]))
    assert (
        cells["MB of projections / head / vectors / keys and values / embedding"] == "1.50 / 0.50 / 0.25 / 0.24 / 0.01"
    )
    assert cells["copy GB/s"] == "10.0 (9.00, 11.0)"
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


@pytest.mark.parametrize("bench", ["roofline", "scaling"])
def test_quick_rows_are_called_so(tmp_path, bench):
    row = {"bench": bench, "size": "18x128", "decoder": "native", "dtype": "fp16", "batch": 1, "depth": 18}
    row |= {"width": 128, "bytes_per_step": 1, "percent": q(50.0), "axis": "batch", "value": 1}
    # The oldest do not say it but have its number of rounds.
    three, eleven = at(1, **row, row="a", rounds=3), at(1, **row, row="b", rounds=11)
    write(tmp_path / f"{bench}-cpu.jsonl", [three, eleven])
    assert "1 of 2 rows with `--quick`, for orientation" in tables(tmp_path)[bench].note
    write(tmp_path / f"{bench}-cpu.jsonl", [three | {"quick": True}, three | {"row": "c"}])
    assert "all rows with `--quick`" in tables(tmp_path)[bench].note
    write(tmp_path / f"{bench}-cpu.jsonl", [eleven])
    assert "--quick" not in tables(tmp_path)[bench].note


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
    assert table.rows[1] == ("teacher-72", "1.5 / 1.5", "100 / 100", "4.50 / 3.00", "–", "–", "3.0 ± 1.4", "–")
    assert table.rows[2][4:6] == ("0.25 / 0.25", "0.75 / 0.75")
    assert table.rows[-1][2:4] == ("–", "5.00 / –") and table.rows[-1][-1] == "0.40 / 0.30 / 0.20 / 0.10"


def test_systems_say_what_their_figures_are_of(tmp_path):
    def pieces(seed, system="student-18", **fields):
        about = {"row": f"{system} samples seed {seed}", "system": system, "seed": seed, "samples": 34}
        return at(1, bench="systems", **about, audio_seconds=3.0, decoded_level=2, frechet=7.0 + seed, **fields)

    def noted(*records):
        write(tmp_path / "systems.jsonl", records)
        return tables(tmp_path)["systems"].note

    # 34 pieces of two whole patches each.
    note = noted(pieces(1), pieces(2))
    assert "it is of 68 patches of a second: too large for so few" in note
    assert "mood" not in note and "--classifier" not in note
    mood = {"valence": {"AP": 0.4, "DP": 0.3, "AU": 0.2, "DU": 0.1}}
    note = noted(pieces(1, patches=70, **mood), pieces(1, "codes", patches=70, **mood))
    assert "it is of 70 patches" in note and "--classifier VALENCE`" in note and "mood of samples, mean over" in note
    assert "the classifier was trained on most of them" in note
    note = noted(pieces(1, "codes", patches=70, songs=12, songs_heard=8, **mood))
    assert "held-out pieces are of 12 songs, 8 of which the classifier was trained on" in note


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
    assert "the classifier was trained on most of them" in table.note


def test_table2_has_the_spread_over_seeds(tmp_path):
    moods = [{"AP": score, "DP": 0.2, "AU": 0.3, "DU": 0.1} for score in (0.4, 0.6)]
    row = at(1, bench="table2", row="corpus", system="corpus", samples=8, songs=4, songs_heard=0, seeds=[1, 2])
    write(tmp_path / "table2.jsonl", [row | {"valence": moods[0], "valence_by_seed": moods}])
    table = tables(tmp_path)["table2"]
    assert table.rows[0][1:4] == ("8", "0.500 ± 0.141", "0.200 ± 0.000")
    assert "mean ± deviation over seeds" in table.note
    assert "held-out pieces are of 4 songs, 0 of which the classifier was trained on" in table.note


def test_a_gpus_file_holds_all_its_tables(tmp_path):
    def on_the_gpu(bench, row, **figures):
        made = {"device": "A GPU", "cores": None, "threads": None, "sources": "new", "rounds": 11}
        return at(2, bench=bench, row=row, **{**made, **figures})

    write(tmp_path / "decode-cpu.jsonl", [decoded(1, 18, 125.0)])
    op = {"op": "norm_up", "size": "top-72", "stored": "fp16", "batch": 1, "errors": {}}
    of_case = {"shape": "top", "pattern": "previous_row", "dtype": "bf16", "backward": True, "errors": {}}
    of_case |= {"heads": 1, "head_dim": 480, "num_rows": 128, "row_len": 64}
    model = {"size": "top-18", "codes": 4096, "depth": 18, "width": 2048, "dtype": "bf16"}
    records = [
        on_the_gpu("gpu", "tests", status="passed"),
        decoded(1, 24, 50.0, device="A GPU", cores=None, threads=None, sources="new"),
        on_the_gpu("ops", "a", **op, triton_us=q(5.0), triton_percent=q(80.0), reference_us=q(50.0)),
        on_the_gpu("ops", "b", **op, compile_us=q(10.0)),
        on_the_gpu("attention", "c", **of_case, triton_us=q(30.0), flex_us=q(60.0), speedup_over_flex=q(2.0)),
        on_the_gpu("prefill", "d", **model, cache_ms=q(20.0), cache_percent=q(60.0), matrix_tflops=q(100.0)),
        on_the_gpu("exchanges", "grid barrier", us_per_exchange=q(1.5), exchanges=1000, programs=132),
    ]
    write(tmp_path / "A-GPU.json", records)
    found = tables(tmp_path, "A-GPU")
    assert [row[0] for row in found["decode"].rows] == ["24 x 128"]
    assert ". A GPU, p50 (p20, p80) of 11 rounds" in found["decode"].note and found["table1"].note == NOT_YET
    # What was measured of an operation in several runs is one row.
    assert found["ops"].rows == (
        (
            "norm_up",
            "top-72",
            "FP16",
            "1",
            "5.00 (4.50, 5.50)",
            "80 % (72, 88)",
            "50.0 (45.0, 55.0)",
            "10.0 (9.00, 11.0)",
        ),
    )
    assert found["attention"].rows == (
        (
            *("top", "128 x 64, 1 x 480", "previous row", "BF16", "forward, backward"),
            *("30.0 (27.0, 33.0)", "60.0 (54.0, 66.0)", "2.00x (1.80, 2.20)"),
        ),
    )
    figures = "20.0 (18.0, 22.0)", "60 % (54, 66)", "100 (90.0, 110)"
    assert found["prefill"].rows == (("top-18", "BF16", "4,096", "with the cache", "PyTorch", *figures),)
    assert found["exchanges"].rows == (("grid barrier", "132", "1.50 (1.35, 1.65)"),)
    for name in ("ops", "attention", "prefill", "exchanges"):
        assert "`python bench " in found[name].note and "A GPU" in found[name].note


def test_markdown():
    table = Table("x", "Title", ("a", "b"), (("1", "x|y"),), "word " * 40)
    lines = markdown(table).splitlines()
    assert lines[:6] == ["**Title**", "", "| a | b |", "|---|---|", "| 1 | x\\|y |", ""]
    assert max(map(len, lines)) <= 120 and " ".join(lines[6:]).split() == ["word"] * 40
