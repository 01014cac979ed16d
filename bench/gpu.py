"""Everything that needs a GPU, in one command and within minutes: tests, then benchmarks, the most important first.

    make gpu PYTHON=python3        or        python3 bench gpu [--minutes 9 --results FILE --logs DIR]

Records are appended to bench/results/<GPU's name>.json as they come. Every stage is a process of its own: one that
fails or loses the GPU leaves the others alone, and its output is kept in the folder of logs. Run again after an
interruption it goes on where it was cut; what is recorded for the same sources, failures included, is not repeated
(`--again`). A stage gets its share of the time that is left. A table of all records for these sources comes last.
"""

from __future__ import annotations

if not __package__:
    from by_path import run as run_again

    run_again(__file__)

import argparse
import contextlib
import importlib
import os
import re
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from . import harness
from .options import amount, appendable

# The script and the function that has a record's line. Imported when there is one: `make gpu` uses what packages the
# machine has, and not every script needs all.
SAY = {
    name: (name, "say")
    for name in (
        "decode",
        "prefill",
        "attention",
        "ops",
        "roofline",
        "peers",
        "table1",
        "scaling",
        "segments",
        "speculative",
    )
}
SAY["exchanges"] = "roofline", "say_exchange"
# Tests of the kernel that stays, in a process of their own.
PERSISTENT = "tests/engine/test_persistent_decoder.py"
# What a stage may take beyond its share, to finish the row it is in.
GRACE = 15.0
# What one that is ended may take to leave nothing behind.
TIDY = 5.0


class Stage(NamedTuple):
    """`share` of the time, relative to the stages that are still to come. `command` follows `python bench`, or is what
    pytest is given."""

    name: str
    share: float
    command: tuple[str, ...]


def stages() -> list[Stage]:
    upsampler, triton = ("--sizes", "upsampler-0-18"), ("--decoders", "triton", "triton-int8")
    parts = ("exchanges", "steps")
    peers = ("peers", "--depth", "18", "--width", "1920", "--rounds", "5")
    drafts = ("speculative", "--device", "cuda", "--width", "1920", "--rounds", "5")
    segments = ("segments", "--device", "cuda", "--depth", "18", "--context", "1024", "--rounds", "2")
    files = sorted(p for p in (harness.ROOT / "tests").rglob("test_*.py") if "mark.gpu" in p.read_text())
    tests = [str(path.relative_to(harness.ROOT)) for path in files]
    # A kernel that waits for ever ends with an error that costs its process the GPU.
    tests.remove(PERSISTENT)
    persistent = ("--decoders", "persistent", "persistent-int8")
    return [
        # A large share: what it does not take flows to the others, and without it no figure may be reported.
        Stage("tests", 40, ("-m", "gpu", "-v", *tests)),
        Stage(
            "decode 18 layers", 4, ("decode", *upsampler, "--batch", "1", "--steps-per-graph", "8", "1", "32", *triton)
        ),
        Stage("decode 72 layers", 4, ("decode", "--sizes", "upsampler-0-72", "--batch", "1")),
        Stage("tests of the persistent decoder", 6, ("-m", "gpu", "-v", PERSISTENT)),
        Stage(
            "persistent",
            6,
            ("decode", *upsampler, "upsampler-0-72", "--batch", "1", "4", "--dtype", "fp16", *persistent),
        ),
        Stage(
            "batch", 5, ("decode", *upsampler, "upsampler-0-72", "--batch", "32", "16", "4", "--dtype", "fp16", *triton)
        ),
        Stage("prefill", 3, ("prefill",)),
        Stage("attention bf16", 10, ("attention", "--dtype", "bf16")),
        Stage("roofline", 3, ("roofline", *upsampler, "--batch", "1", "--dtype", "fp16", *triton, "--parts", *parts)),
        Stage("drafts", 8, (*drafts, "--batch", "1", "4", "--codes", "1024")),
        # Whether 18 layers make codes as fast as they sound, 7,235 a second.
        Stage("segments", 5, (*segments, "--segments", "8", "--windows", "2.5", "--hops", "0.5")),
        Stage("other sizes", 4, ("decode", "--sizes", "upsampler-0-18", "top-18", "upsampler-0-24", "--batch", "1")),
        Stage("operations", 3, ("ops", "--stored", "fp16", "--implementations", "triton", "reference")),
        Stage("attention fp16", 4, ("attention", "--dtype", "fp16")),
        Stage("operations, int8", 2, ("ops", "--stored", "int8", "--implementations", "triton", "reference")),
        Stage("peers", 3, (*peers, "--batch", "1", "--window")),
        Stage("table 1", 12, ("table1", "--sizes", "paper", "--audio-seconds", "1", "--backends", "triton", "--quick")),
        # Without whole windows, whose prompts would take most of the time.
        Stage("peers, batch", 4, (*peers, "--batch", "4", "16")),
        Stage(
            "torch.compile", 4, ("ops", "--stored", "fp16", "--implementations", "compile", "--sizes", "upsampler-0-72")
        ),
    ]


