"""From a request to codes: what is asked for, and the loop over windows that fills every level."""

from __future__ import annotations

import math
import numbers
import operator
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias, TypedDict

import numpy as np
import torch
from torch import Tensor

from . import overlap
from .config import JukeboxConfig
from .decoder import Backend, Decoder, LevelSampling, WindowTask
from .labels import Labels, Names, level_labels
from .prior import Prior
from .speculative_decoder import SpeculativeDecoder
from .windows import LevelPlan, Window, plan_levels, schedule

# A 16-bit wav of 44.1 kHz holds 13.5 hours.
MAX_SECONDS = 12 * 3600
CodesLike: TypeAlias = Tensor | np.ndarray | Sequence[int] | Sequence[Sequence[int]]
# Below, logits / temperature come near what FP32 can hold.
MIN_TEMPERATURE = 1e-6


def whole_number(value: object) -> int | None:
    """A whole number of Python, NumPy or PyTorch; None of anything else."""
    try:
        return None if isinstance(value, bool) else operator.index(value)  # pyright: ignore[reportArgumentType]
    except TypeError:
        return None


def _number(value: object) -> float:
    """A number of any kind that FP64 can hold; NaN of anything else."""
    try:
        return float(value) if isinstance(value, numbers.Real) and not isinstance(value, bool) else math.nan
    except OverflowError:
        return math.nan


@dataclass(frozen=True)
class SamplingParams:
    """A request. Settings per level are one number for all levels, or one per level, the finest (0) first.

    seconds: length of the result, prompt included; kept to the sample. None where the codes given decide.
    seed: 0 ... 2^64 - 1. An item's codes depend on the weights, the seed, the item's number, the length and how codes
        are drawn, and on nothing else.
    num_samples, first_item: items `first_item` ... `first_item + num_samples - 1` of this seed.
    temperature: at least 1e-6. top_k: 0 keeps all codes, 1 the likeliest alone. top_p: in (0, 1], 1 keeps all.
    hop_fraction: how far windows move, as a part of the window; None: the original's 0.125 at the top, 0.5 below.
    batch_size: items decoded together at most.
    level: the level that is decoded to audio; levels below it are not sampled. 1 or 2 make a quick preview.
    labels: artist, genre and lyrics, for models that know them; None: an unknown artist and genre, no lyrics.
    """

    seconds: float | None = None
    seed: int = 0
    num_samples: int = 1
    first_item: int = 0
    temperature: float | tuple[float, ...] = 0.99
    top_k: int | tuple[int, ...] = 0
    top_p: float | tuple[float, ...] = 1.0
    hop_fraction: float | tuple[float, ...] | None = None
    batch_size: int = 16
    level: int = 0
    labels: Labels | None = None

    def __post_init__(self) -> None:
        if self.labels is not None and not isinstance(self.labels, Labels):
            raise ValueError(f"labels must be Labels(artist=..., genre=..., ...), not {self.labels!r}")
        if self.seconds is not None:
            # NumPy's numbers and fractions too, which JSON does not take.
            seconds = _number(self.seconds)
            if not 0 < seconds <= MAX_SECONDS:
                raise ValueError(f"seconds must be above 0 and at most {MAX_SECONDS}, not {self.seconds!r}")
            object.__setattr__(self, "seconds", seconds)
        for name, low, high in (
            ("seed", 0, 2**64 - 1),
            ("num_samples", 1, 2**20),
            ("first_item", 0, 2**31),
            ("batch_size", 1, 2**20),
            ("level", 0, 2**10),
        ):
            value = getattr(self, name)
            whole = whole_number(value)
            if whole is None or not low <= whole <= high:
                raise ValueError(f"{name} must be a whole number from {low} to {high}, not {value!r}")
            object.__setattr__(self, name, whole)
        for name, valid, rule in (
            ("temperature", lambda value: MIN_TEMPERATURE <= value < math.inf, f"at least {MIN_TEMPERATURE:g}"),
            ("top_k", lambda value: value >= 0 and value % 1 == 0, "a whole number, 0 (all codes) or more"),
            ("top_p", lambda value: 0 < value <= 1, "above 0 and at most 1"),
            ("hop_fraction", lambda value: 0 < value <= 1, "above 0 and at most 1"),
        ):
            value: Any = getattr(self, name)
            if name == "hop_fraction" and self.hop_fraction is None:
                continue
            several = isinstance(value, (tuple, list))
            given: list[Any] = list(value) if several else [value]
            found = list(map(_number, given))
            for one, number in zip(given, found, strict=True):
                if not valid(number):
                    raise ValueError(f"{name} must be {rule}, not {one!r}")
            if name == "top_k":
                found = list(map(int, found))
            object.__setattr__(self, name, tuple(found) if several else found[0])

    @property
    def batches(self) -> list[range]:
        """The samples that are decoded together, counted from 0."""
        starts = range(0, self.num_samples, self.batch_size)
        return [range(first, min(first + self.batch_size, self.num_samples)) for first in starts]

    def per_level(self, name: str, levels: int) -> tuple[float, ...]:
        """The setting `name` of every level, the finest first. Raises ValueError on a wrong number of them."""
        value = getattr(self, name)
        if value is None:
            return (0.5,) * (levels - 1) + (0.125,)
        if not isinstance(value, tuple):
            return (value,) * levels
        if len(value) != levels:
            raise ValueError(f"{name} has {len(value)} values, the model has {levels} levels")
        return value


