"""The patterns as many small attention problems, for the Triton kernels.

Under ROW a row of queries attends the row itself, under COLUMN a column itself, under PREVIOUS_ROW a row the row
before. Each such *group* is a problem of its own with `row_len` (or as many as there are rows) queries and keys, called
its *members*; DENSE is one group. No two groups share a query or a key, so no kernel needs atomics, and the members of
a group are found by arithmetic on strides, so none needs a transposed copy.
"""

from __future__ import annotations

import math
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

# For kernels; softmaxes are taken in base 2.
LN_2: tl.constexpr = tl.constexpr(math.log(2))
# The compute capability that kernels are compiled for where no GPU is; 0 for the interpreter.
COMPILED_FOR: ContextVar[int] = ContextVar("COMPILED_FOR", default=0)


class Groups(NamedTuple):
    """The groups that together hold every query and every key, each group and its largest size once."""

    first: int
    number: int
    # Members of a group, counted from the row that `query_start` (`key_start`) lies in.
    queries: int
    keys: int
    # Member number of the first query, counted from the first key.
    offset: int


def groups(pattern: str, row_len: int, query_start: int, key_start: int, stop: int) -> Groups:
    """Queries are positions query_start ... stop - 1, keys key_start ... stop - 1."""
    first_row, key_row, rows = query_start // row_len, key_start // row_len, -(-stop // row_len)
    if pattern == "row":
        first = min(first_row, key_row)
        return Groups(first, rows - first, row_len, row_len, 0)
    if pattern == "previous_row":
        # One group more than rows of queries: the last row's keys, which no query sees.
        first = min(first_row, key_row + 1)
        return Groups(first, rows + 1 - first, row_len, row_len, 0)
    if pattern == "column":
        return Groups(0, row_len, rows - first_row, rows - key_row, first_row - key_row)
    if pattern == "dense":
        return Groups(0, 1, stop - query_start, stop - key_start, query_start - key_start)
    raise ValueError(f"unknown pattern {pattern!r}")


class Tiles(NamedTuple):
    """Largest tile of one program, [queries, keys] and elements of the head dim at a time, and how it is launched."""

    queries: int
    keys: int
    head_dim: int
    num_warps: int
    num_stages: int

    @property
    def sizes(self) -> dict[str, int]:
        """The kernels' parameters of these names."""
        return {"BLOCK_Q": self.queries, "BLOCK_K": self.keys, "BLOCK_D": self.head_dim}

    @property
    def options(self) -> dict[str, Any]:
        """What a launch needs besides the sizes. FP fusion makes a product and a sum one instruction."""
        return {"num_warps": self.num_warps, "num_stages": self.num_stages, "enable_fp_fusion": True}


# By how matrix products run (see `unit`) and kernel: "forward" holds one score tile, "group" two and a whole group,
# "blocks" walks groups that do not fit. Nothing spills more than some 50 B per thread: see bench/results/aot.json.
TILES = {
    ("tensor", "forward"): Tiles(64, 128, 64, 4, 2),
    ("tensor", "group"): Tiles(128, 128, 32, 8, 1),
    ("tensor", "blocks"): Tiles(64, 64, 64, 4, 2),
    ("turing", "forward"): Tiles(32, 128, 16, 4, 1),
    ("turing", "group"): Tiles(64, 64, 16, 8, 1),
    ("turing", "blocks"): Tiles(32, 32, 32, 4, 1),
    ("scalar", "forward"): Tiles(32, 128, 16, 4, 1),
    ("scalar", "group"): Tiles(64, 64, 16, 8, 1),
    ("scalar", "blocks"): Tiles(32, 32, 16, 4, 1),
}


def unit(dtype: torch.dtype, capability: int) -> str:
    """How matrix products run: on tensor cores from sm_80 on, on those of sm_75, or (FP32 and older GPUs) on none."""
    if dtype not in (torch.float16, torch.bfloat16) or capability < 75:
        return "scalar"
    return "turing" if capability < 80 else "tensor"


