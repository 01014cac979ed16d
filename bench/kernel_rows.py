"""The tables of prompts, single operations and exchanges: records, one per row, to cells; see `table_rows.py`."""

from __future__ import annotations

from typing import Any

from .cells import NONE, Record, Table, cell, table_of

# What computes the prompts of `prefill`, by the name of its figures.
_PROMPTS = {
    "cache": ("with the cache", "PyTorch"),
    "cache_triton": ("with the cache", "Triton"),
    "layers": ("layers alone", "PyTorch"),
    "layers_triton": ("layers alone", "Triton"),
}


def _share(percent: Any) -> str:
    return cell(percent, "{:.0f}".format, " %")


def _timed(record: Record, names: tuple[str, ...]) -> list[str]:
    """Microseconds of each, and what share of the bandwidth it reached."""
    return [text for name in names for text in (cell(record.get(f"{name}_us")), _share(record.get(f"{name}_percent")))]


def prefill(records: list[Record]) -> Table:
    rows = []
    for r in sorted(records, key=lambda r: (r["width"], r["depth"], r["dtype"], r["codes"])):
        for name, (what, attention) in _PROMPTS.items():
            if f"{name}_ms" in r:
                figures = cell(r[f"{name}_ms"]), _share(r[f"{name}_percent"]), cell(r["matrix_tflops"])
                rows.append((r["size"], r["dtype"].upper(), f"{r['codes']:,}", what, attention, *figures))
    header = ("model", "dtype", "codes", "what is timed", "attention", "ms", "of a large matrix product", "its TFLOP/s")
    note = "`python bench prefill`: a prompt through all layers; only the projections' operations count"
    return table_of("prefill", "Prompts", header, rows, note)


def attention(records: list[Record]) -> Table:
    rows = []
    for r in sorted(records, key=lambda r: (r["dtype"], r["row"])):
        window = f"{r['num_rows']} x {r['row_len']}, {r['heads']} x {r['head_dim']}"
        passes = "forward, backward" if r["backward"] else "forward"
        rows.append((r["shape"], window, r["pattern"].replace("_", " "), r["dtype"].upper(), passes))
        rows[-1] += tuple(_timed(r, ("triton", "flex", "reference")))
        rows[-1] += tuple(cell(r.get(f"speedup_over_{name}"), unit="x") for name in ("flex", "reference"))
    header = ["model", "rows x codes, heads x head dim", "pattern", "dtype", "passes"]
    header += [text for name in ("Triton", "FlexAttention", "reference") for text in (f"{name} us", "of the bandwidth")]
    header += ["over FlexAttention", "over the reference"]
    return table_of("attention", "Attention of a prompt by pattern", header, rows, "`python bench attention`")


def ops(records: list[Record]) -> Table:
    names = ("triton", "reference", "compile")
    # The implementations of an operation may have been measured one after another.
    merged: dict[tuple[Any, ...], Record] = {}
    for r in sorted(records, key=lambda r: r.get("time", "")):
        case = tuple(r[key] for key in ("size", "stored", "batch", "op"))
        merged.setdefault(case, {}).update(r)
    rows = [
        (op, size, stored.upper() if stored != "int8" else stored, str(batch), *_timed(r, names))
        for (size, stored, batch, op), r in sorted(merged.items())
    ]
    header = ["operation", "model", "weights", "batch"]
    header += [text for name in ("Triton", "reference", "torch.compile") for text in (f"{name} us", "of the bandwidth")]
    return table_of("ops", "Operations of a decode step", header, rows, "`python bench ops`")


def exchanges(records: list[Record]) -> Table:
    rows = [
        (r["row"], str(r["programs"]) if "programs" in r else NONE, cell(r["us_per_exchange"]))
        for r in sorted(records, key=lambda r: r["row"])
    ]
    note = (
        "`python bench roofline --parts exchanges`: all programs wait for each other, five times in a layer of a step"
    )
    return table_of("exchanges", "What exchanges cost", ("exchange", "programs", "us each"), rows, note)
