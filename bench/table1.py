"""Table 1 of the paper on this machine: the 72-layer teacher against the 24- and 18-layer students, end to end.

    python bench table1 [--sizes demo --audio-seconds 4 --backends auto auto-int8 --rounds 3 --json FILE]
    python bench table1 --full
    python bench table1 --sizes paper --backends triton         on a GPU

What is timed is a whole request at all levels: conditioning and prompt of every window, decoding, the VQ-VAE and the
file; the model is loaded before (on a GPU with room for several). The paper times 60 s. A shorter request
(`--audio-seconds`) samples a part of the windows of 60 s; the record says which part, and what 60 s would take if every
level's windows and steps cost what they do here. `--full` samples all of it. All take turns in each round, and
speed-ups are over 72 layers with the same decoder in the same round. Speed does not depend on the weights: they are
random, FP16 values as a released checkpoint has them, and sizes are those of `distill/presets.py`. The seven systems of
the paper have three depths, so three rows for each decoder are all there is to time.

The parts: `decode`, `prefill` and `condition` (the conditioners) are timed inside the request, `vqvae` and `file` are
the same work done once more apart. Where windows are computed at the same time, parts overlap, and their sum exceeds
the total: `us_per_step`, what decoding took per step, is then the time of all threads together, not that by the clock.

Peak memory is that of one request: on a GPU what is allocated for it and its model, on a CPU all of a process of its
own, which `--quick` leaves out. `--seconds`: no round but the first starts after so long, and none if that was not
enough to load all models.
"""

from __future__ import annotations

if not __package__:
    from by_path import run as run_again

    run_again(__file__)

import argparse
import dataclasses
import gc
import itertools
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..distill.presets import PRESETS
from ..engine.config import JukeboxConfig
from ..engine.decoder import choose_backend
from .harness import CUT, Rows, add_options, quantiles, rounds_of
from .memory import alone, forget_peak, peak
from .options import amount, decoder, refuse
from .request_parts import PARTS, Spent, Stack

# Speed-up over 72 layers on a Tesla P100 (Table 1), and the seconds of audio that were sampled there.
PAPER = {72: 1.0, 24: 3.0, 18: 4.0}
PAPER_SECONDS = 60.0
WARM_SECONDS = 1.0
# Rounds of so many seconds are recorded without waiting for the last one.
WORTH_KEEPING = 30.0


def stack_of(options: argparse.Namespace, depth: int, backend: str, folder: Path) -> Stack:
    """The stack of a depth, loaded, its files in `folder`."""
    preset = PRESETS[options.sizes]
    priors = (dataclasses.replace(p, depth=preset.depths.get(depth, depth)) for p in preset.config.priors)
    config = JukeboxConfig(preset.config.vqvae, tuple(priors))
    return Stack(config, folder / f"{depth} {backend}", options.device, backend, options.audio_seconds)


def prepared(options: argparse.Namespace, depth: int, backend: str, folder: Path) -> tuple[Stack, int | None]:
    """A stack that has answered a first request, and the bytes of memory that one takes at most."""
    device = torch.device(options.device)
    before = 0
    if device.type == "cuda":
        gc.collect()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    stack = stack_of(options, depth, backend, folder)
    # On a CPU a second warms up as well as a minute; on a GPU this is the request whose memory counts.
    stack.request(None if device.type == "cuda" else min(stack.seconds, WARM_SECONDS))
    if device.type == "cuda":
        return stack, torch.cuda.max_memory_allocated(device) - before
    if options.quick:
        return stack, None
    words = {key: str(getattr(options, key)) for key in ("sizes", "audio_seconds", "threads", "device")}
    settings = (word for key, value in words.items() for word in (f"--{key.replace('_', '-')}", value))
    return stack, alone("table1", *settings, "--alone", str(depth), backend)["peak_bytes"]


def request_alone(options: argparse.Namespace, depth: int, backend: str) -> dict[str, int]:
    """What a request takes in this process, in which nothing else has happened."""
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        stack = stack_of(options, depth, backend, Path(folder))
        # Not what making up its weights took.
        gc.collect()
        forget_peak()
        stack.request()
    return {"peak_bytes": peak()}


def measured(stack: Stack, rounds: int) -> list[Spent]:
    """Its requests of the first rounds; one before them has warmed up."""
    return stack.requests[1 : 1 + rounds]


def figures(stack: Stack, rounds: int) -> dict[str, Any]:
    """What a depth's last requests took."""
    found, seconds = measured(stack, rounds), stack.seconds
    wanted = stack.work(PAPER_SECONDS)
    return {
        "backend": stack.backend,
        "steps": found[0].steps,
        "windows": found[0].windows,
        "windows_of_60_s": sum(count for count, _ in wanted.values()),
        "real_time": quantiles([seconds / spent.total for spent in found]),
        "us_per_step": quantiles([1e6 * spent.decode / spent.steps for spent in found]),
        "total_s": quantiles([spent.total for spent in found]),
        **{f"{part}_s": quantiles([getattr(spent, part) for spent in found]) for part in PARTS},
        "extrapolated_60_s": quantiles([spent.extrapolated(wanted, PAPER_SECONDS / seconds) for spent in found]),
    }


