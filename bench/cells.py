"""A table of words, and how figures become words."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

Record = dict[str, Any]
# No figure.
NONE = "–"


@dataclass(frozen=True)
class Table:
    """`note`: the command that measured it, what is counted, the device, versions and commits."""

    name: str
    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def number(value: float) -> str:
    """Three digits, or all before the point."""
    size = abs(value)
    if size >= 100:
        return f"{value:,.0f}"
    return f"{value:.{1 if size >= 10 else 2 if size >= 1 else 3}f}" if size >= 0.1 else f"{value:.2g}"


def cell(value: Any, form: Callable[[float], str] = number, unit: str = "") -> str:
    """A figure: a number, or quantiles with their spread."""
    if value is None:
        return NONE
    if isinstance(value, dict):
        return f"{form(value['p50'])}{unit} ({form(value['p20'])}, {form(value['p80'])})"
    return form(value) + unit


def middle(value: dict[str, float] | None) -> str:
    """A median without its spread."""
    return NONE if value is None else number(value["p50"])


def over_seeds(values: Sequence[float], form: str = ".3f") -> str:
    """Mean and, of several, standard deviation."""
    if not values:
        return NONE
    spread = f" ± {statistics.stdev(values):{form}}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{form}}{spread}"


def table_of(name: str, title: str, header: Sequence[str], rows: Iterable[Sequence[str]], note: str) -> Table:
    """Without the columns that hold nothing."""
    rows = list(rows)
    kept = [i for i in range(len(header)) if not rows or any(row[i] != NONE for row in rows)]
    chosen = tuple(tuple(row[i] for i in kept) for row in rows)
    return Table(name, title, tuple(header[i] for i in kept), chosen, note)


def listed(records: Iterable[Record], key: str) -> list[str]:
    """The different values of a field, those that there are."""
    return [str(value) for value in sorted({record[key] for record in records if record.get(key) is not None})]
