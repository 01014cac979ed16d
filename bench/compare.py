"""Whether figures changed between two sets of results by more than their noise.

    python bench compare OLD.jsonl NEW.jsonl [--fail]
    python bench compare FILE --commits OLD NEW [--fail]

For each timed figure of each row that both have (the newest record counts): the ratio of medians, new to old, and the
noise of that ratio, from p20 to p80 of both. "faster" and "slower" are said of what exceeds the noise; what does not is
"noisy" where the noise is above 25 %, else "same". Bytes and bits, which are measured once, are "better" or "worse" by
more than 1 %. Figures of rounds within one run know nothing of a machine that was slower on another day: look at the
figures that belong to the machine or to other software, which come marked and never fail. A speed-up over other
software is ours as far as our own time changed with it.
"""

from __future__ import annotations

if not __package__:
    from by_path import run as run_again

    run_again(__file__)

import argparse
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from .cells import Record
from .harness import read
from .identity import identity
from .tables import newest

Verdict = Literal["faster", "slower", "same", "noisy", "changed", "better", "worse"]
ALWAYS_TOLD = ("faster", "slower", "same")
# Endings of fields. Higher first: "steps_per_s" ends like seconds.
HIGHER = ("_per_s", "percent", "speed_up", "speedup", "real_time", "tflops", "ratio")
LOWER = ("us_per_step", "_us", "_ms", "_s", "seconds")
# What belongs to the machine or to software that is not ours.
NOT_OURS = ("bandwidth_", "read_", "copy_", "floor_", "matrix_", "transformers_", "growing-cache_")
# Where a figure was taken; `threads` may be None on a GPU.
PLACE = ("device", "cores", "threads", "python", "torch", "triton", "cuda", "driver_version")
PLACE += ("transformers", "LD_PRELOAD", "quick", "rounds", "window_steps")
# A noise that hides most of what one looks for, and that of figures that are measured once.
NOISY, ONCE = 0.25, 0.01


class Change(NamedTuple):
    """`ratio` and `noise` of the medians, new to old: a noise of 0.05 is 5 % either way."""

    row: str
    field: str
    old: float
    new: float
    ratio: float
    noise: float
    verdict: Verdict
    ours: bool


def direction(field: str) -> int:
    """1 where higher is better, -1 where lower is, 0 where the name does not tell."""
    if field.endswith(HIGHER) or "_over_" in field:
        return 1
    return -1 if field.endswith(LOWER) else 0


def log_spread(figure: dict[str, float]) -> float:
    """Half the distance from p20 to p80 as a logarithm; infinite where a quantile is not positive."""
    low, high = figure["p20"], figure["p80"]
    return math.log(high / low) / 2 if low > 0 and high > 0 else math.inf


def measured_once(field: str) -> bool:
    """Whether it is a plain number of which less is better: memory, bits per code."""
    return field.endswith("_bytes") or field.startswith("bits_")


def compared(field: str, before: Any, after: Any) -> tuple[float, float, float, float, Verdict] | None:
    """Old and new value, ratio, noise and verdict of a field with positive values on both sides."""
    if measured_once(field) and isinstance(before, (int, float)) and isinstance(after, (int, float)):
        medians, noise = (before, after), math.log1p(ONCE)
        words: tuple[Verdict, Verdict] = "worse", "better"
    elif isinstance(before, dict) and isinstance(after, dict) and "p50" in before and "p50" in after:
        medians, noise = (before["p50"], after["p50"]), math.hypot(log_spread(before), log_spread(after))
        sign = direction(field)
        words = ("changed", "changed") if not sign else ("faster", "slower") if sign > 0 else ("slower", "faster")
    else:
        return None
    old, new = medians
    if old <= 0 or new <= 0:
        return None
    ratio = new / old
    verdict: Verdict = "noisy" if math.expm1(noise) > NOISY else "same"
    # Of equal medians without spread, rounding may leave a rest.
    if abs(math.log(ratio)) > noise + 1e-9:
        verdict = words[ratio < 1]
    return old, new, ratio, math.expm1(noise), verdict


