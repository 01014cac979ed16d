"""What a request gives."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from .audio import write_audio


# Tensors have no single answer to ==.
@dataclass(frozen=True, eq=False)
class Result:
    """What was sampled.

    audio: FP32 [items, samples] at `sample_rate` Hz.
    codes: per level int64 [items, n], the finest level first; empty for levels that were not sampled. Upper levels may
        reach beyond the audio, where the windows below them need that.
    """

    audio: Tensor
    sample_rate: int
    codes: list[Tensor]

    def save(self, path: str | Path) -> list[Path]:
        """Write .wav, .flac or .ogg; several items become name-0.wav, name-1.wav, ... Returns the files."""
        return write_audio(path, self.audio, self.sample_rate)
