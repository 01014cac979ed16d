"""Attention by pattern, forward and backward: Triton against the reference and FlexAttention with the same mask.

    python bench attention [--shapes upsampler top --dtype bf16 --json FILE]

Queries, keys and values are views of one projection, as in the models. All runs of a row take turns; on a GPU each is a
CUDA graph, so that none pays for Python. Before a time is taken, outputs and gradients must agree.
"""

from __future__ import annotations

if not __package__:
    from by_path import run as run_again

    run_again(__file__)

import argparse
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..engine.config import PriorConfig
from ..engine.patterns import Pattern, visible
from ..kernels import reference
from .bandwidth import Mover, plain
from .decode import DTYPES
from .harness import Rows, add_options, quantiles, recorded, rounds_of
from .options import positive, refuse
from .stand_in import size

SHAPES = {"upsampler": "upsampler-0-72", "top": "top-72"}
PATTERNS = ("row", "column", "previous_row")
# Where FlexAttention's own choice does not fit a head dim of 480, smaller blocks.
FLEX_BLOCKS = (
    None,
    {"BLOCK_M": 32, "BLOCK_N": 32, "num_stages": 1} | {"BLOCK_M1": 32, "BLOCK_N1": 32, "BLOCK_M2": 32, "BLOCK_N2": 32},
)
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


class Case(NamedTuple):
    shape: str
    pattern: str
    dtype: str
    backward: bool

    @property
    def row(self) -> str:
        return f"{self.shape} {self.pattern} {self.dtype} {'forward+backward' if self.backward else 'forward'}"


def flex(pattern: str, length: int, row_len: int, device: torch.device, blocks: dict[str, int] | None) -> Attention:
    """FlexAttention, compiled, behind our signature."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def mask(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return visible(Pattern(pattern), query, key, row_len)

    block_mask = create_block_mask(mask, None, None, length, length, device=str(device))
    # Past a number of variants PyTorch would quietly run what is not compiled.
    torch.compiler.reset()
    compiled: Any = torch.compile(flex_attention, dynamic=False, fullgraph=True)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        heads_first = (x.transpose(1, 2) for x in (q, k, v))
        return compiled(*heads_first, block_mask=block_mask, kernel_options=blocks).transpose(1, 2)

    return attend


def outputs(attend: Attention, qkv: list[Tensor], grad: Tensor | None) -> tuple[Tensor, ...]:
    """The output, and with `grad` the gradients of queries, keys and values."""
    out = attend(*qkv)
    return (out,) if grad is None else (out, *torch.autograd.grad(out, qkv, grad))


def checked(
    name: str, attend: Attention, qkv: list[Tensor], grad: Tensor | None, expected: tuple[Tensor, ...]
) -> Callable[[], tuple[Tensor, ...]]:
    """A run of `attend`. Raises RuntimeError where its results are off by 4 % or more of their norm: the kernels' tests
    are stricter, this sees a wrong mask."""
    for what, found, wanted in zip("oqkv", outputs(attend, qkv, grad), expected, strict=False):
        off = ((found.float() - wanted.float()).norm() / wanted.float().norm()).item()
        if not off < 0.04:
            raise RuntimeError(f"{name}: {what} is off by {off:.3g}")
    return lambda: outputs(attend, qkv, grad)


def candidates(case: Case, config: PriorConfig, device: torch.device) -> dict[str, list[Attention]]:
    """By name, what may serve: the first that runs is timed."""
    pattern, row_len, length = case.pattern, config.row_len, config.context_len
    found: dict[str, list[Attention]] = {
        "reference": [lambda q, k, v: reference.prefill_attention(q, k, v, pattern, row_len)]
    }
    try:
        from ..kernels.prefill_attention import prefill_attention
    except ImportError:
        return found
    found["triton"] = [lambda q, k, v: prefill_attention(q, k, v, pattern, row_len)]
    if device.type == "cuda":
        found["flex"] = [flex(pattern, length, row_len, device, blocks) for blocks in FLEX_BLOCKS]
    return found


class Prepared(NamedTuple):
    """`calls` by name, each `repeats` times the operation, which moves `nbytes`; why others failed."""

    calls: dict[str, Callable[[], object]]
    errors: dict[str, str]
    repeats: int
    nbytes: int


def window(shape: str, codes: tuple[int, int] | None = None, head_dim: int | None = None) -> PriorConfig:
    """Sizes of a model's window, or of one of (rows, row length) and another head dim."""
    config = size(SHAPES.get(shape, shape if "x" in shape else "1x128"))[0]
    num_rows, row_len = codes or (config.num_rows, config.row_len)
    width = 4 * config.heads * (head_dim or config.head_dim)
    return PriorConfig(0, width, 1, config.heads, num_rows * row_len, num_rows)


