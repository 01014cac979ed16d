"""The compiled library behind ctypes (csrc/decode.h): its structures, mirrored field by field, and how it is found."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib.machinery
import os
from collections.abc import Iterator
from ctypes import POINTER, Structure, c_char_p, c_float, c_int32, c_int64, c_uint64, c_void_p
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

INSTRUCTION_SETS = ("portable", "avx2", "avx512", "avx512-vnni")


class Matrix(Structure):
    _fields_ = [
        ("panels", c_void_p),
        ("scale", c_void_p),
        ("bias", c_void_p),
        ("inputs", c_int32),
        ("outputs", c_int32),
        ("stored", c_int32),
    ]


class Layer(Structure):
    _fields_ = [
        *((f"ln_{i}_{part}", c_void_p) for i in (0, 1) for part in ("weight", "bias")),
        *((name, Matrix) for name in ("qkv", "proj", "up", "down")),
        ("keys", c_void_p),
        ("values", c_void_p),
        ("pattern", c_int32),
        ("slots", c_int32),
        ("cached", c_int32),
    ]


class Model(Structure):
    _fields_ = [
        *(
            (name, c_int32)
            for name in (
                "depth",
                "width",
                "attn_width",
                "heads",
                "mlp_width",
                "codebook_size",
                "context_len",
                "row_len",
                "cond_again",
            )
        ),
        ("res_scale", c_float),
        ("token_embedding", c_void_p),
        ("pos_embedding", c_void_p),
        ("start_token", c_void_p),
        ("head", Matrix),
        ("layers", POINTER(Layer)),
    ]


class Task(Structure):
    # What its pointers point to.
    tensors: tuple[Tensor | None, ...]
    _fields_ = [
        ("batch", c_int32),
        ("codes", c_void_p),
        ("frame_cond", c_void_p),
        ("start_cond", c_void_p),
        ("items", c_void_p),
        ("seed", c_uint64),
        ("offset", c_int64),
        ("level", c_int32),
        ("top_k", c_int32),
        ("temperature", c_float),
        ("top_p", c_float),
    ]


class Convolution(Structure):
    _fields_ = [
        *((name, c_void_p) for name in ("panels", "bias")),
        *((name, c_int32) for name in ("inputs", "outputs", "taps", "dilation", "first")),
    ]


class Conditioner(Structure):
    _fields_ = [
        *((name, c_int32) for name in ("width", "inner", "hidden", "stages", "depth", "stride")),
        ("res_scale", c_float),
        *((name, c_void_p) for name in ("embedding", "ln_weight", "ln_bias")),
        ("convolutions", POINTER(Convolution)),
    ]


def sources(folder: Path) -> str:
    """A hash of the C++ in `folder`, which the build (setup.py) compiles into the library."""
    found = hashlib.sha256()
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        if path.suffix in {".cpp", ".h", ".inc"}:
            found.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()[:16]


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL:
    """The compiled decoder. Raises OSError with the reason where there is none."""
    folder = Path(__file__).parent
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        path = folder / f"_decode{suffix}"
        if path.exists():
            break
    else:
        reason = folder / "_decode.missing"
        why = f" ({reason.read_text().strip()})" if reason.exists() else ""
        raise OSError(f"it was not built{why}: install a C++ compiler (g++) and fastjukebox again")
    lib = ctypes.CDLL(str(path))
    built_from = getattr(lib, "fastjukebox_sources", None)
    if built_from is not None:
        built_from.restype = c_char_p
    if built_from is None or built_from().decode() != sources(folder / "csrc"):
        raise OSError(f"{path.name} was built from other sources than those beside it: install fastjukebox again")
    lib.fastjukebox_isa.restype = c_char_p
    model = [POINTER(Model), POINTER(Task)]
    lib.fastjukebox_decode.argtypes = [*model, c_int32, c_int32, c_int32]
    lib.fastjukebox_prefill.argtypes = [*model, c_int32, c_int32, c_int32, c_int32]
    numbers = [POINTER(c_int32), c_int32, c_int32, c_int32, c_int32, POINTER(c_int64)]
    lib.fastjukebox_speculate.argtypes = [*model, *model, *numbers]
    place = [POINTER(Conditioner), c_void_p, c_int32, c_void_p, c_void_p]
    lib.fastjukebox_condition.argtypes = [*place, c_int32, c_int32]
    lib.fastjukebox_condition_room.argtypes = [POINTER(Conditioner), c_int32]
    lib.fastjukebox_condition_room.restype = c_int64
    lib.fastjukebox_weights_alone.argtypes, lib.fastjukebox_weights_alone.restype = [c_int64], c_int64
    mirrored = (Model, Layer, Task, Convolution, Conditioner)
    sizes = (c_int32 * len(mirrored))()
    lib.fastjukebox_sizes(sizes)
    if list(sizes) != [ctypes.sizeof(kind) for kind in mirrored]:
        raise OSError(f"{path} was built from another version: install fastjukebox again")
    return lib


def missing() -> str | None:
    """Why the native decoder cannot run here, or None."""
    try:
        library()
    except OSError as error:
        return str(error)
    return None


def instruction_set() -> str:
    """What the decoder uses on this CPU: "avx512-vnni", "avx512", "avx2" or "portable"."""
    return library().fastjukebox_isa().decode()


@lru_cache(maxsize=1)
def _libgomp() -> ctypes.CDLL | None:
    """The GNU OpenMP runtime that PyTorch has loaded, if it has."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/maps").read_text().splitlines():
            path = line.split(maxsplit=5)[-1]
            if Path(path).name.startswith("libgomp"):
                return ctypes.CDLL(path)
    return None


# A forked process has its parent's pool without the threads: who waits for those waits for ever.
_forked = list[bool]()
os.register_at_fork(after_in_child=lambda: _forked.append(True))


def rest_pytorch_threads() -> None:
    """Let the threads of PyTorch's last parallel region end.

    They would spin for some milliseconds, waiting for the next one, on the cores that the decoder's team needs: on two
    cores that cost a quarter of a window's time. `omp_pause_resource_all` (OpenMP 5.0) concerns the calling thread's
    own pool; PyTorch starts another when it needs one.
    """
    gomp = None if _forked else _libgomp()
    if gomp is not None and hasattr(gomp, "omp_pause_resource_all"):
        gomp.omp_pause_resource_all(1)


@contextlib.contextmanager
def limited_to(name: str) -> Iterator[None]:
    """Within this context the decoder uses no better instruction set than `name`; for tests."""
    library().fastjukebox_limit(INSTRUCTION_SETS.index(name))
    try:
        yield
    finally:
        library().fastjukebox_limit(len(INSTRUCTION_SETS) - 1)


@contextlib.contextmanager
def items_alone(size: int) -> Iterator[None]:
    """Within this context threads take items of their own up to so many bytes of weights an item; for tests."""
    before = library().fastjukebox_weights_alone(size)
    try:
        yield
    finally:
        library().fastjukebox_weights_alone(before)


def check(status: int, threads: int) -> None:
    """Raises what a call's status means (csrc/decode.h)."""
    if status == 1:
        raise OSError(f"the system has no room for {threads} threads: ask for fewer")
    if status == 2:
        raise MemoryError(f"no room for the buffers of {threads} threads")
