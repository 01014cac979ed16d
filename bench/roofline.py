"""How far the decoders are from what the memory allows: bytes per step by part, bandwidths, the floor, the time.

    python bench roofline [--sizes demo-18x128 18x1920 --decoders native --batch 1 8 --parts steps what-if --json FILE]

The floor is a step's fewest bytes (`step_bytes.py`) over the bandwidth of a plain read, which is measured in the rounds
that time the steps, and a copy beside it (bytes read and bytes written counted). Weights that fit the caches of a CPU
can be faster than this floor. A size is a preset, LAYERSxWIDTH (8192 codes), or demo-LAYERSxWIDTH: the windows and
the codebook of the demo stack. Weights are random.

`exchanges`, on a GPU: what a kernel boundary in a CUDA graph and a barrier over the grid cost (`exchanges.py`).
`what-if`: steps per second of the paper's models if a card reached all of the bandwidth that its vendor publishes:
estimated, not measured.
"""

from __future__ import annotations

if not __package__:
    from by_path import run as run_again

    run_again(__file__)

import argparse
import dataclasses
from typing import Any

import torch

from ..engine import checkpoint
from ..engine.config import PriorConfig
from .bandwidth import Mover, copying, reading
from .decode import Case, Stepping, add_case_options, cases, step_parts
from .harness import Rows, add_options, quantiles, rounds_of
from .options import refuse
from .stand_in import size

PARTS = ("steps", "exchanges", "what-if")
CPU_SIZES = ("demo-18x128", "demo-72x128", "18x1920")
GPU_SIZES = ("upsampler-0-18", "upsampler-0-72", "top-18", "top-72")
# GB/s (1e9 bytes) as published in the vendor's data sheets, SXM variants where there are several.
CARDS = {
    "Tesla P100 16GB": 732,
    "Tesla V100": 900,
    "Tesla T4": 320,
    "L4": 300,
    "RTX 3090": 936,
    "RTX 4090": 1008,
    "A100 40GB": 1555,
    "A100 80GB": 2039,
    "H100 SXM": 3350,
    "H200": 4800,
}
# The paper's models by their presets' names.
MODELS = {"top": "top", "upsampler": "upsampler-0"}


def sizes_of(name: str) -> tuple[PriorConfig, bool]:
    """A size by name (see above) -> its config, and whether it has a frame condition.

    Raises:
        ValueError: there is no such size.
    """
    if not name.startswith("demo-"):
        return size(name)
    named, conditioned = size(name.removeprefix("demo-"))
    demo = checkpoint.load_config(checkpoint.DEMO).priors[0]
    return dataclasses.replace(demo, depth=named.depth, width=named.width, conditioner=None), conditioned


def stored(case: Case) -> str:
    """What the weights are stored as."""
    return "int8" if case.decoder.endswith("int8") else case.values or case.dtype


def measure(case: Case, device: torch.device, read: Mover, copy: Mover, rounds: int, aim: float) -> dict[str, Any]:
    """A row: the decoder's steps, a read and a copy in each round. Raises Unavailable where the decoder cannot run."""
    stepping = Stepping(case, device, rounds, aim, sizes_of(case.size))
    times = rounds_of({"decode": stepping.turn, "read": read.run, "copy": copy.run}, device, rounds)
    config = stepping.config
    parts = step_parts(case, config, stepping.conditioned, stepping.middle())
    total = sum(parts.values())
    us = [1e6 * taken / stepping.steps for taken in times["decode"]]
    rates = {
        "read": [read.nbytes / t / 1e9 for t in times["read"]],
        "copy": [copy.nbytes / t / 1e9 for t in times["copy"]],
    }
    floors = [total / rate / 1e3 for rate in rates["read"]]
    return {
        **{
            key: getattr(config, key) for key in ("depth", "width", "heads", "context_len", "num_rows", "codebook_size")
        },
        **{key: getattr(case, key) for key in ("size", "decoder", "batch", "per_graph")},
        "dtype": stored(case),
        "steps": stepping.steps,
        "rounds": rounds,
        "bytes": parts,
        "bytes_per_step": total,
        "read_gb_per_s": quantiles(rates["read"]),
        "copy_gb_per_s": quantiles(rates["copy"]),
        "floor_us": quantiles(floors),
        "us_per_step": quantiles(us),
        "percent": quantiles([100 * floor / value for floor, value in zip(floors, us, strict=True)]),
    }


