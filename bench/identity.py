"""Which row a record is of: records of one row replace each other in tables, and those of two files are compared."""

from __future__ import annotations

from .cells import Record

# Where the name of a row has not always said everything, what does.
_SETTINGS = {
    "table1": ("sizes", "depth", "backend", "audio_seconds"),
    "peers": ("depth", "width", "heads", "context", "rows", "batch", "values", "dtype", "threads"),
}
# Their figures go with the number of threads, which their tables do not show row by row.
_TIMED = ("decode", "table1", "roofline", "scaling", "prefill", "attention", "ops", "speculative", "segments")


def identity(record: Record) -> str:
    """The bench and the row; samples of several seeds share a row's name."""
    bench = record.get("bench")
    # A failure of earlier days holds nothing but its row.
    if bench in _SETTINGS and "depth" in record:
        return f"{bench}: " + ", ".join(f"{key} {record[key]}" for key in _SETTINGS[bench] if key in record)
    seed = f" seed {record['seed']}" if record.get("seed") is not None else ""
    return f"{bench}: {record.get('row')}{seed}"


def threads(record: Record) -> int | None:
    """Of the CPU, where all rows of a table have to have the same; None where figures do not depend on them, where rows
    say them, and on a GPU."""
    return record.get("threads") if record.get("bench") in _TIMED and not record.get("estimated") else None
