"""The kernel that stays on the GPU compiles without one (what it computes: tests/engine/test_persistent_decoder.py)."""

import json
from pathlib import Path

import pytest
import torch
from fastjukebox.kernels import persistent
from test_aot import ROOT, run

needs_nvrtc = pytest.mark.skipif(bool(persistent.missing()), reason=f"needs NVRTC: {persistent.missing()}")


def compiled(path: Path, *arguments: str) -> list[dict]:
    run(f"from fastjukebox.kernels import persistent_aot as p; p.main(['--json', {str(path)!r}, *{arguments!r}])")
    return json.loads(path.read_text())["kernels"]


@needs_nvrtc
@pytest.mark.parametrize(
    ("architecture", "shape", "stored"), [(75, "upsampler", "int8"), (80, "top", "bf16"), (90, "upsampler", "fp16")]
)
def test_it_compiles_and_does_not_spill(tmp_path, architecture, shape, stored):
    options = ("--arch", str(architecture), "--shape", shape, "--stored", stored)
    rows = compiled(tmp_path / "aot.json", *options)
    assert [row["name"] for row in rows] == [f"decode_steps/{shape}/{stored}/batch {batch}" for batch in (1, 4)]
    for row in rows:
        assert row["stack"] == row["local"] == 0, row
        assert row["registers"] > 64, row


@needs_nvrtc
def test_too_many_items_for_shared_memory_are_refused():
    shape = persistent.Shape(4800, 1200, 8, 4800, 2048, 8192, 64, 4, torch.float16)
    with pytest.raises(ValueError, match="no room for so many items on this GPU"):
        persistent.compile_cubin(shape.defines(shape.blocks(40), 64 << 10), (7, 5))


@needs_nvrtc
def test_an_error_of_the_compiler_is_told():
    with pytest.raises(RuntimeError, match=r"(?s)cannot compile the persistent decoder: .*error"):
        persistent.compile_cubin({"WIDTH": "nothing"}, (9, 0))


def test_the_committed_table_has_every_shape_and_spills_where_it_says():
    table = json.loads((ROOT / "bench/results/aot-persistent.json").read_text())["kernels"]
    code = """
import json
from fastjukebox.kernels import persistent_aot as p
names = [name for name, _ in p.shapes(list(p.SHAPES), list(p.STORED), [1, p.MOST_ITEMS])]
print(json.dumps([[architecture, name] for architecture in p.GPUS for name in names]))
"""
    wanted = json.loads(run(code))
    found = [[row["architecture"], row["name"]] for row in table]
    # A T4 has no room for four items of the widest.
    absent = [each for each in wanted if each not in found]
    assert found == [each for each in wanted if each in found]
    assert all(architecture == 75 and "top-5b" in name and name.endswith("4") for architecture, name in absent)
    assert all(row["stack"] + row["local"] == 0 for row in table if "top-5b" not in row["name"])
