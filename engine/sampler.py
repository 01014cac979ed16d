"""From a request to codes: what is asked for, and the loop over windows that fills every level."""

from __future__ import annotations

import logging
import math
import numbers
import operator
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeAlias, TypedDict

import numpy as np
import torch
from torch import Tensor

from . import overlap
from .config import JukeboxConfig
from .decoder import Backend, Decoder, LevelSampling, WindowTask
from .labels import Labels, Names, level_labels
from .prior import Prior
from .progress import Meter, ProgressCallback
from .segments import Segments
from .speculative_decoder import SpeculativeDecoder
from .windows import LevelPlan, Window, plan_levels, schedule

logger = logging.getLogger("fastjukebox")
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
    batch_size: items, or segments of them, decoded together at most.
    segments: into how many segments levels below the top are cut at most, of a window or more each, which are sampled
        side by side (segments.py). Sooner where networks are wide; but a segment does not hear the one before it, so
        the codes are others than with 1.
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
    segments: int = 1

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
            ("segments", 1, 2**10),
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

    codes: per level [rows, length] int64 on the host; `filled[level]` of them are there. Rows are items, or segments
        of items where `segments[level]` are several.
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
        begun: bool = False,
    ) -> None:
        """known: per level the codes [num_samples, n] that are there already, a prompt or, of a run that has begun,
        what the property `known` was. names: per level the ids of artists and genres, where the model has them.

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
        plans = plan_levels(config, samples, params.per_level("hop_fraction", levels), self.filled, bottom=params.level)
        self.segments = [self._segments(plans[level], known[level], level, begun) for level in range(levels)]
        self.plans = [self._cut(plan, level) for level, plan in enumerate(plans)]
        self.codes = []
        for level, (plan, codes) in enumerate(zip(self.plans, known, strict=True)):
            rows = self.rows(level)
            if len(codes) != rows and (codes.numel() or len(codes) != params.num_samples):
                raise ValueError(f"level {level} codes are for {len(codes)} items, the request is for {rows}")
            size = config.vqvae.codebook_size
            if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < size:
                raise ValueError(f"level {level} codes must be 0 to {size - 1}, not {codes.min()} to {codes.max()}")
            # Threads write to it, which do not share the caller's inference mode.
            with torch.inference_mode(False):
                room = torch.zeros(rows, max(plan.length, codes.shape[1]), dtype=torch.long, device="cpu")
                if codes.numel():
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

    def _segments(self, plan: LevelPlan, known: Tensor, level: int, begun: bool) -> Segments:
        """How a level is cut. Raises ValueError where its beginning is given."""
        vqvae, params = self.config.vqvae, self.params
        whole, complete = Segments((0,), plan.length, plan.length), known.shape[1] >= plan.length
        if complete or level < params.level or not plan.upper_ratio or self.config.priors[level].lyrics:
            return whole
        unit = vqvae.samples_per_code(vqvae.levels - 1) // vqvae.samples_per_code(level)
        found = Segments.of(plan.length, params.segments, plan.window_len, unit)
        if found.count > 1 and known.shape[1] and not begun:
            raise ValueError(
                f"level {level} codes are given, and what goes on from them cannot be cut into {found.count} segments: "
                "leave the segments out"
            )
        if found.count < params.segments:
            seconds = plan.window_len * vqvae.samples_per_code(level) / vqvae.sample_rate
            logger.warning(
                "level %d is cut into %d, not %d segments: each is a window of %.3g s or more, of whole top codes",
                *(level, found.count, params.segments, seconds),
            )
        return found

    def _cut(self, plan: LevelPlan, level: int) -> LevelPlan:
        """The plan of each row. What is cut, or lies below what is, waits for all of the level above."""
        own = self.segments[level]
        upper = self.segments[level + 1] if plan.upper_ratio else own
        return replace(plan, length=own.length, upper_whole=upper.length if own.count + upper.count > 2 else None)

    def rows(self, level: int) -> int:
        """Items, or segments of all items."""
        return self.params.num_samples * self.segments[level].count

    def batches(self, level: int, size: int | None = None) -> list[range]:
        """The rows of a level that are decoded together, by default as many as the request allows."""
        rows, size = self.rows(level), size or self.params.batch_size
        return [range(first, min(first + size, rows)) for first in range(0, rows, size)]

    def whole(self, level: int) -> Tensor:
        """Codes [num_samples, n] of all the level; of segments only where all of it is there."""
        return self.segments[level].join(self.codes[level])

    def ready(self, level: int) -> int:
        """How many codes of every item are there, from the first on."""
        segments, filled = self.segments[level], self.filled[level]
        return segments.total if segments.count > 1 and filled == segments.length else filled

    @property
    def known(self) -> list[Tensor]:
        """Per level the codes so far [num_samples, n]; of segments that are not complete [rows, n]."""
        return [
            self.whole(level) if self.segments[level].count > 1 and filled == plan.length else codes[:, :filled]
            for level, (plan, codes, filled) in enumerate(zip(self.plans, self.codes, self.filled, strict=True))
        ]

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
        meter = Meter(windows, self.config, [self.rows(level) for level in range(len(self.codes))], progress)
        if overlapped:
            for together in self._together(windows):
                yield from overlap.run(self, together, priors, backend, meter.add)
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
                decoders[level] = backend.build(prior, len(self.batches(level)[0]))
            for items in self.batches(level):
                task = self.task(window, items, prior, decoders[level])
                decoders[level].prefill(task)
                for first in range(window.first, window.stop, self.REPORT_EVERY):
                    stop = min(first + self.REPORT_EVERY, window.stop)
                    decoders[level].run(first - task.offset, stop - task.offset)
                    meter.add(level, (stop - first) * len(items))
                self.keep(task, items, window.first, window.stop)
            self.filled[level] = window.stop
            yield window

    def _together(self, windows: list[Window]) -> list[list[Window]]:
        """Windows that can be under way at the same time: with several segments those of one level, whose rows are not
        those of the level above."""
        if all(segments.count == 1 for segments in self.segments):
            return [windows]
        by_level = ([w for w in windows if w.level == level] for level in reversed(range(len(self.codes))))
        return [found for found in by_level if found]

    def task(self, window: Window, items: range, prior: Prior, decoder: Decoder) -> WindowTask:
        """What a decoder is given for some rows of a window: conditions, and the prompt as far as it is there."""
        task = self._task(window, items, prior, decoder)
        if isinstance(decoder, SpeculativeDecoder) and not decoder.same_conditions:
            draft = self._task(window, items, decoder.draft.prior, decoder.draft)
            return replace(task, draft=replace(draft, codes=task.codes))
        return task

    def _task(self, window: Window, items: range, prior: Prior, decoder: Decoder) -> WindowTask:
        level, device, rows = window.level, prior.device, slice(items.start, items.stop)
        vqvae, lyric_len, segments = self.config.vqvae, prior.config.lyric_len, self.segments[level]
        prompt_len = lyric_len + window.first - window.start
        codes = torch.zeros(len(items), prior.config.context_len, dtype=torch.long, device="cpu")
        codes[:, lyric_len:prompt_len] = self.codes[level][rows, window.start : window.first]
        frame_cond = start_cond = lyrics = None
        if (labels := self.labels[level]) is not None:
            unit = vqvae.samples_per_code(level)
            length = prior.config.window_len * unit
            starts = [segments.place(row)[1] for row in items]
            told = {
                start: prior.label_conditions(labels, vqvae.sample_rate, (start + window.start) * unit, length)
                for start in dict.fromkeys(starts)
            }
            first = told[starts[0]]
            codes[:, :lyric_len] = torch.tensor(first.prompt, dtype=torch.long, device="cpu")
            lyrics = first.lyrics
            # One for each row: decoders read them side by side.
            start_cond = torch.cat([told[start].start for start in starts])
            frames = [told[start].frames for start in starts]
            frame_cond = None if first.frames is None else torch.cat([each for each in frames if each is not None])
        if ratio := prior.config.conditioner and prior.config.conditioner.upper_ratio:
            upper = segments.windows(
                self.whole(level + 1), items, window.start, prior.config.window_len // ratio, ratio
            )
            frame_cond = decoder.condition(upper.to(device))
        return WindowTask(
            codes=codes.to(device),
            prompt_len=prompt_len,
            items=torch.tensor([segments.noise_item(row, self.params.first_item) for row in items], device=device),
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
