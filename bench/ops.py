"""The operations of a decode step at the models' shapes: Triton against the reference and torch.compile.

    python bench ops [--sizes upsampler-0-72 --stored fp16 int8 --batch 1 --implementations triton reference compile]

Triton's run as in the graph decoder, FP32 activations beside stored weights; the reference and its compiled form get
activations in the weights' dtype, as the eager decoder has them. Calls go round over copies of the weights that
together exceed a GPU's L2 cache, within one CUDA graph where the operation does not wait for the host (the reference's
norm_qkv, cache_attention and sample_step do). What else they read is small and may come from the cache.
"""

from __future__ import annotations

if not __package__:
    from by_path import run as run_again

    run_again(__file__)

import argparse
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..engine.config import PriorConfig
from ..kernels import reference
from ..kernels.packing import pack_weight
from .bandwidth import Mover, plain
from .harness import Rows, Unavailable, add_options, quantiles, recorded, rounds_of
from .options import positive, refuse
from .stand_in import size

STORED = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "int8": torch.float16}
OPS = (
    "norm_qkv",
    "cache_attention[row]",
    "cache_attention[column]",
    "cache_attention[previous_row]",
    "project_attention",
    "norm_up",
    "down_residual",
    "head_logits",
    "sample_step",
)
IMPLEMENTATIONS = ("triton", "reference", "compile")
# The reference reads positions on the host.
WAITS = ("norm_qkv", "cache_attention", "sample_step")


class Case(NamedTuple):
    op: str
    size: str
    stored: str
    batch: int

    @property
    def row(self) -> str:
        return f"{self.op} {self.size} {self.stored} batch {self.batch}"


class Call(NamedTuple):
    """`run` makes `repeats` calls that move `nbytes` each."""

    run: Callable[[], object]
    repeats: int
    nbytes: int


def implementation(name: str, op: str, device: torch.device) -> Callable[..., object]:
    """Raises Unavailable where it cannot run."""
    if name == "reference":
        return getattr(reference, op)
    if device.type != "cuda":
        raise Unavailable("it needs an NVIDIA GPU")
    if name == "compile":
        torch.compiler.reset()
        return torch.compile(getattr(reference, op), dynamic=False)
    from ..kernels import fused

    return getattr(fused, op)


