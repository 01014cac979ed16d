"""Sampling on several processes that `torchrun` started: each takes a share of the pieces and writes files of its own.

A piece's codes depend on its number and not on who samples it, so together they are those of one process.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import NamedTuple

from .options import Settings


class Share(NamedTuple):
    """The pieces [first, stop) of so many."""

    first: int
    stop: int
    pieces: int


def own_share(out: str, settings: Settings) -> tuple[str, Settings, Share | None]:
    """OUT, the options and the pieces of this process: `name-partR.wav` with its share of --samples from its first
    item on; what was given and None, where torchrun did not start it.

    Raises:
        ValueError: there are fewer pieces than processes, or what is asked for cannot be divided.
    """
    rank, count = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return out, settings, None
    pieces = settings.samples or 1
    if settings.stream or out == "-":
        raise ValueError("--stream is for one process, without torchrun")
    if pieces < count:
        raise ValueError(f"{count} processes for {pieces} pieces: give --samples {count} or more, or start fewer")
    first, stop = pieces * rank // count, pieces * (rank + 1) // count
    device = settings.device
    if device in ("auto", "cuda"):
        import torch

        # As `auto` chooses, but a card for each process.
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if device == "cuda" or torch.cuda.is_available() else "cpu"
    own = dataclasses.replace(
        settings,
        samples=stop - first,
        first_item=settings.first_item + first,
        device=device,
        run=_part(settings.run, rank),
        plot=_part(settings.plot, rank),
        quiet=settings.quiet or rank > 0,
    )
    return str(_part(Path(out), rank)), own, Share(first, stop, pieces)


def _part(path: Path | None, rank: int) -> Path | None:
    return None if path is None else path.with_name(f"{path.stem}-part{rank}{path.suffix}")
