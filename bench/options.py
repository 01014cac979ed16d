"""What the scripts' options may be; what they may not be is said in a line, before anything is measured."""

from __future__ import annotations

import argparse
import math
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from ..engine.decoder import BACKENDS
from ..engine.threads import allowed_threads, granted_cores


def positive(text: str) -> int:
    """A whole number above zero."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above zero")
    return int(text)


def cores() -> int:
    """That this process may keep busy."""
    return granted_cores() or os.cpu_count() or 1


def threads(text: str) -> int:
    """Of the CPU: no more than the cores that a container may keep busy."""
    try:
        return allowed_threads(positive(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def amount(text: str) -> float:
    """A number above zero, and no infinite one."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number above zero")
    return value


def device(text: str) -> str:
    """A device that is here."""
    try:
        found = torch.device(text)
    except RuntimeError:
        found = None
    if found is None or found.type not in ("cpu", "cuda"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither cpu nor cuda")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise argparse.ArgumentTypeError(f"PyTorch finds no {text} here")
    return text


def appendable(text: str) -> Path:
    """A file that can be appended to; its folder is made."""
    path = Path(text)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            path.open("a").close()
        else:
            # Not the file itself: it is there with its first record.
            tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text} cannot be written: {error.strerror}") from None
    return path


def decoder(text: str) -> str:
    """A decoder's name, whether it can run here or not."""
    known = ["auto", "auto-int8", *(backend.name for backend in BACKENDS)]
    if text not in known:
        raise argparse.ArgumentTypeError(f"no decoder {text!r}; there are {', '.join(known)}")
    return text


def refuse(parser: argparse.ArgumentParser, words: Iterable[object], check: Callable[[str], object]) -> None:
    """End with an error of the parser where `check` raises for a word."""
    try:
        for word in words:
            check(str(word))
    except (ValueError, argparse.ArgumentTypeError) as error:
        parser.error(str(error))
