"""The native decoder gives the same bits on every processor: on this one, and on another one that is emulated."""

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OPTIONS = ["-std=c++17", "-O1", "-ffp-contract=off", "-Wno-psabi", "-pthread"]

# Of codes and conditions of random models; see native_driver.cpp.
DIGEST = "digest 4c8dbb877c5725b6"

# The compiler's name, and what runs the program that it makes.
PROCESSORS = {"this one": ("g++", []), "this one, clang": ("clang++", [])}
if platform.machine() != "aarch64":
    PROCESSORS["aarch64"] = ("aarch64-linux-gnu-g++", ["qemu-aarch64-static"])


def printed(folder, compiler, sources, runner=(), words=()):
    """What a program of these sources prints; skips the test where it cannot be made or run."""
    for needed in (compiler, *runner):
        if shutil.which(needed) is None:
            pytest.skip(f"{needed} is not installed")
    program = str(folder / "driver")
    # The emulator has no libraries of that system.
    static = ["-static"] if runner else []
    subprocess.run([compiler, *OPTIONS, *static, *(str(ROOT / path) for path in sources), "-o", program], check=True)
    return subprocess.run([*runner, program, *words], check=True, capture_output=True, text=True).stdout.splitlines()


@pytest.mark.parametrize("processor", PROCESSORS)
def test_the_same_bits(processor, tmp_path):
    compiler, runner = PROCESSORS[processor]
    sources = "tests/kernels/native_driver.cpp", "kernels/csrc/decode.cpp"
    assert printed(tmp_path, compiler, sources, runner, ["digest"])[-1] == DIGEST


@pytest.mark.skipif(platform.machine() != "x86_64", reason="compares with instructions of x86")
def test_what_is_put_together_rounds_as_the_instructions_do(tmp_path):
    assert printed(tmp_path, "g++", ["tests/kernels/simd_driver.cpp"]) in (["0 different"], ["no AVX2"])
