"""What networks make of songs that no stack was trained on: model, songs and rows of the scripts that measure it.

The songs are other seeds of distill/corpus.py, encoded by the model's own VQ-VAE; networks run in PyTorch on the CPU.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..distill.corpus import compose, render
from ..engine.jukebox import Jukebox
from .harness import Rows, add_options
from .options import positive, refuse

# Songs of the demo's training have seeds below 100000.
FIRST_SEED = 5_000_000
# Longer than a window of any level.
SECONDS = 24.0

# The figures of a level, from the model, the songs, the level, and how many windows are taken of each song.
Measure = Callable[[Jukebox, list[Tensor], int, int], dict[str, Any]]


def judge(
    bench: str,
    doc: str | None,
    measure: Measure,
    say: Callable[[dict[str, Any]], str],
    windows: int,
    arguments: list[str] | None,
) -> int:
    """A script: a row for each level, the top first. windows: by default."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="a checkpoint folder, or demo")
    parser.add_argument("--songs", type=positive, default=8)
    parser.add_argument("--windows", type=positive, default=windows, help="of each song")
    add_options(parser, rounds=None)
    parser.set_defaults(device="cpu")
    options = parser.parse_args(arguments)
    if options.quick:
        options.songs, options.windows = min(2, options.songs), 1
    if options.device != "cpu":
        parser.error("the networks run on the CPU")
    refuse(parser, [options.model], Jukebox.from_pretrained)
    # Whose priors are FP32 throughout.
    jukebox = Jukebox.from_pretrained(options.model, "cpu", backend="eager")
    rows, rate = Rows(bench, options), jukebox.sample_rate
    songs = [torch.from_numpy(render(compose(FIRST_SEED + n), SECONDS, rate))[None] for n in range(options.songs)]
    for level in reversed(range(jukebox.config.vqvae.levels)):
        name = f"{Path(options.model).name} level {level}"
        rows.add(name, lambda level=level: measure(jukebox, songs, level, options.windows), say)
    return rows.status
