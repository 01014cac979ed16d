"""Result files as tables, for the README and the report.

A table shows the newest record of each row, all of one device and number of threads: those of the newest record. One
with `--quick` takes no other's place. Figures of a GPU whose tests have not passed with the same sources are left out,
and the note says so. The columns are in the files called `*_rows.py`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from . import kernel_rows, quality_rows, short_rows, table_rows
from .cells import Record, Table, listed
from .harness import QUICK_ROUNDS, read
from .identity import identity, threads

NOT_YET = "not yet measured"
# Each table's result file on a CPU.
BUILD: dict[str, tuple[str, Callable[[list[Record]], Table]]] = {
    "peers": ("peers", table_rows.peers),
    "decode": ("decode-cpu", table_rows.decode),
    "speculative": ("speculative", table_rows.speculative),
    "segments": ("segments", table_rows.segments),
    "beginnings": ("beginnings", table_rows.beginnings),
    "int8": ("int8", table_rows.int8),
    "table1": ("table1-cpu", table_rows.table1),
    "roofline": ("roofline-cpu", table_rows.roofline),
    "what-if": ("roofline-cpu", table_rows.what_if),
    "scaling": ("scaling-cpu", table_rows.scaling),
    "systems": ("systems", quality_rows.systems),
    "table2": ("table2", quality_rows.table2),
    "prefill": ("prefill-cpu", kernel_rows.prefill),
    "attention": ("attention-cpu", kernel_rows.attention),
    "ops": ("ops-cpu", kernel_rows.ops),
    "exchanges": ("exchanges-cpu", kernel_rows.exchanges),
}
# Those that only the README has.
SHORT = {"table1-short": ("table1-cpu", short_rows.table1), "peers-short": ("peers", short_rows.peers)}


def age(record: Record) -> tuple[str, str]:
    """Sorts records by their time; those of one time always in the same order."""
    return record.get("time", ""), json.dumps(record, sort_keys=True)


def newest(records: Iterable[Record], key: Callable[[Record], Any] = identity) -> list[Record]:
    """The newest record of each row, or of each `key`; one with `--quick` only where there is no other."""
    return list({key(record): record for record in sorted(records, key=_weight)}.values())


def withheld(records: Iterable[Record], of_a_gpu: bool) -> list[Record]:
    """The records of one file that have figures of a GPU, and no tests that passed last with the same sources.

    of_a_gpu: whether the file is a GPU's; records of one in another file are found too.
    """
    records = list(records)
    tests = (r for r in records if (r.get("bench"), r.get("row")) == ("gpu", "tests"))
    passed = {r.get("sources") for r in newest(tests, lambda r: r.get("sources")) if r.get("status") == "passed"}
    timed = (r for r in records if (of_a_gpu or "capability" in r) and not r.get("estimated"))
    return [r for r in timed if r.get("sources") not in passed]


def is_quick(record: Record) -> bool:
    """Whether it was timed with `--quick`. Some older records do not say so; they have its rounds."""
    guessed = record.get("bench") in ("roofline", "scaling") and record.get("rounds", math.inf) <= QUICK_ROUNDS
    return record.get("quick", guessed) and not record.get("estimated")


def _weight(record: Record) -> tuple[bool, tuple[str, str]]:
    """Sorts records by what is shown rather."""
    return not is_quick(record), age(record)


def _place(record: Record) -> tuple[Any, ...]:
    """What all rows of a table have in common."""
    return record.get("device"), record.get("cores"), threads(record)


def _elsewhere(record: Record, here: tuple[Any, ...]) -> str:
    """In what a record's place differs."""
    device, cores, count = _place(record)
    if (device, cores) != here[:2]:
        return str(device)
    return f"{count} thread{'s' * (count != 1)}"


def _made(records: list[Record], medians: bool) -> str:
    """Where and with what the records were made, of which medians alone are shown, or their spread too."""
    device, cores, _ = _place(records[0])
    said = [str(device) if cores is None else f"{device}, {cores} cores"]
    words = {
        "threads": "{} threads",
        "rounds": "medians of {} rounds" if medians else "p50 (p20, p80) of {} rounds",
        "torch": "PyTorch {}",
        "commit": "commit {}",
    }
    if all(record.get("estimated") for record in records):
        # Computed, on whatever machine.
        said, words = ["Computed"], {"commit": "commit {}"}
    said += [form.format("/".join(values)) for key, form in words.items() if (values := listed(records, key))]
    if quick := sum(map(is_quick, records)):
        of = "all" if quick == len(records) else f"{quick} of {len(records)}"
        said.append(f"{of} rows with `--quick`, for orientation")
    return ", ".join("1 thread" if text == "1 threads" else text for text in said)


def tables(results: Path, device: str = "cpu", short: bool = False) -> dict[str, Table]:
    """Every table by its name; with `short`, also those in short.

    results: the folder of result files. device: "cpu", or the name (without its ending) of the file that holds all
    records of a GPU.
    """
    found = {}
    for name, (file, build) in (BUILD | SHORT if short else BUILD).items():
        stem = file if device == "cpu" else device
        records = [r for ending in ("jsonl", "json") for r in read(results / f"{stem}.{ending}")]
        bench = file.removesuffix("-cpu")
        known = [r for r in records if r.get("bench") == bench and ("card" in r) == (name == "what-if")]
        here = _place(max(known, key=_weight)) if known else ()
        rows = newest(r for r in known if _place(r) == here)
        measured = [r for r in rows if "error" not in r and "missing" not in r]
        untested = withheld(records, device != "cpu")
        hidden = [r for r in measured if r in untested]
        shown = [r for r in measured if r not in untested]
        table = build(shown)
        said = [table.note, _made(shown, name.endswith("-short"))] if table.rows else [NOT_YET]
        if failed := sorted(r["row"] for r in rows if "error" in r):
            said.append(f"Failed: {', '.join(failed)}")
        if hidden:
            sources = ", ".join(sorted({str(r.get("sources")) for r in hidden}))
            said.append(f"Not shown: {len(hidden)} rows of sources {sources}, whose tests have not passed")
        if others := sorted({_elsewhere(r, here) for r in known if _place(r) != here}):
            said.append(f"The file also has rows of {', '.join(others)}")
        found[name] = dataclasses.replace(table, note=NOT_YET if said == [NOT_YET] else ". ".join(said) + ".")
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
