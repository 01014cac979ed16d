"""Products of a decode step: what its projections have in common.

Weights are [in, out] stored output by output (`weight.stride(0) == 1`), so that the inputs of one output are
contiguous. One program computes BLOCK_N outputs of all items, ITEMS at a time. It holds its weights in registers,
loads them before it needs its input, 16 bytes per lane and request, and reads them once for all items. No loop runs
over the inputs of layers up to 2048 wide, so that all bytes of a matrix are in flight at once: at the 4.3 TB/s of an
H200 some 3 MB have to be, and a matrix of width 1920 has 7.4 MB in FP16.

Products and sums come in two ways, by the GPU and the weights' type alone:

- FP32 weights, and GPUs before sm_80: one item after another, FP32, all warps along the inputs.
- Tensor cores: FP16, BF16, and int8 widened to FP16, times inputs split into two numbers of that type, which keeps 22
  bits of an input (16 in BF16); FP16's range, 65,504, bounds them as in any FP16 network. An instruction multiplies 16
  outputs with eight items. Warps divide the inputs, one sum each. Which input is the n-th of a sum is free, so the
  weights are loaded in the order in which the instruction's operands lie in registers, and no shared memory is between.

Either way an item's result does not depend on the other items: one seed, one result in every batch. For tensor cores,
where a program's blocks have one to eight items, products and sums are therefore not fused but where it says so.

Bytes moved: every weight once; per program its items' inputs, out of L2.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .pattern_groups import capability


@triton.jit
def load_weights(
    weight_ptr,  # [N_OUT, N_IN]
    start,
    N_IN: tl.constexpr,
    N_OUT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    TENSOR: tl.constexpr,
):
    """Weights of this program's outputs for inputs start ... start + BLOCK_K - 1, as `multiply` takes them.

    For tensor cores [BLOCK_N / 8 blocks x chunks x 8 outputs, inputs of a chunk]: four lanes hold a chunk of one
    output, 16 bytes each, and 32 lanes eight outputs of a block, as an operand has it.
    """
    first = tl.program_id(0) * BLOCK_N
    if TENSOR:
        CHUNK: tl.constexpr = 4 * 128 // weight_ptr.dtype.element_ty.primitive_bitwidth
        CHUNKS: tl.constexpr = BLOCK_K // CHUNK
        place = tl.arange(0, BLOCK_N * CHUNKS)
        row = first + place // (8 * CHUNKS) * 8 + place % 8
        col = start + (place // 8 % CHUNKS * CHUNK)[:, None] + tl.arange(0, CHUNK)[None, :]
    else:
        row = first + tl.arange(0, BLOCK_N)
        col = start + tl.arange(0, BLOCK_K)[None, :]
    offset = row.to(tl.int64)[:, None] * N_IN + col
    weights = tl.load(weight_ptr + offset, mask=(row < N_OUT)[:, None] & (col < N_IN), other=0)
    if TENSOR and weights.dtype == tl.int8:
        # Exact: 0x6480 is 1152 in FP16, whose last bit counts ones there. GPUs convert integers slowly.
        weights = (weights.to(tl.int16) + 0x6480).to(tl.float16, bitcast=True) - 1152.0
    return weights


@triton.jit
def load_items(ptr, item, batch, start, N_IN: tl.constexpr, BLOCK_K: tl.constexpr):
    """Elements start ... start + BLOCK_K - 1 of the rows `item` [ITEMS] of [batch, N_IN], FP32, zero beyond: [ITEMS,
    BLOCK_K]."""
    col = start + tl.arange(0, BLOCK_K)
    mask = (item < batch)[:, None] & (col < N_IN)[None, :]
    return tl.load(ptr + item[:, None] * N_IN + col[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def load_vector(ptr, start, N_IN: tl.constexpr, BLOCK_K: tl.constexpr):
    """Elements start ... start + BLOCK_K - 1 of a vector, as stored, zero past its end."""
    col = start + tl.arange(0, BLOCK_K)
    # Four to a lane, as items are: vectors of 16 bits would come by eights, and change lanes in every turn.
    return tl.load(tl.max_contiguous(ptr + col, 4), mask=col < N_IN, other=0.0)


@triton.jit
def widen(stored, first):
    """`stored` in FP32, converted anew in each turn of the loop over items: FP32 numbers held over it would take two or
    four times the registers, and fewer programs would be at work. `first >> 31` is 0, but no constant of the loop."""
    return (stored + tl.cast(first >> 31, stored.dtype)).to(tl.float32)


@triton.jit
def multiply(weights, x, first, BLOCK_N: tl.constexpr, TENSOR: tl.constexpr):
    """Weights (see load_weights) times x [ITEMS, BLOCK_K] (FP32), FP32: [BLOCK_N, ITEMS].

    first: the first item's number.
    """
    if TENSOR:
        y = _tensor_multiply(weights, x, BLOCK_N)
    else:
        tl.static_assert(x.shape[0] == 1)
        y = tl.expand_dims(tl.sum(widen(weights, first) * x, axis=1), 1)
    return y


@triton.jit
def _tensor_multiply(weights, x, BLOCK_N: tl.constexpr):
    # Of a chunk's inputs a lane holds a quarter, which the instructions take in runs of RUN: one run of each of the
    # four lanes, then the next of each. Only the order of registers changes here, not lanes or warps.
    CHUNK: tl.constexpr = weights.shape[1]
    RUN: tl.constexpr = CHUNK // 16
    CHUNKS: tl.constexpr = x.shape[1] // CHUNK
    # One for each warp (see tile): what Triton 3.6 and 3.9 make of several, and one item, is wrong.
    CHAINS: tl.constexpr = tl.constexpr(x.shape[1] // 128 if x.shape[1] < 1024 else 8)
    LONG: tl.constexpr = x.shape[1] // CHAINS
    weights = tl.reshape(weights, [BLOCK_N // 8, CHUNKS // CHAINS, CHAINS, 8, 4, 4, RUN])
    weights = tl.reshape(tl.permute(weights, (2, 0, 3, 1, 5, 4, 6)), [CHAINS, BLOCK_N, LONG])
    x = tl.reshape(x, [x.shape[0], CHUNKS // CHAINS, CHAINS, 4, 4, RUN])
    x = tl.reshape(tl.permute(x, (2, 1, 4, 3, 5, 0)), [CHAINS, LONG, x.shape[0]])
    # FP16 has few exponents: the second half is kept where it is as exact as the first.
    shift: tl.constexpr = tl.constexpr(2048.0 if weights.dtype == tl.float16 else 1.0)
    high = x.to(weights.dtype)
    low = ((x - high.to(tl.float32)) * shift).to(weights.dtype)
    return tl.sum(tl.dot(weights, high) + tl.dot(weights, low) / shift, axis=0)


@triton.jit
def centered(x, mean, start, N_IN: tl.constexpr):
    """x - mean [ITEMS, BLOCK_K], zero past the vectors' ends."""
    inside = start + tl.arange(0, x.shape[1]) < N_IN
    return tl.where(inside[None, :], x - mean[:, None], 0.0)


