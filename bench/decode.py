"""Steps per second of the decoders, and the share of the memory bandwidth that they reach.

    python bench decode [--sizes 18x128 upsampler-0-72 --decoders native --batch 1 8 --json FILE]

Steps are timed from the middle of a window on, sampling included, in rounds; in each round the bandwidth is measured
as well, and shares are taken within rounds. Bytes per step are the fewest that any decoder must move: every weight
once, whatever the batch, and the keys and values that the items' positions see. A decoder whose weights fit the
caches of a CPU can exceed the bandwidth.
"""

from __future__ import annotations

import argparse
import itertools
from typing import Any, NamedTuple

import torch

from ..engine.config import PriorConfig
from ..engine.decoder import Decoder, LevelSampling, WindowTask, choose_backend
from ..engine.graph_decoder import GraphDecoder
from ..kernels.reference import cache_visible
from .harness import Bandwidth, Rows, Unavailable, add_options, quantiles, rounds_of, seconds
from .stand_in import StandIn, build, release_projections, size

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
CPU_SIZES = ("18x128", "72x128", "18x1920", "72x1920")
GPU_SIZES = ("upsampler-0-18", "upsampler-0-72", "upsampler-0-24", "top-18")


class Case(NamedTuple):
    """One row. `per_graph`: steps per CUDA graph, 0 for the decoder's own choice. `values`: what the FP32 weights of a
    native decoder hold; FP16 values, as in released checkpoints, it stores as such."""

    decoder: str
    size: str
    dtype: str
    batch: int
    per_graph: int = 0
    values: str = ""

    @property
    def row(self) -> str:
        graph = f" x{self.per_graph}" if self.per_graph else ""
        values = f" of {self.values} values" if self.values else ""
        return f"{self.size} {self.decoder}{graph} {self.dtype}{values} batch {self.batch}"


def stored_size(case: Case) -> int:
    """Bytes of one stored weight."""
    return 1 if case.decoder.endswith("int8") else DTYPES[case.values or case.dtype].itemsize


def bytes_per_step(case: Case, config: PriorConfig, conditioned: bool, pos: int) -> int:
    """The fewest bytes that a step of all items moves at position `pos`."""
    width, attn_width, hidden, other = config.width, config.attn_width, config.mlp_width, DTYPES[case.dtype].itemsize
    outputs = 3 * attn_width + 2 * width + hidden
    weights = config.depth * (4 * width * attn_width + 2 * width * hidden) + config.codebook_size * width
    # Biases, and scale and shift of two norms; one FP32 scale per output of int8 weights.
    vectors = config.depth * (outputs + 4 * width) * other
    if case.decoder.endswith("int8"):
        vectors += 4 * (config.depth * outputs + config.codebook_size)
    slots = {"row": config.row_len, "previous_row": 2 * config.row_len}
    seen = sum(
        cache_visible(pos, p.value, config.row_len, slots.get(p.value, config.context_len))[1] + 1
        for p in config.layer_patterns
    )
    # Token, position, and the condition at the input and before the head.
    embedding = (4 if conditioned else 2) * width
    return weights * stored_size(case) + vectors + case.batch * (2 * seen * attn_width + embedding) * other


