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
