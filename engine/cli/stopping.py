"""Ctrl-C and SIGTERM. This is loaded before anything that takes time."""

from __future__ import annotations

import os
import shlex
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


class Terminated(KeyboardInterrupt):
    """SIGTERM, treated like Ctrl-C."""


class Stopped(Exception):
    """The user stopped a command; the message says how to go on."""

    def __init__(self, interrupt: KeyboardInterrupt, run: Path | None) -> None:
        number = signal.SIGTERM if isinstance(interrupt, Terminated) else signal.SIGINT
        super().__init__(WORDS[number] + (go_on_hint(run) if run else ""))
        self.exit_code = 128 + number


def go_on_hint(run: Path) -> str:
    return f"; go on with: fastjukebox resume {shlex.quote(str(run))}"


def end_at_once(hint: Callable[[], str] = lambda: "") -> None:
    """From now on a stop ends the process with one line, `hint()` at its end: there is nothing to tidy up yet, and an
    exception that meets an import or PyTorch's C++ may get lost there, or abort the process."""

    def end(number: int, frame: FrameType | None) -> None:
        os.write(2, f"fastjukebox: {WORDS[signal.Signals(number)]}{hint()}\n".encode())
        os._exit(128 + number)

    _on_stop(end)


def raise_when_stopped() -> None:
    """From now on a stop is a KeyboardInterrupt."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Terminated if number == signal.SIGTERM else KeyboardInterrupt

    _on_stop(stop)


@contextmanager
def own_handlers() -> Iterator[None]:
    """What is set inside ends here."""
    before = {number: handler for number in WORDS if (handler := signal.getsignal(number)) is not None}
    try:
        yield
    finally:
        for number, handler in before.items():
            _set(number, handler)


def _on_stop(handler: Callable[[int, FrameType | None], None]) -> None:
    for number in WORDS:
        # A shell's background commands ignore Ctrl-C.
        if signal.getsignal(number) is not signal.SIG_IGN:
            _set(number, handler)


def _set(number: signal.Signals, handler: object) -> None:
    # Python takes signals in the main thread only.
    if threading.current_thread() is threading.main_thread():
        signal.signal(number, handler)  # pyright: ignore[reportArgumentType]
