"""One HTML page from the committed results: tables, figures, and the seven systems to listen to.

    python bench report [--out report.html] [--results bench/results]

The page holds all it shows, loads nothing and runs no script; it opens from the disk. What has no result yet says so.
The same results give the same bytes. Needs the `plot` extra.
"""

from __future__ import annotations

if not __package__:
    from by_path import run as run_again

    run_again(__file__)

import argparse
import base64
import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from ..distill.systems import SYSTEMS
from . import figures
from .cells import Table
from .harness import ROOT, read
from .tables import BUILD, NOT_YET, is_quick, newest, tables, withheld

RESULTS = ROOT / "bench" / "results"
CPU_FILES = {file for file, _ in BUILD.values()}
# Name, title and tables of each section, in the order of the page; what tables() has besides comes last.
SECTIONS = (
    ("speed", "Speed of the students", ("table1",)),
    ("listen", "The seven systems to listen to", ()),
    ("quality", "Quality of the systems", ("systems", "table2")),
    ("decoders", "Decoders", ("peers", "decode", "speculative", "segments", "beginnings", "int8")),
    ("roofline", "Roofline", ("roofline", "what-if")),
    ("scaling", "Scaling", ("scaling",)),
    ("operations", "Prompts and single operations", ("prefill", "attention", "ops", "exchanges")),
    ("further", "Other devices", ()),
)
# A cell that counts as a number, perhaps with a short unit; columns of numbers are aligned on the right.
_NUMBER = re.compile(r"[^A-Za-z]*\d[^A-Za-z]*([A-Za-z]{1,2}[^A-Za-z]*)?")
_ABSENT = {"", "-", "–", "—", NOT_YET}


@dataclass(frozen=True)
class Picture:
    """An image of the page: a data: URI, what it shows in words, and the line below it."""

    source: str
    words: str
    caption: str = ""


@dataclass(frozen=True)
class Piece:
    """What there is of one system: data: URIs of the upsampled piece and of its top level alone, and two pictures."""

    system: str
    full: str | None
    top: str | None
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Section:
    """tables: by name, None where there is no result. pictures: None where no figures belong."""

    name: str
    title: str
    tables: Mapping[str, Table | None]
    pictures: list[Picture] | None
    pieces: list[Piece]


def data_uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _picture(svg: bytes, words: str, caption: str = "") -> Picture:
    return Picture(data_uri(svg, "image/svg+xml"), words, caption)


def _by_device(results: Path, bench: str, *fields: str) -> dict[str, list[dict[str, Any]]]:
    """The newest records of a bench that have these fields, from all files, but for a GPU's without passed tests."""
    found: dict[str, list[dict[str, Any]]] = {}
    records, untested = [], []
    for path in sorted(results.glob("*.json*")):
        of_file = read(path)
        records += [record for record in of_file if record.get("bench") == bench]
        untested += withheld(of_file, path.stem not in CPU_FILES)
    for record in newest(records, lambda record: (record.get("device"), record.get("row"))):
        if all(field in record for field in fields) and record not in untested:
            found.setdefault(record["device"], []).append(record)
    return found


def _quick(records: list[dict[str, Any]]) -> str:
    """What a caption says of records with `--quick`."""
    count = sum(map(is_quick, records))
    of = "Measured" if count == len(records) else f"{count} of {len(records)} points measured"
    return f" {of} with --quick, for orientation." if count else ""


def scaling_pictures(results: Path) -> list[Picture]:
    """A figure per device and axis."""
    pictures = []
    for device, records in _by_device(results, "scaling", "axis").items():
        measured = {record["axis"] for record in records}
        for axis in (axis for axis in figures.AXES if axis in measured):
            quantity, bars = ("Memory", "") if axis == "audio" else ("Codes per second", "; bars are p20 to p80")
            words = f"{quantity} against {figures.AXES[axis].partition(',')[0]}"
            caption = f"{words}. {device}{bars}.{_quick([r for r in records if r['axis'] == axis])}"
            pictures.append(_picture(figures.scaling(records, axis), words, caption))
    return pictures


def roofline_pictures(results: Path) -> list[Picture]:
    """A figure per device."""
    words = "Microseconds per decoding step and their floor"
    bars = "bars are p20 to p80, the share is floor / measured"
    return [
        _picture(figures.roofline(records), words, f"{words}. {device}; {bars}.{_quick(records)}")
        for device, records in _by_device(results, "roofline", "us_per_step", "floor_us").items()
    ]