@triton.jit
def norm_multiply(
    x_ptr,  # [batch, N_IN]
    ln_weight_ptr,  # [N_IN]
    ln_bias_ptr,  # [N_IN]
    weight_ptr,  # [N_OUT, N_IN]
    first_ln_weight,  # load_vector(start=0)
    first_ln_bias,
    first_weights,  # load_weights(start=0)
    first,
    item,  # [ITEMS]
    batch,
    eps,
    N_IN: tl.constexpr,
    N_OUT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    TENSOR: tl.constexpr,
):
    """This program's outputs of weight LayerNorm(x), FP32: [BLOCK_N, ITEMS]. Mean first, then the squares of what is
    left."""
    x = load_items(x_ptr, item, batch, 0, N_IN, BLOCK_K)
    total = tl.sum(x, axis=1)
    for start in tl.static_range(BLOCK_K, N_IN, BLOCK_K):  # pyright: ignore[reportGeneralTypeIssues]
        total += tl.sum(load_items(x_ptr, item, batch, start, N_IN, BLOCK_K), axis=1)
    mean = total / N_IN
    x = centered(x, mean, 0, N_IN)
    squares = tl.sum(x * x, axis=1)
    for start in tl.static_range(BLOCK_K, N_IN, BLOCK_K):  # pyright: ignore[reportGeneralTypeIssues]
        rest = centered(load_items(x_ptr, item, batch, start, N_IN, BLOCK_K), mean, start, N_IN)
        squares += tl.sum(rest * rest, axis=1)
    scale = (1.0 / tl.sqrt(squares / N_IN + eps))[:, None]
    x = tl.fma(x * scale, widen(first_ln_weight, first)[None, :], widen(first_ln_bias, first)[None, :])
    y = multiply(first_weights, x, first, BLOCK_N, TENSOR)
    for start in tl.static_range(BLOCK_K, N_IN, BLOCK_K):  # pyright: ignore[reportGeneralTypeIssues]
        rest = centered(load_items(x_ptr, item, batch, start, N_IN, BLOCK_K), mean, start, N_IN)
        ln_weight = load_vector(ln_weight_ptr, start, N_IN, BLOCK_K).to(tl.float32)
        ln_bias = load_vector(ln_bias_ptr, start, N_IN, BLOCK_K).to(tl.float32)
        rest = tl.fma(rest * scale, ln_weight[None, :], ln_bias[None, :])
        weights = load_weights(weight_ptr, start, N_IN, N_OUT, BLOCK_N, BLOCK_K, TENSOR)
        y += multiply(weights, rest, first, BLOCK_N, TENSOR)
    return y


