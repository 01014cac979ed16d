"""The native decoder for CPUs: weights packed for `csrc/decode.cpp`, and the call into it.

A step streams every weight once, so the arena holds them in the order a step reads them: each matrix [in, out] as
panels of 16 output columns, [out / 16][in][16], zero-padded. A matrix is stored as FP16 if it holds nothing but FP16
values, as those of released checkpoints do: half the bytes, and the same result to the bit, since all arithmetic is
FP32; otherwise as FP32. If that was asked for, it is stored as int8 with one FP32 scale per output column, two inputs
side by side: their products with rounded activations (packing.round_inputs) are summed in whole numbers, twice as many
in an instruction, and exactly.
"""

from __future__ import annotations

import copy
import ctypes
import math
import mmap
from collections.abc import Sequence
from ctypes import byref

import torch
from torch import Tensor

from .native_library import Layer, Matrix, Model, Task, check, library
from .packing import quantize_int8

PANEL = 16
KEY_BLOCK = 16
STORED = {torch.float32: 0, torch.float16: 1, torch.int8: 2}
# Of a task.
TENSORS = {"codes": torch.int64, "items": torch.int64, "frame_cond": torch.float32, "start_cond": torch.float32}
PATTERNS = {"row": 0, "column": 1, "previous_row": 2, "dense": 3, "lyrics": 4, "cross": 5}


def panels(weight: Tensor) -> Tensor:
    """[in, out] -> [ceil(out / PANEL), in, PANEL]"""
    pad = -weight.shape[1] % PANEL
    padded = torch.nn.functional.pad(weight, (0, pad))
    return padded.unflatten(1, (-1, PANEL)).transpose(0, 1).contiguous()


def _paired_panels(weight: Tensor) -> Tensor:
    """[in, out] -> [ceil(out / PANEL), ceil(in / 2), PANEL, 2]"""
    singles = panels(torch.nn.functional.pad(weight, (0, 0, 0, weight.shape[0] % 2)))
    return singles.unflatten(1, (-1, 2)).transpose(2, 3).contiguous()


def holds_fp16(weight: Tensor) -> bool:
    """Whether every value of an FP32 tensor is a finite FP16 value."""
    half = weight.half()
    return bool(half.isfinite().all()) and torch.equal(half.float(), weight)


