"""Steps per second of the decoders, and the share of the memory bandwidth that they reach.

    python bench decode [--sizes 18x128 upsampler-0-72 --decoders native --batch 1 8 --json FILE]

Steps are timed from the middle of a window on, sampling included, in rounds; in each round the bandwidth is measured
as well, and shares are taken within rounds. Bytes per step are the fewest that any decoder must move: every weight
once, whatever the batch, and the keys and values that the items' positions see. A decoder whose weights fit the
caches of a CPU can exceed the bandwidth.
"""

from __future__ import annotations

if not __package__:
    from by_path import run as run_again

    run_again(__file__)

import argparse
import itertools
from typing import Any, NamedTuple

import torch

from ..engine.config import PriorConfig
from ..engine.decoder import Decoder, LevelSampling, WindowTask, choose_backend
from ..engine.graph_decoder import GraphDecoder
from . import agreement
from .bandwidth import Mover, plain
from .harness import Rows, Unavailable, add_options, quantiles, rounds_of, seconds
from .options import amount, decoder, positive, refuse
from .stand_in import StandIn, build, release_projections, size
from .step_bytes import bytes_by_part

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
CPU_SIZES = ("18x128", "72x128", "18x1920", "72x1920")
GPU_SIZES = ("upsampler-0-18", "upsampler-0-72", "upsampler-0-24", "top-18")
# So that deep random networks, too, draw more than a few codes.
TEMPERATURE = 2.0


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


def step_parts(case: Case, config: PriorConfig, conditioned: bool, pos: int) -> dict[str, int]:
    """The fewest bytes that a step of all items moves at position `pos`, by part; see `step_bytes`."""
    other = DTYPES[case.dtype].itemsize
    # The native decoder keeps FP16 keys and values beside int8 weights.
    cached = 2 if case.decoder == "native-int8" else other
    return bytes_by_part(config, case.batch, pos, conditioned, stored_size(case), cached, other)


def bytes_per_step(case: Case, config: PriorConfig, conditioned: bool, pos: int) -> int:
    """The sum of `step_parts`."""
    return sum(step_parts(case, config, conditioned, pos).values())


