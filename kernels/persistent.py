"""Many decode steps in one launch (cuda/persistent.cu): compiled for a GPU by NVRTC and launched by its driver, both
through `cuda.bindings`, which PyTorch brings along. The structures are mirrored field by field.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping
from ctypes import Structure, c_float, c_int32, c_uint32, c_void_p
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

FOLDER = Path(__file__).parent / "cuda"
STORED = {torch.float32: "float", torch.float16: "Half", torch.bfloat16: "Bfloat16"}
MOST_PARTS = 16
# For more, a thread has not registers enough.
MOST_ITEMS = 4
THREADS = 512


class Matrix(Structure):
    _fields_ = [(name, c_void_p) for name in ("weight", "bias", "scale")]


class Layer(Structure):
    _fields_ = [
        *((f"norm_{i}_{part}", c_void_p) for i in (0, 1) for part in ("weight", "bias")),
        *((name, Matrix) for name in ("qkv", "proj", "up", "down")),
        ("kv", c_void_p),
        *((name, c_int32) for name in ("pattern", "slots", "part", "projected")),
    ]


# What blocks tell each other.
WORDS = ("qkv", "parts", "h", "hidden", "x_words", "logits", "drawn")


class Arguments(Structure):
    _fields_ = [
        *(
            (name, c_void_p)
            for name in (
                "layers",
                "head_weight",
                "token_embedding",
                "pos_embedding",
                "head_scale",
                "frame_cond",
                "head_cond",
                "x",
                "codes",
                "items",
                "noise_key",
                "filters",
                *WORDS,
            )
        ),
        *((name, c_int32) for name in ("depth", "start", "steps")),
        ("tag", c_uint32),
        ("res_scale", c_float),
    ]


@dataclass(frozen=True)
class Shape:
    """What is fixed when the kernel is compiled. `stored`: of embeddings, conditions, keys and values, and of weights
    unless `int8`.

    Raises:
        ValueError: the kernel is not made for it.
    """

    width: int
    attn_width: int
    heads: int
    mlp_width: int
    codes: int
    context_len: int
    row_len: int
    batch: int
    stored: torch.dtype
    int8: bool = False

    def __post_init__(self) -> None:
        if any(width % 16 for width in (self.width, self.attn_width, self.mlp_width)) or self.head_dim % 2:
            raise ValueError(
                "the persistent decoder needs widths that are multiples of 16 and an even head dim, not "
                f"{self.width}, {self.attn_width}, {self.mlp_width} and {self.head_dim}: choose triton"
            )
        if self.stored not in STORED:
            raise ValueError(f"the persistent decoder takes float32, float16 and bfloat16 priors, not {self.stored}")
        if self.batch > MOST_ITEMS:
            raise ValueError(
                f"the persistent decoder decodes {MOST_ITEMS} items at a time at most, not {self.batch}: choose triton"
            )

    @property
    def head_dim(self) -> int:
        return self.attn_width // self.heads

    def blocks(self, multiprocessors: int) -> int:
        """One for each multiprocessor; but each needs outputs of every product of a layer."""
        return min(multiprocessors, self.width, self.mlp_width, self.attn_width)

    def words(self) -> dict[str, int]:
        """How many words blocks exchange, by the fields of `Arguments`."""
        parts = MOST_PARTS * self.heads * (self.head_dim + 2)
        each = 3 * self.attn_width, parts, self.width, self.mlp_width, self.width, self.codes, 1
        return {name: self.batch * count for name, count in zip(WORDS, each, strict=True)}

    def defines(self, blocks: int, shared_bytes: int, threads: int = THREADS) -> dict[str, Any]:
        """The macros that the source is compiled with."""
        stored = STORED[self.stored]
        return {
            "WIDTH": self.width,
            "ATTN_WIDTH": self.attn_width,
            "HEADS": self.heads,
            "HEAD_DIM": self.head_dim,
            "MLP_WIDTH": self.mlp_width,
            "CODES": self.codes,
            "CONTEXT": self.context_len,
            "ROW_LEN": self.row_len,
            "BATCH": self.batch,
            "MOST_PARTS": MOST_PARTS,
            "GRID": blocks,
            "THREADS": threads,
            "SHARED_BYTES": shared_bytes,
            # Scores are in units of log2.
            "SCORE_SCALE": f"{self.head_dim**-0.5 / math.log(2)!r}f",
            "STORED": stored,
            "WEIGHT": "signed char" if self.int8 else stored,
        }


def missing() -> str | None:
    """Why nothing can be compiled for GPUs here, or None."""
    try:
        nvrtc_version()
    except ImportError:
        return "the package cuda-bindings is not installed"
    except RuntimeError as error:
        return f"NVRTC cannot be loaded ({error})"
    return None


def _bindings(name: str) -> Any:
    return import_module(f"cuda.bindings.{name}")


def compile_cubin(defines: Mapping[str, Any], capability: tuple[int, int]) -> bytes:
    """The kernel for GPUs of a compute capability; no GPU is needed.

    Raises:
        ValueError: there is too little shared memory for so many items.
        RuntimeError: NVRTC cannot, because of what it says.
    """
    return _compiled(tuple(sorted(defines.items())), f"sm_{capability[0]}{capability[1]}")


def compile_ptx(defines: Mapping[str, Any], capability: tuple[int, int]) -> str:
    """As `compile_cubin`, in the language that machine code is made of."""
    return _compiled(tuple(sorted(defines.items())), f"compute_{capability[0]}{capability[1]}").rstrip(b"\0").decode()


@lru_cache(maxsize=32)
def _compiled(defines: tuple[tuple[str, Any], ...], architecture: str) -> bytes:
    nvrtc = _bindings("nvrtc")
    headers = sorted(FOLDER.glob("*.cuh"))
    names, texts = [path.name.encode() for path in headers], [path.read_bytes() for path in headers]
    source = (FOLDER / "persistent.cu").read_bytes()
    program = _checked(nvrtc.nvrtcCreateProgram(source, b"persistent.cu", len(headers), texts, names))
    options = [
        f"--gpu-architecture={architecture}",
        "--std=c++17",
        "--device-as-default-execution-space",
        *(f"-D{name}={value}" for name, value in defines),
    ]
    status = nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])
    if int(status[0]):
        log = bytearray(_checked(nvrtc.nvrtcGetProgramLogSize(program)))
        _checked(nvrtc.nvrtcGetProgramLog(program, log))
        if b"static assertion failed" in log:
            raise ValueError("the persistent decoder has no room for so many items on this GPU: choose triton")
        raise RuntimeError(f"NVRTC cannot compile the persistent decoder: {log.decode(errors='replace')[:2000]}")
    kind = "CUBIN" if architecture.startswith("sm_") else "PTX"
    made = bytearray(_checked(getattr(nvrtc, f"nvrtcGet{kind}Size")(program)))
    _checked(getattr(nvrtc, f"nvrtcGet{kind}")(program, made))
    _checked(nvrtc.nvrtcDestroyProgram(program))
    return bytes(made)


def nvrtc_version() -> str:
    return ".".join(map(str, _checked(_bindings("nvrtc").nvrtcVersion())))


def _checked(result: tuple[Any, ...]) -> Any:
    """What a call of `cuda.bindings` returns after its status. Raises RuntimeError if that is an error."""
    status, *values = result
    if int(status):
        raise RuntimeError(f"a call of CUDA failed: {status}")
    return values[0] if len(values) == 1 else values


class GpuProgram:
    """The kernel for a shape on a GPU."""

    def __init__(self, shape: Shape, device: torch.device) -> None:
        driver = _bindings("driver")
        attribute = driver.CUdevice_attribute
        with torch.cuda.device(device):
            # There is a context then.
            torch.zeros(1, device=device)
            here = _checked(driver.cuCtxGetDevice())
            optin = attribute.CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
            self.shared_bytes = _checked(driver.cuDeviceGetAttribute(optin, here))
            self.blocks = shape.blocks(torch.cuda.get_device_properties(device).multi_processor_count)
            defines = shape.defines(self.blocks, self.shared_bytes)
            module = _checked(driver.cuModuleLoadData(compile_cubin(defines, torch.cuda.get_device_capability(device))))
            self.function = _checked(driver.cuModuleGetFunction(module, b"decode_steps"))
            dynamic = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            _checked(driver.cuFuncSetAttribute(self.function, dynamic, self.shared_bytes))

    def __call__(self, arguments: Arguments) -> None:
        """On the current stream, all blocks at the same time."""
        pointers = (c_void_p * 1)(ctypes.addressof(arguments))
        sizes = (self.blocks, 1, 1, THREADS, 1, 1, self.shared_bytes)
        stream = torch.cuda.current_stream().cuda_stream
        _checked(
            _bindings("driver").cuLaunchCooperativeKernel(self.function, *sizes, stream, ctypes.addressof(pointers))
        )