def prepare(case: Case, config: PriorConfig, device: torch.device, names: Sequence[str] | None = None) -> Prepared:
    """The implementations that run here and agree with the reference in FP32; all or those of `names`."""
    shape = 1, config.context_len, 3, config.heads, config.head_dim
    # A mean other than zero shows padding that leaks in.
    projection = (torch.randn(shape, device=device) + 0.3).to(DTYPES[case.dtype])
    qkv = [x.requires_grad_(case.backward) for x in projection.unbind(2)]
    grad = torch.randn_like(qkv[0]) if case.backward else None
    single = [x.detach().float().requires_grad_(case.backward) for x in qkv]
    ways = candidates(case, config, device)
    exact = outputs(ways["reference"][0], single, None if grad is None else grad.float())
    count = 20 if device.type == "cuda" else 1
    calls, errors = {}, {}
    for name in names or ways:
        for way in ways[name]:
            try:
                calls[name] = recorded(checked(name, way, qkv, grad, exact), count, device)
                # Of the ways before this one.
                errors.pop(name, None)
                break
            except Exception as error:
                errors[name] = f"{type(error).__name__}: {error}"[:500]
    # Forward reads three tensors and writes one; backward reads four and writes three.
    return Prepared(calls, errors, count, (11 if case.backward else 4) * qkv[0].numel() * qkv[0].element_size())


def measure(case: Case, config: PriorConfig, device: torch.device, bandwidth: Mover, rounds: int) -> dict[str, Any]:
    calls, errors, count, moved = prepare(case, config, device)
    times = rounds_of({**calls, "bandwidth": bandwidth.run}, device, rounds)
    rates = [bandwidth.nbytes / taken / 1e9 for taken in times.pop("bandwidth")]
    figures: dict[str, Any] = {**case._asdict(), "errors": errors, "bytes": moved, "rounds": rounds}
    figures |= {key: getattr(config, key) for key in ("heads", "head_dim", "num_rows", "row_len")}
    for name, taken in times.items():
        figures[f"{name}_us"] = quantiles([1e6 * value / count for value in taken])
        shares = [moved * count / value / 1e7 / rate for value, rate in zip(taken, rates, strict=True)]
        figures[f"{name}_percent"] = quantiles(shares)
        if name != "triton" and "triton" in times:
            pairs = zip(taken, times["triton"], strict=True)
            figures[f"speedup_over_{name}"] = quantiles([theirs / ours for theirs, ours in pairs])
    if "triton" not in times and device.type == "cuda":
        raise RuntimeError(errors.get("triton", "triton is not installed"))
    return figures


def say(f: dict[str, Any]) -> str:
    parts = [
        f"{name} {f[f'{name}_us']['p50']:.1f} us ({f[f'{name}_percent']['p50']:.1f} %)"
        for name in ("triton", "flex", "reference")
        if f"{name}_us" in f
    ]
    parts += [f"{name} failed" for name in f["errors"]]
    if "speedup_over_flex" in f:
        parts.append(f"{f['speedup_over_flex']['p50']:.2f} x flex")
    return ", ".join(parts)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=tuple(SHAPES), choices=SHAPES)
    parser.add_argument("--patterns", nargs="+", default=PATTERNS, choices=PATTERNS)
    parser.add_argument("--dtype", nargs="+", choices=DTYPES)
    parser.add_argument("--codes", type=positive, nargs=2, metavar=("ROWS", "ROW_LEN"), help="another window")
    parser.add_argument("--head-dim", type=positive, help="another head dim")
    add_options(parser)
    options = parser.parse_args(arguments)
    refuse(parser, options.shapes, lambda shape: window(shape, options.codes, options.head_dim))
    rows = Rows("attention", options)
    bandwidth = plain(rows.device, 1 << (26 if options.quick else 30))
    dtypes = options.dtype or (("bf16", "fp16") if rows.device.type == "cuda" else ("fp32",))
    found = itertools.product(dtypes, options.shapes, options.patterns)
    for case in (Case(shape, pattern, dtype, back) for dtype, shape, pattern in found for back in (False, True)):
        config = window(case.shape, options.codes, options.head_dim)
        row = case.row + (
            f" {config.num_rows}x{config.row_len} head dim {config.head_dim}"
            if options.codes or options.head_dim
            else ""
        )
        rows.add(row, lambda case=case, config=config: measure(case, config, rows.device, bandwidth, rows.rounds), say)
    return rows.status


if __name__ == "__main__":
    raise SystemExit(main())