def as_codes(codes: CodesLike | None, level: int) -> Tensor:
    """Codes of a level, int64 [items, n] on the host, of whole numbers [items, n], or [n] for one item; [1, 0] of None.
    Raises ValueError on anything else."""
    try:
        # A copy: PyTorch takes no array that is reversed or read-only.
        found = codes.copy() if isinstance(codes, np.ndarray) else [] if codes is None else codes
        found = torch.as_tensor(found, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"level {level} codes must be whole numbers [items, n]: {error}") from None
    inexact = found.dtype == torch.bool or found.is_floating_point() or found.is_complex()
    if (inexact and found.numel()) or found.dim() not in (1, 2):
        shape = f"{str(found.dtype).removeprefix('torch.')} {tuple(found.shape)}"
        raise ValueError(f"level {level} codes must be whole numbers [items, n], or [n] for one item, not {shape}")
    return torch.atleast_2d(found.long().cpu())


class Progress(NamedTuple):
    """Codes sampled and to be sampled over all levels, the level at work, and the seconds that are left."""

    done: int
    total: int
    level: int
    eta: float


ProgressCallback = Callable[[Progress], None]


class SampleOptions(TypedDict, total=False):
    """What `Jukebox.sample` takes by name."""

    order: str
    run_dir: str | Path | None
    overwrite: bool
    output: str | None
    progress: ProgressCallback | None


class PriorSource(Protocol):
    def __call__(self, level: int, resident: bool) -> Prior:
        """The prior of `level`; unless `resident`, other levels may be dropped."""
        ...


