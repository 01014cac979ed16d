"""Which records tables show: full ones before quick ones, one number of threads, every setting of peers."""

import json

from fastjukebox.bench.identity import threads
from fastjukebox.bench.tables import BUILD, tables

HERE = {"device": "A CPU", "cores": 2, "threads": 2, "torch": "2.0", "commit": "abc"}


def q(p50):
    return {"p20": 0.9 * p50, "p50": p50, "p80": 1.1 * p50}


def at(minute, **fields):
    return {**HERE, "time": f"2026-01-01T00:{minute:02d}:00+00:00", **fields}


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def decoded(minute, depth, us, **fields):
    figures = {"us_per_step": q(us), "codes_per_s": q(1e6 / us), "gb_per_s": q(2.0), "percent": q(50.0)}
    row = {"bench": "decode", "row": f"{depth}x128 native fp32 batch 1", "size": f"{depth}x128", "batch": 1}
    row |= {"depth": depth, "width": 128, "decoder": "native", "dtype": "fp32", "values": "fp16", "rounds": 11}
    return at(minute, **row, **figures, **fields)


def test_a_quick_record_takes_no_full_ones_place(tmp_path):
    full, quick = decoded(1, 18, 100.0), decoded(2, 18, 50.0, quick=True)
    write(tmp_path / "decode-cpu.jsonl", [full, quick, decoded(3, 72, 400.0, quick=True, device="Another CPU")])
    table = tables(tmp_path)["decode"]
    assert [row[3] for row in table.rows] == ["100 (90.0, 110)"] and "--quick" not in table.note
    write(tmp_path / "decode-cpu.jsonl", [full, quick | {"us_per_step": None, "error": "RuntimeError: no"}])
    assert [row[3] for row in tables(tmp_path)["decode"].rows] == ["100 (90.0, 110)"]
    # Where there is no other it is shown, and called so.
    write(tmp_path / "decode-cpu.jsonl", [full, quick, decoded(2, 72, 400.0, quick=True)])
    table = tables(tmp_path)["decode"]
    assert [row[3][:3] for row in table.rows] == ["100", "400"] and "1 of 2 rows with `--quick`" in table.note


def test_one_number_of_threads_per_table(tmp_path):
    alone = decoded(2, 18, 200.0, threads=1)
    write(tmp_path / "decode-cpu.jsonl", [decoded(1, 18, 100.0), decoded(1, 72, 400.0), alone])
    table = tables(tmp_path)["decode"]
    assert [row[3][:3] for row in table.rows] == ["200"]
    assert "A CPU, 2 cores, 1 thread," in table.note and table.note.endswith("The file also has rows of 2 threads.")
    # Bits do not depend on it.
    lost = {"bench": "int8", "bits_fp32": 4.5, "bits_lost": 0.001, "same_likeliest_code": 0.98}
    rows = [at(n, **lost, row=f"demo level {n}", level=n) | {"threads": n} for n in (1, 2)]
    write(tmp_path / "int8.jsonl", rows)
    assert len(tables(tmp_path)["int8"].rows) == 2


def test_times_go_with_the_threads_unless_rows_say_them():
    benches = {file.removesuffix("-cpu") for file, _ in BUILD.values()}
    others = {bench for bench in benches if threads({"bench": bench, "threads": 2}) is None}
    assert others == {"peers", "beginnings", "int8", "systems", "table2", "exchanges"}


def test_what_was_estimated_depends_on_no_threads_and_on_no_tests(tmp_path):
    card = {"bench": "roofline", "card": "L4", "published_gb_per_s": 300, "estimated": True, "capability": "9.0"}
    card["steps_per_s_at_full_bandwidth"] = 500.0
    rows = [at(n, **card, row=f"what-if L4 {n} layers top fp16") | {"threads": n} for n in (1, 2)]
    for device, file in (("cpu", "roofline-cpu.jsonl"), ("A-GPU", "A-GPU.json")):
        write(tmp_path / file, rows)
        assert tables(tmp_path, device)["what-if"].rows == (("L4", "300", "500", "500"),)


def test_of_two_rows_of_one_operation_the_newest_figures_count(tmp_path):
    op = {"bench": "ops", "op": "norm_up", "size": "top-72", "stored": "fp16", "batch": 1}
    rows = [at(2, **op, row="a", triton_us=q(6.0)), at(1, **op, row="b", triton_us=q(5.0), reference_us=q(9.0))]
    write(tmp_path / "ops-cpu.jsonl", rows)
    assert tables(tmp_path)["ops"].rows[0][4:] == ("6.00 (5.40, 6.60)", "9.00 (8.10, 9.90)")


def test_peers_of_other_windows_are_rows_of_their_own(tmp_path):
    base = {"bench": "peers", "backends": ["native"], "depth": 72, "width": 128, "batch": 1, "dtype": "float32"}
    base |= {"heads": 1, "context": 8192, "rows": 128, "rounds": 3, "values": "fp16", "native_ms": q(1.0)}
    others = [{"context": 2048}, {"rows": 64}, {"heads": 2}, {"values": "fp32"}]
    write(tmp_path / "peers.jsonl", [at(1, **base), *(at(2, **{**base, **other}) for other in others)])
    sizes = [row[0] for row in tables(tmp_path)["peers"].rows]
    assert len(sizes) == len(set(sizes)) == 5
    assert sizes[0] == "72 x 128, batch 1, 2 threads, context 8192, rows 128, heads 1, values fp16"
