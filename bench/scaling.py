"""How speed goes with batch, depth, width, context and threads, and memory with the length of the audio.

    python bench scaling [--axes batch depth width context threads audio --decoder native --json FILE]

One axis at a time moves away from a base point: on a CPU 18 layers of the demo stack's sizes (width 128, windows of
2048 codes) at batch 1 with all threads, on a GPU the 18-layer upsampler. Steps of the base point are timed in the
rounds of every row, so that `ratio`, codes per second over the base point's, holds whatever else the machine does; the
row of the base point itself shows how well. Longer contexts have more rows, of the same length. Threads are those that
a decoder may use; the native one takes fewer if it finds them faster.

`audio`: peak memory of a process of its own that samples so many seconds with a small model of random weights, all
levels, audio in chunks (`Jukebox.stream`), after a first short piece. Beyond what the codes take (`codes_bytes`) it
should not grow.
"""

from __future__ import annotations

if not __package__:
    from by_path import run as run_again

    run_again(__file__)

import argparse
import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..distill.presets import PRESETS
from ..engine import checkpoint
from ..engine.config import JukeboxConfig, PriorConfig
from ..engine.jukebox import Jukebox
from ..engine.prior import Prior
from ..engine.sampler import SamplingParams
from ..engine.vqvae import VQVAE
from .decode import Case, Stepping
from .harness import Rows, add_options, quantiles, rounds_of
from .memory import alone, forget_peak, peak
from .options import amount, cores, decoder, positive, refuse
from .roofline import sizes_of

BASES = {"cpu": "demo-18x128", "cuda": "upsampler-0-18"}
AXES = ("batch", "depth", "width", "context", "threads", "audio")
VALUES = {
    "cpu": {
        "batch": (1, 2, 4, 8, 16, 32, 64),
        "depth": (6, 18, 24, 36, 72),
        "width": (64, 128, 256, 512, 1024),
        "context": (512, 1024, 2048, 4096, 8192),
    },
    "cuda": {
        "batch": (1, 2, 4, 8, 16, 32, 64),
        "depth": (6, 18, 24, 36, 72),
        "width": (480, 960, 1920, 3840),
        "context": (2048, 4096, 8192, 16384),
    },
}
AUDIO_SECONDS = (1.0, 4.0, 16.0, 64.0)


