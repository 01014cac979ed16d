"""What the benchmarks share: which machine and code a figure belongs to, timing, what the machine allows, result files.

A result file holds one JSON record per line and is only ever appended to. A record names its bench and row, the device
with its clocks as read when it was written, versions, commit, a hash of the sources, and the options; `quick` if it was
made with `--quick`. With `--resume`, rows that the file already holds for the same sources, device, threads and rounds
are not measured again unless they failed or could not be measured; with `--no-retry`, not even then.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import hashlib
import json
import math
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from .machine import device_name, device_state, preload, versions
from .options import appendable, cores, device, positive, threads

ROOT = Path(__file__).resolve().parent.parent
# Exit status when time ran out.
CUT = 75
# At most, with `--quick`.
QUICK_ROUNDS = 3


class Unavailable(Exception):
    """Why a row cannot be measured on this machine; not a failure."""


def _git(*words: str) -> str:
    """What git says of the checkout; nothing where it fails."""
    try:
        done = subprocess.run(["git", *words], capture_output=True, text=True, cwd=ROOT)
    except OSError:
        return ""
    return "" if done.returncode else done.stdout.strip()


@lru_cache(maxsize=1)
def commit() -> str:
    """The checkout's commit, with a plus sign if files differ from it, those aside that benchmarks write; "none" where
    the project is not a repository of its own."""
    top, found = _git("rev-parse", "--show-toplevel"), _git("rev-parse", "--short=10", "HEAD")
    if not found or Path(top).resolve() != ROOT.resolve():
        return "none"
    changed = _git("status", "--porcelain", "--", ".", ":(exclude)bench/results", ":(exclude)README.md")
    return found + "+" * bool(changed)


@lru_cache(maxsize=1)
def sources() -> str:
    """A hash of the kernels, the engine and the benchmarks as they are on disk."""
    digest = hashlib.sha256()
    for folder in ("kernels", "engine", "bench"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".cpp", ".h", ".inc", ".cu"):
                digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def circumstances(device: torch.device) -> dict[str, Any]:
    """What every record says besides its figures."""
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return {**device_state(device), **versions(), **preload(), "commit": commit(), "sources": sources(), "time": now}


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """p20, p50 and p80, to five digits."""
    at = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    found = torch.tensor(values, dtype=torch.float64).quantile(at).tolist()
    return {name: float(f"{value:.5g}") for name, value in zip(("p20", "p50", "p80"), found, strict=True)}


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """How long one call takes: between two events on a GPU's stream, by the wall clock on a CPU."""
    if device.type != "cuda":
        began = time.perf_counter()
        run()
        return time.perf_counter() - began
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize(device)
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def rounds_of(
    runs: dict[str, Callable[[], object]],
    device: torch.device,
    rounds: int,
    warm: bool = False,
    deadline: float = math.inf,
    after: Callable[[int], object] = int,
) -> dict[str, list[float]]:
    """Seconds of each run in each round. Within a round all run once, one after the other, in the opposite order of the
    round before: compared runs see the same machine. A first round warms up, unless they are `warm`. After `deadline`
    on the monotonic clock no round but the first starts. `after` is called with the number of rounds so far."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(0 if warm else -1, rounds):
        if turn > 0 and time.monotonic() > deadline:
            break
        for name in list(runs)[:: 1 if turn % 2 else -1]:
            taken = seconds(runs[name], device)
            if turn >= 0:
                times[name].append(taken)
        if turn >= 0:
            after(turn + 1)
    return times


def recorded(run: Callable[[], object], calls: int, device: torch.device) -> Callable[[], object]:
    """`calls` calls of `run` as one: a CUDA graph's replay on a GPU, which leaves out what Python costs."""
    if device.type != "cuda":
        return lambda: [run() for _ in range(calls)]
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        # Compiles, and gives libraries their buffers, which a recording must not.
        for _ in range(3):
            run()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            run()
    return graph.replay


def add_options(parser: argparse.ArgumentParser, rounds: int | None = 11) -> None:
    """The options that every script has. rounds: how many by default; None where nothing is timed."""
    parser.add_argument("--device", type=device, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=threads, default=cores(), help="of the CPU")
    parser.add_argument("--quick", action="store_true", help="few rows and rounds, for orientation")
    if rounds is None:
        parser.set_defaults(rounds=0)
    else:
        parser.add_argument("--rounds", type=positive, default=rounds, help=f"[default: {rounds}]")
    add_record_options(parser)


