"""Ctrl-C and SIGTERM: one line, the exit code of the signal, and nothing that was saved is lost.

While PyTorch is loaded a signal ends the process at once: an exception inside an import may come out as another one.
Then it is an exception, and within a training loop a note that is looked at between steps.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
Handler = Callable[[int, "FrameType | None"], None]


class Interrupted(KeyboardInterrupt):
    """A signal; `exit_code` is the shell's for it."""

    def __init__(self, number: int, message: str | None = None) -> None:
        word = "terminated" if number == signal.SIGTERM else "interrupted"
        super().__init__(message or f"{word}; run the same command again to go on")
        self.exit_code = 128 + number


class Stopped(Exception):
    """`Interrupted` for click, which would print an empty line before it."""

    def __init__(self, interrupt: KeyboardInterrupt) -> None:
        super().__init__(str(interrupt))
        self.exit_code = interrupt.exit_code if isinstance(interrupt, Interrupted) else 130


@contextmanager
def handled(handler: Handler) -> Iterator[None]:
    """Let `handler` have the signals, but for those that the process was told to ignore. Outside the main thread, where
    Python takes no signals, they stay as they are."""
    before = {}
    try:
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, handler)
    except ValueError:
        pass
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def leave(number: int, frame: FrameType | None) -> None:
    """End the process at once."""
    os.write(2, f"{Interrupted(number)}\n".encode())
    os._exit(128 + number)


def interrupt(number: int, frame: FrameType | None) -> None:
    """Raises Interrupted."""
    raise Interrupted(number)


class Noted:
    """A handler that remembers the signal."""

    def __init__(self) -> None:
        self.number: int | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.number = number
