"""The native decoder gives the same bits on every processor: on this one, and on another one that is emulated."""

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = [str(ROOT / "tests/kernels/native_driver.cpp"), str(ROOT / "kernels/csrc/decode.cpp")]
OPTIONS = ["-std=c++17", "-O1", "-ffp-contract=off", "-Wno-psabi", "-pthread", "-static"]

# Of codes and conditions of random models; see native_driver.cpp.
DIGEST = "digest 1216e35bea5558ab"

# The compiler's name, and what runs the program that it makes.
HERE = ("g++", [])
PROCESSORS = {"this one": HERE, "this one, clang": ("clang++", [])}
if platform.machine() != "aarch64":
    PROCESSORS["aarch64"] = ("aarch64-linux-gnu-g++", ["qemu-aarch64-static"])


@pytest.mark.parametrize("processor", PROCESSORS)
def test_the_same_bits(processor, tmp_path):
    compiler, runner = PROCESSORS[processor]
    for needed in (compiler, *runner):
        if shutil.which(needed) is None:
            pytest.skip(f"{needed} is not installed")
    program = str(tmp_path / "driver")
    subprocess.run([compiler, *OPTIONS, *SOURCES, "-o", program], check=True)
    printed = subprocess.run([*runner, program, "digest"], check=True, capture_output=True, text=True).stdout
    assert printed.splitlines()[-1] == DIGEST
