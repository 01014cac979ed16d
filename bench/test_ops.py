"""`pytest bench/`: each operation under pytest-benchmark, with GB/s and share of the measured bandwidth beside it.

On a GPU: the operations of a decode step in Triton, the reference and torch.compile, and prefill attention in Triton,
the reference and FlexAttention, forward and backward. On a CPU: the reference and a step of the native decoder. A
benchmark's time is that of many calls; `us_per_call` is in `extra_info`.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch

pytest.importorskip("pytest_benchmark")
# Not by name: inside the package imports are relative, and pytest imports this file from outside of it.
harness, bandwidth, ops, attention, decode = (
    import_module(f"fastjukebox.bench.{n}") for n in ("harness", "bandwidth", "ops", "attention", "decode")
)

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
SIZES = ("upsampler-0-72", "top-72") if GPU else ("1x512",)
STORED = ("fp16", "int8") if GPU else ("fp32",)
ROUNDS = 20 if GPU else 5


@pytest.fixture(scope="session")
def peak() -> float:
    """Bytes per second that plain code reaches."""
    mover = bandwidth.plain(DEVICE, 1 << (30 if GPU else 26))
    return mover.nbytes / harness.quantiles(harness.rounds_of({"": mover.run}, DEVICE, 5)[""])["p50"]


def time_calls(benchmark: Any, call: Any, peak: float) -> None:
    def run() -> None:
        call.run()
        if GPU:
            torch.cuda.synchronize()

    benchmark.pedantic(run, rounds=ROUNDS, warmup_rounds=2)
    median = benchmark.stats.stats.median if benchmark.stats else float("nan")
    rate = call.nbytes * call.repeats / median
    benchmark.extra_info |= {"us_per_call": 1e6 * median / call.repeats, "gb_per_s": rate / 1e9}
    benchmark.extra_info |= {"percent_of_peak": 100 * rate / peak, "device": harness.device_name(DEVICE)}
    benchmark.extra_info |= {"commit": harness.commit(), **harness.versions()}


@pytest.mark.parametrize("name", ops.IMPLEMENTATIONS if GPU else ("reference",))
@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("op", ops.OPS)
def test_decode_op(benchmark: Any, peak: float, op: str, size: str, stored: str, name: str) -> None:
    time_calls(benchmark, ops.prepare(ops.Case(op, size, stored, 1), name, DEVICE), peak)


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
@pytest.mark.parametrize("name", ("triton", "flex", "reference") if GPU else ("reference",))
@pytest.mark.parametrize("pattern", attention.PATTERNS)
@pytest.mark.parametrize("shape", attention.SHAPES if GPU else ("small",))
def test_prefill_attention(benchmark: Any, peak: float, shape: str, pattern: str, name: str, backward: bool) -> None:
    case = attention.Case(shape, pattern, "bf16" if GPU else "fp32", backward)
    runs = attention.prepare(case, attention.window(shape, (8, 32), 64), DEVICE, [name])
    if name not in runs.calls:
        pytest.skip(runs.errors[name])
    time_calls(benchmark, ops.Call(runs.calls[name], runs.repeats, runs.nbytes), peak)


@pytest.mark.skipif(GPU, reason="decoders on a GPU: python bench decode")
@pytest.mark.parametrize("decoder", ["native", "native-int8", "eager"])
def test_decode_step(benchmark: Any, peak: float, decoder: str) -> None:
    case = decode.Case(decoder, "6x128", "fp32", 1)
    try:
        running, task = decode.prepare(case, DEVICE)
    except harness.Unavailable as reason:
        pytest.skip(str(reason))
    steps = iter(range(task.prompt_len, task.codes.shape[1] - 8, 8))

    def run() -> None:
        first = next(steps)
        running.run(first, first + 8)

    config, conditioned = decode.size(case.size)
    time_calls(benchmark, ops.Call(run, 8, decode.bytes_per_step(case, config, conditioned, task.prompt_len)), peak)
