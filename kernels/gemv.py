"""Matrix-vector products: what the projections of a decode step have in common.

Weights are [in, out] stored output by output (`weight.stride(0) == 1`), so that the inputs of one output are
contiguous. One program computes BLOCK_N outputs for GROUP items, one item after another. It holds its weights in
registers as they are stored, [BLOCK_N, BLOCK_K] with BLOCK_K >= in up to 2048, loads them before it needs its input,
16 bytes per lane and request, and reads them once for all its items. All warps lie along the inputs; products and
sums are FP32, in an order that depends on the sizes alone: an item's result is the same in every batch.

Bytes moved: every weight once per group of items, and per program its items' inputs, out of L2. No loop runs over the
inputs of layers up to 2048 wide, so that all bytes of a matrix are in flight at once: at the 4.3 TB/s of an H200 some
3 MB have to be, and a matrix of width 1920 has 7.4 MB in FP16.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def load_rows(weight_ptr, row, start, N_IN: tl.constexpr, N_OUT: tl.constexpr, BLOCK_K: tl.constexpr):
    """Weights of outputs `row` [BLOCK_N] for inputs start ... start + BLOCK_K - 1, as stored."""
    col = start + tl.arange(0, BLOCK_K)
    offset = row.to(tl.int64)[:, None] * N_IN + col[None, :]
    return tl.load(weight_ptr + offset, mask=(row < N_OUT)[:, None] & (col < N_IN)[None, :], other=0)


@triton.jit
def load_vector(ptr, start, N_IN: tl.constexpr, BLOCK_K: tl.constexpr):
    """Elements start ... start + BLOCK_K - 1 of a vector, as stored, zero past its end."""
    col = start + tl.arange(0, BLOCK_K)
    return tl.load(ptr + col, mask=col < N_IN, other=0.0)


@triton.jit
def widen(stored, item):
    """`stored` in FP32, converted anew for each item: FP32 weights held over the loop over items would take two or four
    times the registers, and fewer programs would be at work. `item >> 31` is 0, but not a constant of the loop."""
    return (stored + tl.cast(item >> 31, stored.dtype)).to(tl.float32)


@triton.jit
def dot(weights, x, item):
    """[BLOCK_N, BLOCK_K] times [BLOCK_K], FP32."""
    return tl.sum(widen(weights, item) * x.to(tl.float32)[None, :], axis=1)


@triton.jit
def gemv(
    x_ptr,  # [N_IN]
    weight_ptr,  # [N_OUT, N_IN]
    first,  # load_rows(start=0)
    row,  # [BLOCK_N]
    item,
    N_IN: tl.constexpr,
    N_OUT: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Outputs `row` of weight x, FP32."""
    total = dot(first, load_vector(x_ptr, 0, N_IN, BLOCK_K), item)
    for start in tl.static_range(BLOCK_K, N_IN, BLOCK_K):  # pyright: ignore[reportGeneralTypeIssues]
        weights = load_rows(weight_ptr, row, start, N_IN, N_OUT, BLOCK_K)
        total += dot(weights, load_vector(x_ptr, start, N_IN, BLOCK_K), item)
    return total


@triton.jit
def centered(x, mean, start, N_IN: tl.constexpr, BLOCK_K: tl.constexpr):
    """x - mean in FP32, zero past the vector's end."""
    return tl.where(start + tl.arange(0, BLOCK_K) < N_IN, x.to(tl.float32) - mean, 0.0)


