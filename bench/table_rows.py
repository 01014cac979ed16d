"""One function per table of speed: records, one per row, to cells. `tables.py` chooses the records.

Cells are p50 (p20, p80). Hardly anything is computed: the time of a request over its steps; means over seeds with their
standard deviation. Without records a table has its title and header.
"""

from __future__ import annotations

import re
from typing import Any

from .beginnings import MOVES, bits_per_code
from .cells import NONE, Record, Table, cell, listed, middle, table_of
from .peers import commands
from .segments import key as way_of
from .step_bytes import PARTS

_PEERS = {
    "transformers": "`transformers`",
    "growing-cache": "plain PyTorch, growing cache",
    "eager": "ours, eager PyTorch",
    "native": "ours, native",
    "native-int8": "ours, native, int8 weights",
}


def size_of(record: Record) -> str:
    return re.sub(r"^(\d+)x(\d+)$", r"\1 x \2", str(record.get("size", f"{record.get('depth')}x{record.get('width')}")))


def shape_of(record: Record) -> tuple[Any, ...]:
    return tuple(record.get(key) or 0 for key in ("width", "depth", "batch", "threads"))


def _weights(record: Record) -> str:
    if str(record.get("decoder")).endswith("int8"):
        return "int8" if record["dtype"] in ("fp32", "int8") else f"int8 beside {record['dtype'].upper()}"
    return str(record.get("values") or record["dtype"]).upper()


def _decoder(record: Record) -> str:
    steps = f" x{record['per_graph']}" if record.get("per_graph") else ""
    return record["decoder"].removesuffix("-int8") + steps


def peers_commands(records: list[Record]) -> str:
    """The commands that the records came from."""
    return " and ".join(f"`{command}`" for command in commands(sorted(records, key=shape_of)))


def peers(records: list[Record]) -> Table:
    rows, windows = [], set()
    # What is not the same in all rows is said in each.
    differing = [
        key for key in ("context", "rows", "heads", "values", "dtype") if len({r.get(key) for r in records}) > 1
    ]
    for r in sorted(records, key=shape_of):
        threads = f", {r['threads']} threads" if r.get("threads") else ""
        others = "".join(f", {key} {r[key]}" for key in differing if r.get(key) is not None)
        size = f"{size_of(r)}, batch {r['batch']}{threads}{others}"
        mark = "~" if r.get("extrapolated") else ""
        if mark:
            windows.add(f"{r['window_steps']} of {-(-r['context'] // 2):,} steps")
        for name in (key[:-3] for key in r if key.endswith("_ms") and not key.endswith("_window_ms")):
            window = cell(r.get(f"{name}_window_ms"))
            times = cell(r[f"{name}_ms"]), window if window == NONE else mark + window
            ratios = r.get(f"{name}_speedup"), r.get(f"{name}_over_growing-cache")
            over = ("1" if name == peer else cell(q, unit="x") for peer, q in zip(_PEERS, ratios, strict=False))
            rows.append((size, _PEERS.get(name, f"ours, {name}"), *times, *over))
    said = [peers_commands(records)]
    said += [f"~: extrapolated from {steps}, in at most 5 rounds" for steps in sorted(windows)]
    header = ["layers x width", "decoder", "ms per step", "ms per window"]
    header += ["against `transformers`", "against the growing cache"]
    return table_of("peers", "Time per step against `transformers` 4.57.6", header, rows, "; ".join(said))


def decode(records: list[Record]) -> Table:
    groups: dict[tuple[Any, ...], dict[int, Record]] = {}
    for record in sorted(records, key=lambda r: (shape_of(r), str(r["decoder"]), r.get("values", ""), r["row"])):
        group = size_of(record), _decoder(record), _weights(record)
        groups.setdefault(group, {})[record["batch"]] = record
    batches = sorted({record["batch"] for record in records} | {1})
    rows = []
    for group, found in groups.items():
        one = found.get(1, {})
        share = cell(one.get("percent"), "{:.0f}".format, " %")
        codes = (middle(found.get(batch, {}).get("codes_per_s")) for batch in batches)
        rows.append((*group, cell(one.get("us_per_step")), middle(one.get("gb_per_s")), share, *codes))
    header = ["layers x width", "decoder", "weights", "us per step", "GB/s", "of a plain read"]
    header += [f"codes/s, batch {batch}" for batch in batches]
    note = (
        "`python bench decode`, at batch 1 unless said. A plain read (on a GPU a copy) of memory takes turns with it; "
    )
    note += "weights that fit the caches can exceed it"
    return table_of("decode", "Decoders, one step at a time", header, rows, note)


def _against_transformers(record: Record) -> str:
    """Without drafts, and with as many as are the fastest."""
    if "plain_over_transformers" not in record:
        return NONE
    best = max(record["right"], key=lambda length: record[f"drafts_{length}_over_transformers"]["p50"])
    found = cell(record[f"drafts_{best}_over_transformers"], unit="x")
    return f"{cell(record['plain_over_transformers'], unit='x')}, by {best} codes {found}"


