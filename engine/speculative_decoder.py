"""Speculative decoding: a small prior drafts codes one by one, the prior itself checks several of them at a time.

Both draw with the noise that belongs to a position (kernels/philox.py). So the draft often guesses the very code that
the prior draws, which is kept; the first wrong one is replaced by the prior's own, and drafting goes on from there.
What comes out is to the bit what the prior decodes alone, whatever drafts it is given: they decide about time alone.
That is the "drafter-invariant" coupling of Daliri, Musco and Suresh (2024, arXiv 2408.07978); Leviathan et al. (2023,
arXiv 2211.17192) and Chen et al. (2023, arXiv 2302.01318) reject and draw again instead, which keeps the distribution.

A step of a wide network is bound by reading the weights, once for however many positions: there several are checked in
little more time than one takes. Items that are decoded together share it already; where they are few, drafts of each
fill it up. Each item keeps what was right of its own, and so comes to a position of its own.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from ..kernels import native_library
from .config import PriorConfig
from .decoder import NATIVE_ROWS, Backend, Decoder, WindowTask
from .graph_decoder import GraphDecoder
from .native_decoder import NativeDecoder
from .prior import Prior
from .trials import TeamSize, Trials

# What both priors must have in common: the same codes at the same places, in rows as long, told of by the same labels.
SHARED = ("level", "context_len", "num_rows", "window_len", "codebook_size", "vocabulary", "labels")
# Of a prior, what makes the conditions of a window.
CONDITIONING = ("conditioner.", "labels.", "lyric_encoder.")


class CheckingDecoder(Decoder, Protocol):
    """A decoder that also checks, several at a time, codes that another one of its kind has drafted."""

    prior: Prior
    team: TeamSize

    def begin(self, task: WindowTask) -> None:
        """Take the task, whose prompt is not in the cache yet."""
        ...

    def extend(self, start: int, stop: int) -> None:
        """Put positions `start` ... `stop` - 1 of the task's codes into the cache, which holds those before."""
        ...

    def decode(self, start: int, stop: int, threads: int) -> None:
        """As `run`, in one call of so many threads that waits for the end."""
        ...

    def wait(self) -> None:
        """Until all is done that was begun."""
        ...

    # Any: one of its own kind.
    def speculate(
        self, draft: Any, positions: list[int], stop: int, length: int, checks: int, threads: int
    ) -> tuple[int, int, int]:
        """Write codes that `decode` would write, by drafts of `length` codes of a decoder with a task of the same
        codes: of each item from its own of `positions`, which are moved on, to `stop` - 1, in `checks` checks at most.
        Returns how many of the codes were drafted right, the number of checks, each item's counted, and that of codes
        drafted."""
        ...


def check_drafts(priors: Sequence[PriorConfig], drafts: Sequence[PriorConfig]) -> None:
    """Raises ValueError where priors of the sizes `drafts` cannot draft for those of the sizes `priors`; says why."""
    if len(priors) != len(drafts):
        raise ValueError(f"a draft needs a prior for each of {len(priors)} levels, it has {len(drafts)}")
    for prior, draft in zip(priors, drafts, strict=True):
        for name in SHARED:
            ours, theirs = getattr(prior, name), getattr(draft, name)
            if ours != theirs:
                raise ValueError(f"the level {prior.level} prior's {name} is {ours}, not {theirs} as the draft's")
        if draft.lyrics:
            ours, theirs = (each.lyrics and (each.lyrics.vocabulary, each.lyrics.length) for each in (prior, draft))
            if ours != theirs:
                raise ValueError(f"the level {prior.level} prior and its draft read other lyrics: {ours}, {theirs}")


def with_drafts(backend: Backend, drafts: Callable[[int], Prior], shared: Collection[int] = ()) -> Backend:
    """`backend`, drafting with the prior that `drafts` has for a level where few items are decoded at a time; but for
    levels whose prior is `shared` with the draft. Raises ValueError if it cannot."""
    if not backend.drafts:
        raise ValueError(
            f"drafts are for native and Triton decoders, not for {backend.name}: choose another backend, triton or "
            "triton-int8 on a GPU, or leave the draft out"
        )

    def build(prior: Prior, batch: int) -> Decoder:
        # Many items share already what a step reads.
        if batch > backend.drafted_items or prior.config.level in shared:
            return backend.build(prior, batch)
        target, draft = (backend.build(each, batch) for each in (prior, drafts(prior.config.level)))
        return SpeculativeDecoder(
            cast("CheckingDecoder", target), cast("CheckingDecoder", draft), batch, backend.drafts
        )

    return replace(backend, build=build)


def expect_drafts(target: CheckingDecoder, draft: CheckingDecoder, lengths: Sequence[int]) -> None:
    """Tell `target` what it will be asked to check, if it wants to know before it is given a task."""
    if isinstance(target, GraphDecoder) and isinstance(draft, GraphDecoder):
        target.expect_drafts(draft, lengths)


def expected_codes(length: float, right: float) -> float:
    """Codes that a check of `length` drafted ones gives on average, the first wrong one's correction included, if each
    is right with that probability (Leviathan et al. 2023, Equation 1, without the code after the last)."""
    return length if right == 1 else (1 - right**length) / (1 - right)