@triton.jit
def norm_gemv(
    x_ptr,  # [N_IN]
    ln_weight_ptr,  # [N_IN]
    ln_bias_ptr,  # [N_IN]
    weight_ptr,  # [N_OUT, N_IN]
    first_ln_weight,  # load_vector(start=0)
    first_ln_bias,
    first,  # load_rows(start=0)
    row,  # [BLOCK_N]
    item,
    eps,
    N_IN: tl.constexpr,
    N_OUT: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Outputs `row` of weight LayerNorm(x), FP32. Mean first, then the squares of what is left."""
    x = load_vector(x_ptr, 0, N_IN, BLOCK_K).to(tl.float32)
    total = tl.sum(x, axis=0)
    for start in tl.static_range(BLOCK_K, N_IN, BLOCK_K):  # pyright: ignore[reportGeneralTypeIssues]
        total += tl.sum(load_vector(x_ptr, start, N_IN, BLOCK_K).to(tl.float32), axis=0)
    mean = total / N_IN
    x = centered(x, mean, 0, N_IN, BLOCK_K)
    squares = tl.sum(x * x, axis=0)
    for start in tl.static_range(BLOCK_K, N_IN, BLOCK_K):  # pyright: ignore[reportGeneralTypeIssues]
        rest = centered(load_vector(x_ptr, start, N_IN, BLOCK_K), mean, start, N_IN, BLOCK_K)
        squares += tl.sum(rest * rest, axis=0)
    scale = 1.0 / tl.sqrt(squares / N_IN + eps)
    y = dot(first, x * scale * widen(first_ln_weight, item) + widen(first_ln_bias, item), item)
    for start in tl.static_range(BLOCK_K, N_IN, BLOCK_K):  # pyright: ignore[reportGeneralTypeIssues]
        rest = centered(load_vector(x_ptr, start, N_IN, BLOCK_K), mean, start, N_IN, BLOCK_K)
        rest = rest * scale * load_vector(ln_weight_ptr, start, N_IN, BLOCK_K).to(tl.float32)
        rest += load_vector(ln_bias_ptr, start, N_IN, BLOCK_K).to(tl.float32)
        y += dot(load_rows(weight_ptr, row, start, N_IN, N_OUT, BLOCK_K), rest, item)
    return y


@triton.jit
def load_outputs(ptr, row, N_OUT: tl.constexpr):
    """One number for each output `row`, FP32."""
    return tl.load(ptr + row, mask=row < N_OUT, other=0.0).to(tl.float32)


class Tile(NamedTuple):
    """Launch settings of a projection; `blocks` programs in the first grid axis, `groups` in the second."""

    block_n: int
    block_k: int
    group: int
    blocks: int
    groups: int
    num_warps: int

    @property
    def grid(self) -> tuple[int, int]:
        return self.blocks, self.groups

    @property
    def constants(self) -> dict[str, int]:
        return {"BLOCK_N": self.block_n, "BLOCK_K": self.block_k, "GROUP": self.group}


def tile(weight: Tensor, batch: int, scale: Tensor | None = None) -> Tile:
    """Settings for `weight` [in, out] and `batch` items. Raises ValueError unless it is stored output by output."""
    n_in, n_out = weight.shape
    if not weight.t().is_contiguous():
        raise ValueError(f"weight {(n_in, n_out)} must be stored output by output, not with strides {weight.stride()}")
    if (weight.dtype.itemsize == 1) != (scale is not None):
        raise ValueError(f"{weight.dtype} weights {'need' if scale is None else 'have no'} scales")
    block_k = min(triton.next_power_of_2(n_in), 2048)
    # 16 KB of weights per program: at width 1920 some four programs on each of 132 multiprocessors, and room beside
    # them for the next kernel's. At most 8 outputs, or narrow inputs would leave multiprocessors idle. int8 weights are
    # FP32 in registers: with more outputs than FP32 weights have, some compilers spill.
    stored = 4 if weight.dtype.itemsize == 1 else weight.dtype.itemsize
    block_n = max(1, min(16384 // (block_k * stored), 8))
    if weight.device.type == "cpu":
        # The interpreter takes milliseconds per program, whatever its size.
        block_n = 64
    group = 8
    return Tile(block_n, block_k, group, triton.cdiv(n_out, block_n), triton.cdiv(batch, group), 4)