def speculative(records: list[Record]) -> Table:
    rows = []
    lengths = sorted({int(length) for r in records for length in r["right"]})
    for r in sorted(
        records, key=lambda r: (r["width"], -r["depth"], r["draft_depth"], r["backend"], r.get("batch", 1))
    ):
        shares = sorted(r["right"].values())
        right = " to ".join(f"{100 * share:.0f}" for share in dict.fromkeys((shares[0], shares[-1])))
        ratios = [cell(r.get(f"drafts_{length}_speedup"), unit="x") for length in lengths]
        size = f"{r['depth']} x {r['width']}, {r['backend']}"
        times = cell(r["plain_ms"]), cell(r["draft_ms"])
        peer = cell(r.get("transformers_ms")), _against_transformers(r)
        rows.append((size, r["draft_depth"], r.get("batch", 1), *times, f"{right} %", *ratios, *peer))
    header = ["layers x width, decoder", "layers of the draft", "batch", "ms per code", "of the draft", "drafts right"]
    header += [f"speed-up by {length} codes" for length in lengths]
    header += ["`transformers`, ms per code", "against it without drafts, and with"]
    peer = " --peer" * any("transformers_ms" in r for r in records)
    note = f"`python bench speculative{peer}`: the demo's bottom level, its values repeated up to the width; codes as "
    note += "without"
    return table_of("speculative", "Speculative decoding", header, [tuple(map(str, row)) for row in rows], note)


def int8(records: list[Record]) -> Table:
    rows = [
        (r["row"], f"{r['bits_fp32']:.4f}", f"{r['bits_lost']:+.4f}", f"{100 * r['same_likeliest_code']:.1f} %")
        for r in sorted(records, key=lambda r: (r["row"].split()[0], -r["level"]))
    ]
    header = ("network", "held-out bits per code", "with int8 weights", "likeliest code the same")
    return table_of("int8", "What int8 weights cost", header, rows, "`python bench int8`")


def segments(records: list[Record]) -> Table:
    ways = list(dict.fromkeys(tuple(way) for r in records for way in r["ways"][1:]))
    rows = []
    for r in sorted(records, key=lambda r: (r["width"], r["depth"], r["backend"])):
        ratios = [cell(r.get(f"{way_of(*way)}_speedup"), unit="x") for way in ways]
        rows.append(
            (f"{r['depth']} x {r['width']}, {r['backend']}", f"{r['codes']:,}", cell(r["whole_s"], unit=" s"), *ratios)
        )
    header = ["layers x width, decoder", "codes", "as a whole"]
    header += [f"{f'{n} segments' if n > 1 else 'as a whole'}, windows move by {hop:g}" for n, hop in ways]
    note = "`python bench segments`: one level of a song, prompts and conditions included; windows of "
    note += f"{', '.join(listed(records, 'context'))} codes, which as a whole move by "
    note += f"{', '.join(f'{hop:g}' for hop in sorted({r['ways'][0][1] for r in records}))} of themselves"
    return table_of("segments", "A song in segments", header, rows, note)


def beginnings(records: list[Record]) -> Table:
    rows = []
    for r in sorted(records, key=lambda r: (r["row"].split()[0], -r["level"])):
        lost = f"{r['bits_lost']:.0f}", f"{r['bits_lost_at_first']:.0f} in {r['first_ms']:.0f} ms"
        rows.append((r["row"], *(f"{bits_per_code(r, eighths):.3f}" for eighths in MOVES), *lost, f"{r['codes']:,}"))
    header = ["network", *(f"windows move by {eighths / 8:g}" for eighths in MOVES)]
    header += ["bits that a beginning costs", "of them at first", "codes"]
    note = "`python bench beginnings`: held-out bits per code where windows move by such a part of themselves"
    return table_of("beginnings", "What the beginnings of windows and segments cost", header, rows, note)


def table1_commands(records: list[Record]) -> str:
    """The commands that give such records."""
    requests = dict[tuple[Any, ...], list[Record]]()
    for r in sorted(records, key=lambda r: (r["sizes"], r["audio_seconds"])):
        requests.setdefault((r["sizes"], r["audio_seconds"], r.get("rounds")), []).append(r)
    said = []
    for (sizes, seconds, rounds), found in requests.items():
        options = f"--sizes {sizes} --audio-seconds {seconds:g}" + (f" --rounds {rounds}" if rounds else "")
        said.append(f"`python bench table1 {options} --backends {' '.join(listed(found, 'backend'))}`")
    return " and ".join(said)