class LargePages:
    """Memory of zeros, one piece after another in large pages. It lives as long as this object or a piece of it."""

    CHUNK = 1 << 26
    ALIGNMENT = 64

    def __init__(self) -> None:
        self.nbytes = 0
        self._chunks: list[Tensor] = []
        self._used = 0

    def take(self, dtype: torch.dtype, *shape: int) -> Tensor:
        size = math.prod(shape) * dtype.itemsize
        if not self._chunks or self._used + size > len(self._chunks[-1]):
            # Private: shared memory would be a forked process's too, and is given large pages only where that was set.
            memory = mmap.mmap(-1, max(self.CHUNK, size), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            if hasattr(mmap, "MADV_HUGEPAGE"):
                memory.madvise(mmap.MADV_HUGEPAGE)
            self._chunks.append(torch.frombuffer(memory, dtype=torch.uint8))
            self._used = 0
        piece = self._chunks[-1][self._used : self._used + size]
        self._used += -(-size // self.ALIGNMENT) * self.ALIGNMENT
        self.nbytes += size
        return piece.view(dtype).view(shape)


class PackedWeights(LargePages):
    """A prior's weights as the native decoder reads them: a step runs through all of them in that order."""

    def __init__(self, int8: bool = False) -> None:
        super().__init__()
        self.int8 = int8

    def pointer(self, tensor: Tensor) -> int:
        """The address of a copy of `tensor`, in its own dtype."""
        return self.take(tensor.dtype, *tensor.shape).copy_(tensor.detach()).data_ptr()

    def vectors(self, tensor: Tensor) -> int:
        """The address of a copy of `tensor` in FP32."""
        return self.pointer(tensor.detach().float())

    def matrix(self, weight: Tensor, bias: Tensor | None = None) -> Matrix:
        """Pack `weight` [in, out], FP32 or FP16, and its bias."""
        pad = (0, -weight.shape[1] % PANEL)
        scale = None
        stored = weight.detach()
        if self.int8:
            stored, scale = quantize_int8(stored)
        elif stored.dtype is torch.float16 or holds_fp16(stored):
            stored = stored.half()
        return Matrix(
            panels=self.pointer((_paired_panels if self.int8 else panels)(stored)),
            scale=None if scale is None else self.vectors(torch.nn.functional.pad(scale, pad)),
            bias=None if bias is None else self.vectors(torch.nn.functional.pad(bias, pad)),
            inputs=weight.shape[0],
            outputs=weight.shape[1],
            stored=STORED[stored.dtype],
        )


class NativeModel:
    """A packed prior with its cache, ready for `prefill` and `decode`."""

    def __init__(
        self,
        weights: PackedWeights,
        layers: Sequence[Layer],
        head: Matrix,
        token_embedding: Tensor,
        pos_embedding: Tensor,
        start_token: Tensor,
        *,
        attn_width: int,
        heads: int,
        mlp_width: int,
        row_len: int,
        res_scale: float,
        cond_again: bool = True,
    ) -> None:
        """token_embedding: of codes and of whatever else a prompt may hold, codes first; cond_again: whether the frame
        condition is added once more before the head."""
        self._weights = weights
        self._layers = (Layer * len(layers))(*layers)
        self._model = Model(
            depth=len(layers),
            width=token_embedding.shape[1],
            attn_width=attn_width,
            heads=heads,
            mlp_width=mlp_width,
            codebook_size=head.outputs,
            context_len=pos_embedding.shape[0],
            row_len=row_len,
            cond_again=cond_again,
            res_scale=res_scale,
            token_embedding=weights.vectors(token_embedding),
            pos_embedding=weights.vectors(pos_embedding),
            start_token=weights.vectors(start_token),
            head=head,
            layers=self._layers,
        )

    def with_cache(self, cache: Sequence[LayerCache]) -> NativeModel:
        """The same weights with a cache of its own, one for each layer; the caller keeps it."""
        other = copy.copy(self)
        other._layers = type(self._layers)(*self._layers)
        for layer, own in zip(other._layers, cache, strict=True):
            layer.keys, layer.values = own.keys.data_ptr(), own.values.data_ptr()
        other._model = Model.from_buffer_copy(self._model)
        other._model.layers = other._layers
        return other

    def task(
        self,
        codes: Tensor,  # [B, context_len] int64, written in place
        items: Tensor,  # [B] int64
        frame_cond: Tensor | None,  # [B, context_len, W] FP32
        start_cond: Tensor | None,  # [B, 1, W] FP32
        *,
        seed: int,
        offset: int,
        level: int,
        temperature: float,
        top_k: int,
        top_p: float,
    ) -> Task:
        """What a window's calls take. All tensors are contiguous and on the CPU; the task keeps them. Raises ValueError
        for what does not fit: C++ believes all of it."""
        batch, length, width = len(codes), self._model.context_len, self._model.width
        shapes = (batch, length), (batch,), (batch, length, width), (batch, 1, width)
        tensors = codes, items, frame_cond, start_cond
        pointers = dict[str, int | None]()
        for (name, dtype), tensor, shape in zip(TENSORS.items(), tensors, shapes, strict=True):
            if tensor is not None and not (tensor.is_contiguous() and tensor.dtype is dtype and tensor.shape == shape):
                found = f"{tensor.dtype} {tuple(tensor.shape)} of strides {tensor.stride()}"
                raise ValueError(f"{name} must be a contiguous tensor {shape} of {dtype}, not {found}")
            pointers[name] = None if tensor is None else tensor.data_ptr()
        task = Task(
            batch=batch,
            seed=seed,
            offset=offset,
            level=level,
            top_k=top_k,
            temperature=temperature,
            top_p=top_p,
            **pointers,
        )
        task.tensors = tensors
        return task

    def decode(self, task: Task, start: int, stop: int, threads: int) -> None:
        """Write codes start ... stop - 1. Lets other Python threads run, as do the others."""
        self._check(start, stop)
        check(library().fastjukebox_decode(byref(self._model), byref(task), start, stop, threads), threads)

    def prefill(self, task: Task, start: int, stop: int, decode_from: int, threads: int) -> None:
        """Put positions start ... stop - 1 into the cache, which holds all earlier ones: to the bit what `decode` would
        leave there; but for what no position from `decode_from`, or `stop`, on needs."""
        self._check(start, stop)
        positions = start, stop, decode_from
        check(library().fastjukebox_prefill(byref(self._model), byref(task), *positions, threads), threads)

    def speculate(
        self,
        task: Task,
        draft: NativeModel,
        draft_task: Task,
        positions: list[int],
        stop: int,
        length: int,
        checks: int,
        threads: int,
    ) -> tuple[int, int, int]:
        """Write codes that `decode` would write, by at most `checks` drafts of up to `length` codes (csrc/decode.h): of
        each item from where `positions` says, which is moved on, to `stop` - 1. Returns how many of them were drafted
        right, the number of checks, each item's counted, and that of codes drafted.

        draft_task: the draft's, of the same codes, with conditions of its own.
        """
        self._check(min(positions), max(stop, *positions))
        if draft_task.codes != task.codes or draft._model.context_len != self._model.context_len:
            raise ValueError("drafts are in the same codes")
        if len(positions) != task.batch or length < 1:
            raise ValueError(f"drafts of {length} codes from {len(positions)} positions, of {task.batch} items")
        counts, reached = (ctypes.c_int64 * 3)(), (ctypes.c_int32 * task.batch)(*positions)
        models = byref(self._model), byref(task), byref(draft._model), byref(draft_task)
        numbers = stop, length, min(checks, 2**31 - 1), threads
        check(library().fastjukebox_speculate(*models, reached, *numbers, counts), threads)
        positions[:] = reached
        return counts[0], counts[1], counts[2]

    def _check(self, start: int, stop: int) -> None:
        if not 0 <= start <= stop <= self._model.context_len:
            raise ValueError(f"positions {start} to {stop} of a window of {self._model.context_len}")


class LayerCache:
    """Keys [B, H, blocks, D, 16] and values [B, H, slots, D] of a layer, FP32 or FP16.

    Keys lie in blocks of 16 slots, the same value of 16 keys side by side, so that a vector holds 16 keys' scores.
    """

    def __init__(
        self, memory: LargePages, batch: int, heads: int, slots: int, head_dim: int, dtype: torch.dtype
    ) -> None:
        self.slots = slots
        self.keys = memory.take(dtype, batch, heads, -(-slots // KEY_BLOCK), head_dim, KEY_BLOCK)
        self.values = memory.take(dtype, batch, heads, slots, head_dim)

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes

    def fill(self, kv: Tensor) -> None:
        """Take keys and values [2, 1, slots, H, D], the same for all items."""
        most = torch.finfo(self.keys.dtype).max
        keys, values = kv.transpose(2, 3).clamp(-most, most)
        self.values.copy_(values)
        blocks = torch.nn.functional.pad(keys, (0, 0, 0, -self.slots % KEY_BLOCK)).unflatten(2, (-1, KEY_BLOCK))
        self.keys.copy_(blocks.transpose(3, 4))


def pack_layer(weights: PackedWeights, tensors: dict[str, Tensor], cache: LayerCache, pattern: str) -> Layer:
    """One layer from its tensors, named as in engine.transformer.TransformerLayer; the caller keeps the cache."""
    heads, head_dim = cache.keys.shape[1], cache.keys.shape[3]

    def by_head(qkv: Tensor) -> Tensor:
        """[..., 3 H D] -> [..., H 3 D]: what belongs to a head lies together."""
        return qkv.unflatten(-1, (-1, heads, head_dim)).transpose(-3, -2).flatten(-3)

    tensors = tensors | {name: by_head(tensors[name]) for name in ("qkv.weight", "qkv.bias")}
    return Layer(
        **{f"ln_{i}_{part}": weights.vectors(tensors[f"ln_{i}.{part}"]) for i in (0, 1) for part in ("weight", "bias")},
        **{
            name: weights.matrix(tensors[f"{name}.weight"], tensors[f"{name}.bias"])
            for name in ("qkv", "proj", "up", "down")
        },
        keys=cache.keys.data_ptr(),
        values=cache.values.data_ptr(),
        pattern=PATTERNS[pattern],
        slots=cache.slots,
        cached=STORED[cache.keys.dtype],
    )
