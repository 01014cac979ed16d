"""What the beginning of a segment costs, which does not hear the codes before it (`SamplingParams.segments`).

    python bench beginnings [--model demo --songs 8 --json FILE]

Bits per code of held-out songs (held_out.py): those of the codes in the second half of windows, and those of the same
codes without what is in the first half. The condition, what the level above says of them, stays.
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
    return held_out.judge("beginnings", __doc__, measure, say, windows=6, with_top=False, arguments=arguments)


if __name__ == "__main__":
    raise SystemExit(main())
