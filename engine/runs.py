"""A run directory: the request and the codes so far, saved atomically after each window, so that a killed run goes on
to the same result. What is done follows from the number of codes; there is no other state.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from .sampler import SamplingParams

FORMAT = 1


class RunError(ValueError):
    """A run directory that cannot be made, read or continued; the message says what to do."""


@dataclass(frozen=True)
class Request:
    """All that decides the bytes of a result. `samples` is the length of the audio, `model` the folder it came from and
    `fingerprint` the identity of its weights."""

    params: SamplingParams
    samples: int
    model: str
    fingerprint: str
    backend: str
    device: str
    dtype: str
    output: str | None = None
    format: int = FORMAT


class Run:
    """A directory with `request.json` and `codes.safetensors`."""

    def __init__(self, folder: Path, request: Request) -> None:
        self.folder, self.request = folder, request

    @classmethod
    def create(cls, folder: Path, request: Request, codes: Sequence[Tensor], overwrite: bool = False) -> Run:
        """Make the directory with the codes that are known from the start. Raises RunError where one stands already."""
        run = cls(folder, request)
        if (folder / "request.json").exists() and not overwrite:
            raise RunError(
                f"{folder} holds a run already; go on with `fastjukebox resume {folder}`, "
                "or remove it, or choose another directory"
            )
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # An old run's codes must not be taken for the new request's: that goes first, and this comes last.
            (folder / "request.json").unlink(missing_ok=True)
        except OSError as error:
            raise RunError(f"cannot make the run directory {folder}: {error.strerror}") from None
        run.save(codes)
        text = json.dumps(dataclasses.asdict(request), indent=2) + "\n"
        run._write("request.json", lambda path: path.write_text(text))
        return run

    @classmethod
    def open(cls, folder: Path) -> Run:
        """Raises RunError where `folder` holds no run, or a damaged one."""
        path = folder / "request.json"
        try:
            values = json.loads(path.read_text())
            if values["format"] != FORMAT:
                raise RunError(f"{path} has format {values['format']}; this version reads format {FORMAT}")
            request = Request(params=SamplingParams(**values.pop("params")), **values)
        except FileNotFoundError:
            raise RunError(f"{folder} holds no run: there is no request.json in it") from None
        except RunError:
            raise
        except (ValueError, TypeError, KeyError, OSError) as error:
            raise RunError(f"{path} cannot be read: {error}") from None
        return cls(folder, request)

    def load(self) -> list[Tensor]:
        """The codes so far, per level [items, n], the finest level first."""
        return load_codes(self.folder / "codes.safetensors")

    def save(self, codes: Sequence[Tensor]) -> None:
        """Replace the codes on disk; after a crash or a full disk the old or the new ones are there, whole."""
        self._write("codes.safetensors", lambda path: save_codes(path, codes))

    def _write(self, name: str, write: Callable[[Path], object]) -> None:
        path = self.folder / name
        temporary = self.folder / f".{name}.new"
        try:
            write(temporary)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
            folder = os.open(self.folder, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except (OSError, SafetensorError) as error:
            temporary.unlink(missing_ok=True)
            raise RunError(
                f"cannot save to {self.folder}: {getattr(error, 'strerror', None) or error}; what was saved before is "
                f"valid: mend that and run `fastjukebox resume {self.folder}`"
            ) from None


def save_codes(path: Path, codes: Sequence[Tensor]) -> None:
    """Write codes, per level [items, n], to a safetensors file of int32 tensors level_0, level_1, ..."""
    save_file({f"level_{level}": tensor.to(torch.int32).contiguous() for level, tensor in enumerate(codes)}, path)


def write_codes(path: Path, codes: Sequence[Tensor]) -> None:
    """`save_codes`, but the file appears whole or not at all. Raises RunError."""
    temporary = path.with_name(f".{path.name}.new")
    try:
        save_codes(temporary, codes)
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise RunError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from None
    finally:
        temporary.unlink(missing_ok=True)


def load_codes(path: Path) -> list[Tensor]:
    """What `save_codes` wrote, as int64. Raises RunError."""
    try:
        tensors = load_file(path)
        return [tensors[f"level_{level}"].long() for level in range(len(tensors))]
    except FileNotFoundError:
        raise RunError(f"{path} does not exist") from None
    except (SafetensorError, KeyError, OSError) as error:
        raise RunError(f"{path} holds no codes: {error}") from None
