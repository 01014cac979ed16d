"""How far a request is, and how long the rest takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from .config import JukeboxConfig
from .windows import Window


class Progress(NamedTuple):
    """Codes sampled and to be sampled over all levels, the level at work, and the seconds that are left."""

    done: int
    total: int
    level: int
    eta: float


ProgressCallback = Callable[[Progress], None]


class Meter:
    """Reports progress. A code's cost is taken to grow with the weights its prior reads."""

    def __init__(
        self, windows: Sequence[Window], config: JukeboxConfig, rows: Sequence[int], progress: ProgressCallback | None
    ) -> None:
        self.progress = progress
        # The constant stands for what a layer costs whatever its width.
        self.cost = [prior.depth * (prior.width**2 + 2**18) for prior in config.priors]
        codes = [window.new_codes * rows[window.level] for window in windows]
        self.total = sum(codes)
        self.work_left = float(sum(n * self.cost[window.level] for n, window in zip(codes, windows, strict=True)))
        self.done, self.work_done, self.started = 0, 0.0, time.monotonic()

    def add(self, level: int, codes: int) -> None:
        self.done += codes
        self.work_done += codes * self.cost[level]
        self.work_left -= codes * self.cost[level]
        if self.progress:
            elapsed = time.monotonic() - self.started
            self.progress(Progress(self.done, self.total, level, elapsed * self.work_left / self.work_done))