def arguments(
    case: Case, config: PriorConfig, conditioned: bool, device: torch.device, dtype: torch.dtype
) -> tuple[tuple[Any, ...], int]:
    """The operation's arguments, with activations in `dtype`, and the bytes that it must move."""
    op, _, pattern = case.op.rstrip("]").partition("[")
    pattern = pattern or "column"
    stored, int8, batch = STORED[case.stored], case.stored == "int8", case.batch
    width, attn_width, row_len, context = config.width, config.attn_width, config.row_len, config.context_len

    def draw(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.randn(shape, device=device).to(dtype)

    def matrix(n_in: int, n_out: int) -> tuple[Tensor, Tensor | None]:
        return pack_weight(draw(n_in, n_out, dtype=stored) * n_in**-0.5, int8)

    def vector(n: int) -> Tensor:
        return draw(n, dtype=stored)

    pos = context // 2 + row_len // 2
    positions = torch.full((batch,), pos, device=device)
    slots = {"row": row_len, "previous_row": 2 * row_len}.get(pattern, context)
    parts, _ = reference.attention_parts(pattern, row_len, slots)
    kept = draw(batch, parts, config.heads, config.head_dim), *(draw(batch, parts, config.heads) for _ in range(2))
    x, q = draw(batch, width), draw(batch, attn_width)
    frame_cond = draw(batch, context, width, dtype=stored) if conditioned else None
    kv: Tensor | None = None
    if op in ("norm_qkv", "cache_attention"):
        kv = draw(2, batch, config.heads, slots, config.head_dim, dtype=stored)
    weights: tuple[Tensor | None, ...] = ()
    if op == "norm_qkv":
        (w, scale), bias = matrix(width, 3 * attn_width), vector(3 * attn_width)
        weights = vector(width), vector(width), w, bias, scale
        found: tuple[Any, ...] = (q, kv, x, positions, *weights, pattern, row_len)
        activations = x.nbytes + q.nbytes + 2 * batch * attn_width * stored.itemsize
    elif op == "cache_attention":
        found = *kept, q, kv, positions, pattern, row_len
        seen = reference.cache_visible(pos, pattern, row_len, slots)[1]
        activations = 2 * batch * seen * attn_width * stored.itemsize + q.nbytes + kept[0].nbytes
    elif op == "project_attention":
        (w, scale), bias = matrix(attn_width, width), vector(width)
        weights = w, bias, scale
        found, activations = (draw(batch, width), *kept, x, *weights), 2 * x.nbytes + kept[0].nbytes
    elif op == "norm_up":
        (w, scale), bias = matrix(width, config.mlp_width), vector(config.mlp_width)
        weights = vector(width), vector(width), w, bias, scale
        found, activations = (draw(batch, config.mlp_width), x, *weights), 2 * x.nbytes
    elif op == "down_residual":
        (w, scale), bias = matrix(config.mlp_width, width), vector(width)
        weights = w, bias, scale
        found, activations = (draw(batch, width), draw(batch, config.mlp_width), x, x, *weights), 3 * x.nbytes
    elif op == "head_logits":
        weights = matrix(width, config.codebook_size)
        logits = draw(batch, config.codebook_size)
        found, activations = (logits, x, frame_cond, positions, *weights), 2 * x.nbytes + logits.nbytes
    elif op == "sample_step":
        codes, items = torch.zeros(batch, context, dtype=torch.int64, device=device), positions * 0
        noise_key, filters = torch.zeros(4, dtype=torch.int64, device=device), torch.ones(3, device=device)
        logits, embeddings = draw(batch, config.codebook_size), (vector(width)[None], vector(width)[None])
        tables = embeddings[0].repeat(config.codebook_size, 1), embeddings[1].repeat(context, 1)
        found = codes, x, positions, logits, items, noise_key, filters, *tables, frame_cond
        activations = logits.nbytes + x.nbytes + 3 * batch * width * stored.itemsize
    else:
        raise ValueError(f"unknown operation {case.op}; there are {', '.join(OPS)}")
    return found, activations + sum(w.nbytes for w in weights if w is not None)


def prepare(case: Case, name: str, device: torch.device) -> Call:
    """Calls of one implementation of an operation. Raises Unavailable where it cannot run."""
    op = case.op.partition("[")[0]
    function = implementation(name, op, device)
    config, conditioned = size(case.size)
    dtype = torch.float32 if name == "triton" else STORED[case.stored]
    first, nbytes = arguments(case, config, conditioned, device, dtype)
    copies = 1
    if device.type == "cuda" and op not in ("cache_attention", "sample_step"):
        copies = max(1, (256 << 20) // nbytes)
    sets = [first] + [tuple(v.clone() if _is_weight(v) else v for v in first) for _ in range(copies - 1)]
    count = max(1, 64 // copies) * copies if device.type == "cuda" else 1
    # sample_step moves the positions on.
    positions = next((v for v in first if isinstance(v, Tensor) and v.shape == (case.batch,)), None)
    start = None if positions is None else positions.clone()

    def run() -> None:
        if op == "sample_step" and positions is not None and start is not None:
            positions.copy_(start)
        for index in range(count):
            function(*sets[index % copies])

    if name == "triton" or op not in WAITS:
        return Call(recorded(run, 1, device), count, nbytes)
    return Call(run, count, nbytes)


def _is_weight(value: object) -> bool:
    """The one large matrix among the arguments, stored output by output."""
    return isinstance(value, Tensor) and value.dim() == 2 and value.stride(0) == 1 and value.numel() > 1 << 16


def measure(case: Case, names: list[str], device: torch.device, bandwidth: Mover, rounds: int) -> dict[str, Any]:
    calls, errors = {}, {}
    for name in names:
        try:
            calls[name] = prepare(case, name, device)
        except Unavailable as reason:
            errors[name] = f"not here: {reason}"
        except Exception as error:
            errors[name] = f"{type(error).__name__}: {error}"[:500]
    runs = {name: call.run for name, call in calls.items()}
    times = rounds_of({**runs, "bandwidth": bandwidth.run}, device, rounds)
    rates = [bandwidth.nbytes / taken / 1e9 for taken in times.pop("bandwidth")]
    figures: dict[str, Any] = {**case._asdict(), "rounds": rounds, "errors": errors}
    for name, taken in times.items():
        us = [1e6 * value / calls[name].repeats for value in taken]
        moved = calls[name].nbytes
        shares = [moved / value / 10 / rate for value, rate in zip(us, rates, strict=True)]
        figures |= {f"{name}_us": quantiles(us), f"{name}_percent": quantiles(shares), f"{name}_bytes": moved}
    if "triton" in errors and device.type == "cuda":
        raise RuntimeError(errors["triton"])
    return figures


def say(f: dict[str, Any]) -> str:
    parts = [
        f"{name} {f[f'{name}_us']['p50']:.1f} us ({f[f'{name}_percent']['p50']:.1f} %)"
        for name in IMPLEMENTATIONS
        if f"{name}_us" in f
    ]
    return ", ".join(parts + [f"{name}: {why[:60]}" for name, why in f["errors"].items()])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["upsampler-0-72", "top-72"], help="presets, or LAYERSxWIDTH")
    parser.add_argument("--ops", nargs="+", default=OPS, choices=OPS)
    parser.add_argument("--stored", nargs="+", choices=STORED)
    parser.add_argument("--batch", type=positive, nargs="+", default=[1])
    parser.add_argument("--implementations", nargs="+", default=IMPLEMENTATIONS, choices=IMPLEMENTATIONS)
    add_options(parser)
    options = parser.parse_args(argv)
    refuse(parser, options.sizes, size)
    rows = Rows("ops", options)
    stored = options.stored or (("fp16", "int8") if rows.device.type == "cuda" else ("fp32",))
    bandwidth = plain(rows.device, 1 << (26 if options.quick else 30))
    for batch, kind, name, op in itertools.product(options.batch, stored, options.sizes, options.ops):
        case, names = Case(op, name, kind, batch), options.implementations
        label = f"{case.row} {'/'.join(names)}"
        rows.add(label, lambda case=case, names=names: measure(case, names, rows.device, bandwidth, rows.rounds), say)
    return rows.status


if __name__ == "__main__":
    raise SystemExit(main())
