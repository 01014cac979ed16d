"""The kernels compile without a GPU and keep to registers and shared memory; in a process without the interpreter."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fastjukebox.engine.config import PRESETS, PriorConfig

ROOT = Path(__file__).parent.parent.parent
# The package may not be installed; the checkout then stands for it.
START = f"""
import sys, types
package = types.ModuleType("fastjukebox")
package.__path__ = [{str(ROOT)!r}]
sys.modules["fastjukebox"] = package
from fastjukebox.kernels import aot
"""


DECODE = {
    "norm_qkv",
    "cache_attention",
    "project_attention",
    "norm_up",
    "down_residual",
    "head_logits",
    "sample_step",
    "begin_check",
    "end_check",
}


def run(code: str) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", START + code], capture_output=True, text=True, env=environment, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_table_covers_every_preset():
    priors = {config for config in PRESETS.values() if isinstance(config, PriorConfig)}
    wanted = {
        (
            config.width,
            config.heads,
            config.head_dim,
            config.mlp_width,
            config.context_len,
            config.num_rows,
            config.codebook_size,
            config.conditioner is not None or bool(config.labels and config.labels.time_bins),
            config.separate_head,
            config.lyric_reach if config.lyric_len else 0,
        )
        for config in priors
    }
    shapes = json.loads(run("import json; print(json.dumps(list(aot.SHAPES.values())))"))
    assert {config.lyrics.length for config in priors if config.lyrics and config.lyrics.encoder} == {
        shape[-1] for shape in shapes if shape[-1]
    }
    assert wanted <= {tuple(shape[:-1]) for shape in shapes}


def compiled(path: Path, *arguments: str) -> list[dict]:
    run(f"aot.main(['--json', {str(path)!r}, *{arguments!r}])")
    return json.loads(path.read_text())["kernels"]


def op(row: dict) -> str:
    return re.split(r"[\[/]", row["name"])[0]


# The oldest architecture, the first with BF16 and the first with programmatic dependent launch, at all presets' shapes.
# bench/results/aot.json covers all six architectures with all four stored types, and the attention kernels.
@pytest.mark.parametrize(
    ("architecture", "upsampler", "top"), [(60, "fp16", "int8"), (80, "int8", "fp16"), (90, "fp16", "int8")]
)
def test_decode_kernels_compile_and_do_not_spill(tmp_path, architecture, upsampler, top):
    rows = []
    for shape, stored in (("upsampler", upsampler), ("top", top)):
        options = ("--arch", str(architecture), "--shape", shape, "--stored", stored, "--decode-only")
        found = compiled(tmp_path / "aot.json", *options)
        assert {op(row) for row in found} == DECODE
        rows += found
    for row in rows:
        assert row["stack"] == row["local"] == 0, row
        assert row["registers"] > 16, row
        # What every architecture gives without asking.
        assert row["shared"] <= 48 << 10, row


# Of several items inputs go through shared memory, whose size in the interpreter nobody counts.
@pytest.mark.parametrize("stored", ["fp16", "int8"])
def test_kernels_of_many_items_find_shared_memory_and_registers_at_every_width(tmp_path, stored):
    rows = []
    for shape in ("upsampler", "top-5b"):
        options = ("--arch", "90", "--shape", shape, "--stored", stored, "--batch", "32", "--decode-only")
        rows += compiled(
            tmp_path / "aot.json", *options, "--match", r"norm_qkv\[row\]|norm_up|down_residual|head_logits"
        )
    assert len(rows) == 8
    for row in rows:
        # What a program may have on an H200.
        assert row["shared"] <= 227 << 10 and row["stack"] == row["local"] == 0, row


# Positions of one item as a check of drafts has them; of project_attention only the upsamplers' are known not to spill.
@pytest.mark.parametrize("stored", ["fp16", "int8"])
def test_kernels_of_a_check_find_shared_memory_and_registers(tmp_path, stored):
    options = ("--arch", "90", "--shape", "upsampler", "--stored", stored, "--decode-only", "--batch", "16", "--check")
    rows = compiled(tmp_path / "aot.json", *options)
    assert {op(row) for row in rows} == DECODE
    for row in rows:
        assert row["shared"] <= 227 << 10 and row["stack"] == row["local"] == 0, row


# Kernels that once took more shared memory than a P100 has, or spilled; one for each way to multiply matrices.
@pytest.mark.parametrize(
    ("architecture", "stored", "kernel"),
    [(60, "fp16", r"backward_group\[row\]"), (75, "fp16", r"distance_keys\[column\]"), (90, "bf16", r"forward\[row\]")],
)
def test_attention_kernels_fit_and_do_not_spill(tmp_path, architecture, stored, kernel):
    options = ("--arch", str(architecture), "--shape", "upsampler", "--stored", stored, "--match", kernel)
    (row,) = compiled(tmp_path / "aot.json", *options)
    assert row["stack"] == row["local"] == 0, row
    assert row["shared"] <= 48 << 10, row


def test_a_kernel_that_cannot_start_or_spills_is_named():
    code = """
for name, architecture, shared, stack in (
    ("backward_group[row]", 60, 49153, 0), ("backward_group[row]", 70, 49153, 8), ("norm_up", 90, 0, 8)
):
    print(aot.Resources(name + "/top/fp16", architecture, 4, 99, shared, stack, 0).violations())
"""
    too_large, fits, spills = run(code).splitlines()
    assert "sm_60 backward_group[row]/top/fp16: 49153 B of shared memory, more than 49152" in too_large
    # Stack in an attention kernel is listed, not refused.
    assert fits == "[]"
    assert "sm_90 norm_up/top/fp16: 8 B of stack" in spills


def test_the_committed_table_lists_every_kernel_and_breaks_no_rule():
    code = """
import itertools, json
kinds = itertools.product(aot.ARCHITECTURES, aot.SHAPES, aot.STORED)
wanted = [[kind[0], one.name] for kind in kinds for one in aot.specializations(*kind)]
table = json.load(open("bench/results/aot.json"))["kernels"]
print(json.dumps([wanted, [line for row in table for line in aot.Resources(**row).violations()]]))
"""
    wanted, violations = json.loads(run(code))
    table = json.loads((ROOT / "bench/results/aot.json").read_text())["kernels"]
    assert [[row["architecture"], row["name"]] for row in table] == wanted, "python -m fastjukebox.kernels.aot --json"
    assert not violations


def test_attention_of_one_position_compiles():
    """Triton makes a constant of an argument that is 1; the interpreter does not."""
    code = """
import torch
from fastjukebox.kernels.attention_aot import attention_specializations
for row_len in (4, 256):
    for found in attention_specializations("one", row_len, 4, 32, torch.float16, 90):
        for name in ("length", "offset", "number"):
            if found.signature.get(name) == "i32":
                found.signature[name], found.constexprs[name] = "constexpr", 1
        aot.compile_one(found, 90)
        print(found.name)
"""
    names = run(code)
    assert "length" in run(
        "from fastjukebox.kernels import attention_distance as a; print(a._distance_group.arg_names)"
    )
    assert "distance_group" in names
    assert "distance_keys" in names