def prepare(case: Case, device: torch.device) -> tuple[Decoder, WindowTask]:
    """A decoder in the middle of a window. Raises Unavailable where it cannot run."""
    config, conditioned = size(case.size)
    dtype = DTYPES[case.dtype]
    try:
        backend = choose_backend(case.decoder, device, dtype)
    except ValueError as error:
        raise Unavailable(str(error)) from None
    prior = build(StandIn, config, device, dtype)
    if case.values:
        for parameter in prior.parameters():
            parameter.copy_(parameter.to(DTYPES[case.values]))
    if case.per_graph:
        decoder: Decoder = GraphDecoder(prior, case.batch, case.decoder.endswith("int8"), case.per_graph)
    else:
        decoder = backend.build(prior, case.batch)
    if case.decoder != "eager":
        release_projections(prior)
    shape = case.batch, config.context_len
    frame_cond = None
    if conditioned:
        frame_cond = torch.randn(1, 1, config.width, device=device, dtype=dtype).repeat(*shape, 1)
    codes = torch.randint(config.codebook_size, shape, device=device)
    items = torch.arange(case.batch, device=device)
    task = WindowTask(codes, shape[1] // 2, items, 1, config.level, 0, LevelSampling(), frame_cond)
    decoder.prefill(task)
    return decoder, task


def measure(case: Case, device: torch.device, bandwidth: Bandwidth, rounds: int, aim: float) -> dict[str, Any]:
    """Rounds of about `aim` seconds, as far as the window has room for them."""
    config, conditioned = size(case.size)
    decoder, task = prepare(case, device)
    pos = start = task.prompt_len
    room = config.context_len - start

    def advance(steps: int) -> None:
        nonlocal pos
        decoder.run(pos, pos + steps)
        pos += steps

    # Multiples of this, so that a graph of several steps is not broken up.
    unit = min(case.per_graph or (8 if device.type == "cuda" else 1), max(1, room // (rounds + 3)))
    advance(unit)
    step = seconds(lambda: advance(unit), device) / unit
    steps = max(unit, min(int(aim / step), (room - 2 * unit) // (rounds + 1)) // unit * unit)
    first = pos + steps
    times = rounds_of({"decode": lambda: advance(steps), "bandwidth": bandwidth.run}, device, rounds)
    decoded = task.codes[:, start:pos]
    if decoded.unique().numel() < min(4, decoded.numel()):
        raise RuntimeError("all codes are the same: no times are reported")
    middle = (first + pos) // 2
    moved = bytes_per_step(case, config, conditioned, middle)
    us = [1e6 * taken / steps for taken in times["decode"]]
    rates = [bandwidth.nbytes / taken / 1e9 for taken in times["bandwidth"]]
    return {
        **{key: getattr(config, key) for key in ("depth", "width", "heads", "context_len", "num_rows")},
        **case._asdict(),
        "first": first,
        "steps": steps,
        "rounds": rounds,
        "us_per_step": quantiles(us),
        "steps_per_s": quantiles([1e6 / value for value in us]),
        "codes_per_s": quantiles([1e6 * case.batch / value for value in us]),
        "bytes_per_step": moved,
        "gb_per_s": quantiles([moved / value / 1e3 for value in us]),
        "bandwidth_gb_per_s": quantiles(rates),
        "percent": quantiles([moved / value / 10 / rate for value, rate in zip(us, rates, strict=True)]),
    }


def say(f: dict[str, Any]) -> str:
    us, percent = f["us_per_step"], f["percent"]
    return (
        f"{us['p50']:10.1f} us ({us['p20']:.1f}-{us['p80']:.1f})  {f['steps_per_s']['p50']:8.0f} steps/s "
        f"{f['codes_per_s']['p50']:8.0f} codes/s  {f['bytes_per_step'] / 1e6:7.1f} MB {f['gb_per_s']['p50']:7.1f} GB/s "
        f"{percent['p50']:5.1f} % ({percent['p20']:.1f}-{percent['p80']:.1f})"
    )


def cases(options: argparse.Namespace) -> list[Case]:
    gpu = torch.device(options.device).type == "cuda"
    decoders = options.decoders or (("triton", "triton-int8", "eager") if gpu else ("native", "native-int8", "eager"))
    sizes = options.sizes or (GPU_SIZES if gpu else CPU_SIZES)
    batches = options.batch or ((1, 4, 16, 32) if gpu else (1, 8))
    dtypes = options.dtype or (("fp16", "bf16") if gpu else ("fp32",))
    if options.quick and not options.sizes:
        sizes = sizes[:2]
    if options.quick and not options.batch:
        batches = batches[:1]
    found = []
    for name, batch, decoder, dtype in itertools.product(sizes, batches, decoders, dtypes):
        # Beside int8 weights the dtype of the rest hardly matters.
        if dtype != dtypes[0] and decoder.endswith("int8"):
            continue
        if decoder == "native":
            found += [Case(decoder, name, dtype, batch, values=values) for values in options.values]
            continue
        for per_graph in (options.steps_per_graph or (0,)) if decoder.startswith("triton") else (0,):
            found.append(Case(decoder, name, dtype, batch, per_graph))
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", help="presets, or LAYERSxWIDTH")
    parser.add_argument("--depth", type=int, nargs="+", help="only sizes of so many layers")
    parser.add_argument("--decoders", nargs="+", help="`fastjukebox info` lists them")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES)
    parser.add_argument("--batch", type=int, nargs="+")
    parser.add_argument("--steps-per-graph", type=int, nargs="+", help="of the triton decoders")
    parser.add_argument(
        "--values",
        nargs="+",
        choices=["fp16", "fp32"],
        default=["fp16", "fp32"],
        help="of the native decoder's weights",
    )
    parser.add_argument("--aim", type=float, default=0.2, help="seconds of a round")
    add_options(parser)
    options = parser.parse_args(arguments)
    rows = Rows("decode", options)
    try:
        wanted = [c for c in cases(options) if options.depth is None or size(c.size)[0].depth in options.depth]
    except ValueError as error:
        parser.error(str(error))
    bandwidth = Bandwidth(rows.device, 1 << (28 if options.quick else 30))
    for case in wanted:
        rows.add(case.row, lambda case=case: measure(case, rows.device, bandwidth, rows.rounds, options.aim), say)
    return rows.status


if __name__ == "__main__":
    raise SystemExit(main())
