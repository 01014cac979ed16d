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
the total.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import itertools
import resource
import tempfile
from pathlib import Path
from typing import Any

import torch

from ..distill.presets import PRESETS
from ..engine.config import JukeboxConfig
from ..engine.decoder import choose_backend
from .harness import Rows, add_options, append, circumstances, quantiles, rounds_of
from .request_parts import PARTS, Stack

# Speed-up over 72 layers on a Tesla P100 (Table 1), and the seconds of audio that were sampled there.
PAPER = {72: 1.0, 24: 3.0, 18: 4.0}
PAPER_SECONDS = 60.0


def figures(stack: Stack, rounds: int) -> dict[str, Any]:
    """What a depth's last requests took."""
    found, seconds = stack.requests[-rounds:], stack.seconds
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


class PeakMemory:
    """Bytes at most: on a GPU those allocated since this was made, on a CPU those of the process so far."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.before = device, 0
        if device.type == "cuda":
            gc.collect()
            torch.cuda.reset_peak_memory_stats(device)
            self.before = torch.cuda.memory_allocated(device)

    def read(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) - self.before
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def say(f: dict[str, Any]) -> str:
    parts = ", ".join(f"{name} {f[f'{name}_s']['p50']:.2f}" for name in PARTS)
    return (
        f"{f['backend']}  {f['speed_up']['p50']:.2f}x (paper {f['paper_speed_up']:.1f}x)  "
        f"{f['us_per_step']['p50']:.0f} us per step  {f['real_time']['p50']:.3f} of real time  "
        f"total {f['total_s']['p50']:.2f} s: {parts}  peak {f['peak_bytes'] / 1e6:.0f} MB  "
        f"({f['windows']} of the {f['windows_of_60_s']} windows of 60 s, which would take "
        f"{f['extrapolated_60_s']['p50']:.1f} s)"
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", choices=["tiny", "demo", "paper"], help="[default: paper on a GPU, else demo]")
    parser.add_argument("--audio-seconds", type=float, default=4.0, help="length of the request")
    parser.add_argument("--full", action="store_true", help="the paper's 60 s")
    parser.add_argument("--backends", nargs="+", metavar="NAME", help="[default: auto, on a CPU auto-int8 too]")
    add_options(parser)
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    known = Rows("table1", options).known
    sizes = options.sizes or ("paper" if device.type == "cuda" else "demo")
    seconds = PAPER_SECONDS if options.full else options.audio_seconds
    rounds = 1 if options.quick else min(options.rounds, 3)
    preset = PRESETS[sizes]
    backends = options.backends or (["auto"] if device.type == "cuda" else ["auto", "auto-int8"])
    names = {}
    for depth, backend in itertools.product((72, 24, 18), backends):
        dtype = torch.float16 if device.type == "cuda" else torch.float32
        int8 = ", int8 weights" if choose_backend(backend, device, dtype).int8 else ""
        names[depth, backend] = f"{sizes} {depth} layers{int8}"
    if known.issuperset(names.values()):
        print("recorded before")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        stacks: dict[tuple[int, str], Stack] = {}
        memory = {}
        # From the smallest on: the peak of a process only grows.
        for depth, backend in itertools.product((18, 24, 72), reversed(backends)):
            priors = (dataclasses.replace(p, depth=preset.depths.get(depth, depth)) for p in preset.config.priors)
            config = JukeboxConfig(preset.config.vqvae, tuple(priors))
            peak = PeakMemory(device)
            stack = Stack(config, Path(folder) / f"{depth} {backend}", options.device, backend, seconds)
            stack.request()
            stacks[depth, backend], memory[depth, backend] = stack, peak.read()
        rounds_of({" ".join(map(str, key)): stack.request for key, stack in stacks.items()}, device, rounds, warm=True)
    totals = {key: [spent.total for spent in stack.requests[-rounds:]] for key, stack in stacks.items()}
    for backend, depth in itertools.product(backends, (72, 24, 18)):
        key = depth, backend
        found = figures(stacks[key], rounds)
        speed_up = quantiles([slow / fast for slow, fast in zip(totals[72, backend], totals[key], strict=True)])
        record = {"bench": "table1", "row": names[key], "depth": depth, "sizes": sizes}
        record |= {"audio_seconds": seconds, "rounds": rounds, "peak_bytes": memory[key]}
        record |= {"speed_up": speed_up, "paper_speed_up": PAPER[depth], **found}
        print(f"{names[key]:32} {say(record)}")
        if options.json:
            append(options.json, record | circumstances(device))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
