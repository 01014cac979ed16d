"""Runs kernels as they are compiled for a GPU, on the CPU (see ptx_machine): `FASTJUKEBOX_PTX=90 pytest tests/kernels`
holds what Triton makes of them for sm_90 against the reference, by the tests that otherwise run in its interpreter."""

from typing import Any

import triton
from fastjukebox.kernels.launch import TYPES
from fastjukebox.kernels.pattern_groups import COMPILED_FOR
from ptx_machine import Kernel, Memory
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")


def install(architecture: int) -> None:
    """From here on every launch of a kernel in this process compiles it for `architecture` and executes that."""
    COMPILED_FOR.set(architecture)

    def launcher(kernel: Any, grid: tuple[int, ...]) -> Any:
        return lambda *args, **named: run(kernel, grid, architecture, args, named)

    JITFunction.__getitem__ = launcher


def run(kernel: Any, grid: tuple[int, ...], architecture: int, args: tuple[Any, ...], named: dict[str, Any]) -> None:
    """Specialize as Triton does (constants, 1, multiples of 16), compile, execute, and write results to the tensors."""
    options = {key: named[key] for key in OPTIONS if key in named}
    given = dict(zip(kernel.arg_names, args)) | {key: named[key] for key in named if key in kernel.arg_names}
    signature, constants, attributes, passed = {}, {}, {}, []
    for index, param in enumerate(kernel.params):
        value = given[param.name]
        if param.is_constexpr or value is None or (value is True or value is False):
            signature[param.name], constants[param.name] = "constexpr", value
        elif isinstance(value, Tensor):
            signature[param.name] = f"*{TYPES[value.dtype]}"
            passed.append(value)
            if value.storage_offset() * value.element_size() % 16 == 0:
                attributes[(index,)] = [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[param.name] = "fp32"
            passed.append(value)
        elif value == 1 and not param.do_not_specialize:
            signature[param.name], constants[param.name] = "constexpr", 1
        else:
            signature[param.name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            passed.append(value)
            if value % 16 == 0 and not param.do_not_specialize:
                attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    memory = Memory([value for value in passed if isinstance(value, Tensor)])
    arguments = [memory.address(value) if isinstance(value, Tensor) else value for value in passed]
    Kernel(compiled.asm["ptx"], options.get("num_warps", 4), compiled.metadata.shared).run(grid, memory, arguments)
    memory.write_back()
