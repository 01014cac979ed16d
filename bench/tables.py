"""Result files as tables, for the README and the report.

A table shows the newest record of each row, all of one device: that of the newest record. `table_rows.py` has
their columns.
"""

from __future__ import annotations

import dataclasses
import json
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from .cells import Record, Table, listed
from .harness import read
from .table_rows import BUILD

__all__ = ["NOT_YET", "Record", "Table", "age", "markdown", "newest", "tables"]
NOT_YET = "not yet measured"


def age(record: Record) -> tuple[str, str]:
    """Sorts records by their time; those of one time always in the same order."""
    return record.get("time", ""), json.dumps(record, sort_keys=True)


def _row(record: Record) -> tuple[Any, ...]:
    # Of peers what was measured last counts, windows or not; samples of several seeds share a row.
    sizes = ("depth", "width", "batch", "dtype", "threads")
    keys = sizes if record.get("bench") == "peers" else ("row", "seed")
    return tuple(record.get(key) for key in keys)


def newest(records: Iterable[Record], key: Callable[[Record], Any] = _row) -> list[Record]:
    """The newest record of each row, or of each `key`."""
    return list({key(record): record for record in sorted(records, key=age)}.values())


def _device(record: Record) -> tuple[Any, ...]:
    return record.get("device"), record.get("cores")


def _made(records: list[Record]) -> str:
    """Where and with what the records were made."""
    device, cores = _device(records[0])
    said = [str(device) if cores is None else f"{device}, {cores} cores"]
    words = {
        "threads": "{} threads",
        "rounds": "p50 (p20, p80) of {} rounds",
        "torch": "PyTorch {}",
        "commit": "commit {}",
    }
    if all(record.get("estimated") for record in records):
        # Computed, on whatever machine.
        said, words = ["Computed"], {"commit": "commit {}"}
    said += [form.format("/".join(values)) for key, form in words.items() if (values := listed(records, key))]
    return ", ".join("1 thread" if text == "1 threads" else text for text in said)


def tables(results: Path, device: str = "cpu") -> dict[str, Table]:
    """Every table by its name.

    results: the folder of result files. device: "cpu", or the name (without its ending) of the file that holds all
    records of a GPU.
    """
    found = {}
    for name, (file, build) in BUILD.items():
        stem = file if device == "cpu" else device
        known = [r for ending in ("jsonl", "json") for r in read(results / f"{stem}.{ending}")]
        known = [
            r for r in known if r.get("bench") == file.removesuffix("-cpu") and ("card" in r) == (name == "what-if")
        ]
        here = _device(max(known, key=age)) if known else None
        rows = newest(r for r in known if _device(r) == here)
        shown = [r for r in rows if "error" not in r and "missing" not in r]
        table = build(shown)
        note = f"{table.note}. {_made(shown)}." if table.rows else NOT_YET
        if failed := sorted(r["row"] for r in rows if "error" in r):
            note += f" Failed: {', '.join(failed)}."
        if others := sorted({str(r.get("device")) for r in known if _device(r) != here}):
            note += f" The file also has rows of {', '.join(others)}."
        found[name] = dataclasses.replace(table, note=note)
    return found


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def markdown(table: Table) -> str:
    """The table in GitHub's Markdown: its title, its rows, its note."""
    if not table.rows:
        return f"**{table.title}**: {table.note}\n"
    lines = [_line(table.header), "|" + "---|" * len(table.header), *map(_line, table.rows)]
    note = textwrap.fill(table.note, 120, break_long_words=False, break_on_hyphens=False)
    return "\n".join([f"**{table.title}**", "", *lines, "", note]) + "\n"