class Sampling:
    """One request under way: its plan, its codes so far, and the windows still to do.

    codes: per level [num_samples, length] int64 on the host; `filled[level]` of them are there.
    """

    # Positions decoded between two progress reports.
    REPORT_EVERY = 128

    def __init__(
        self,
        config: JukeboxConfig,
        params: SamplingParams,
        samples: int,
        known: Sequence[Tensor],
        names: Sequence[Names | None] = (),
    ) -> None:
        """known: per level the codes [num_samples, n] that are there already, a prompt or an earlier run's. names: per
        level the ids of artists and genres, where the model has them.

        Raises:
            ValueError: codes out of range, the wrong number of items, or labels that are not for this model.
        """
        levels = len(config.priors)
        if params.level >= levels:
            raise ValueError(f"level {params.level} does not exist; the model has levels 0 to {levels - 1}")
        if levels != config.vqvae.levels:
            raise ValueError(f"sampling needs a prior for each of {config.vqvae.levels} levels, the model has {levels}")
        if len(known) != levels:
            raise ValueError(f"codes are for {len(known)} levels, the model has {levels}")
        self.config, self.params, self.samples = config, params, samples
        self.filled = [codes.shape[1] for codes in known]
        self.plans = plan_levels(
            config, samples, params.per_level("hop_fraction", levels), self.filled, bottom=params.level
        )
        self.codes = []
        for level, (plan, codes) in enumerate(zip(self.plans, known, strict=True)):
            if len(codes) != params.num_samples:
                raise ValueError(
                    f"level {level} codes are for {len(codes)} items, the request is for {params.num_samples}"
                )
            size = config.vqvae.codebook_size
            if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < size:
                raise ValueError(f"level {level} codes must be 0 to {size - 1}, not {codes.min()} to {codes.max()}")
            # Threads write to it, which do not share the caller's inference mode.
            with torch.inference_mode(False):
                room = torch.zeros(params.num_samples, max(plan.length, codes.shape[1]), dtype=torch.long, device="cpu")
                room[:, : codes.shape[1]] = codes
            self.codes.append(room)
        sampled = [k >= params.level and self.filled[k] < plan.length for k, plan in enumerate(self.plans)]
        seconds = samples / config.vqvae.sample_rate
        self.labels = level_labels(params.labels, config, names or [None] * levels, seconds, sampled)
        # How the caller computes while windows are under way.
        self.compute: Callable[[Callable[[], Tensor]], Tensor] = lambda work: work()
        self.settings = [
            # More than all codes are all.
            LevelSampling(temperature, min(int(top_k), config.vqvae.codebook_size), top_p)
            for temperature, top_k, top_p in zip(
                *(params.per_level(name, levels) for name in ("temperature", "top_k", "top_p")), strict=True
            )
        ]

    @property
    def known(self) -> list[Tensor]:
        """Per level the codes so far [num_samples, n]."""
        return [codes[:, :filled] for codes, filled in zip(self.codes, self.filled, strict=True)]

    def windows(self, order: str) -> list[Window]:
        """What is still to be sampled, in `order`; see windows.schedule."""
        plans: list[LevelPlan] = [
            replace(plan, known=filled) for plan, filled in zip(self.plans, self.filled, strict=True)
        ]
        return list(schedule(plans, order, self.params.level))

    def run(
        self,
        priors: PriorSource,
        backend: Backend,
        order: str = "level",
        progress: ProgressCallback | None = None,
        overlapped: bool = False,
    ) -> Generator[Window, None, None]:
        """Sample window after window; each is yielded when its codes are in `codes`, complete. With `overlapped`,
        windows of all levels are under way at the same time (see overlap.py), in whatever order; the codes are the
        same."""
        windows = self.windows(order)
        meter = _Meter(windows, self.config, self.params.num_samples, progress)
        if overlapped:
            yield from overlap.run(self, windows, priors, backend, meter.add)
            return
        decoders: dict[int, Decoder] = {}
        for window in windows:
            level = window.level
            if order == "level" and level not in decoders:
                # Its buffers, and the prior it holds, go with the level.
                decoders.clear()
            # The old prior goes before the new one comes.
            prior = None
            prior = priors(level, resident=order == "time")
            if level not in decoders:
                decoders[level] = backend.build(prior, len(self.params.batches[0]))
            for items in self.params.batches:
                task = self.task(window, items, prior, decoders[level])
                decoders[level].prefill(task)
                for first in range(window.first, window.stop, self.REPORT_EVERY):
                    stop = min(first + self.REPORT_EVERY, window.stop)
                    decoders[level].run(first - task.offset, stop - task.offset)
                    meter.add(level, (stop - first) * len(items))
                self.keep(task, items, window.first, window.stop)
            self.filled[level] = window.stop
            yield window

    def task(self, window: Window, items: range, prior: Prior, decoder: Decoder) -> WindowTask:
        """What a decoder is given for some items of a window: conditions, and the prompt as far as it is there."""
        task = self._task(window, items, prior, decoder)
        if isinstance(decoder, SpeculativeDecoder) and not decoder.same_conditions:
            draft = self._task(window, items, decoder.draft.prior, decoder.draft)
            return replace(task, draft=replace(draft, codes=task.codes))
        return task

    def _task(self, window: Window, items: range, prior: Prior, decoder: Decoder) -> WindowTask:
        level, device, rows = window.level, prior.device, slice(items.start, items.stop)
        vqvae, lyric_len = self.config.vqvae, prior.config.lyric_len
        prompt_len = lyric_len + window.first - window.start
        codes = torch.zeros(len(items), prior.config.context_len, dtype=torch.long, device="cpu")
        codes[:, lyric_len:prompt_len] = self.codes[level][rows, window.start : window.first]
        frame_cond = start_cond = lyrics = None
        if (labels := self.labels[level]) is not None:
            unit = vqvae.samples_per_code(level)
            length = prior.config.window_len * unit
            told = prior.label_conditions(labels, vqvae.sample_rate, window.start * unit, length)
            codes[:, :lyric_len] = torch.tensor(told.prompt, dtype=torch.long, device="cpu")
            lyrics = told.lyrics
            # One for each item: decoders read them side by side.
            start_cond = told.start.repeat(len(items), 1, 1)
            frame_cond = None if told.frames is None else told.frames.repeat(len(items), 1, 1)
        if prior.config.conditioner:
            ratio = prior.config.conditioner.upper_ratio
            upper = self.codes[level + 1][rows, window.start // ratio : window.upper_needed]
            frame_cond = decoder.condition(upper.to(device))
        return WindowTask(
            codes=codes.to(device),
            prompt_len=prompt_len,
            items=torch.arange(items.start, items.stop, device=device) + self.params.first_item,
            seed=self.params.seed,
            level=level,
            # Of the song's codes; lyrics lie before the window's first.
            offset=window.start - lyric_len,
            sampling=self.settings[level],
            frame_cond=frame_cond,
            start_cond=start_cond,
            lyrics=lyrics,
        )

    def keep(self, task: WindowTask, items: range, first: int, stop: int) -> None:
        """Take over the codes `first` ... `stop` - 1 that a decoder wrote."""
        found = task.codes[:, first - task.offset : stop - task.offset]
        self.codes[task.level][items.start : items.stop, first:stop] = found.cpu()


class _Meter:
    """Reports progress. A code's cost is taken to grow with the weights its prior reads."""

    def __init__(
        self, windows: list[Window], config: JukeboxConfig, items: int, progress: ProgressCallback | None
    ) -> None:
        self.progress = progress
        # The constant stands for what a layer costs whatever its width.
        self.cost = [prior.depth * (prior.width**2 + 2**18) for prior in config.priors]
        self.total = sum(window.new_codes for window in windows) * items
        self.work_left = float(sum(window.new_codes * self.cost[window.level] for window in windows) * items)
        self.done, self.work_done, self.started = 0, 0.0, time.monotonic()

    def add(self, level: int, codes: int) -> None:
        self.done += codes
        self.work_done += codes * self.cost[level]
        self.work_left -= codes * self.cost[level]
        if self.progress:
            elapsed = time.monotonic() - self.started
            self.progress(Progress(self.done, self.total, level, elapsed * self.work_left / self.work_done))
