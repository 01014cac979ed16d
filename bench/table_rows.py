"""One function per table: records, one per row, to cells. `tables.py` chooses the records.

Cells are p50 (p20, p80). Nothing is computed but sums over levels, and means over seeds with their standard deviation.
Without records a table has its title and header.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from statistics import mean
from typing import Any

from ..distill.systems import SYSTEMS
from .cells import NONE, Record, Table, cell, listed, middle, over_seeds, table_of

CLASSES = ("AP", "DP", "AU", "DU")
# Fast Jukebox, Table 2: mean class scores in the order of CLASSES; its classifier's PR-AUC and ROC-AUC.
PAPER_TABLE_2 = {
    "corpus": (0.7354, 0.0743, 0.0973, 0.0989),
    "teacher-72": (0.3058, 0.1985, 0.3375, 0.1143),
    "plain-18": (0.2109, 0.2647, 0.4162, 0.0814),
    "student-18": (0.3444, 0.2165, 0.2476, 0.1292),
}
PAPER_CLASSIFIER = "0.505, 0.754"
_PEERS = {
    "transformers": "`transformers`",
    "growing-cache": "plain PyTorch, growing cache",
    "eager": "ours, eager PyTorch",
    "native": "ours, native",
    "native-int8": "ours, native, int8 weights",
}


def _size(record: Record) -> str:
    return re.sub(r"^(\d+)x(\d+)$", r"\1 x \2", str(record.get("size", f"{record.get('depth')}x{record.get('width')}")))


def _shape(record: Record) -> tuple[Any, ...]:
    return tuple(record.get(key) or 0 for key in ("width", "depth", "batch", "threads"))


def _weights(record: Record) -> str:
    if str(record.get("decoder")).endswith("int8"):
        return "int8" if record["dtype"] in ("fp32", "int8") else f"int8 beside {record['dtype'].upper()}"
    return str(record.get("values") or record["dtype"]).upper()


def _decoder(record: Record) -> str:
    steps = f" x{record['per_graph']}" if record.get("per_graph") else ""
    return record["decoder"].removesuffix("-int8") + steps


def peers(records: list[Record]) -> Table:
    rows, command = [], "python bench peers"
    for r in sorted(records, key=_shape):
        size = f"{_size(r)}, batch {r['batch']}, {r['threads']} threads"
        for name in (key[:-3] for key in r if key.endswith("_ms") and not key.endswith("_window_ms")):
            times = cell(r[f"{name}_ms"]), cell(r.get(f"{name}_window_ms"))
            ratios = r.get(f"{name}_speedup"), r.get(f"{name}_over_growing-cache")
            over = ("1" if name == peer else cell(q, unit="x") for peer, q in zip(_PEERS, ratios, strict=False))
            rows.append((size, _PEERS.get(name, f"ours, {name}"), *times, *over))
    if records:
        latest = max(records, key=lambda r: r.get("time", ""))
        words = {key: " ".join(listed(records, key)) for key in ("threads", "batch")}
        window = f" --window {latest['window_steps']}" if "window_steps" in latest else ""
        command += f" --batch {words['batch']} --rounds {latest['rounds']} --threads {words['threads']}{window}"
        command += f" --backends {' '.join(latest['backends'])}"
    header = ["layers x width", "decoder", "ms per step", "ms per window"]
    header += ["against `transformers`", "against the growing cache"]
    return table_of("peers", "Time per step against `transformers` 4.57.6", header, rows, f"`{command}`")


def decode(records: list[Record]) -> Table:
    groups: dict[tuple[Any, ...], dict[int, Record]] = {}
    for record in sorted(records, key=lambda r: (_shape(r), str(r["decoder"]), r.get("values", ""), r["row"])):
        group = _size(record), _decoder(record), _weights(record)
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


def int8(records: list[Record]) -> Table:
    rows = [
        (r["row"], f"{r['bits_fp32']:.4f}", f"{r['bits_lost']:+.4f}", f"{100 * r['same_likeliest_code']:.1f} %")
        for r in sorted(records, key=lambda r: (r["row"].split()[0], -r["level"]))
    ]
    header = ("network", "held-out bits per code", "with int8 weights", "likeliest code the same")
    return table_of("int8", "What int8 weights cost", header, rows, "`python bench int8`")


def table1(records: list[Record]) -> Table:
    kinds = {(r["sizes"], r["audio_seconds"]) for r in records}
    rows = []
    for r in sorted(records, key=lambda r: (r["sizes"], r["audio_seconds"], r["backend"], -r["depth"])):
        layers = f"{r['depth']}" if len(kinds) == 1 else f"{r['depth']} ({r['sizes']}, {r['audio_seconds']:g} s)"
        layers += f", {r['backend']}"
        speed_up = (cell(r["speed_up"], unit="x"), f"{r['paper_speed_up']:.1f}x") if r["depth"] != 72 else ("1", "1")
        parts = (f"{r[f'{part}_s']['p50']:.2f} s" for part in ("decode", "prefill", "condition", "vqvae"))
        rows.append((layers, *speed_up, cell(r["real_time"]), *parts))
    said = " and ".join(f"`python bench table1 --sizes {s} --audio-seconds {a:g}`" for s, a in sorted(kinds))
    counted = (
        "a whole request with random weights; speed-ups within rounds, parts overlap. The paper has 60 s on a P100"
    )
    header = (
        "layers, decoder",
        "speed-up",
        "the paper's",
        "of real time",
        "decoding",
        "prompts",
        "conditions",
        "VQ-VAE",
    )
    return table_of("table1", "Table 1 of the paper, end to end", header, rows, f"{said}: {counted}")


def roofline(records: list[Record]) -> Table:
    rows = []
    for r in sorted(records, key=lambda r: (_shape(r), r["row"])):
        rows.append((_size(r), _decoder(r), _weights(r), str(r["batch"]), f"{r['bytes_per_step'] / 1e6:.1f}"))
        rows[-1] += tuple(cell(r[key]) for key in ("read_gb_per_s", "floor_us", "us_per_step"))
        rows[-1] += (cell(r["percent"], "{:.0f}".format, " %"),)
    header = ("layers x width", "decoder", "weights", "batch", "MB per step", "read GB/s", "floor us", "us per step")
    counted = "the floor is the bytes of a step over the bandwidth of a plain read in the same rounds"
    note = f"`python bench roofline`: {counted}"
    return table_of("roofline", "Decoding against the memory's bandwidth", (*header, "floor / measured"), rows, note)


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


def _by_system(records: list[Record]) -> list[tuple[str, list[Record]]]:
    known = ("corpus", "codes", *SYSTEMS)
    others = sorted({r["system"] for r in records if r.get("system") and r["system"] not in known})
    named = {name: [r for r in records if r.get("system") == name] for name in (*known, *others)}
    return [(name, found) for name, found in named.items() if found]


WORDS = {"corpus": "held-out songs", "codes": "held-out songs, from their codes"}


def systems(records: list[Record]) -> Table:
    measured = [r for r in records if "bits" in r]
    levels = sorted({r["level"] for r in measured}, reverse=True)
    rows = []
    for name, found in _by_system(records):
        of = {r["level"]: r for r in found if "bits" in r}
        cells = [WORDS.get(name, name), f"{sum(r['parameters'] for r in of.values()) / 1e6:.1f}" if of else NONE]
        for key, form in (("steps", "d"), ("bits", ".2f"), ("kl", ".2f"), ("acceptance", ".2f")):
            values = [of.get(level, {}).get(key) for level in levels]
            told = " / ".join(NONE if value is None else format(value, form) for value in values)
            cells.append(told if any(value is not None for value in values) else NONE)
        cells.append(over_seeds([r["frechet"] for r in found if "frechet" in r], ".1f"))
        moods = [r["valence"] for r in found if "valence" in r]
        cells.append(" / ".join(f"{mean(mood[c] for mood in moods):.2f}" for c in CLASSES) if moods else NONE)
        rows.append(cells)
    header = (
        "M parameters",
        "steps",
        "bits per code",
        "KL to the teacher",
        "acceptance",
        "Fréchet",
        " / ".join(CLASSES),
    )
    counted = (
        f"levels {' / '.join(map(str, levels))}; bits, KL and acceptance on held-out songs; Fréchet distance"
        f"{' and mood' if any('valence' in r for r in records) else ''} of samples, mean ± deviation over seeds"
    )
    samples = [r for r in records if "frechet" in r]
    command = "python bench systems --work WORK"
    fields = (("seeds", "seed"), ("samples", "samples"), ("audio-seconds", "audio_seconds"), ("level", "decoded_level"))
    for option, key in fields:
        if values := listed(samples, key):
            command += f" --{option} {' '.join(values)}"
    return table_of("systems", "The seven systems", ("system", *header), rows, f"`{command}`: {counted}")


def table2(records: list[Record]) -> Table:
    rows = []
    for name, found in _by_system(records):
        scores = (over_seeds([r["valence"][c] for r in found]) for c in CLASSES)
        paper = " / ".join(f"{value:.3f}" for value in PAPER_TABLE_2[name]) if name in PAPER_TABLE_2 else NONE
        rows.append((WORDS.get(name, name), str(sum(r["samples"] for r in found)), *scores, paper))
    said = [f"`python bench table2`: mean class scores over samples; the paper's are {' / '.join(CLASSES)}"]
    kinds = {(r["audio_seconds"], r["decoded_level"]) for r in records if "decoded_level" in r}
    said += [f"pieces of {seconds:g} s, decoded from their codes of level {level}" for seconds, level in sorted(kinds)]
    for r in (r for r in records if "pr_auc" in r):
        ours = f"PR-AUC {r['pr_auc']:.3f}, ROC-AUC {r['roc_auc']:.3f}"
        said.append(f"the classifier on {r['held_out_songs']} held-out songs: {ours} (the paper's {PAPER_CLASSIFIER})")
    header = ("system", "samples", *CLASSES, "the paper's")
    return table_of("table2", "Table 2 of the paper, the mood that samples convey", header, rows, "; ".join(said))


# Each table's result file on a CPU.
BUILD: dict[str, tuple[str, Callable[[list[Record]], Table]]] = {
    "peers": ("peers", peers),
    "decode": ("decode-cpu", decode),
    "int8": ("int8", int8),
    "table1": ("table1-cpu", table1),
    "roofline": ("roofline-cpu", roofline),
    "what-if": ("roofline-cpu", what_if),
    "scaling": ("scaling-cpu", scaling),
    "systems": ("systems", systems),
    "table2": ("table2", table2),
}
