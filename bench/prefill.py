"""A prompt through all layers, as a share of the rate of a large matrix product measured in the same rounds.

    python bench prefill [--sizes upsampler-0-72 --codes 4096 --dtype bf16 --json FILE]

"cache" is what a decoder does at a window's start: layers and cache. "layers" leaves the cache out. On a GPU the same
two are timed with Triton's attention in place of what the layers call. Only the projections' operations count.
"""

from __future__ import annotations

if not __package__:
    from by_path import run as run_again

    run_again(__file__)

import argparse
import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..engine.kv_cache import KVCache
from ..engine.prior import Prior
from ..engine.transformer import PrefillAttention
from ..kernels import reference
from .decode import DTYPES
from .harness import Rows, add_options, quantiles, rounds_of
from .options import positive, refuse
from .stand_in import build, size


class MatrixRate:
    """`run` multiplies two random square matrices in `dtype`, `flops` operations."""

    def __init__(self, device: torch.device, dtype: torch.dtype, size: int = 8192) -> None:
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        out = torch.empty_like(a)
        self.flops, self.run = 2 * size**3, lambda: torch.mm(a, b, out=out)


def measure(
    name: str, codes: int, dtype: torch.dtype, device: torch.device, matrix: MatrixRate, rounds: int
) -> dict[str, Any]:
    config, conditioned = size(name)
    prior = build(Prior, config, device, dtype)
    cache = KVCache(config, 1, device, dtype)
    prompt = torch.randint(config.codebook_size, (1, codes), device=device)
    cond = torch.randn(1, config.context_len, config.width, device=device, dtype=dtype) if conditioned else None

    @torch.inference_mode()
    def with_cache(attention: PrefillAttention) -> Tensor:
        return prior.prefill(prompt[:, 1:], cache, 0, cond, attention=attention)

    @torch.inference_mode()
    def layers(attention: PrefillAttention) -> Tensor:
        x = prior.embed(prompt[:, 1:], 0, cond, None)
        for layer in prior.layers:
            x = layer(x, attention=attention)
        return x

    plain = reference.prefill_attention
    runs: dict[str, Callable[[], object]] = {"cache": lambda: with_cache(plain), "layers": lambda: layers(plain)}
    if device.type == "cuda":
        from ..kernels.prefill_attention import prefill_attention as triton

        runs |= {"cache_triton": lambda: with_cache(triton), "layers_triton": lambda: layers(triton)}
    if not with_cache(plain).isfinite().all():
        raise RuntimeError("not all numbers are finite: no times are reported")
    times = rounds_of({**runs, "matrix": matrix.run}, device, rounds)
    width, attn_width = config.width, config.attn_width
    flops = 2 * codes * config.depth * (4 * width * attn_width + 2 * width * config.mlp_width)
    rates = [matrix.flops / taken for taken in times.pop("matrix")]
    figures: dict[str, Any] = {"size": name, "codes": codes, "depth": config.depth, "width": width, "flops": flops}
    for run, taken in times.items():
        figures[f"{run}_ms"] = quantiles([1e3 * value for value in taken])
        figures[f"{run}_percent"] = quantiles([100 * flops / v / rate for v, rate in zip(taken, rates, strict=True)])
    return figures | {"rounds": rounds, "matrix_tflops": quantiles([rate / 1e12 for rate in rates])}


def say(f: dict[str, Any]) -> str:
    names = [key.removesuffix("_ms") for key in f if key.endswith("_ms")]
    runs = (f"{name} {f[f'{name}_ms']['p50']:.2f} ms ({f[f'{name}_percent']['p50']:.1f} %)" for name in names)
    return f"{', '.join(runs)} of {f['matrix_tflops']['p50']:.1f} TFLOP/s"


def fitting(name: str, codes: int) -> None:
    """Raises ValueError where there is no such size or its window is shorter."""
    context = size(name)[0].context_len
    if codes > context:
        raise ValueError(f"{codes} codes do not fit into the {context} of {name}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", help="presets, or LAYERSxWIDTH")
    parser.add_argument("--codes", type=positive, default=4096)
    parser.add_argument("--dtype", nargs="+", choices=DTYPES)
    add_options(parser)
    options = parser.parse_args(arguments)
    gpu = torch.device(options.device).type == "cuda"
    sizes = options.sizes or (("upsampler-0-72", "top-18") if gpu else ("18x128",))
    refuse(parser, sizes, lambda name: fitting(name, options.codes))
    rows = Rows("prefill", options)
    matrix_size = 8192 if gpu and not options.quick else 1024
    dtypes = options.dtype or (("bf16", "fp16") if gpu else ("fp32",))
    for dtype, name in itertools.product(dtypes, sizes):
        matrix = MatrixRate(rows.device, DTYPES[dtype], matrix_size)
        row = f"{name} {options.codes} codes {dtype}"
        rows.add(
            row,
            lambda name=name, dtype=dtype, matrix=matrix: (
                measure(name, options.codes, DTYPES[dtype], rows.device, matrix, rows.rounds) | {"dtype": dtype}
            ),
            say,
        )
    return rows.status


if __name__ == "__main__":
    raise SystemExit(main())
