"""Tables of the README, and of bench/RESULTS.md, from the committed results.

    python bench readme [--check]

What stands between `<!-- bench:NAME -->` and `<!-- /bench:NAME -->` is replaced by the table of that name;
`bench:NAME@GPU` takes it from the results of that GPU, `bench/results/GPU.json`. With `--check` nothing is written: the
status is 1 if a file does not say what the results do.
"""

from __future__ import annotations

if not __package__:
    from by_path import run as run_again

    run_again(__file__)

import argparse
import re
from pathlib import Path

from .harness import ROOT
from .tables import markdown, tables

_MARKER = re.compile(r"^<!-- (/?)bench:(\S+) -->$", re.MULTILINE)


def render(text: str, results: Path) -> str:
    """`text` with its tables made anew from the folder `results`.

    Raises:
        ValueError: a marker names no table, or start and end do not pair; with the line.
    """
    parts, done, opened = [], 0, None
    for marker in _MARKER.finditer(text):
        closes, name = marker[1] == "/", marker[2]
        line = text.count("\n", 0, marker.start()) + 1
        if not closes and opened:
            raise ValueError(f"line {line}: bench:{name} begins before /bench:{opened} ends")
        if closes and name != opened:
            raise ValueError(f"line {line}: /bench:{name} ends what did not begin")
        if closes:
            parts.append(_table(name, results, line))
            opened, done = None, marker.start()
        else:
            parts.append(text[done : marker.end()])
            opened, done = name, marker.end()
    if opened:
        raise ValueError(f"bench:{opened} has no end: <!-- /bench:{opened} --> is missing")
    return "".join([*parts, text[done:]])


def _table(marker: str, results: Path, line: int) -> str:
    name, _, device = marker.partition("@")
    found = tables(results, device or "cpu", short=True)
    if name not in found:
        raise ValueError(f"line {line}: no table {name!r}; there are {', '.join(found)}")
    return f"\n\n{markdown(found[name])}\n"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("--readme", type=Path, nargs="+", default=[ROOT / "README.md", ROOT / "bench" / "RESULTS.md"])
    parser.add_argument("--results", type=Path, default=ROOT / "bench" / "results")
    options = parser.parse_args(arguments)
    for file in options.readme:
        if not file.is_file():
            parser.error(f"no file {file}")
    if not options.results.is_dir():
        parser.error(f"{options.results} is not a folder")
    return max(update(file, options.results, options.check) for file in options.readme)


def update(file: Path, results: Path, check: bool) -> int:
    """Writes the tables of one file, or says that they are not current; the status of the command."""
    old = file.read_text()
    try:
        new = render(old, results)
    except ValueError as error:
        print(f"{file.name}: {error}")
        return 2
    if new == old:
        return 0
    if check:
        print(f"{file.name} is not what the results say: run `python bench readme`")
        return 1
    file.write_text(new)
    print(f"{file.name} written")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
