"""The compiled library is that of the sources beside it, or is not taken."""

import shutil
from pathlib import Path

import pytest
from fastjukebox.kernels import native_library

pytestmark = pytest.mark.skipif(
    native_library.missing() is not None, reason=f"native decoder: {native_library.missing()}"
)
KERNELS = Path(native_library.__file__).parent


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A copy of the library and its sources, which `library` looks at."""
    shutil.copytree(KERNELS / "csrc", tmp_path / "csrc")
    for path in KERNELS.glob("_decode.*"):
        shutil.copy(path, tmp_path)
    monkeypatch.setattr(native_library, "__file__", str(tmp_path / "native_library.py"))
    return tmp_path


def test_a_copy_of_all_is_taken(installed):
    assert native_library.library.__wrapped__().fastjukebox_isa()


@pytest.mark.parametrize("name", ["decode.cpp", "decode.h", "ops.inc"])
def test_a_library_of_other_sources_is_refused(installed, name):
    with (installed / "csrc" / name).open("a") as file:
        file.write("// another line\n")
    with pytest.raises(OSError, match=r"built from other sources.*install fastjukebox again"):
        native_library.library.__wrapped__()


def test_a_renamed_source_is_another(tmp_path):
    (tmp_path / "a.h").write_text("int x;")
    before = native_library.sources(tmp_path)
    (tmp_path / "notes.txt").write_text("no source")
    assert native_library.sources(tmp_path) == before
    (tmp_path / "a.h").rename(tmp_path / "b.h")
    assert native_library.sources(tmp_path) != before


def test_a_limit_is_kept_to():
    """Else what is tested on each instruction set would be tested on the best one, again and again."""
    sets = native_library.INSTRUCTION_SETS
    best = sets.index(native_library.instruction_set())
    for number, name in enumerate(sets):
        with native_library.limited_to(name):
            assert native_library.instruction_set() == sets[min(number, best)]
    assert native_library.instruction_set() == sets[best]


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="Linux says what the processor has")
def test_the_best_instruction_set_of_the_processor_is_used():
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    has = set(next((line for line in lines if line.startswith("flags")), "").split())
    needed = {"avx2": "avx2 fma", "avx512": "avx512f avx512bw avx512dq avx512vl", "avx512-vnni": "avx512_vnni"}
    best = "portable"
    for name, flags in needed.items():
        if not has >= set(flags.split()):
            break
        best = name
    assert native_library.instruction_set() == best
