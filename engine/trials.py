"""Which of several ways to do the same work is the fastest, found out while it is done."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Sequence


class Trials:
    """Chooses which of `counts`, numbers in ascending order, the next call uses, by the seconds per step of each.

    The next smaller and the next larger number beside the best are tried by turns, again from time to time, and with
    `always_first` the first number as well. A single call tells little on a busy machine: what counts is the median of
    the last three.
    """

    # What trials lose may be this part of the time between them. They are long enough for a second core to wake up,
    # which takes milliseconds in a virtual machine.
    TRIAL_SECONDS, TRIAL_CALLS, LOSS = 0.03, 3, 0.02
    SHORTEST_PAUSE = 0.05

    def __init__(self, counts: Sequence[int], always_first: bool = False) -> None:
        self.counts, self.always_first = list(counts), always_first
        # Seconds per step of each count's last calls.
        self.recent: dict[int, deque[float]] = {}
        # When each was tried last: the number of the trial.
        self.tried: dict[int, int] = {}
        # The count that is tried, or was last, and the one that it is held against.
        self.trial, self.base = 0, 0
        self.calls_left, self.lost, self.next_trial = 0, 0.0, 0.0

    def cost(self, count: int) -> float:
        """Seconds per step as far as is known."""
        return statistics.median(self.recent[count])

    @property
    def best(self) -> int:
        """The fastest count as far as is known."""
        return min(self.recent, key=self.cost)

    def next_call(self, seconds: float) -> tuple[int, int]:
        """Count and steps of the next call, which is to last about `seconds`, or far less if it is a trial."""
        if not self.recent:
            return self.counts[0], 1
        if not self.calls_left and len(self.counts) > 1:
            base = self.best
            trial = self._neighbour(base)
            new = trial not in self.recent
            if new or time.monotonic() >= self.next_trial:
                self.base, self.trial = base, trial
                self.tried[trial] = max(self.tried.values(), default=0) + 1
                # The first call of all only tells how long the others may be.
                self.calls_left, self.lost = self.TRIAL_CALLS + new, 0.0
        if self.calls_left:
            known = self.recent.get(self.trial)
            if not known:
                # It may be slower by any factor.
                return self.trial, 1
            steps = self.TRIAL_SECONDS / max(self.TRIAL_CALLS * self.cost(self.base), min(known))
            return self.trial, max(1, int(steps))
        best = self.best
        return best, max(1, int(seconds / self.cost(best)))

    def _neighbour(self, base: int) -> int:
        """What to try beside `base`: a count that was never tried, the larger first, or the one whose turn it is."""
        place = self.counts.index(base)
        neighbours = [*self.counts[place + 1 : place + 2], *self.counts[max(place - 1, 0) : place]]
        if self.always_first and place > 1:
            neighbours.append(self.counts[0])
        # Those that were tried, the one first whose last trial is the longest ago.
        return min(neighbours, key=lambda count: (count in self.recent, self.tried.get(count, 0)))

    def measured(self, count: int, steps: float, seconds: float) -> None:
        """What a call has taken."""
        if self.calls_left:
            self.lost += seconds - steps * self.cost(self.base)
            self.calls_left -= 1
            self.next_trial = time.monotonic() + max(self.SHORTEST_PAUSE, self.lost / self.LOSS)
        self.recent.setdefault(count, deque(maxlen=3)).append(seconds / steps)


class TeamSize(Trials):
    """How many threads decode: one, two, four and so on, or as many as are allowed.

    The threads meet dozens of times in a step. Small networks have work for few of them, and where other work has one
    of the cores, the scheduler may put two of them on the same core, where each meeting waits for a time slice: then
    one thread is faster by far. The codes do not depend on it.
    """

    def __init__(self, most: int) -> None:
        super().__init__(sorted({most, *(1 << power for power in range(most.bit_length()))}))
