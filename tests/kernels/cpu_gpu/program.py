"""The persistent kernel on a CPU: compiled with device.cuh beside this file, which makes every thread a fiber."""

import ctypes
import itertools
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

from fastjukebox.kernels.persistent import FOLDER, Arguments, Shape, compile_ptx

from .ptx import to_cpp

HERE = Path(__file__).parent
COMPILER = shutil.which("g++") or shutil.which("clang++")
STATUS = {1: "blocks wait for each other for ever", 2: "a copy outlived its block"}
folder = tempfile.TemporaryDirectory()


@lru_cache
def build(shape: Shape, blocks: int, threads: int, shared_bytes: int, architecture: int) -> ctypes.CDLL:
    library = Path(folder.name) / f"{len(list(Path(folder.name).iterdir()))}.so"
    defines = shape.defines(blocks, shared_bytes, threads)
    kernel = FOLDER / "persistent.cu"
    if architecture:
        kernel = library.with_suffix(".inc")
        kernel.write_text(to_cpp(compile_ptx(defines, divmod(architecture, 10))))
    defines["KERNEL"] = f'"{kernel}"'
    command = [COMPILER, "-std=c++17", "-O1", "-shared", "-fPIC", "-Wall", "-Wno-unknown-pragmas"]
    # Fortified, a jump between stacks is an error.
    command += ["-U_FORTIFY_SOURCE"]
    # What is compiled has labels and registers that nothing uses.
    command += ["-Wno-unused"] * bool(architecture)
    command += [f"-I{HERE}", f"-I{FOLDER}", *(f"-D{name}={value}" for name, value in defines.items())]
    subprocess.run([*command, str(HERE / "run.cpp"), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


class CpuProgram:
    """As persistent.GpuProgram. seed: of the first launch's order of threads; the next launch has the next one.
    architecture: to run what NVRTC compiles for it (90: sm_90), not the source."""

    def __init__(
        self,
        shape: Shape,
        blocks: int = 3,
        threads: int = 64,
        shared_bytes: int = 1 << 16,
        seed: int = 0,
        architecture: int = 0,
    ) -> None:
        self.run = build(shape, blocks, threads, shared_bytes, architecture).run
        self.seeds = itertools.count(seed)

    def __call__(self, arguments: Arguments) -> None:
        if status := self.run(ctypes.byref(arguments), next(self.seeds)):
            raise RuntimeError(STATUS[status])
