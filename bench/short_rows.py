"""The tables of speed in short, for the README: medians of what `table_rows.py` shows whole in RESULTS.md."""

from __future__ import annotations

from .cells import NONE, Record, Table, middle, table_of
from .table_rows import peers_commands, shape_of, size_of, table1_commands

SIZES = {"demo": "networks of the demo's width, 128", "paper": "networks of the paper's widths, 2048 and 1920"}


def table1(records: list[Record]) -> Table:
    """The rows of the longest request alone."""
    longest = max((r["audio_seconds"] for r in records), default=0.0)
    records = [r for r in records if r["audio_seconds"] == longest]
    rows = []
    for r in sorted(records, key=lambda r: (r["sizes"], r["backend"], -r["depth"])):
        speed_up = ("1", "1") if r["depth"] == 72 else (f"{middle(r['speed_up'])}x", f"{r['paper_speed_up']:.1f}x")
        seconds = f"{middle(r.get('extrapolated_60_s'))} s" if r.get("extrapolated_60_s") else NONE
        rows.append((f"{r['depth']} layers, {r['backend']}", *speed_up, seconds, f"{middle(r['real_time'])}x"))
    header = ["decoder", "speed-up", "the paper's, on a P100", "60 s of audio take", "of real time"]
    networks = " and ".join(SIZES.get(str(sizes), str(sizes)) for sizes in sorted({r["sizes"] for r in records}))
    note = f"{table1_commands(records)}: whole requests, from prompts to the file; {networks}, with random weights"
    return table_of("table1-short", "Table 1 of the paper, end to end", header, rows, note)


def peers(records: list[Record]) -> Table:
    rows = []
    ours = ("native", "native-int8")
    for r in sorted(records, key=shape_of):
        times = [middle(r.get(f"{name}_ms")) for name in ("transformers", "growing-cache", *ours)]
        ratios = [f"{middle(ratio)}x" if (ratio := r.get(f"{name}_speedup")) else NONE for name in ours]
        rows.append((f"{size_of(r)}, batch {r['batch']}", *times, *ratios))
    header = ["layers x width", "`transformers`", "PyTorch, growing cache", "native", "native-int8"]
    header += ["native against `transformers`", "native-int8 against `transformers`"]
    return table_of("peers-short", "Milliseconds per step, beside peers", header, rows, peers_commands(records))