def tiles(kernel: str, sizes: Groups, head_dim: int, dtype: torch.dtype, capability: int) -> Tiles:
    """The tiles of `kernel`, no larger than the groups need. Products take at least 16 in each dimension.

    A head dim that is no multiple of 16 starts heads at any address, so vectors are loaded an element at a time. That
    takes so many registers that longer chunks than 16 spill.
    """
    most = TILES[unit(dtype, capability), kernel]
    chunk = most.head_dim if head_dim % 16 == 0 else 16
    queries, keys, chunk = (
        max(min(triton.next_power_of_2(size), limit), 16)
        for size, limit in ((sizes.queries, most.queries), (sizes.keys, most.keys), (head_dim, chunk))
    )
    # A warp for every 256 scores is plenty.
    return Tiles(queries, keys, chunk, min(most.num_warps, max(1, queries * keys // 256)), most.num_stages)


def gradient_tiles(sizes: Groups, head_dim: int, dtype: torch.dtype, capability: int) -> tuple[bool, Tiles]:
    """Whether one program takes a whole group, and the tiles: of "group" if so, otherwise of "blocks"."""
    tile = tiles("group", sizes, head_dim, dtype, capability)
    if sizes.queries <= tile.queries and sizes.keys <= tile.keys:
        return True, tile
    return False, tiles("blocks", sizes, head_dim, dtype, capability)


def capability(x: Tensor) -> int:
    """Compute capability of the tensor's GPU as 10 * major + minor; 0 for the interpreter on a CPU."""
    if x.device.type != "cuda":
        return COMPILED_FOR.get()
    major, minor = torch.cuda.get_device_capability(x.device)
    return 10 * major + minor


def run(kernel: Any, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
    """Launch on the device of the first argument. Type checkers do not know what indexing a kernel gives."""
    with torch.cuda.device_of(args[0]):
        kernel[grid](*args, **options)


def strides(*tensors: Tensor) -> list[int]:
    """Strides of batch, position and head of each [B, T, H, D] tensor."""
    return [stride for x in tensors for stride in x.stride()[:3]]


def unit_stride(x: Tensor) -> Tensor:
    """`x` with its last axis contiguous; views of a projection are already, and are returned as they are."""
    return x if x.stride(-1) == 1 else x.contiguous()


class Specialization(NamedTuple):
    """One kernel as the presets launch it, for ahead-of-time compilation: `triton.compile` of
    `ASTSource(kernel, signature, constexprs, attrs)` with `options`."""

    name: str
    kernel: Any
    # Argument name -> Triton type ("*fp16", "i32", "fp32", "constexpr").
    signature: dict[str, str]
    constexprs: dict[str, Any]
    options: dict[str, Any]
    # (argument index,) -> hints, such as that an argument is a multiple of 16.
    attrs: dict[tuple[int], list[list[Any]]]


@triton.jit
def at_head(ptr, stride_b, stride_h):
    """`ptr` moved to this program's batch item and head, which are its second and third grid axes."""
    return ptr + tl.program_id(2).to(tl.int64) * stride_b + tl.program_id(1).to(tl.int64) * stride_h


@triton.jit
def own_block(first_group, num_members, PATTERN: tl.constexpr, BLOCK: tl.constexpr):
    """This program's group of queries, the group of keys that they see, and its block of one of both: the first grid
    axis counts the blocks of all groups."""
    blocks = tl.cdiv(num_members, BLOCK)
    group = first_group + tl.program_id(0) // blocks
    key_group = group - 1 if PATTERN == "previous_row" else group
    return group, key_group, tl.program_id(0) % blocks


@triton.jit
def members(
    group,
    block,
    row_len,
    start,  # first position that the tensor holds
    stop,
    PATTERN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Member numbers [BLOCK] of a block, where they lie in the tensor (int64), and whether they do."""
    member = block * BLOCK + tl.arange(0, BLOCK)
    if PATTERN == "column":
        pos = (start // row_len + member) * row_len + group
        in_group = member >= 0
    elif PATTERN == "dense":
        pos = start + member
        in_group = member >= 0
    else:
        pos = group * row_len + member
        in_group = member < row_len
    return member, (pos - start).to(tl.int64), in_group & (pos >= start) & (pos < stop)


@triton.jit
def load_tile(rows, valid, start, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """[BLOCK, BLOCK_D] elements start ... of the vectors at `rows`, in their own dtype, which is what tensor cores
    take; zero outside."""
    d = start + tl.arange(0, BLOCK_D)
    return tl.load(rows[:, None] + d[None, :], mask=valid[:, None] & (d < HEAD_DIM)[None, :], other=0.0)


@triton.jit
def store_tile(rows, valid, start, x, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    d = start + tl.arange(0, BLOCK_D)
    mask = valid[:, None] & (d < HEAD_DIM)[None, :]
    tl.store(rows[:, None] + d[None, :], x.to(rows.dtype.element_ty), mask=mask)


@triton.jit
def products(a_rows, a_valid, b_rows, b_valid, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """FP32 inner products of two blocks of vectors, BLOCK_D of their HEAD_DIM elements at a time."""
    total = tl.zeros([a_valid.shape[0], b_valid.shape[0]], tl.float32)
    for start in range(0, HEAD_DIM, BLOCK_D):
        a = load_tile(a_rows, a_valid, start, HEAD_DIM, BLOCK_D)
        b = load_tile(b_rows, b_valid, start, HEAD_DIM, BLOCK_D)
        if a.dtype == tl.float32:
            # Sums of sums: one running sum over 480 elements would be ten times as far off as a matrix product of
            # PyTorch's. The `where` keeps Triton from fusing the two.
            part = tl.dot(a, tl.trans(b), input_precision="ieee")
            total += tl.where(a_valid[:, None] & b_valid[None, :], part, 0.0)
        else:
            total = tl.dot(a, tl.trans(b), total, input_precision="ieee")
    return total


@triton.jit
def scores(
    queries,  # rows, valid, member
    keys,  # rows, valid, member
    offset,
    scale,  # log2(e) / sqrt(D): the softmax is taken in base 2
    PATTERN: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """[queries, keys] scaled scores, -inf where the query does not see the key."""
    q_rows, q_valid, q_member = queries
    k_rows, k_valid, k_member = keys
    score = products(q_rows, q_valid, k_rows, k_valid, HEAD_DIM, BLOCK_D) * scale
    visible = q_valid[:, None] & k_valid[None, :]
    if PATTERN != "previous_row":
        visible &= k_member[None, :] <= q_member[:, None] + offset
    return tl.where(visible, score, float("-inf"))


@triton.jit
def softmax(score):
    """Over all keys of a query at once; zero for a query without keys."""
    top = tl.max(score, axis=1)
    weight = tl.exp2(score - tl.expand_dims(tl.where(top == float("-inf"), 0.0, top), 1))
    total = tl.sum(weight, axis=1)
    return weight / tl.expand_dims(tl.where(total == 0, 1.0, total), 1)


@triton.jit
def fold(score, top, total):
    """Softmax over several blocks of keys: the running maximum and sum of 2 ** (score - maximum), a block further."""
    new_top = tl.maximum(top, tl.max(score, axis=1))
    # A query that has seen no key yet keeps a maximum of -inf and a sum of 0.
    base = tl.where(new_top == float("-inf"), 0.0, new_top)
    return new_top, total * tl.exp2(top - base) + tl.sum(tl.exp2(score - base[:, None]), axis=1)


@triton.jit
def log_sum(top, total):
    """Base-2 logarithm of a row's sum; 0 without keys, so that 2 ** (score - log_sum) is the softmax or zero."""
    return tl.where(total > 0, top + tl.log2(tl.where(total > 0, total, 1.0)), 0.0)


@triton.jit
def key_blocks(
    block,
    num_keys,
    offset,
    PATTERN: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """How many blocks of keys the queries of one block see."""
    if PATTERN != "previous_row":
        num_keys = tl.minimum(num_keys, (block + 1) * BLOCK_Q + offset)
    return tl.cdiv(num_keys, BLOCK_K)