def _audio(path: Path) -> tuple[np.ndarray, int] | None:
    """Mono samples and their rate, or None where there is no file."""
    if not path.exists():
        return None
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    return samples.mean(axis=1), rate


def pieces(results: Path) -> list[Piece]:
    """The seven systems in their order, each with what audio/ has of it."""
    found = []
    for system in SYSTEMS:
        paths = {"full": results / "audio" / f"{system}.mp3", "top": results / "audio" / f"{system}-top.mp3"}
        audio = {name: _audio(path) for name, path in paths.items()}
        uris = {name: data_uri(paths[name].read_bytes(), "audio/mpeg") for name, heard in audio.items() if heard}
        pictures = []
        if full := audio["full"]:
            pictures.append(_picture(figures.waveform(*full), f"Waveform of the first 5 s of {system}"))
        if rates := [heard[1] for heard in audio.values() if heard]:
            top, full = (heard[0] if heard else None for heard in (audio["top"], audio["full"]))
            drawing = figures.mel_pair(top, full, rates[0])
            pictures.append(_picture(drawing, f"Mel spectrograms of {system}: top level alone, and upsampled"))
        found.append(Piece(system, uris.get("full"), uris.get("top"), tuple(pictures)))
    return found


def of_the_top_only(results: Path) -> str:
    """Which systems were trained at the top level only, as their newest samples say it, and what they take below."""
    samples = (r for r in read(results / "systems.jsonl") if r.get("levels"))
    levels = {record["system"]: record["levels"] for record in newest(samples, lambda record: record["system"])}
    names = [system for system in SYSTEMS if len(levels.get(system, ())) == 1]
    words = (
        "was trained at the top level only and has"
        if len(names) == 1
        else "were trained at the top level only and have"
    )
    return f"{' and '.join(names)} {words} student-18's upsamplers." if names else ""


def sections(found: Mapping[str, Table], results: Path) -> list[Section]:
    drawn = {"scaling": scaling_pictures, "roofline": roofline_pictures}
    known = {name for _, _, names in SECTIONS for name in names}
    made = []
    for name, title, names in SECTIONS:
        if name == "further":
            names = tuple(other for other in found if other not in known)
        shown = {table: found.get(table) for table in names}
        heard = pieces(results) if name == "listen" else []
        if shown or heard:
            made.append(Section(name, title, shown, drawn[name](results) if name in drawn else None, heard))
    return made


def devices(results: Path) -> list[str]:
    """The devices that the records name."""
    records = [record for path in results.glob("*.json*") for record in read(path)]
    return sorted({record["device"] for record in records if "device" in record})


def all_tables(results: Path) -> dict[str, Table]:
    """The tables of the CPU, also those without rows, and those of every GPU for which its file has records."""
    found = tables(results)
    if found["table2"].rows and (said := of_the_top_only(results)):
        found["table2"] = dataclasses.replace(found["table2"], note=f"{found['table2'].note} {said}")
    for device in sorted({path.stem for path in results.glob("*.json*")} - CPU_FILES):
        for name, table in tables(results, device).items():
            if table.note != NOT_YET:
                name = f"{name}-{re.sub(r'[^A-Za-z0-9]+', '-', device)}"
                found[name] = dataclasses.replace(table, name=name, title=f"{table.title}: {device}")
    return found


def _code(text: str) -> Markup:
    """Escaped text in which what stood between backticks is code."""
    parts = text.split("`")
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if place % 2 and place < len(parts) - 1 else escape(part)
        for place, part in enumerate(parts)
    )


def _kinds(table: Table) -> list[str]:
    """A class per column: "number" where every cell is one or absent."""
    columns = list(zip(*table.rows, strict=True))
    return [
        "number" if place and all(_NUMBER.fullmatch(cell) or cell in _ABSENT for cell in column) else "words"
        for place, column in enumerate(columns)
    ]


def render(found: Mapping[str, Table], results: Path) -> str:
    """The page of these tables and of the figures and audio in `results`."""
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"code": _code, "kinds": _kinds}
    template = environment.get_template("report.html.jinja")
    return template.render(
        sections=sections(found, results),
        devices=devices(results),
        top_only=of_the_top_only(results),
        missing=NOT_YET,
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("report.html"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    if not options.results.is_dir():
        parser.error(f"{options.results} is not a folder")
    # The page takes a while.
    if not options.out.parent.is_dir() or options.out.is_dir():
        parser.error(f"{options.out} cannot be written")
    page = render(all_tables(options.results), options.results)
    options.out.write_text(page, encoding="utf-8")
    print(f"{options.out}: {len(page.encode()) / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