@triton.jit
def outputs(BLOCK_N: tl.constexpr):
    """The numbers of this program's outputs [BLOCK_N]."""
    return tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)


@triton.jit
def load_outputs(ptr, row, N_OUT: tl.constexpr):
    """One number for each output `row` [BLOCK_N], FP32: [BLOCK_N, 1]."""
    return tl.load(ptr + row, mask=row < N_OUT, other=0.0).to(tl.float32)[:, None]


@triton.jit
def places(row, item, batch, N_OUT: tl.constexpr):
    """Where the outputs `row` of `item` lie in [batch, N_OUT], and which of them exist: both [BLOCK_N, ITEMS]."""
    return item[None, :] * N_OUT + row[:, None], (row < N_OUT)[:, None] & (item < batch)[None, :]


class Tile(NamedTuple):
    """Launch settings of a projection."""

    block_n: int
    block_k: int
    items: int
    stages: int
    tensor: bool
    blocks: int
    num_warps: int

    @property
    def grid(self) -> tuple[int]:
        return (self.blocks,)

    @property
    def constants(self) -> dict[str, int]:
        return {"BLOCK_N": self.block_n, "BLOCK_K": self.block_k, "ITEMS": self.items, "TENSOR": self.tensor}


def tile(weight: Tensor, batch: int, scale: Tensor | None = None) -> Tile:
    """Settings for `weight` [in, out] and `batch` items. Raises ValueError unless it is stored output by output."""
    n_in, n_out = weight.shape
    if not weight.t().is_contiguous():
        raise ValueError(f"weight {(n_in, n_out)} must be stored output by output, not with strides {weight.stride()}")
    if (weight.dtype.itemsize == 1) != (scale is not None):
        raise ValueError(f"{weight.dtype} weights {'need' if scale is None else 'have no'} scales")
    tensor = uses_tensor_cores(weight)
    size = weight.dtype.itemsize
    if tensor:
        # Of wider layers a block is loaded while the one before is multiplied, and both must find registers.
        widest = 2048 if n_in <= 2048 else 512
        block_k = max(min(triton.next_power_of_2(n_in), widest), 128)
        # An instruction's 16 outputs: at width 1920 a program for each of 120 multiprocessors, 61 KB of FP16 weights
        # in flight on each. Narrow inputs leave room for 32, whose programs look at all items half as often.
        block_n = 16 if n_in > 512 else 32
        # Of several blocks' statistics and products only two items' find registers.
        items = min(triton.next_power_of_2(batch), 8 if n_in <= widest else 2)
        # Four inputs to a lane even of one item: statistics are summed in the same order for any number of items.
        num_warps = min(block_k // 128, 8)
    else:
        block_k = min(triton.next_power_of_2(n_in), 2048)
        # 16 KB of weights per program: at width 1920 some four programs on each of 132 multiprocessors, and room beside
        # them for the next kernel's. At most 8 outputs, 4 of FP32, or narrow inputs would leave multiprocessors idle.
        # int8 weights are FP32 in registers: with more outputs than FP32 weights have, some compilers spill.
        block_n = max(1, min(16384 // (block_k * (4 if size == 1 else size)), 16 // max(size, 2)))
        items, num_warps = 1, 4
    # The next items' inputs are fetched while these are multiplied, where shared memory holds them: 131 KB. Of wider
    # layers it would have to hold all blocks' weights, too.
    stages = 2 if batch > items > 1 and n_in <= block_k and capability(weight) in (80, 90, 100) else 1
    if not capability(weight):
        # The interpreter takes milliseconds per program, whatever its size.
        block_n = 64
    return Tile(block_n, block_k, items, stages, tensor, triton.cdiv(n_out, block_n), num_warps)


def uses_tensor_cores(weight: Tensor) -> bool:
    """Whether products with `weight` are left to tensor cores."""
    if weight.dtype == torch.float32:
        return False
    if not capability(weight):
        # The interpreter, which has no products of BF16.
        return weight.dtype != torch.bfloat16
    return capability(weight) >= 80