class Point(NamedTuple):
    """What is timed: sizes of a prior, items side by side, threads of the CPU."""

    config: PriorConfig
    batch: int
    threads: int

    def moved(self, axis: str, value: int) -> Point:
        """This point with another value on one axis. Raises ValueError if there is no such model."""
        if axis in ("batch", "threads"):
            return self._replace(**{axis: value})
        changes = {axis: value}
        if axis == "context":
            changes = {"context_len": value, "num_rows": value // self.config.row_len}
        return self._replace(config=dataclasses.replace(self.config, **changes))

    def value(self, axis: str) -> int:
        """Where it lies on an axis."""
        if axis in ("batch", "threads"):
            return getattr(self, axis)
        return getattr(self.config, "context_len" if axis == "context" else axis)


class Timed:
    """Steps at a point, with its number of threads."""

    def __init__(
        self, point: Point, conditioned: bool, decoder: str, device: torch.device, rounds: int, aim: float
    ) -> None:
        self.point = point
        torch.set_num_threads(point.threads)
        # Weights are FP16 values, as those of released checkpoints; beside int8 they are not asked for.
        native, dtype = decoder == "native", "fp16" if device.type == "cuda" else "fp32"
        case = Case(decoder, "", dtype, point.batch, values="fp16" if native else "")
        self.stepping = Stepping(case, device, rounds, aim, (point.config, conditioned))

    def turn(self) -> None:
        if torch.get_num_threads() != self.point.threads:
            torch.set_num_threads(self.point.threads)
        self.stepping.turn()

    def us(self, seconds: float) -> float:
        """Microseconds per step of a turn that took so long."""
        return 1e6 * seconds / self.stepping.steps


def measure(
    base: Point, axis: str, value: int, conditioned: bool, decoder: str, device: torch.device, rounds: int, aim: float
) -> dict[str, Any]:
    """A row: a point on an axis and the base point, by turns. Raises Unavailable where the decoder cannot run."""
    point = base.moved(axis, value)
    runs = {name: Timed(p, conditioned, decoder, device, rounds, aim) for name, p in (("base", base), ("row", point))}
    times = rounds_of({name: timed.turn for name, timed in runs.items()}, device, rounds)
    torch.set_num_threads(base.threads)
    us = {name: [timed.us(taken) for taken in times[name]] for name, timed in runs.items()}
    for timed in runs.values():
        timed.stepping.middle()
    rates = {name: [1e6 * runs[name].point.batch / value for value in values] for name, values in us.items()}
    return {
        "axis": axis,
        "value": value,
        "decoder": decoder,
        **{key: getattr(point.config, key) for key in ("depth", "width", "heads", "context_len", "num_rows")},
        "batch": point.batch,
        "point_threads": point.threads,
        "rounds": rounds,
        "steps": runs["row"].stepping.steps,
        "us_per_step": quantiles(us["row"]),
        "codes_per_s": quantiles(rates["row"]),
        "base_codes_per_s": quantiles(rates["base"]),
        "ratio": quantiles([here / there for here, there in zip(rates["row"], rates["base"], strict=True)]),
    }


def say(f: dict[str, Any]) -> str:
    if f["axis"] == "audio":
        return (
            f"peak {f['peak_bytes'] / 1e6:8.1f} MB, {f['start_bytes'] / 1e6:.1f} MB before the first code, codes "
            f"{f['codes_bytes'] / 1e6:.2f} MB"
        )
    us, ratio = f["us_per_step"], f["ratio"]
    return (
        f"{us['p50']:10.1f} us ({us['p20']:.1f}-{us['p80']:.1f})  {f['codes_per_s']['p50']:8.0f} codes/s  "
        f"{ratio['p50']:.2f} of the base point's ({ratio['p20']:.2f}-{ratio['p80']:.2f})"
    )


def small_model(folder: Path) -> None:
    """A checkpoint of random weights whose windows are long beside its layers: minutes of audio in seconds."""
    tiny = PRESETS["tiny"].config
    priors = tuple(dataclasses.replace(p, depth=3, context_len=1024, num_rows=32) for p in tiny.priors)
    config = JukeboxConfig(tiny.vqvae, priors)
    torch.manual_seed(1)
    checkpoint.save_config(folder, config)
    checkpoint.save_network(folder / checkpoint.VQVAE_FILE, VQVAE(config.vqvae))
    for prior in config.priors:
        checkpoint.save_network(folder / checkpoint.prior_file(prior.level), Prior(prior))


def sample_alone(seconds: float, threads: int) -> dict[str, int]:
    """What sampling in this process took; its peak holds only if nothing else has happened in it."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        small_model(Path(folder))
        jukebox = Jukebox.from_pretrained(folder, "cpu")
        # What is allocated once for any length: the decoders' buffers, and all libraries loaded.
        list(jukebox.stream(SamplingParams(seconds=0.05, seed=1)))
        forget_peak()
        start = peak()
        samples = sum(chunk.shape[1] for chunk in jukebox.stream(SamplingParams(seconds=seconds, seed=1)))
    vqvae = jukebox.config.vqvae
    codes = sum(-(-samples // vqvae.samples_per_code(level)) for level in range(vqvae.levels))
    return {"peak_bytes": peak(), "start_bytes": start, "codes_bytes": 8 * codes, "samples": samples}


def measure_audio(seconds: float, threads: int) -> dict[str, Any]:
    """A row: `sample_alone` in a process of its own, on the CPU."""
    found = alone("scaling", "--alone", str(seconds), "--threads", str(threads))
    return {"axis": "audio", "value": seconds, "decoder": "auto", **found}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axes", nargs="+", choices=AXES, default=AXES)
    parser.add_argument("--base", help="a size as `bench roofline` takes it")
    parser.add_argument("--decoder", type=decoder, help="[default: native, on a GPU triton]")
    parser.add_argument("--values", type=positive, nargs="+", help="of the axis, if there is one")
    parser.add_argument("--audio-seconds", type=amount, nargs="+", default=AUDIO_SECONDS)
    parser.add_argument("--aim", type=amount, default=0.1, help="seconds of a round")
    parser.add_argument("--alone", type=float, help=argparse.SUPPRESS)
    add_options(parser)
    options = parser.parse_args(arguments)
    if options.alone:
        print(json.dumps(sample_alone(options.alone, options.threads)))
        return 0
    if options.values and len(options.axes) > 1:
        parser.error("--values are of one axis: give it with --axes")
    kind = torch.device(options.device).type
    chosen = options.decoder or ("triton" if kind == "cuda" else "native")
    name = options.base or BASES[kind]
    refuse(parser, [name], sizes_of)
    config, conditioned = sizes_of(name)
    base = Point(config, 1, options.threads)
    refuse(parser, options.values or (), lambda value: base.moved(options.axes[0], int(value)))
    rows = Rows("scaling", options)
    label = name.removeprefix("demo-") + (f" {options.decoder}" if options.decoder else "")
    values = VALUES[kind] | {"threads": tuple(range(1, cores() + 1)) if kind == "cpu" else ()}
    for axis in options.axes:
        if axis == "audio":
            for length in options.audio_seconds:
                rows.add(f"audio {length:g} s", lambda s=length: measure_audio(s, options.threads), say)
            continue
        for value in options.values or values[axis][: 2 if options.quick else None]:
            arguments_of_row = base, axis, value, conditioned, chosen, rows.device, rows.rounds, options.aim
            rows.add(f"{axis} {value} of {label}", lambda a=arguments_of_row: measure(*a), say)
    return rows.status


if __name__ == "__main__":
    raise SystemExit(main())
