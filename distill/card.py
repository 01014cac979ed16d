"""The model card of a trained demo stack, from the figures that its stages measured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .sizes import DemoSizes

CARD = """# {title}

A small three-level Jukebox, trained by this repository's own code on music that it renders itself. It is there so that
a fresh clone can make audible music, and so that the whole path can be tested; it is no model of recorded music.

- Data: {songs} songs of {seconds:g} s from `distill/corpus.py`, seeds {first_seed} to {last_seed}, {sample_rate} Hz,
  mono. The first {held_out} are held out: every figure below is measured on them. The priors of levels 0,
  1, ... are trained on the rest of the first {songs_per_level} songs.
- Command, from the repository root: `{command}`
- Time: {minutes:.0f} minutes over all stages. Training stages end after their minutes, so the steps depend on the
  machine.
- Weights: FP16 safetensors, {megabytes:.1f} MB.
- Licence: MIT, as the repository; the data is generated, so no other licence applies.

## VQ-VAE

{codebook_size} codes of {code_dim} dimensions per level.

| level | samples per code | steps | minutes | SNR dB | spectral error | log-spectral dB | perplexity | codes in use |
|---|---|---|---|---|---|---|---|---|
{vqvae_rows}

The spectral error is |difference| / |target| of magnitude spectrograms (0 is perfect), log-spectral their mean distance
per bin in dB; both over three resolutions. A higher level keeps less of the waveform's phase, hence its lower SNR.

## Priors

| level | layers | width | context | parameters | steps | minutes | held-out bits per code |
|---|---|---|---|---|---|---|---|
{prior_rows}

A code that could be anything would cost {uniform:.1f} bits.
"""


def render(sizes: DemoSizes, figures: Mapping[str, Mapping[str, Any]], seed: int, command: str, out: Path) -> str:
    """The card as Markdown. `figures`: per stage, as `run_stage` returned them; `out` holds the weights."""
    vqvae, priors = sizes.config.vqvae, sizes.config.priors
    vqvae_rows = []
    for level in range(vqvae.levels):
        found = figures[f"vqvae_{level}"]
        vqvae_rows.append(
            f"| {level} | {vqvae.samples_per_code(level)} | {found['steps']} | {found['minutes']:.0f} "
            f"| {found['snr_db']:.1f} | {found['spectral']:.3f} | {8.686 * found['log_spectral']:.1f} "
            f"| {found['perplexity']:.0f} | {found['codes_used']:.0f} |"
        )
    prior_rows = []
    for prior in priors:
        found = figures[f"prior_{prior.level}"]
        prior_rows.append(
            f"| {prior.level} | {prior.depth} | {prior.width} | {prior.context_len} | {found['parameters']} "
            f"| {found['steps']} | {found['minutes']:.0f} | {found['held_out_bits']:.2f} |"
        )
    songs = max(sizes.songs)
    return CARD.format(
        title="The demo stack",
        songs=songs,
        seconds=sizes.seconds,
        first_seed=seed * 100_000,
        last_seed=seed * 100_000 + songs - 1,
        sample_rate=vqvae.sample_rate,
        held_out=sizes.held_out,
        songs_per_level=", ".join(str(count) for count in sizes.songs),
        command=command,
        minutes=sum(found["minutes"] for found in figures.values()),
        megabytes=sum(path.stat().st_size for path in out.glob("*.safetensors")) / 1e6,
        codebook_size=vqvae.codebook_size,
        code_dim=vqvae.code_dim,
        vqvae_rows="\n".join(vqvae_rows),
        prior_rows="\n".join(prior_rows),
        uniform=(vqvae.codebook_size - 1).bit_length(),
    )