class SpeculativeDecoder:
    """Decodes as `target` does, by drafts of `draft`. Between calls all items are at the same position."""

    # Codes of a draft; 1: without. What is best is found by trials.
    LENGTHS = (1, 2, 4, 8, 16)
    SECONDS_PER_CALL = 0.5
    # No longer drafts than take so many seconds to decode without: a call holds one at least, and a stop waits for it.
    LONGEST_SECONDS = 1.5

    def __init__(
        self, target: CheckingDecoder, draft: CheckingDecoder, batch: int = 1, most_rows: int = NATIVE_ROWS
    ) -> None:
        """batch: items that both have room for; most_rows: codes that are checked at a time, of all items together."""
        check_drafts([target.prior.config], [draft.prior.config])
        self.target, self.draft = target, draft
        self.choices = [length for length in self.LENGTHS if length == 1 or length * batch <= most_rows]
        expect_drafts(target, draft, [length for length in self.choices if length > 1])
        # Whether a window's conditions are the same for both.
        self.same_conditions = _same_conditions(target.prior, draft.prior)
        self._start()

    def _start(self) -> None:
        self.warm = False
        # For each number of items and of threads.
        self.lengths = dict[tuple[int, int], Trials]()
        # Codes written by drafts, and how many of them were drafted right.
        self.written, self.right = 0, 0
        # Items of the task, and positions that the draft has seen of all of them.
        self.items, self.seen = 1, 0

    def twin(self, threads: int) -> SpeculativeDecoder:
        other = copy.copy(self)
        # Native ones, or nobody asks.
        other.target, other.draft = (cast("NativeDecoder", each).twin(threads) for each in (self.target, self.draft))
        other._start()
        return other

    def condition(self, upper_codes: Tensor) -> Tensor:
        return self.target.condition(upper_codes)

    def prefill(self, task: WindowTask) -> None:
        self.begin(task)
        self.extend(0, task.prompt_len)

    def begin(self, task: WindowTask) -> None:
        """`task.draft` is what the draft is told, in the same codes; None: the same."""
        self.draft.begin(task.draft or task)
        self.target.begin(task)
        self.items, self.seen = len(task.codes), 0

    def extend(self, start: int, stop: int) -> None:
        self.target.extend(start, stop)
        # If drafts have turned out to be slower, it looks at nothing until they are tried again.
        if self.seen == start and any(
            lengths.recent and lengths.best > 1 for (items, _), lengths in self.lengths.items() if items == self.items
        ):
            self.draft.extend(start, stop)
            self.seen = stop

    def run(self, start: int, stop: int) -> None:
        native_library.rest_pytorch_threads()
        reached = [start] * self.items
        while min(reached) < stop:
            threads, length, codes = self._next_call()
            begun = time.perf_counter()
            if self._get_ready(reached, length, threads):
                # A trial's loss, not part of what it measures.
                self._lengths(threads).lost += time.perf_counter() - begun
                if min(reached) == stop:
                    break
                begun = time.perf_counter()
            if length > 1:
                checks = max(1, int(codes / expected_codes(length, self._share())))
                steps = self._speculate(reached, stop, length, checks, threads)
            else:
                first = reached[0]
                steps = min(codes, stop - first)
                self.target.decode(first, first + steps, threads)
                reached = [first + steps] * self.items
            self._measured(threads, length, steps, time.perf_counter() - begun)

    def _get_ready(self, reached: list[int], length: int, threads: int) -> bool:
        """Whether there was something to be done before the call: with drafts, positions that the draft has not seen;
        without, items that are behind the others."""
        first, last = min(reached), max(reached)
        if length > 1 and self.seen < first:
            self.draft.extend(self.seen, first)
            self.draft.wait()
            self.seen = first
            return True
        if length == 1 and first < last:
            # Each check gives a code at least.
            self._speculate(reached, last, self.choices[1], last - first, threads)
            return True
        return False

    def _share(self) -> float:
        """Of the codes written by drafts, what was drafted right."""
        return self.right / self.written if self.written else 1.0

    def _speculate(self, reached: list[int], stop: int, length: int, checks: int, threads: int) -> float:
        """So many checks at most; returns how many codes each item was to be expected to have, in the mean. How many
        there are is luck where a call holds few drafts."""
        before = sum(reached)
        right, done, drafted = self.target.speculate(self.draft, reached, stop, length, checks, threads)
        self.right, self.written, self.seen = self.right + right, self.written + sum(reached) - before, min(reached)
        return done * expected_codes(drafted / done, self._share()) / len(reached)

    def _lengths(self, threads: int) -> Trials:
        return self.lengths.setdefault((self.items, threads), Trials(self.choices, always_first=True))

    def _next_call(self) -> tuple[int, int, int]:
        """Threads, length of drafts, and codes."""
        team = self.target.team
        threads, codes = team.next_call(self.SECONDS_PER_CALL)
        lengths = self._lengths(threads)
        # While threads are tried, lengths are not: with what is best for the number that they are held against.
        known = self.lengths.get((self.items, team.base)) if team.calls_left else None
        if known and known.recent:
            length = known.best
        else:
            length, codes = lengths.next_call(self.SECONDS_PER_CALL)
        return threads, length, codes

    def _measured(self, threads: int, length: int, steps: float, seconds: float) -> None:
        """steps: codes of each item, as many as were to be expected."""
        team, lengths = self.target.team, self._lengths(threads)
        if team.calls_left or not lengths.calls_left:
            team.measured(threads, steps, seconds)
        lengths.measured(length, steps, seconds)
        if not self.warm:
            # The first step of all waits for the weights: it tells no more than that.
            self.warm, self.lengths = True, {}
            team.recent.clear()
        elif length == 1:
            longest = self.LONGEST_SECONDS / lengths.cost(length)
            lengths.counts = [count for count in self.choices if count in lengths.recent or count <= longest]


def _same_conditions(prior: Prior, draft: Prior) -> bool:
    """Whether all that makes the conditions of a window is the same to the bit."""
    ours, theirs = (
        {name: tensor for name, tensor in each.named_parameters() if name.startswith(CONDITIONING)}
        for each in (prior, draft)
    )
    return ours.keys() == theirs.keys() and all(
        tensor.dtype == theirs[name].dtype and torch.equal(tensor, theirs[name]) for name, tensor in ours.items()
    )
