"""What the beginning of a stretch costs, which does not hear the codes before it (`SamplingParams.segments`).

    python bench beginnings [--model demo --songs 8 --json FILE]

Bits per code of songs that no stack was trained on, as in int8.py: those of the codes in the second half of windows,
and those of the same codes without what is in the first half. The condition, what the level above says of them, stays.
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
from ..engine.jukebox import Jukebox
from .harness import Rows, add_options
from .int8 import FIRST_SEED
from .options import positive, refuse

# Codes from a beginning on, of which the bits are told apart.
FIRST_CODES = 64


@torch.inference_mode()
def measure(jukebox: Jukebox, songs: list[Tensor], level: int, per_song: int) -> dict[str, Any]:
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


def say(f: dict[str, Any]) -> str:
    return (
        f"{f['bits_before']:.3f} bits per code; a beginning costs {f['bits_lost']:.0f} bits, "
        f"{f['bits_lost_at_first']:.0f} of them in its first {f['first_ms']:.0f} ms"
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="a checkpoint folder, or demo")
    parser.add_argument("--songs", type=positive, default=8)
    parser.add_argument("--windows", type=positive, default=6, help="of each song")
    add_options(parser, rounds=None)
    parser.set_defaults(device="cpu")
    options = parser.parse_args(arguments)
    if options.quick:
        options.songs, options.windows = min(2, options.songs), min(2, options.windows)
    if options.device != "cpu":
        parser.error("the network runs on the CPU")
    refuse(parser, [options.model], Jukebox.from_pretrained)
    jukebox = Jukebox.from_pretrained(options.model, "cpu", backend="eager")
    rows, rate = Rows("beginnings", options), jukebox.sample_rate
    songs = [torch.from_numpy(render(compose(FIRST_SEED + song), 24.0, rate))[None] for song in range(options.songs)]
    for level in reversed(range(len(jukebox.config.priors) - 1)):
        rows.add(
            f"{Path(options.model).name} level {level}",
            lambda level=level: measure(jukebox, songs, level, options.windows),
            say,
        )
    return rows.status


if __name__ == "__main__":
    raise SystemExit(main())
