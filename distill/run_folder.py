"""What a run's folder holds: the state to go on from, the figures that say it is done, and what it was begun with.

Each file is whole or not there. Nothing in them is executed when they are read.
"""

from __future__ import annotations

import contextlib
import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from ..engine.memory import is_out_of_memory
from ..engine.whole_file import whole_file

STATE, FIGURES = "state.pt", "figures.json"


class RunError(ValueError):
    """A file of a run that cannot be used; the message names it and says what to do."""


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """All or nothing. Raises RunError, with what was there as it was."""
    with whole(path) as part:
        torch.save(dict(state), part)


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """`whole_file`. Raises RunError where there is no room, or no right to write."""
    try:
        with whole_file(path) as part:
            yield part
    # PyTorch and soundfile have kinds of their own for a full disk.
    except (OSError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        raise RunError(not_written(path, error)) from None


def not_written(path: Path, error: Exception) -> str:
    """For people; nothing but `path` is lost."""
    reason = getattr(error, "strerror", None) or _short(error)
    return f"{path} cannot be written ({reason}); what was saved before is kept: make room and run the command again"


def read_state(path: Path) -> dict[str, Any]:
    """What `write_state` wrote, on the CPU; every byte is checked. Raises RunError."""
    try:
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():
                raise RunError(f"{path} is damaged (in {damaged}); {_way_out(path)}")
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict):
            raise RunError(f"{path} holds no state of a run; {_way_out(path)}")
        return state
    except FileNotFoundError:
        raise RunError(f"{path} is missing; {_way_out(path)}") from None
    except (RunError, PermissionError):
        raise
    # PyTorch and zipfile raise many kinds for a file that was cut short or is something else.
    except Exception as error:
        raise RunError(f"{path} is damaged or no state of a run ({_short(error)}); {_way_out(path)}") from None


def unfit(path: Path, error: Exception) -> RunError:
    """The error for a state that is whole but of another network."""
    return RunError(f"{path} does not fit this run ({_short(error, path)}); {_way_out(path)}")


def _way_out(path: Path) -> str:
    return f"put a good copy in its place, or move {path.parent} away to train this run anew"


def _short(error: Exception, path: Path | None = None) -> str:
    """One line of at most 120 characters, without `path`."""
    line = " ".join(f"{type(error).__name__}: {str(error).removeprefix(f'{path}: ')}".split())
    return line if len(line) <= 120 else line[:117] + "..."


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """All or nothing, as `write_state`."""
    with whole(path) as part:
        part.write_text(json.dumps(values, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """What `write_json` wrote, None where there is nothing. Raises RunError."""
    try:
        values = json.loads(path.read_text())
        if not isinstance(values, dict):
            raise ValueError("no JSON object")
        return values
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise RunError(f"{path} is damaged ({_short(error)}); {_way_out(path)}") from None


def check_same(path: Path, made_with: Mapping[str, Any]) -> None:
    """Raises ValueError where `path` says that its folder was begun with something else."""
    found = read_json(path)
    if found is None:
        return
    # As JSON has it, where tuples are lists.
    for name, value in json.loads(json.dumps(made_with)).items():
        if found.get(name) != value:
            raise ValueError(
                f"{path.parent} was begun with {name} {found.get(name)!r}, not {value!r}: go on with the same, "
                "or choose another folder"
            )


def record(path: Path, made_with: Mapping[str, Any]) -> None:
    """Note in `path` what its folder is begun with, or check it: `check_same`."""
    check_same(path, made_with)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, made_with)


def write_figures(folder: Path, figures: Mapping[str, Any]) -> None:
    """A run whose figures exist is done."""
    write_json(folder / FIGURES, figures)


def read_figures(folder: Path) -> dict[str, Any] | None:
    """The figures of a finished run, or None. Raises RunError."""
    return read_json(folder / FIGURES)
