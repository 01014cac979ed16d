"""Ctrl-C and SIGTERM: one line and the exit code of the signal. This is loaded before anything that takes time."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

Handler = Callable[[int, "FrameType | None"], None]
WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


class Interrupted(KeyboardInterrupt):
    """One of the signals; `exit_code` is the shell's for it."""

    def __init__(self, number: int, message: str | None = None) -> None:
        super().__init__(message or WORDS[signal.Signals(number)])
        self.exit_code = 128 + number


class Stopped(Exception):
    """The user stopped a command; `hint` says how to go on. For click, which prints an empty line before it lets a
    KeyboardInterrupt out."""

    def __init__(self, interrupt: KeyboardInterrupt, hint: str = "") -> None:
        super().__init__((str(interrupt) or WORDS[signal.SIGINT]) + hint)
        self.exit_code = interrupt.exit_code if isinstance(interrupt, Interrupted) else 130


def resume_command(folder: Path) -> str:
    """What goes on with the run in `folder`, for a shell."""
    path = str(folder)
    # A dash would begin an option.
    return f"fastjukebox resume {shlex.quote(f'./{path}' if path.startswith('-') else path)}"


def end_at_once(hint: Callable[[], str] = lambda: "", name: str = "fastjukebox: ") -> None:
    """From now on a stop ends the process with one line, from `name` to `hint()`: there is nothing to tidy up yet, and
    an exception that meets an import or PyTorch's C++ may get lost there, or abort the process."""

    def end(number: int, frame: FrameType | None) -> None:
        os.write(2, f"{name}{WORDS[signal.Signals(number)]}{hint()}\n".encode())
        os._exit(128 + number)

    on_stop(end)


def raise_when_stopped() -> None:
    """From now on a stop raises Interrupted."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number)

    raise_again_when_lost()
    on_stop(stop)


def raise_again_when_lost() -> None:
    """From now on a KeyboardInterrupt or SystemExit that Python reports and forgets, because the signal came during a
    callback of its own (of an import's lock, of an object that is freed), is raised again a moment later."""
    sys.unraisablehook = _raise_again


def _raise_again(lost: sys.UnraisableHookArgs) -> None:
    error = lost.exc_value
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not (isinstance(error, (KeyboardInterrupt, SystemExit)) and in_main_thread and hasattr(signal, "setitimer")):
        sys.__unraisablehook__(lost)
        return

    def again(number: int, frame: FrameType | None) -> None:
        raise error

    signal.signal(signal.SIGALRM, again)
    signal.setitimer(signal.ITIMER_REAL, 0.01)


def on_stop(handler: Handler) -> None:
    """From now on `handler` has the signals, but for those that the process is to ignore, as Ctrl-C in a shell's
    background commands. Python takes signals in the main thread only: in another one nothing changes."""
    for number in WORDS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            _set(number, handler)


@contextmanager
def own_handlers() -> Iterator[None]:
    """What is set inside ends here."""
    before = {number: handler for number in WORDS if (handler := signal.getsignal(number)) is not None}
    hook = sys.unraisablehook
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():
            _set(number, handler)


def _set(number: signal.Signals, handler: Handler | int | signal.Handlers) -> None:
    if threading.current_thread() is threading.main_thread():
        signal.signal(number, handler)
