"""Which windows are sampled at which level, and what each of them waits for. Pure functions on integers.

A window is `window_len` codes long. Windows of a level start every `hop` codes, the last one moved back so that it is
full; each keeps the codes it finds as its prompt and samples the rest. A target shorter than one window is one partial
window. A window below the top needs the upper codes of its whole length, so short targets ask for longer upper levels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .config import JukeboxConfig


@dataclass(frozen=True)
class Window:
    """Codes `first` ... `stop` - 1 of `level` are sampled; `start` ... `first` - 1 are its prompt. Counted from the
    start of the song, or of each segment (segments.py)."""

    level: int
    start: int
    first: int
    stop: int
    # Codes of the level above that must exist, counted likewise; 0 at the top.
    upper_needed: int

    @property
    def new_codes(self) -> int:
        return self.stop - self.first


@dataclass(frozen=True)
class LevelPlan:
    """Sizes of one level, in its own codes: the whole length, or that of a segment, the window, the hop, what is there
    already."""

    length: int
    window_len: int
    hop: int
    known: int = 0
    # Codes of this level per code of the level above; None at the top.
    upper_ratio: int | None = None
    # Codes of the level above that all windows wait for; None: each for those beside it.
    upper_whole: int | None = None


def window_starts(length: int, window_len: int, hop: int) -> list[int]:
    """First codes of the windows that cover `length` codes."""
    if length <= window_len:
        return [0]
    last = length - window_len
    return [*range(0, last, hop), last]


def level_windows(level: int, plan: LevelPlan) -> list[Window]:
    """The windows of a level that still have something to sample, in order."""
    windows = []
    done = plan.known
    for start in window_starts(plan.length, plan.window_len, plan.hop):
        stop = min(start + plan.window_len, plan.length)
        if stop > done:
            upper = (start + plan.window_len) // plan.upper_ratio if plan.upper_ratio else 0
            if plan.upper_whole is not None:
                upper = plan.upper_whole
            windows.append(Window(level, start, done, stop, upper))
            done = stop
    return windows


def schedule(levels: Sequence[LevelPlan], order: str = "level", bottom: int = 0) -> Iterator[Window]:
    """The windows that levels[bottom] needs, in an order in which each finds what it waits for.

    "level": a whole level before the one below, so that one prior is needed at a time.
    "time": the bottom level as early as can be, so that audio can be played while it grows.
    """
    if order not in ("level", "time"):
        raise ValueError(f"order must be 'level' or 'time', not {order!r}")
    pending = [level_windows(level, plan) for level, plan in enumerate(levels)]
    filled = [plan.known for plan in levels]

    def up_to(level: int, needed: int) -> Iterator[Window]:
        while filled[level] < needed:
            window = pending[level].pop(0)
            if window.upper_needed:
                yield from up_to(level + 1, window.upper_needed)
            yield window
            filled[level] = window.stop

    by_time = up_to(bottom, levels[bottom].length)
    # The same windows in both orders; sorting keeps those of a level in theirs.
    yield from by_time if order == "time" else sorted(by_time, key=lambda window: -window.level)


def plan_levels(
    config: JukeboxConfig, samples: int, hop_fractions: Sequence[float], known: Sequence[int], bottom: int = 0
) -> list[LevelPlan]:
    """The levels of a target of `samples` audio samples.

    known: codes per level that are there already.

    Raises:
        ValueError: a hop, of a level that is sampled, that is no whole number of codes, or is not aligned with the
            upper level's codes.
    """
    vqvae, top = config.vqvae, config.vqvae.levels - 1
    top_codes = math.ceil(samples / vqvae.samples_per_code(top))
    plans: list[LevelPlan] = []
    needed = 0
    for level, prior in enumerate(config.priors):
        ratio = prior.conditioner.upper_ratio if prior.conditioner else None
        # Codes of this level that one top code stands for: lengths are whole numbers of top codes.
        unit = vqvae.samples_per_code(top) // vqvae.samples_per_code(level)
        length = max(top_codes * unit, math.ceil(needed / unit) * unit)
        window_len = prior.window_len
        # Levels that are not sampled have no windows to move.
        fraction = hop_fractions[level] if level >= bottom else 1.0
        hop = window_len * fraction
        if not 0 < fraction <= 1 or hop != int(hop) or int(hop) % (ratio or 1):
            raise ValueError(
                f"hop fraction {fraction} of level {level}: {hop:g} of {window_len} codes is not a "
                f"positive multiple of {ratio or 1} within the window; try 0.5, 0.25 or 0.125"
            )
        plans.append(LevelPlan(length, window_len, int(hop), known[level], ratio))
        if level >= bottom and ratio:
            needed = max(length, window_len) // ratio
    return plans