def add_record_options(parser: argparse.ArgumentParser) -> None:
    """Where records go, and which are not made."""
    parser.add_argument("--json", type=appendable, help="append the records to this file, a line each")
    parser.add_argument("--resume", action="store_true", help="skip rows that the file holds for the same sources")
    parser.add_argument("--no-retry", action="store_true", help="with --resume, skip rows that failed too")
    parser.add_argument("--seconds", type=float, default=math.inf, help="start no row after this long")


# Which rows are made and where they go, not how.
_UNSAID = ("json", "resume", "no_retry", "seconds", "alone")


def said(options: argparse.Namespace) -> dict[str, Any]:
    """The options as a record says them, without those that were not given; of paths the last part."""

    def word(value: Any) -> Any:
        if isinstance(value, Sequence) and not isinstance(value, str):
            return [word(part) for part in value]
        return Path(value).name if isinstance(value, Path) or (isinstance(value, str) and os.sep in value) else value

    return {key: word(value) for key, value in vars(options).items() if key not in _UNSAID and value is not None}


def _way(options: dict[str, Any]) -> tuple[Any, ...]:
    """The options that make other figures of the same row."""
    return options.get("threads"), options.get("rounds"), bool(options.get("quick"))


def append(path: Path, record: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # A writer that was killed may have left half a line.
    broken = path.exists() and path.read_bytes()[-1:] not in (b"", b"\n")
    with path.open("a") as file:
        file.write("\n" * broken + json.dumps(record) + "\n")


def read(path: Path) -> list[dict[str, Any]]:
    """The file's records; a line that was cut short is left out."""
    records = []
    for line in path.read_text().splitlines() if path.exists() else ():
        with contextlib.suppress(json.JSONDecodeError):
            records.append(json.loads(line))
    return records


class Rows:
    """Measures a script's rows one after another, prints and records them."""

    def __init__(self, bench: str, options: argparse.Namespace) -> None:
        self.bench, self.path, self.device = bench, options.json, torch.device(options.device)
        self.deadline = time.monotonic() + options.seconds
        self.status = 0
        self.rounds = min(options.rounds, QUICK_ROUNDS) if options.quick else options.rounds
        self.made = {"quick": True} if options.quick else {}
        self.options = said(options)
        torch.set_num_threads(options.threads)
        if self.device.type == "cuda":
            # Events and recordings are on the current one.
            torch.cuda.set_device(self.device)
        found = read(self.path) if self.path and options.resume else []
        here = (bench, sources(), device_name(self.device), *_way(self.options))
        # The last record of a row says whether it failed.
        last = {
            r["row"]: r
            for r in found
            if (r.get("bench"), r.get("sources"), r.get("device"), *_way(r.get("options", {}))) == here
        }
        again = () if options.no_retry else ("error", "missing")
        self.known = {row for row, record in last.items() if not any(key in record for key in (*again, "unfinished"))}

    def add(
        self,
        row: str,
        measure: Callable[[], dict[str, Any]],
        say: Callable[[dict[str, Any]], str],
        settings: dict[str, Any] | None = None,
    ) -> None:
        """Measure a row unless it is known or time is up. An exception is recorded as the row's `error`, `Unavailable`
        as its `missing`, both beside the `settings`; the script goes on unless the GPU is lost."""
        if row in self.known:
            print(f"{row}: recorded before")
            return
        if time.monotonic() > self.deadline:
            print(f"{row}: no time left")
            self.status = CUT
            return
        # What the row before held.
        gc.collect()
        try:
            figures = measure()
            text = say(figures)
        except Unavailable as reason:
            figures, text = {"missing": str(reason)}, f"not here: {reason}"
        except Exception as error:
            figures = {"error": f"{type(error).__name__}: {error}"[:2000]}
            text = f"failed: {figures['error'][:300]}"
            self.status = self.status or 1
        print(f"{row:44} {text}", flush=True)
        self.write(row, (settings or {}) | figures)
        if "error" in figures and self.device.type == "cuda":
            try:
                torch.cuda.synchronize(self.device)
            except RuntimeError as error:
                # In another process it may; the row that failed is recorded, and those that follow are still to do.
                print(f"the GPU does not answer any more: {error}", flush=True)
                raise SystemExit(CUT) from None
            torch.cuda.empty_cache()

    def write(self, row: str, figures: dict[str, Any]) -> None:
        """Append a record if there is a file for it."""
        if self.path:
            record = {"bench": self.bench, "row": row, **figures, **self.made, "options": self.options}
            append(self.path, record | circumstances(self.device))
