"""What the beginnings of windows and of segments cost, where codes hear less of their own level.

    python bench beginnings [--model demo --songs 8 --json FILE]

Bits per code of held-out songs (held_out.py) by the codes of their own level that a network was given before, from none
to seven eighths of a window or more: the same codes each time, seen by windows that begin earlier or later. The
condition, what the level above says of them, stays. Where windows move by a share of themselves
(`SamplingParams.hop_fraction`) each code hears the rest of a window or more; where a segment begins
(`SamplingParams.segments`), nothing.
"""

from __future__ import annotations

if not __package__:
    from by_path import run as run_again

    run_again(__file__)

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..distill.losses import bits
from ..engine.jukebox import Jukebox
from . import held_out
from .harness import Unavailable

# Codes from a beginning on, of which the bits are told apart.
FIRST_CODES = 64
# Of a window: one begins with each.
PARTS = 8
# By how many of those parts windows move, of what is shown.
MOVES = (1, 4, 6, 7, 8)


@torch.inference_mode()
def measure(jukebox: Jukebox, songs: list[Tensor], level: int, per_song: int) -> dict[str, Any]:
    """Bits per code after 0, 1, ... 7 eighths of a window or more (up to another eighth), and what a beginning costs
    over the second half of a window."""
    prior = jukebox.prior(level)
    size, conditioner = prior.config.context_len, prior.config.conditioner
    ratio, part = conditioner.upper_ratio if conditioner else 1, size // PARTS
    # By the place in a window.
    heard = torch.zeros(PARTS, part)
    for audio in songs:
        codes = jukebox.vqvae.encode(audio, level)
        upper = jukebox.vqvae.encode(audio, level + 1) if conditioner else None
        room = codes.shape[1] - 3 * size + 2 * part
        if room < 0:
            raise Unavailable(f"windows of {size} codes are too long for songs of {held_out.SECONDS:g} s")

        def lost(start: int, codes: Tensor = codes, upper: Tensor | None = upper) -> Tensor:
            given = codes[:, start : start + size]
            cond = None if upper is None else prior.condition(upper[:, start // ratio : (start + size) // ratio])
            return F.cross_entropy(prior(given, cond)[0], given[0], reduction="none").view(PARTS, part)

        for window in range(per_song):
            # Of a window's length from here on, all windows see all codes that they reach.
            first = int((window + 0.5) / per_song * room) // ratio * ratio + size - part
            for late in range(1 - PARTS, PARTS):
                reached = slice(max(0, -late), min(PARTS, PARTS - late))
                heard[reached] += lost(first + late * part)[reached]
    windows = len(songs) * per_song
    heard /= PARTS * windows
    # Of the same codes.
    more = heard[: PARTS // 2] - heard[PARTS // 2 :].mean(0)
    return {
        "level": level,
        "windows": windows,
        "codes": size * windows,
        "bits_by_context": [bits(float(mean)) for mean in heard.mean(1)],
        "bits_lost": bits(float(more.sum())),
        "bits_lost_at_first": bits(float(more.flatten()[:FIRST_CODES].sum())),
        "first_ms": 1e3 * FIRST_CODES * jukebox.config.vqvae.samples_per_code(level) / jukebox.sample_rate,
    }


def bits_per_code(figures: dict[str, Any], eighths: int) -> float:
    """Where windows move by so many eighths of themselves."""
    found = figures["bits_by_context"][PARTS - eighths :]
    return sum(found) / len(found)


def say(f: dict[str, Any]) -> str:
    moved = ", ".join(f"{bits_per_code(f, eighths):.3f} by {eighths}/8" for eighths in MOVES)
    return (
        f"bits per code where windows move {moved}; a beginning costs {f['bits_lost']:.0f} bits, "
        f"{f['bits_lost_at_first']:.0f} of them in its first {f['first_ms']:.0f} ms"
    )


def main(arguments: list[str] | None = None) -> int:
    return held_out.judge("beginnings", __doc__, measure, say, windows=2, arguments=arguments)


if __name__ == "__main__":
    raise SystemExit(main())