def table1(records: list[Record]) -> Table:
    several = len({r["sizes"] for r in records}) > 1
    rows = []
    for r in sorted(records, key=lambda r: (r["sizes"], r["audio_seconds"], r["backend"], -r["depth"])):
        system = f"{r['depth']}, {r['backend']}" + (f", {r['sizes']}" if several else "")
        speed_up = (cell(r["speed_up"], unit="x"), f"{r['paper_speed_up']:.1f}x") if r["depth"] != 72 else ("1", "1")
        request = NONE
        if "total_s" in r:
            request = cell({quantile: 1e6 * value / r["steps"] for quantile, value in r["total_s"].items()})
        parts = ((r.get(f"{part}_s") or {}).get("p50") for part in ("decode", "prefill", "condition", "vqvae", "file"))
        sampled = f"{r['windows']:,} of {r['windows_of_60_s']:,}" if "windows_of_60_s" in r else NONE
        memory = NONE if r.get("system_peak_bytes") is None else f"{r['system_peak_bytes'] / 1e6:,.0f}"
        rows.append((system, f"{r['audio_seconds']:g} s", *speed_up, cell(r["real_time"]), request))
        rows[-1] += (cell(r.get("us_per_step")), *(NONE if part is None else f"{part:.2f} s" for part in parts))
        rows[-1] += (memory, sampled, cell(r.get("extrapolated_60_s"), unit=" s"))
    note = f"{table1_commands(records)}: a whole request with random weights; speed-ups within rounds. Decoding and "
    note += "other parts are the time of all threads together and may add up to more than the request's. "
    note += "What 60 s would take is extrapolated from the windows that were sampled. The paper has 60 s on a P100"
    header = ["layers, decoder", "audio", "speed-up", "the paper's", "of real time", "us per step, all in all"]
    header += ["us of decoding per step", "decoding", "prompts", "conditions", "VQ-VAE", "file", "peak MB"]
    header += ["windows of 60 s", "60 s would take"]
    return table_of("table1", "Table 1 of the paper, end to end", header, rows, note)


def roofline(records: list[Record]) -> Table:
    rows = []
    for r in sorted(records, key=lambda r: (shape_of(r), r["row"])):
        parts = [r["bytes"].get(part, 0) / 1e6 for part in PARTS] if r.get("bytes") else []
        rows.append((size_of(r), _decoder(r), _weights(r), str(r["batch"]), f"{r['bytes_per_step'] / 1e6:.1f}"))
        rows[-1] += (" / ".join(f"{part:.2f}" for part in parts) or NONE,)
        rows[-1] += tuple(cell(r.get(key)) for key in ("read_gb_per_s", "copy_gb_per_s", "floor_us", "us_per_step"))
        rows[-1] += (cell(r["percent"], "{:.0f}".format, " %"),)
    header = (
        "layers x width",
        "decoder",
        "weights",
        "batch",
        "MB per step",
        f"MB of {' / '.join(PARTS)}".replace("_", " and "),
    )
    header += ("read GB/s", "copy GB/s", "floor us", "us per step", "floor / measured")
    note = "`python bench roofline`: the floor is the bytes of a step over the bandwidth of a plain read in the same "
    note += "rounds; of a copy, what is read and what is written both count"
    return table_of("roofline", "Decoding against the memory's bandwidth", header, rows, note)


def what_if(records: list[Record]) -> Table:
    cards: dict[tuple[float, str], dict[str, str]] = {}
    for r in records:
        model = r["row"].removeprefix(f"what-if {r['card']} ")
        cards.setdefault((r["published_gb_per_s"], r["card"]), {})[model] = cell(r["steps_per_s_at_full_bandwidth"])
    models = sorted({model for found in cards.values() for model in found}, key=lambda m: (m.split()[2:], m))
    rows = [(card, cell(rate), *(cards[rate, card].get(m, NONE) for m in models)) for rate, card in sorted(cards)]
    note = (
        "`python bench roofline --parts what-if`: steps per second if a card reached the bandwidth that is published "
    )
    note += "for it; estimated, not measured"
    return table_of("what-if", "What cards could reach at most", ("card", "GB/s, published", *models), rows, note)


def scaling(records: list[Record]) -> Table:
    axes = {axis: i for i, axis in enumerate(("batch", "depth", "width", "context", "threads", "audio"))}
    rows = []
    for r in sorted(records, key=lambda r: (axes.get(r["axis"], 9), r.get("decoder") or "", r["value"], r["row"])):
        memory = [NONE if r.get(key) is None else f"{r[key] / 1e6:,.1f}" for key in ("peak_bytes", "codes_bytes")]
        figures = cell(r.get("codes_per_s")), cell(r.get("ratio"), unit="x"), cell(r.get("us_per_step"))
        rows.append((r["axis"], r["row"], r.get("decoder") or NONE, *figures, *memory))
    header = ("axis", "row", "decoder", "codes/s", "of the base point", "us per step", "peak MB", "MB of codes")
    return table_of(
        "scaling",
        "How speed scales",
        header,
        rows,
        "`python bench scaling`; the base point is timed in the same rounds",
    )
