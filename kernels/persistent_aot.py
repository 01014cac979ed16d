"""Compile the kernel that stays on the GPU (cuda/persistent.cu) ahead of time, without a GPU, at the presets' shapes.

`python -m fastjukebox.kernels.persistent_aot --json bench/results/aot-persistent.json` writes what it needs on each
architecture that NVRTC compiles for: registers and local memory of a thread. None uses any of the latter but those of
top-5b, whose 4,800 columns are many for 512 threads.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path

import torch

from .aot import SHAPES, STORED, Resources, resource_usage
from .persistent import MOST_ITEMS, THREADS, Shape, compile_cubin, nvrtc_version

# Of T4, A100, H100 (and H200) and B200: multiprocessors, and bytes of shared memory that a block can have.
GPUS = {75: (40, 64 << 10), 80: (108, 163 << 10), 90: (132, 227 << 10), 100: (148, 227 << 10)}


def shapes(names: list[str], stored: list[str], batches: list[int]) -> Iterator[tuple[str, Shape]]:
    for name in names:
        width, heads, head_dim, mlp_width, context_len, num_rows, codes = SHAPES[name][:7]
        sizes = width, heads * head_dim, heads, mlp_width, codes, context_len, context_len // num_rows
        for kind in stored:
            int8 = kind == "int8"
            for batch in batches:
                # Whatever is not quantized is FP16 beside int8.
                shape = Shape(*sizes, batch, torch.float16 if int8 else STORED[kind], int8)
                yield f"decode_steps/{name}/{kind}/batch {batch}", shape


def compile_one(name: str, shape: Shape, architecture: int) -> Resources | None:
    """None: it has no room there."""
    multiprocessors, shared_bytes = GPUS[architecture]
    defines = shape.defines(shape.blocks(multiprocessors), shared_bytes)
    try:
        cubin = compile_cubin(defines, divmod(architecture, 10))
    except ValueError:
        return None
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        used = resource_usage(file.name)
    return Resources(name, architecture, THREADS // 32, used["REG"], shared_bytes, used["STACK"], used["LOCAL"])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m fastjukebox.kernels.persistent_aot", description=__doc__)
    parser.add_argument("--json", type=Path, help="where to write the table")
    parser.add_argument("--arch", type=int, nargs="+", default=list(GPUS), choices=GPUS)
    parser.add_argument("--shape", nargs="+", default=list(SHAPES), choices=SHAPES)
    parser.add_argument("--stored", nargs="+", default=list(STORED), choices=STORED)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, MOST_ITEMS])
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args(arguments)
    kinds = [
        (name, shape, architecture)
        for architecture in options.arch
        for name, shape in shapes(options.shape, options.stored, options.batch)
    ]
    with ProcessPoolExecutor(options.jobs) as pool:
        table = [one for one in pool.map(compile_one, *zip(*kinds, strict=True)) if one]
    for one in table:
        print(f"sm_{one.architecture:<4} {one.name:40} {one.registers:4} registers {one.stack + one.local:4} B local")
    if options.json:
        rows = ",\n".join(json.dumps(asdict(one)) for one in table)
        options.json.write_text(f'{{"nvrtc": "{nvrtc_version()}", "kernels": [\n{rows}\n]}}\n')


if __name__ == "__main__":
    main()