def say(f: dict[str, Any]) -> str:
    if "card" in f:
        return (
            f"{f['steps_per_s_at_full_bandwidth']:8.0f} steps/s, {f['floor_us_at_full_bandwidth']:7.0f} us per step at "
            f"{f['published_gb_per_s']} GB/s: estimated, not measured"
        )
    parts = ", ".join(f"{name} {value / 1e6:.2f}" for name, value in f["bytes"].items())
    percent = f["percent"]
    return (
        f"{f['us_per_step']['p50']:10.1f} us, floor {f['floor_us']['p50']:9.1f} us, {percent['p50']:5.1f} % "
        f"({percent['p20']:.1f}-{percent['p80']:.1f})  read {f['read_gb_per_s']['p50']:.1f}, copy "
        f"{f['copy_gb_per_s']['p50']:.1f} GB/s  {f['bytes_per_step'] / 1e6:.2f} MB: {parts}"
    )


def row(case: Case) -> str:
    graph = f" x{case.per_graph}" if case.per_graph else ""
    # Beside int8 weights, what the rest is stored as says nothing.
    return f"{case.size} {case.decoder}{graph} {stored(case)} batch {case.batch}"


def what_if(card: str, model: str, depth: int) -> dict[str, Any]:
    """What a card could reach at most with a model of the paper: FP16, batch 1, in the middle of a window."""
    case = Case("", f"{MODELS[model]}-{depth}", "fp16", 1)
    config, conditioned = size(case.size)
    parts = step_parts(case, config, conditioned, config.context_len // 2)
    floor = sum(parts.values()) / CARDS[card] / 1e3
    return {
        "card": card,
        "published_gb_per_s": CARDS[card],
        "model": model,
        "size": case.size,
        "depth": depth,
        "width": config.width,
        "dtype": case.dtype,
        "batch": 1,
        "bytes": parts,
        "bytes_per_step": sum(parts.values()),
        "floor_us_at_full_bandwidth": float(f"{floor:.5g}"),
        "steps_per_s_at_full_bandwidth": float(f"{1e6 / floor:.5g}"),
        "estimated": True,
    }


def say_exchange(f: dict[str, Any]) -> str:
    us = f["us_per_exchange"]
    return f"{us['p50']:.3f} us ({us['p20']:.3f}-{us['p80']:.3f}), {f['programs']} programs"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", help="presets, LAYERSxWIDTH or demo-LAYERSxWIDTH")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    add_case_options(parser)
    add_options(parser)
    options = parser.parse_args(arguments)
    refuse(parser, options.sizes or (), sizes_of)
    rows = Rows("roofline", options)
    device, gpu = rows.device, rows.device.type == "cuda"
    options.sizes = options.sizes or (GPU_SIZES if gpu else CPU_SIZES)[: 1 if options.quick else None]
    options.batch = options.batch or ((1,) if options.quick else (1, 8))
    if "exchanges" in options.parts:
        if gpu:
            # Triton is imported on a GPU only.
            from .exchanges import add_rows

            rows.status = add_rows(options, say_exchange) or rows.status
        else:
            print("kernel boundary, grid barrier: not yet measured on a GPU")
    if "steps" in options.parts:
        nbytes = 1 << (26 if options.quick else 30)
        read, copy = reading(device, nbytes), copying(device, nbytes // 4)
        for case in cases(options):
            rows.add(row(case), lambda c=case: measure(c, device, read, copy, rows.rounds, options.aim), say)
    if "what-if" in options.parts:
        for card in CARDS:
            for model in MODELS:
                for depth in (72, 24, 18):
                    label = f"what-if {card} {depth} layers {model} fp16"
                    rows.add(label, lambda c=card, m=model, d=depth: what_if(c, m, d), say)
    return rows.status


if __name__ == "__main__":
    raise SystemExit(main())