class Records:
    """The rows of the rounds so far. They are written where there is something to lose and at the end, so that a run
    that is killed keeps what it measured; the newest record of a row counts."""

    def __init__(
        self,
        rows: Rows,
        options: argparse.Namespace,
        stacks: dict[tuple[int, str], Stack],
        memory: dict[tuple[int, str], int | None],
        wanted: int,
    ) -> None:
        self.rows, self.options, self.stacks, self.memory, self.wanted = rows, options, stacks, memory, wanted
        self.rounds, self.written, self.time = 0, 0, time.monotonic()

    def after(self, rounds: int) -> None:
        self.rounds = rounds
        if time.monotonic() - self.time >= WORTH_KEEPING:
            self.write()

    def write(self) -> None:
        """Those of rounds that were not written before."""
        if self.rounds > self.written:
            for name, record in self.made().items():
                self.rows.write(name, record)
        self.written, self.time = self.rounds, time.monotonic()

    def made(self) -> dict[str, dict[str, Any]]:
        """By the rows' names; nothing before the first round."""
        totals = {key: [spent.total for spent in measured(stack, self.rounds)] for key, stack in self.stacks.items()}
        found = {}
        for (depth, backend), stack in self.stacks.items() if self.rounds else ():
            pairs = zip(totals[72, backend], totals[depth, backend], strict=True)
            peak_bytes = self.memory[depth, backend]
            found[row(self.options, depth, backend)] = {
                **{"depth": depth, "sizes": self.options.sizes, "audio_seconds": self.options.audio_seconds},
                "rounds": self.rounds,
                **({"unfinished": True} if self.rounds < self.wanted else {}),
                **({} if peak_bytes is None else {"system_peak_bytes": peak_bytes}),
                "speed_up": quantiles([slow / fast for slow, fast in pairs]),
                "paper_speed_up": PAPER[depth],
                **figures(stack, self.rounds),
            }
        return found


def row(options: argparse.Namespace, depth: int, backend: str) -> str:
    return f"{options.sizes} {depth} layers, {backend}, {options.audio_seconds:g} s"


def say(f: dict[str, Any]) -> str:
    parts = ", ".join(f"{name} {f[f'{name}_s']['p50']:.2f}" for name in PARTS)
    memory = f"  peak {f['system_peak_bytes'] / 1e6:.0f} MB" if "system_peak_bytes" in f else ""
    return (
        f"{f['backend']}  {f['speed_up']['p50']:.2f}x (paper {f['paper_speed_up']:.1f}x)  "
        f"{1e6 * f['total_s']['p50'] / f['steps']:.0f} us per step, decoding {f['us_per_step']['p50']:.0f} us of all "
        f"threads  {f['real_time']['p50']:.3f} of real time  total {f['total_s']['p50']:.2f} s: {parts}{memory}  "
        f"({f['windows']} of the {f['windows_of_60_s']} windows of 60 s, which would take "
        f"{f['extrapolated_60_s']['p50']:.1f} s)"
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", choices=["tiny", "demo", "paper"], help="[default: paper on a GPU, else demo]")
    parser.add_argument("--audio-seconds", type=amount, default=4.0, help="length of the request")
    parser.add_argument("--full", action="store_true", help="the paper's 60 s")
    parser.add_argument(
        "--backends", nargs="+", type=decoder, metavar="NAME", help="[default: auto, on a CPU auto-int8 too]"
    )
    parser.add_argument("--alone", nargs=2, help=argparse.SUPPRESS)
    add_options(parser, rounds=3)
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    gpu = device.type == "cuda"
    options.sizes = options.sizes or ("paper" if gpu else "demo")
    options.audio_seconds = PAPER_SECONDS if options.full else options.audio_seconds
    if options.alone:
        print(json.dumps(request_alone(options, int(options.alone[0]), options.alone[1])))
        return 0
    # Several names may mean one decoder.
    asked = options.backends or (["auto"] if gpu else ["auto", "auto-int8"])
    dtype = torch.float16 if gpu else torch.float32
    refuse(parser, asked, lambda name: choose_backend(name, device, dtype))
    rows = Rows("table1", options)
    backends = list(dict.fromkeys(choose_backend(name, device, dtype).name for name in asked))
    systems = [(depth, backend) for backend, depth in itertools.product(backends, PAPER)]
    if rows.known.issuperset(row(options, *system) for system in systems):
        print("recorded before")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        stacks: dict[tuple[int, str], Stack] = {}
        memory: dict[tuple[int, str], int | None] = {}
        for system in systems:
            if time.monotonic() > rows.deadline:
                print("no time left")
                return CUT
            stacks[system], memory[system] = prepared(options, *system, Path(folder))
        runs: dict[str, Callable[[], object]] = {row(options, *key): stack.request for key, stack in stacks.items()}
        # A round is a whole request of each.
        wanted = 1 if options.quick else options.rounds
        records = Records(rows, options, stacks, memory, wanted)
        try:
            rounds_of(runs, device, wanted, warm=True, deadline=rows.deadline, after=records.after)
        finally:
            records.write()
    for name, record in records.made().items():
        print(f"{name:32} {say(record)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
