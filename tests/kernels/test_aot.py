"""Every decode kernel compiles without a GPU and keeps to its registers; in a process without the interpreter."""

import json
import os
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


def run(code: str) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", START + code], capture_output=True, text=True, env=environment)
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
            config.conditioner is not None,
        )
        for config in priors
    }
    assert wanted <= {
        tuple(shape) for shape in json.loads(run("import json; print(json.dumps(list(aot.SHAPES.values())))"))
    }


DECODE = {
    "norm_qkv",
    "cache_attention",
    "project_attention",
    "norm_up",
    "down_residual",
    "head_logits",
    "sample_step",
}


# One storage type for each architecture; `python -m fastjukebox.kernels.aot` compiles all of all.
@pytest.mark.parametrize(
    ("architecture", "shape", "stored"), [(60, "upsampler", "fp16"), (80, "top", "bf16"), (90, "upsampler", "int8")]
)
def test_decode_kernels_compile_and_do_not_spill(tmp_path, architecture, shape, stored):
    path = tmp_path / "aot.json"
    run(
        f"aot.main(['--json', {str(path)!r}, '--arch', '{architecture}', '--shape', '{shape}', '--stored', '{stored}'])"
    )
    table = json.loads(path.read_text())["kernels"]
    decode = [row for row in table if row["name"].split("/")[0].split("[")[0] in DECODE]
    assert {row["name"].split("/")[0].split("[")[0] for row in decode} == DECODE
    for row in decode:
        assert row["stack"] == row["local"] == 0, row
        assert 16 < row["registers"] < 255, row
        # What every architecture gives without asking.
        assert row["shared"] <= 48 * 1024, row
