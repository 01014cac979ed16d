"""The tests of the kernels again, on what Triton compiles them to: executed on the CPU, instruction by instruction."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available() or "FASTJUKEBOX_PTX" in os.environ, reason="a GPU does that, or this is such a run"
)
ROOT = Path(__file__).parent.parent.parent
# Products on tensor cores, with FP32 on all others; what a P100 does with weights of 16 and 8 bits.
RUNS = [
    (90, "kernels/test_norm_up.py", "kernels/test_norm_qkv.py"),
    (90, "kernels/test_down_residual.py", "kernels/test_head_logits.py", "kernels/test_project_attention.py"),
    (90, "kernels/test_cache_attention.py", "kernels/test_sample_step.py", "engine/test_graph_decoder.py"),
    (90, "engine/test_draft_cycle.py::test_codes_equal_those_without_drafts"),
    (90, "kernels/test_batches.py", "kernels/test_check_drafts.py"),
    (80, "kernels/test_prefill_attention.py"),
    (80, "kernels/test_attention_distance.py"),
    (60, "kernels/test_norm_up.py", "kernels/test_down_residual.py", "kernels/test_prefill_attention.py"),
]


@pytest.mark.parametrize("run", RUNS, ids=lambda run: f"sm_{run[0]}-{Path(run[1]).stem.split('.')[0]}")
def test_what_is_compiled_passes_the_tests(run):
    architecture, *files = run
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("TRITON_INTERPRET", "PYTEST"))
    }
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:xdist", *(f"tests/{name}" for name in files)],
        env=environment | {"FASTJUKEBOX_PTX": str(architecture)},
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout, done.stdout