def rehearsal() -> list[Stage]:
    """The same scripts on a CPU, at sizes that take seconds: for testing this script."""
    small = ("--device", "cpu", "--threads", "1", "--quick")
    shape = ("--shapes", "upsampler", "--patterns", "row", "--codes", "2", "4", "--head-dim", "16")
    window = ("--depth", "2", "--width", "32", "--context", "256", "--rows", "16", "--rounds", "2", "--steps", "3")
    window += ("--backends", "eager", "--window")
    request = ("--sizes", "tiny", "--audio-seconds", "0.05", "--backends", "eager")
    return [
        Stage("tests", 4, ("tests/kernels/test_philox.py",)),
        Stage("decode", 4, ("decode", "--sizes", "1x32", "--decoders", "triton", "eager", "--batch", "1", *small)),
        Stage("prefill", 2, ("prefill", "--sizes", "1x32", "--codes", "66", *small)),
        Stage("attention", 4, ("attention", *shape, *small)),
        Stage("operations", 2, ("ops", "--sizes", "1x32", "--ops", "norm_up", *small)),
        Stage("peers", 2, ("peers", "--device", "cpu", "--threads", "1", *window)),
        Stage("table 1", 2, ("table1", *request, *small)),
    ]


def run(command: Sequence[str], log: Path, limit: float, environment: dict[str, str]) -> int | None:
    """The command's exit status, None if it was ended after `limit` seconds. Its output is shown and kept in `log`."""
    with log.open("w") as file:
        child = subprocess.Popen(
            command,
            cwd=harness.ROOT,
            env=os.environ | environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            # With a group of its own, its workers end with it.
            start_new_session=True,
        )
        try:
            status = child.wait(limit)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            if child.poll() is None:
                # First so that it can remove its temporary folders.
                os.killpg(child.pid, signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(TIDY)
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
                child.wait()
    return status


def test_report(path: Path) -> dict[str, Any]:
    """Counts of a JUnit file, and what failed."""
    suites = list(ElementTree.parse(path).getroot().iter("testsuite"))
    counts = {key: sum(int(s.get(key, 0)) for s in suites) for key in ("tests", "failures", "errors", "skipped")}
    failed = []
    for case in (case for suite in suites for case in suite.iter("testcase")):
        for what in (*case.findall("failure"), *case.findall("error")):
            failed.append(f"{case.get('classname')}::{case.get('name')}: {what.get('message', '')}"[:400])
    return {**counts, "failed": failed[:40]}


def run_stage(stage: Stage, options: argparse.Namespace, results: Path, limit: float) -> dict[str, Any]:
    """Run a stage and return what is to be recorded of it: `status` is "passed", "failed" or "cut"."""
    name = re.sub(r"\W+", "-", stage.name)
    log, junit = options.logs / f"{name}.log", options.logs / f"{name}.xml"
    # The interpreter stands in for the GPU.
    environment = {"TRITON_INTERPRET": "1"} if options.rehearse else {}
    environment |= {"PYTHONUNBUFFERED": "1"}
    if stage.name.startswith("tests"):
        junit.unlink(missing_ok=True)
        command = [
            sys.executable,
            "-m",
            "pytest",
            f"--junitxml={junit.resolve()}",
            "-p",
            "no:cacheprovider",
            *stage.command,
        ]
        if not options.rehearse and _has_xdist():
            command += ["-n", str(min(12, os.cpu_count() or 1))]
    else:
        command = [sys.executable, "bench", *stage.command, "--json", str(results.resolve()), "--resume"]
        command += ["--no-retry", "--seconds", f"{max(0.0, limit - GRACE):.0f}"]
    began = time.monotonic()
    status = run(command, log, limit, environment)
    text = log.read_text(errors="replace")
    print(text, end="" if text.endswith("\n") else "\n", flush=True)
    figures: dict[str, Any] = {"seconds": round(time.monotonic() - began, 1)}
    if stage.name.startswith("tests") and junit.exists():
        figures |= test_report(junit)
    if status is None or status == harness.CUT:
        return figures | {"status": "cut", "limit_s": round(limit, 1)}
    if status:
        return figures | {"status": "failed", "exit": status, "error": text[-2000:]}
    return figures | {"status": "passed"}


def _has_xdist() -> bool:
    try:
        import xdist  # noqa: F401
    except ImportError:
        return False
    return True


def table(records: list[dict[str, Any]]) -> None:
    """The last record of every stage and row."""
    last = {(record["bench"], record["row"]): record for record in records}
    print(f"\n{harness.commit()}, sources {harness.sources()}")
    for (bench, row), record in last.items():
        if bench == "gpu":
            counts = [f"{record[key]} {key}" for key in ("tests", "failures", "errors", "skipped") if key in record]
            print(f"stage {row:38} {', '.join((record['status'], *counts))}, {record['seconds']} s")
            for failed in record.get("failed", record.get("error", "").splitlines()[-1:])[:10]:
                print(f"    {failed[:150]}")
    for (bench, row), record in last.items():
        if bench in SAY:
            problem = record.get("missing") or record.get("error")
            script, function = SAY[bench]
            say = getattr(importlib.import_module(f".{script}", __package__), function)
            figures = {key: value for key, value in record.items() if key != "options"}
            print(f"{bench:9} {row:44} {problem[:100] if problem else say(figures)}")
    if last.get(("gpu", "tests"), {}).get("status") != "passed":
        print("\nThe tests have not passed: the figures above are not to be reported.")
    elif last.get(("gpu", "tests of the persistent decoder"), {}).get("status") != "passed":
        print("\nThe persistent decoder's tests have not passed: its figures are not to be reported.")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=amount, default=9.0, help="for everything")
    parser.add_argument("--results", type=appendable, help="default: bench/results/<GPU's name>.json")
    parser.add_argument("--logs", type=Path, default=harness.ROOT / "build" / "gpu")
    parser.add_argument("--only", nargs="+", metavar="STAGE", help="some stages")
    parser.add_argument("--again", nargs="*", metavar="STAGE", help="these stages (all) though they are recorded")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU with tiny sizes, to test this script")
    options = parser.parse_args(arguments)
    if not options.rehearse and not torch.cuda.is_available():
        parser.error("PyTorch finds no NVIDIA GPU here (--rehearse runs tiny sizes on the CPU)")
    deadline = time.monotonic() + 60 * options.minutes
    device = torch.device("cpu" if options.rehearse else "cuda")
    name = re.sub(r"\W+", "-", harness.device_name(device)).strip("-")
    results = options.results or (options.logs if options.rehearse else harness.ROOT / "bench/results") / f"{name}.json"
    options.logs.mkdir(parents=True, exist_ok=True)
    todo = rehearsal() if options.rehearse else stages()
    if options.only:
        if unknown := set(options.only) - {stage.name for stage in todo}:
            parser.error(f"no stage {', '.join(unknown)}; there are {', '.join(stage.name for stage in todo)}")
        todo = [stage for stage in todo if stage.name in options.only]

    def ours() -> list[dict[str, Any]]:
        return [record for record in harness.read(results) if record.get("sources") == harness.sources()]

    ended = {record["row"] for record in ours() if record["bench"] == "gpu" and record["status"] != "cut"}
    if options.again is not None:
        ended -= set(options.again or ended)
    todo = [stage for stage in todo if stage.name not in ended]

    def attempt(todo: list[Stage]) -> list[Stage]:
        """Run the stages; those that are not over."""
        cut = []
        for index, stage in enumerate(todo):
            left = deadline - time.monotonic()
            limit = left * stage.share / sum(later.share for later in todo[index:])
            limit = min(left, max(limit, GRACE + 5))
            if limit < 5:
                print(f"== {stage.name}: no time left", flush=True)
                cut.append(stage)
                continue
            print(f"== {stage.name}, at most {limit:.0f} s", flush=True)
            figures = run_stage(stage, options, results, limit)
            if figures["status"] == "cut":
                cut.append(stage)
            harness.append(results, {"bench": "gpu", "row": stage.name, **figures, **harness.circumstances(device)})
        return cut

    cut = attempt(todo)
    if cut and deadline - time.monotonic() > GRACE + 5:
        # Later stages took less than their share, or a row lost the GPU and others were still to come.
        cut = attempt(cut)
    records = ours()
    table(records)
    print(f"{results}" + (" (cut: run again to go on)" if cut else ""))
    stage_records = {record["row"]: record["status"] for record in records if record["bench"] == "gpu"}
    return 1 if "failed" in stage_records.values() else harness.CUT if cut else 0


if __name__ == "__main__":
    raise SystemExit(main())
