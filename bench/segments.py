"""Songs cut into segments that are sampled side by side (`SamplingParams.segments`), against songs as a whole.

    python bench segments [--depth 6 --width 1920 --segments 4 8 --backends native native-int8 --json FILE]

A level's codes of a network of random FP16 values from an upper level's, prompts and conditions included, as many as
make the most segments one window each. The song as a whole and cut take turns. What the beginnings of segments cost is
in beginnings.py.
"""

from __future__ import annotations

if not __package__:
    from by_path import run as run_again

    run_again(__file__)

import argparse
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
from .options import decoder, positive
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
        self.codes = options.context * max(options.segments)
        self.samples = self.codes * base.vqvae.samples_per_code(LEVEL)
        self.upper = torch.randint(size, (1, self.codes // 4), generator=torch.Generator().manual_seed(1))

    def sample(self, segments: int) -> Tensor:
        params = SamplingParams(
            self.samples / self.config.vqvae.sample_rate, level=LEVEL, segments=segments, batch_size=segments
        )
        nothing = torch.zeros(1, 0, dtype=torch.long)
        sampling = Sampling(self.config, params, self.samples, [nothing, nothing, self.upper])
        for _ in sampling.run(lambda level, resident: self.prior, self.backend):
            pass
        assert sampling.segments[LEVEL].count == segments
        return sampling.whole(LEVEL)


def measure(options: argparse.Namespace, base: JukeboxConfig, backend: str) -> dict[str, Any]:
    device = torch.device(options.device)
    song = Song(base, options, backend, device)
    counts = [1, *options.segments]
    found = rounds_of({str(n): lambda n=n: song.sample(n) for n in counts}, device, options.rounds, warm=True)
    figures: dict[str, Any] = {"depth": options.depth, "width": options.width, "context": options.context}
    figures |= {"backend": backend, "codes": song.codes, "rounds": options.rounds, "segments": options.segments}
    figures["whole_s"] = quantiles(found["1"])
    for count in options.segments:
        pairs = zip(found["1"], found[str(count)], strict=True)
        figures[f"segments_{count}_speedup"] = quantiles([slow / fast for slow, fast in pairs])
    return figures


def say(f: dict[str, Any]) -> str:
    gains = ", ".join(f"{n} segments {f[f'segments_{n}_speedup']['p50']:.2f}x" for n in f["segments"])
    return f"{f['codes']} codes in {f['whole_s']['p50']:.1f} s as a whole; {gains}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=positive, default=6, help="layers")
    parser.add_argument("--width", type=positive, default=1920)
    parser.add_argument("--context", type=positive, default=2048, help="codes in a window")
    parser.add_argument("--segments", type=positive, nargs="+", default=[4, 8])
    parser.add_argument("--backends", type=decoder, nargs="+", help="[default: native native-int8; on a GPU triton]")
    add_options(parser, rounds=3)
    options = parser.parse_args(arguments)
    if options.context % 256:
        parser.error(f"--context {options.context} is not a multiple of 256")
    if options.quick:
        options.context, options.rounds = min(512, options.context), 1
    if min(options.segments) < 2:
        parser.error("--segments: 2 or more")
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
