"""Songs cut into stretches that are sampled side by side (`SamplingParams.segments`): what that gains, and what the
beginnings of stretches cost, which do not hear what is before them.

    python bench segments [--depth 6 --width 1920 --segments 4 8 --backends native native-int8 --json FILE]

Gain: a level's codes of a network of random FP16 values from an upper level's, prompts and conditions included, as
many as make the most segments one window each. The song as a whole and cut take turns. Cost: bits of held-out songs in
windows of a trained model (`--model`); the codes of a window's second half as the whole window's show them, and with
nothing of the first half.
"""

from __future__ import annotations

if not __package__:
    from by_path import run as run_again

    run_again(__file__)

import argparse
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..distill.corpus import compose, render
from ..distill.losses import bits
from ..engine.config import ConditionerConfig, JukeboxConfig, PriorConfig
from ..engine.decoder import choose_backend
from ..engine.jukebox import Jukebox
from ..engine.prior import Prior
from ..engine.sampler import Sampling, SamplingParams
from . import agreement
from .decode import DTYPES
from .harness import Rows, Unavailable, add_options, quantiles, rounds_of
from .int8 import FIRST_SEED
from .options import decoder, positive, refuse
from .stand_in import build

LEVEL = 1
# Codes from a beginning on, of which the bits are told apart.
FIRST_CODES = 64


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


def gain(options: argparse.Namespace, base: JukeboxConfig, backend: str) -> dict[str, Any]:
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


def say_gain(f: dict[str, Any]) -> str:
    gains = ", ".join(f"{n} segments {f[f'segments_{n}_speedup']['p50']:.2f}x" for n in f["segments"])
    return f"{f['codes']} codes in {f['whole_s']['p50']:.1f} s as a whole; {gains}"


@torch.inference_mode()
def cost(jukebox: Jukebox, songs: list[Tensor], level: int, per_song: int) -> dict[str, Any]:
    """Bits per code of the second halves of windows, and how many more without the first."""
    prior = jukebox.prior(level)
    size, conditioner = prior.config.context_len, prior.config.conditioner
    assert conditioner is not None
    ratio, half = conditioner.upper_ratio, prior.config.context_len // 2
    before, alone = torch.zeros(half), torch.zeros(half)
    for audio in songs:
        codes, upper = jukebox.vqvae.encode(audio, level), jukebox.vqvae.encode(audio, level + 1)

        def lost(start: int, codes: Tensor = codes, upper: Tensor = upper) -> Tensor:
            given = codes[:, start : start + size]
            logits = prior(given, prior.condition(upper[:, start // ratio : (start + size) // ratio]))
            return F.cross_entropy(logits[0], given[0], reduction="none")

        for window in range(per_song):
            start = int((window + 0.5) / per_song * (codes.shape[1] - size - half)) // ratio * ratio
            before += lost(start)[half:]
            alone += lost(start + half)[:half]
    more, windows = alone - before, len(songs) * per_song
    return {
        "level": level,
        "windows": windows,
        "codes": half,
        "bits_before": bits(float(before.mean()) / windows),
        "bits_lost": bits(float(more.sum()) / windows),
        "bits_lost_at_first": bits(float(more[:FIRST_CODES].sum()) / windows),
        "first_ms": 1e3 * FIRST_CODES * jukebox.config.vqvae.samples_per_code(level) / jukebox.sample_rate,
    }


def say_cost(f: dict[str, Any]) -> str:
    return (
        f"{f['bits_before']:.3f} bits per code; a beginning costs {f['bits_lost']:.0f} bits, "
        f"{f['bits_lost_at_first']:.0f} of them in its first {f['first_ms']:.0f} ms"
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=positive, default=6, help="layers")
    parser.add_argument("--width", type=positive, default=1920)
    parser.add_argument("--context", type=positive, default=2048, help="codes in a window")
    parser.add_argument("--segments", type=positive, nargs="+", default=[4, 8])
    parser.add_argument("--backends", type=decoder, nargs="+", help="[default: native native-int8; on a GPU triton]")
    parser.add_argument("--model", default="demo", help="of which beginnings are judged")
    parser.add_argument("--songs", type=positive, default=8)
    parser.add_argument("--windows", type=positive, default=6, help="of each song")
    add_options(parser, rounds=3)
    options = parser.parse_args(arguments)
    if options.context % 256:
        parser.error(f"--context {options.context} is not a multiple of 256")
    if options.quick:
        options.context, options.songs, options.rounds = min(512, options.context), min(2, options.songs), 1
    if min(options.segments) < 2:
        parser.error("--segments: 2 or more")
    refuse(parser, [options.model], Jukebox.from_pretrained)
    jukebox = Jukebox.from_pretrained(options.model, "cpu", backend="eager")
    rows = Rows("segments", options)
    gpu = torch.device(options.device).type == "cuda"
    for backend in options.backends or (["triton"] if gpu else ["native", "native-int8"]):
        name = f"{options.depth}x{options.width} {backend}, windows of {options.context} codes"
        rows.add(name, lambda b=backend: gain(options, jukebox.config, b), say_gain)
    rate = jukebox.sample_rate
    songs = [torch.from_numpy(render(compose(FIRST_SEED + song), 24.0, rate))[None] for song in range(options.songs)]
    for level in reversed(range(len(jukebox.config.priors) - 1)):
        name = f"{Path(options.model).name} level {level}"
        rows.add(name, lambda level=level: cost(jukebox, songs, level, options.windows), say_cost)
    return rows.status


if __name__ == "__main__":
    raise SystemExit(main())
