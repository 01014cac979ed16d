"""Decoders turn a window's prompt into a full window of codes. Each owns its cache and buffers; weights belong to the
prior. `BACKENDS` lists them with what they need; one is chosen once, by name or as the fastest that can run.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..kernels import native_library, philox, reference
from . import graph_decoder, persistent_decoder
from .convolution import repeatable
from .kv_cache import KVCache
from .prior import Prior
from .threads import one_thread

logger = logging.getLogger("fastjukebox")


@dataclass(frozen=True)
class LevelSampling:
    """How the codes of one level are drawn: logits / temperature, then top-k (0: all), then top-p (1: all)."""

    temperature: float = 0.99
    top_k: int = 0
    top_p: float = 1.0


@dataclass(frozen=True)
class WindowTask:
    """What a decoder is given for one window of B items.

    codes: [B, context_len] int64; the first `prompt_len` are given, the others are written by the decoder.
    frame_cond: [B, context_len, W] or None; start_cond: [B, 1, W] or None; lyrics: [1, S, W], of all items, or None:
        in FP32, or the prior's dtype.
    items, offset: item numbers [B], and the position in the song of the window's first code; with seed and level they
    say which random numbers are drawn.
    draft: what a drafting prior is told, in the same codes, if its conditions are others (speculative_decoder.py).
    """

    codes: Tensor
    prompt_len: int
    items: Tensor
    seed: int
    level: int
    offset: int
    sampling: LevelSampling
    frame_cond: Tensor | None = None
    start_cond: Tensor | None = None
    lyrics: Tensor | None = None
    draft: WindowTask | None = None


class Decoder(Protocol):
    """Call `condition` for upper codes, `prefill(task)` once per window, then `run` for consecutive ranges of
    positions from `prompt_len` on."""

    def condition(self, upper_codes: Tensor) -> Tensor:
        """Upper codes [B, context_len / ratio] of a window -> its frame condition [B, context_len, W], item by item."""
        ...

    def prefill(self, task: WindowTask) -> None:
        """Take the task and put its prompt into the cache."""
        ...

    def run(self, start: int, stop: int) -> None:
        """Write codes start ... stop - 1 of the task in place; no host sync in between."""
        ...


class OverlappingDecoder(Decoder, Protocol):
    """A decoder that computes while other Python threads do, and takes in a prompt as it comes."""

    def twin(self, threads: int) -> OverlappingDecoder:
        """Another one with the same weights, for so many threads."""
        ...

    def begin(self, task: WindowTask) -> None:
        """Take the task, whose prompt need not be there yet."""
        ...

    def extend(self, start: int, stop: int) -> None:
        """Put positions `start` ... `stop` - 1 of the prompt into the cache, which holds those before."""
        ...


class EagerDecoder:
    """Plain PyTorch, step by step, on any device."""

    # Positions whose noise is drawn in one go.
    NOISE_BLOCK = 64

    def __init__(self, prior: Prior, batch: int) -> None:
        self.prior = prior
        # What a CPU would fill up anyway in every product, so that an item's codes are the same in every batch.
        self.lanes = max(batch, reference.FEWEST_ROWS) if prior.device.type == "cpu" else batch
        self.cache = KVCache(prior.config, self.lanes, prior.device, prior.dtype)

    @torch.inference_mode()
    def condition(self, upper_codes: Tensor) -> Tensor:
        with self._undisturbed():
            return self.prior.condition(upper_codes)

    @torch.inference_mode()
    def prefill(self, task: WindowTask) -> None:
        with self._undisturbed():
            self._prefill(task)

    @torch.inference_mode()
    def run(self, start: int, stop: int) -> None:
        with self._undisturbed():
            self._run(start, stop)

    @contextlib.contextmanager
    def _undisturbed(self) -> Iterator[None]:
        """On CPUs with one thread: with more, products of wide layers are rounded otherwise."""
        device = self.prior.device
        with repeatable(device), one_thread() if device.type == "cpu" else contextlib.nullcontext():
            yield

    def _prefill(self, task: WindowTask) -> None:
        batch = len(task.codes)
        if batch > self.lanes:
            raise ValueError(f"{batch} items for a decoder of {self.lanes}")
        pick = torch.arange(self.lanes, device=self.prior.device).clamp(max=batch - 1)
        self.task, self.pick = task, pick
        conditions = task.frame_cond, task.start_cond
        self.frame_cond, self.start_cond = (None if c is None else c[pick].to(self.prior.dtype) for c in conditions)
        self.noise = torch.empty(0, device=task.codes.device)
        self.prior.read_lyrics(task.lyrics, self.cache.layers)
        self.prior.prefill_prompt(task.codes[pick, : task.prompt_len], self.cache, self.frame_cond, self.start_cond)

    def _run(self, start: int, stop: int) -> None:
        task, codes, sampling = self.task, self.task.codes, self.task.sampling
        for pos in range(start, stop):
            block = (pos - task.prompt_len) % self.NOISE_BLOCK
            if block == 0:
                positions = torch.arange(pos, pos + self.NOISE_BLOCK, device=codes.device) + task.offset
                size = self.prior.config.codebook_size
                self.noise = philox.gumbel_noise(task.seed, task.items, task.level, positions, size)
            previous = codes[self.pick, pos - 1] if pos else None
            logits = self.prior.decode_step(previous, pos, self.cache, self.frame_cond, self.start_cond)
            codes[:, pos] = reference.sample_logits(
                logits[: len(codes)], self.noise[:, block], sampling.temperature, sampling.top_k, sampling.top_p
            )


@dataclass(frozen=True)
class Backend:
    """A way to decode: `missing(device, dtype)` says in a few words why it cannot run there, or None.

    int8: it rounds the weights. automatic: it is taken without being asked for by name. native: it takes FP16
    matrices in an FP32 prior as they are, and builds OverlappingDecoders. drafts: it builds CheckingDecoders (see
    speculative_decoder.py), which check so many codes at a time at most, of all items together; 0: it does not.
    """

    name: str
    build: Callable[[Prior, int], Decoder]
    missing: Callable[[torch.device, torch.dtype], str | None]
    int8: bool = False
    automatic: bool = True
    native: bool = False
    drafts: int = 0

    @property
    def drafted_items(self) -> int:
        """Items that it decodes with drafts at most: a check has two codes of each."""
        return self.drafts // 2


def _native(prior: Prior, batch: int) -> Decoder:
    from .native_decoder import NativeDecoder

    return NativeDecoder(prior, batch)


def _native_int8(prior: Prior, batch: int) -> Decoder:
    from .native_decoder import NativeDecoder

    return NativeDecoder(prior, batch, int8=True)


def _native_missing(device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type != "cpu":
        return "it is for CPUs"
    return (
        native_library.missing() if dtype in (torch.float32, torch.float16) else "it takes float32 and float16 priors"
    )


# Of more rows arithmetic, not memory, is what takes the time: of those on CPUs by measurement.
NATIVE_ROWS, TRITON_ROWS = 16, 32

# The fastest first.
BACKENDS = (
    # TODO: both of Triton's automatic, once `pytest -m gpu` has passed on a GPU.
    Backend("triton", graph_decoder.GraphDecoder, graph_decoder.missing, automatic=False, drafts=TRITON_ROWS),
    Backend("native", _native, _native_missing, native=True, drafts=NATIVE_ROWS),
    Backend(
        "triton-int8", graph_decoder.int8_decoder, graph_decoder.missing, int8=True, automatic=False, drafts=TRITON_ROWS
    ),
    Backend("native-int8", _native_int8, _native_missing, int8=True, native=True, drafts=NATIVE_ROWS),
    # TODO: the first of all, once it has been measured on a GPU.
    Backend("persistent", persistent_decoder.PersistentDecoder, persistent_decoder.missing, automatic=False),
    Backend("persistent-int8", persistent_decoder.int8_decoder, persistent_decoder.missing, int8=True, automatic=False),
    Backend("eager", EagerDecoder, lambda device, dtype: None),
)


def choose_backend(name: str, device: torch.device, dtype: torch.dtype) -> Backend:
    """The backend called `name`; or the first automatic one that can run on `device` with priors in `dtype`: for "auto"
    of those that keep the weights, for "auto-int8" of those that round them, if there is one.

    Raises:
        ValueError: there is none of that name, or it cannot run here; says why.
    """
    if name in ("auto", "auto-int8"):
        found = [backend for backend in BACKENDS if backend.automatic and backend.missing(device, dtype) is None]
        chosen = min(found, key=lambda backend: backend.int8 != (name == "auto-int8"))
        if chosen.name == "eager" and device.type == "cpu":
            reason = _native_missing(device, dtype)
            logger.warning("decoding with the eager decoder, which is slow: the native one cannot run (%s)", reason)
        return chosen
    for backend in BACKENDS:
        if backend.name == name:
            reason = backend.missing(device, dtype)
            if reason:
                raise ValueError(f"the {name} decoder cannot run on {device}: {reason}")
            return backend
    known = ", ".join(backend.name for backend in BACKENDS)
    raise ValueError(f"backend must be auto, auto-int8, {known}; not {name!r}")
