"""Songs cut into segments that are sampled side by side (`SamplingParams.segments`), and windows that move farther
(`SamplingParams.hop_fraction`), against songs as a whole whose windows move by half of themselves.

    python bench segments [--depth 6 --width 1920 --segments 8 --hops 0.5 0.875 --backends native --json FILE]

A level's codes of a network of random FP16 values from an upper level's, prompts and conditions included. The song has
so many codes that the most segments have `--windows` windows' worth each. All ways take turns. What the beginnings of
windows and segments cost is in beginnings.py.
"""

from __future__ import annotations

if not __package__:
    from by_path import run as run_again

    run_again(__file__)

import argparse
import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..engine.checkpoint import DEMO, load_config
from ..engine.config import ConditionerConfig, JukeboxConfig, PriorConfig
from ..engine.decoder import choose_backend
from ..engine.prior import Prior
from ..engine.sampler import Sampling, SamplingParams
from . import agreement
from .decode import DTYPES
from .harness import Rows, Unavailable, add_options, quantiles, rounds_of
from .options import amount, decoder, positive
from .stand_in import build

LEVEL = 1


class Song:
    """Samples the codes of level 1 below given ones."""

    def __init__(self, base: JukeboxConfig, options: argparse.Namespace, backend: str, device: torch.device) -> None:
        dtype = torch.float32 if device.type == "cpu" else torch.float16
        try:
            self.backend = choose_backend(backend, device, dtype)
        except ValueError as error:
            raise Unavailable(str(error)) from None
        if device.type == "cpu":
            agreement.check(self.backend.name)
        size = base.vqvae.codebook_size
        conditioner = ConditionerConfig(width=64, depth=4, stages=2, stride=2)
        wide = PriorConfig(
            LEVEL,
            options.width,
            options.depth,
            1,
            options.context,
            options.context // 64,
            size,
            conditioner=conditioner,
        )
        self.config = JukeboxConfig(base.vqvae, (base.priors[0], wide, base.priors[2]))
        self.prior = build(Prior, wide, device, dtype)
        for parameter in self.prior.parameters():
            parameter.copy_(parameter.to(DTYPES["fp16"]))
        # Whole codes of the level above.
        self.codes = 4 * round(options.context * options.windows / 4) * max(options.segments)
        self.samples = self.codes * base.vqvae.samples_per_code(LEVEL)
        self.upper = torch.randint(size, (1, self.codes // 4), generator=torch.Generator().manual_seed(1))

    def sample(self, segments: int, hop: float) -> Tensor:
        seconds = self.samples / self.config.vqvae.sample_rate
        params = SamplingParams(seconds, hop_fraction=hop, level=LEVEL, segments=segments, batch_size=segments)
        nothing = torch.zeros(1, 0, dtype=torch.long)
        sampling = Sampling(self.config, params, self.samples, [nothing, nothing, self.upper])
        for _ in sampling.run(lambda level, resident: self.prior, self.backend):
            pass
        assert sampling.segments[LEVEL].count == segments
        return sampling.whole(LEVEL)


def measure(options: argparse.Namespace, base: JukeboxConfig, backend: str) -> dict[str, Any]:
    device = torch.device(options.device)
    song = Song(base, options, backend, device)
    ways = list(itertools.product((1, *options.segments), options.hops))
    runs: dict[str, Callable[[], object]] = {key(*way): lambda way=way: song.sample(*way) for way in ways}
    # Kernels are compiled in a first round.
    found = rounds_of(runs, device, options.rounds, warm=device.type == "cpu")
    figures: dict[str, Any] = {"depth": options.depth, "width": options.width, "context": options.context}
    figures |= {"backend": backend, "codes": song.codes, "rounds": options.rounds, "ways": ways}
    whole = found[key(*ways[0])]
    figures["whole_s"] = quantiles(whole)
    for way in ways[1:]:
        pairs = zip(whole, found[key(*way)], strict=True)
        figures[f"{key(*way)}_speedup"] = quantiles([slow / fast for slow, fast in pairs])
    return figures


def key(segments: int, hop: float) -> str:
    """A way to sample in the names of a record's fields."""
    return f"segments_{segments}_hop_{hop:g}"


def say(f: dict[str, Any]) -> str:
    seconds = f["whole_s"]["p50"]
    gains = {f"{n} segments, by {hop:g}": f[f"{key(n, hop)}_speedup"]["p50"] for n, hop in f["ways"][1:]}
    said = ", ".join(f"{way}: {gain:.2f}x, {f['codes'] / seconds * gain:.0f} codes/s" for way, gain in gains.items())
    return f"{f['codes']} codes in {seconds:.1f} s as a whole; {said}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=positive, default=6, help="layers")
    parser.add_argument("--width", type=positive, default=1920)
    parser.add_argument("--context", type=positive, default=256, help="codes in a window")
    parser.add_argument("--segments", type=positive, nargs="+", default=[8])
    parser.add_argument("--windows", type=amount, default=4.5, help="codes of each of the most segments, in windows")
    parser.add_argument(
        "--hops", type=amount, nargs="+", default=[0.5, 0.875], help="how far windows move; by the first as a whole"
    )
    parser.add_argument("--backends", type=decoder, nargs="+", help="[default: native native-int8; on a GPU triton]")
    add_options(parser, rounds=3)
    options = parser.parse_args(arguments)
    if options.context % 256:
        parser.error(f"--context {options.context} is not a multiple of 256")
    if options.quick:
        options.context, options.rounds = 256, 1
    if min(options.segments) < 2:
        parser.error("--segments: 2 or more")
    if max(options.hops) > 1:
        parser.error("--hops: at most 1")
    # Of the demo, what lies above and below the network.
    base = load_config(DEMO)
    rows = Rows("segments", options)
    gpu = torch.device(options.device).type == "cuda"
    for backend in options.backends or (["triton"] if gpu else ["native", "native-int8"]):
        name = f"{options.depth}x{options.width} {backend}, windows of {options.context} codes"
        rows.add(name, lambda b=backend: measure(options, base, b), say)
    return rows.status


if __name__ == "__main__":
    raise SystemExit(main())