def is_ours(field: str, verdict: Verdict, old: Record, new: Record) -> bool:
    """Whether a change is of our making; that of a speed-up over a peer is where our own time says the same."""
    if field.startswith(NOT_OURS):
        return False
    if verdict not in ("faster", "slower") or not ("_over_" in field or field.endswith("_speedup")):
        return True
    name = field.partition("_over_")[0].removesuffix("_speedup")
    # The figures of single operations are named after the peer alone.
    own = "triton" if name == "speedup" else name
    found = [compared(key, old.get(key), new.get(key)) for key in (f"{own}_ms", f"{own}_us")]
    return all(times is None or times[-1] == verdict for times in found)


def changes(old: Record, new: Record) -> Iterator[Change]:
    """Each figure that both have, with positive medians, in the order of `old`."""
    for field, before in old.items():
        if found := compared(field, before, new.get(field)):
            yield Change(identity(old), field, *found, is_ours(field, found[-1], old, new))


def at_commit(records: Iterable[Record], commit: str) -> list[Record]:
    """The records of a commit, named in full or by its beginning; "+" after it: with changed files.

    Raises:
        ValueError: there are none, or of several commits.
    """
    records = list(records)
    found = [r for r in records if r.get("commit") == commit]
    found = found or [r for r in records if str(r.get("commit")).startswith(commit)]
    there = sorted({str(r.get("commit")) for r in found or records})
    if not found or len(there) > 1:
        raise ValueError(f"{'several' if found else 'no'} records of commit {commit}: there are {', '.join(there)}")
    return found


def warnings(old: Record, new: Record) -> list[str]:
    """Circumstances in which the two records differ, one line each."""
    differ = [key for key in PLACE if old.get(key) != new.get(key)]
    return [f"{key}: {old.get(key)} against {new.get(key)}" for key in differ]


def report(old: list[Record], new: list[Record]) -> tuple[list[str], list[Change], int]:
    """Lines to print, the changes, row by row in the order of `old`'s age, and how many rows fail that did not.

    Raises:
        ValueError: no row is in both.
    """
    before, after = ({identity(r): r for r in newest(records, identity)} for records in (old, new))
    shared = [row for row in before if row in after]
    if not shared:
        raise ValueError("no row is in both")
    lines: list[str] = []
    found: list[Change] = []
    warned: dict[str, int] = {}
    failed = 0
    for row in shared:
        for warning in warnings(before[row], after[row]):
            warned[warning] = warned.get(warning, 0) + 1
        made = list(changes(before[row], after[row]))
        found += made
        lines.append(row)
        if "error" in after[row]:
            failed += "error" not in before[row]
            lines.append(f"  failed: {after[row]['error']}")
        for c in made:
            noise = "any" if math.isinf(c.noise) else f"{100 * c.noise:.0f} %"
            words = c.verdict if c.ours else f"{c.verdict} (not ours)"
            lines.append(f"  {c.field:28} {c.old:>10.5g} -> {c.new:>10.5g}  {c.ratio:6.3f}x  noise {noise:>6}  {words}")
    lines = [f"warning: {warning} ({rows} rows)" for warning, rows in warned.items()] + lines
    alone = [(name, len(set(these) - set(shared))) for name, these in (("old", before), ("new", after))]
    lines += [f"{count} rows only in {name}" for name, count in alone if count]
    return lines, found, failed


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="two, or one with --commits")
    parser.add_argument("--commits", nargs=2, metavar=("OLD", "NEW"), help="of one file")
    parser.add_argument(
        "--fail", action="store_true", help="status 1 if a figure of ours got slower or a row fails now"
    )
    options = parser.parse_args(arguments)
    if len(options.files) != (1 if options.commits else 2):
        parser.error("two files, or one file and --commits OLD NEW")
    for path in options.files:
        if not path.exists():
            parser.error(f"no file {path}")
    sets = [read(path) for path in options.files]
    try:
        if options.commits:
            sets = [at_commit(sets[0], commit) for commit in options.commits]
        lines, found, failed = report(*sets)
    except ValueError as error:
        parser.error(str(error))
    print("\n".join(lines))
    counts = {verdict: sum(c.verdict == verdict for c in found if c.ours) for verdict in get_args(Verdict)}
    told = [f"{count} {verdict}" for verdict, count in counts.items() if count or verdict in ALWAYS_TOLD]
    print(", ".join(told) + f", {failed} rows fail now")
    return int(options.fail and counts["slower"] + counts["worse"] + failed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