def prepare(
    case: Case, device: torch.device, sizes: tuple[PriorConfig, bool] | None = None
) -> tuple[Decoder, WindowTask]:
    """A decoder in the middle of a window. `sizes`: where they are not those that `stand_in.size` gives for the case.

    Raises:
        Unavailable: it cannot run here.
        RuntimeError: its codes are not the eager decoder's (CPUs; on a GPU the tests come first).
    """
    config, conditioned = sizes or size(case.size)
    dtype = DTYPES[case.dtype]
    try:
        backend = choose_backend(case.decoder, device, dtype)
    except ValueError as error:
        raise Unavailable(str(error)) from None
    if device.type == "cpu":
        agreement.check(backend.name)
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
    # Always the same: random networks prefer few codes, and which depends on the prompt.
    codes = torch.randint(config.codebook_size, shape, generator=torch.Generator().manual_seed(2)).to(device)
    items = torch.arange(case.batch, device=device)
    start_cond = lyrics = None
    if config.labels:
        start_cond = torch.zeros(case.batch, 1, config.width, device=device, dtype=dtype)
    if config.lyrics and config.lyrics.encoder:
        lyrics = torch.randn(1, config.lyrics.length, config.width, device=device, dtype=dtype)
    conditions = frame_cond, start_cond, lyrics
    task = WindowTask(codes, shape[1] // 2, items, 1, config.level, 0, LevelSampling(TEMPERATURE), *conditions)
    decoder.prefill(task)
    return decoder, task


class Stepping:
    """A decoder on its way through the second half of a window: each `turn` decodes the next `steps` positions, which
    take about `aim` seconds, as far as the window has room for `rounds` turns and a first one that warms up."""

    def __init__(
        self,
        case: Case,
        device: torch.device,
        rounds: int,
        aim: float,
        sizes: tuple[PriorConfig, bool] | None = None,
    ) -> None:
        self.case, (self.config, self.conditioned) = case, sizes or size(case.size)
        self.decoder, self.task = prepare(case, device, sizes)
        self.pos = self.task.prompt_len
        room = self.config.context_len - self.pos
        # Multiples of this, so that a graph of several steps is not broken up.
        unit = min(case.per_graph or (8 if device.type == "cuda" else 1), max(1, room // (rounds + 3)))
        self.steps = unit
        self.turn()
        step = seconds(self.turn, device) / unit
        self.steps = max(unit, min(int(aim / step), (room - 2 * unit) // (rounds + 1)) // unit * unit)
        # The first position that is timed.
        self.first = self.pos + self.steps

    def turn(self) -> None:
        self.decoder.run(self.pos, self.pos + self.steps)
        self.pos += self.steps

    def middle(self) -> int:
        """The middle of the positions that were timed. Raises RuntimeError if almost all codes are the same."""
        decoded = self.task.codes[:, self.task.prompt_len : self.pos]
        if decoded.unique().numel() < min(4, decoded.numel()):
            raise RuntimeError("almost all codes are the same: no times are reported")
        return (self.first + self.pos) // 2


def measure(case: Case, device: torch.device, bandwidth: Mover, rounds: int, aim: float) -> dict[str, Any]:
    """Rounds of about `aim` seconds, as far as the window has room for them."""
    stepping = Stepping(case, device, rounds, aim)
    times = rounds_of({"decode": stepping.turn, "bandwidth": bandwidth.run}, device, rounds)
    config, steps = stepping.config, stepping.steps
    moved = bytes_per_step(case, config, stepping.conditioned, stepping.middle())
    us = [1e6 * taken / steps for taken in times["decode"]]
    rates = [bandwidth.nbytes / taken / 1e9 for taken in times["bandwidth"]]
    return {
        **{key: getattr(config, key) for key in ("depth", "width", "heads", "context_len", "num_rows")},
        **case._asdict(),
        "first": stepping.first,
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
    for name, batch, kind, dtype in itertools.product(sizes, batches, decoders, dtypes):
        # Beside int8 weights the dtype of the rest hardly matters.
        if dtype != dtypes[0] and kind.endswith("int8"):
            continue
        if kind == "native":
            found += [Case(kind, name, dtype, batch, values=values) for values in options.values]
            continue
        for per_graph in (options.steps_per_graph or (0,)) if kind.startswith("triton") else (0,):
            found.append(Case(kind, name, dtype, batch, per_graph))
    return found


def add_case_options(parser: argparse.ArgumentParser) -> None:
    """What `cases` takes beside the sizes, and how long a round is."""
    parser.add_argument("--decoders", type=decoder, nargs="+", help="`fastjukebox info` lists them")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES)
    parser.add_argument("--batch", type=positive, nargs="+")
    parser.add_argument("--steps-per-graph", type=positive, nargs="+", help="of the triton decoders")
    parser.add_argument(
        "--values",
        nargs="+",
        choices=["fp16", "fp32"],
        default=["fp16", "fp32"],
        help="of the native decoder's weights",
    )
    parser.add_argument("--aim", type=amount, default=0.2, help="seconds of a round")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", help="presets, or LAYERSxWIDTH")
    parser.add_argument("--depth", type=int, nargs="+", help="only sizes of so many layers")
    add_case_options(parser)
    add_options(parser)
    options = parser.parse_args(arguments)
    refuse(parser, options.sizes or (), size)
    rows = Rows("decode", options)
    try:
        wanted = [c for c in cases(options) if options.depth is None or size(c.size)[0].depth in options.depth]
    except ValueError as error:
        parser.error(str(error))
    bandwidth = plain(rows.device, 1 << (28 if options.quick else 30))
    for case in wanted:
        rows.add(case.row, lambda case=case: measure(case, rows.device, bandwidth, rows.rounds, options.aim), say)
    return rows.status


if __name__ == "__main__":
    raise SystemExit(main())
