"""Compile the kernels ahead of time, without a GPU, at the shapes that the presets launch.

`python -m fastjukebox.kernels.aot --json bench/results/aot.json` writes what each needs on each architecture:
registers per thread, shared memory per program, and stack and local memory per thread. It fails if a kernel asks for
more shared memory than its architecture gives a program, or if a decode kernel uses stack or local memory. Triton's
cache keeps what was compiled, so that an interrupted run goes on where it stopped. The table is of one item; `--check`
has the positions of one item as a check of drafts has them, side by side with one cache.

The table is Triton 3.9's. Of Triton 3.8's kernels eight of top-5b take 8 or 16 B of stack: sm_75 project_attention
(int8), sm_80 down_residual (BF16), sm_90 sample_step, sm_100 project_attention and norm_up (FP32) and head_logits
(int8). With `--arch 90 --batch 32` there, project_attention of top-1b and top-5b takes 416 to 1,168 B, sample_step and,
in BF16, head_logits of top-5b 8 and 16 B.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from . import fused
from .attention_aot import attention_specializations
from .packing import PackedWeight
from .pattern_groups import COMPILED_FOR, Specialization
from .reference import attention_parts

# Bytes of shared memory that one program can have on each architecture (CUDA C++ Programming Guide, table "Technical
# Specifications per Compute Capability"), those included that a launch has to ask for, as Triton's does.
SHARED_MEMORY = {60: 48 << 10, 70: 96 << 10, 75: 64 << 10, 80: 163 << 10, 90: 227 << 10, 100: 227 << 10}
ARCHITECTURES = tuple(SHARED_MEMORY)
DECODE_OPS = (
    "norm_qkv",
    "cache_attention",
    "project_attention",
    "norm_up",
    "down_residual",
    "head_logits",
    "sample_step",
    "begin_check",
    "end_check",
)
# Positions that `begin_check` and `end_check` of the table look at.
CHECKED = 16


class Shape(NamedTuple):
    """The sizes of a prior that its kernels depend on."""

    width: int
    heads: int
    head_dim: int
    mlp_width: int
    context_len: int
    num_rows: int
    codebook_size: int
    conditioned: bool
    # Whether the head is not the embedding, so that the condition is not added again.
    separate_head: bool = False
    # Positions that pattern LYRICS sees, and characters that CROSS sees; 0: no layer has it.
    lyric_reach: int = 0
    cross: int = 0


# Every shape of `engine.config.PRESETS`; depth and level do not matter, and one with CROSS stands for the same without.
SHAPES = {
    "upsampler": Shape(1920, 1, 480, 1920, 8192, 128, 2048, True),
    "top": Shape(2048, 2, 256, 2048, 6144, 64, 2048, False),
    "top-1b": Shape(2048, 2, 256, 2048, 6528, 64, 2048, True, lyric_reach=448),
    "top-5b": Shape(4800, 8, 150, 4800, 8192, 128, 2048, True, separate_head=True, cross=512),
}
STORED = {
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp32": torch.float32,
    "int8": torch.int8,
}


@dataclass(frozen=True)
class Resources:
    """What one compiled kernel needs; shared memory in bytes per program, stack and local in bytes per thread."""

    name: str
    architecture: int
    warps: int
    registers: int
    shared: int
    stack: int
    local: int

    @property
    def op(self) -> str:
        return re.split(r"[\[/]", self.name)[0]

    def violations(self) -> list[str]:
        """What is wrong with it, in words."""
        kernel = f"sm_{self.architecture} {self.name}"
        found = []
        if self.shared > SHARED_MEMORY[self.architecture]:
            found.append(f"{kernel}: {self.shared} B of shared memory, more than {SHARED_MEMORY[self.architecture]}")
        if self.op in DECODE_OPS and self.stack + self.local:
            found.append(f"{kernel}: {self.stack} B of stack, {self.local} B of local memory")
        return found


def decode_specializations(
    name: str, shape: Shape, stored: str, batch: int = 1, shared: bool = False
) -> Iterator[Specialization]:
    """All kernels of a decode step of `batch` items with weights stored as `stored`, for COMPILED_FOR, and the ends of
    a check of drafts. shared: the items are positions of one."""
    int8 = stored == "int8"
    weight_dtype = STORED[stored]
    # Whatever is not quantized is FP16 beside int8.
    dtype = torch.float16 if int8 else weight_dtype

    def meta(*sizes: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(sizes, dtype=dtype, device="meta")

    def matrix(n_in: int, n_out: int) -> PackedWeight:
        return PackedWeight(meta(n_out, n_in, dtype=weight_dtype).t(), meta(n_out) if int8 else None)

    def named(op: str, launched: Any) -> Specialization:
        return launched._replace(name=f"{op}/{name}/{stored}")

    width, heads, head_dim, mlp_width, context, num_rows, size = shape[:7]
    attn_width, row_len = heads * head_dim, context // num_rows
    slots_of = {"row": row_len, "column": context, "previous_row": 2 * row_len}
    slots_of |= {"dense": context, "lyrics": shape.lyric_reach} if shape.lyric_reach else {}
    slots_of |= {"cross": shape.cross} if shape.cross else {}
    x, hidden, positions = meta(batch, width), meta(batch, mlp_width), meta(batch, dtype=torch.int64)
    norm = meta(width, dtype=dtype), meta(width, dtype=dtype)
    q, parts = meta(batch, attn_width), ()
    for pattern, slots in slots_of.items():
        kv = meta(2, 1 if shared else batch, heads, slots, head_dim, dtype=dtype)
        count, _ = attention_parts(pattern, row_len, slots)
        parts = meta(batch, count, heads, head_dim), meta(batch, count, heads), meta(batch, count, heads)
        projected = attn_width if pattern == "cross" else 3 * attn_width
        qkv, bias = matrix(width, projected), meta(projected, dtype=dtype)
        where = pattern, row_len
        launched = fused.norm_qkv(q, kv, x, positions, *norm, qkv.weight, bias, qkv.scale, *where)
        yield named(f"norm_qkv[{pattern}]", launched)
        yield named(f"cache_attention[{pattern}]", fused.cache_attention(*parts, q, kv, positions, *where))
        proj, bias = matrix(attn_width, width), meta(width, dtype=dtype)
        launched = fused.project_attention(x, *parts, x, proj.weight, bias, proj.scale)
        yield named(f"project_attention[{count} parts]", launched)
    up, bias = matrix(width, mlp_width), meta(mlp_width, dtype=dtype)
    yield named("norm_up", fused.norm_up(hidden, x, *norm, up.weight, bias, up.scale))
    down, bias = matrix(mlp_width, width), meta(width, dtype=dtype)
    yield named("down_residual", fused.down_residual(x, hidden, x, x, down.weight, bias, down.scale))
    head, logits = matrix(width, size), meta(batch, size)
    cond = meta(1 if shared else batch, context, width, dtype=dtype) if shape.conditioned else None
    last_cond = None if shape.separate_head else cond
    yield named("head_logits", fused.head_logits(logits, x, last_cond, positions, *head))
    codes, items, key = (meta(*sizes, dtype=torch.int64) for sizes in ((batch, context), (batch,), (4,)))
    embeddings = meta(size, width, dtype=dtype), meta(context, width, dtype=dtype)
    yield named("sample_step", fused.sample_step(codes, x, positions, logits, items, key, meta(3), *embeddings, cond))
    first = None if cond is None else cond[:1]
    one, lanes = meta(1, dtype=torch.int64), meta(CHECKED, dtype=torch.int64)
    launched = fused.begin_check(meta(CHECKED, width), lanes, one, one, codes[:1], *embeddings, first, row_len)
    yield named("begin_check", launched)
    found, counts = meta(CHECKED, context, dtype=torch.int64), meta(1, 3, dtype=torch.int64)
    ends = codes[:1], x[:1], one, one, counts, one, found
    yield named("end_check", fused.end_check(*ends, *embeddings, first, row_len))


def compile_one(specialization: Specialization, architecture: int) -> Resources:
    """Compile for one architecture (90: sm_90) and read the resource usage out of the binary."""
    constants = specialization.constexprs
    source = ASTSource(specialization.kernel, specialization.signature, constants, specialization.attrs)
    target = GPUTarget("cuda", architecture, 32)
    compiled = triton.compile(source, target=target, options=dict(specialization.options))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        used = resource_usage(file.name)
    return Resources(
        specialization.name,
        architecture,
        specialization.options.get("num_warps", 4),
        used["REG"],
        max(used["SHARED"], compiled.metadata.shared),
        used["STACK"],
        used["LOCAL"],
    )


def resource_usage(cubin: str) -> dict[str, int]:
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    text = subprocess.run([tool, "-res-usage", cubin], capture_output=True, text=True, check=True).stdout
    line = next(line for line in text.splitlines() if "REG:" in line)
    return {key: int(value) for key, value in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", line)}


def specializations(
    architecture: int, name: str, stored: str, attention: bool = True, batch: int = 1, shared: bool = False
) -> list[Specialization]:
    """What to compile for one shape; what two patterns share comes once. No BF16 before sm_80."""
    if stored == "bf16" and architecture < 80:
        return []
    shape = SHAPES[name]
    token = COMPILED_FOR.set(architecture)
    found = {one.name: one for one in decode_specializations(name, shape, stored, batch, shared)}
    COMPILED_FOR.reset(token)
    if attention and stored != "int8":
        row_len = shape.context_len // shape.num_rows
        sizes = row_len, shape.num_rows, shape.head_dim, STORED[stored], architecture, shape.lyric_reach > 0
        found |= {one.name: one for one in attention_specializations(name, *sizes)}
    return list(found.values())


def _compile_all(
    architecture: int, name: str, stored: str, attention: bool, batch: int, shared: bool, match: str
) -> list[Resources]:
    found = specializations(architecture, name, stored, attention, batch, shared)
    return [compile_one(one, architecture) for one in found if re.search(match, one.name)]


def write_table(path: Path, table: list[Resources]) -> None:
    """A JSON object with Triton's version and the kernels, one a line."""
    rows = ",\n".join(json.dumps(asdict(one)) for one in table)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'{{"triton": "{triton.__version__}", "kernels": [\n{rows}\n]}}\n')


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m fastjukebox.kernels.aot", description="Compile the kernels, without a GPU."
    )
    parser.add_argument("--json", type=Path, help="where to write the table")
    parser.add_argument("--arch", type=int, nargs="+", default=ARCHITECTURES, choices=ARCHITECTURES)
    parser.add_argument("--shape", nargs="+", default=tuple(SHAPES), choices=SHAPES)
    parser.add_argument("--stored", nargs="+", default=tuple(STORED), choices=STORED)
    parser.add_argument("--decode-only", action="store_true", help="leave out prefill attention and distillation")
    parser.add_argument("--batch", type=int, default=1, help="items of a decode step")
    parser.add_argument("--check", action="store_true", help="they are positions of one item")
    parser.add_argument("--match", default="", help="regular expression that a kernel's name must match")
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args(arguments)
    kinds = [
        (architecture, shape, stored, not options.decode_only, options.batch, options.check, options.match)
        for architecture in options.arch
        for shape in options.shape
        for stored in options.stored
    ]
    table: list[Resources] = []
    with ProcessPoolExecutor(options.jobs) as pool:
        for found in pool.map(_compile_all, *zip(*kinds, strict=True)):
            for one in found:
                table.append(one)
                print(
                    f"sm_{one.architecture:<4} {one.name:44} {one.registers:4} registers {one.shared:6} B shared "
                    f"{one.stack:3} stack {one.local:3} local",
                    flush=True,
                )
    if options.json:
        write_table(options.json, table)
    violations = [line for one in table for line in one.violations()]
    if violations:
        raise SystemExit("\n".join(violations))


if __name__ == "__main__":
    main()
