"""A run directory: the request and the codes so far, saved atomically after windows, so that a killed run goes on to
the same result. What is done follows from the number of codes; there is no other state.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import math
import os
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .labels import Labels
from .sampler import SamplingParams
from .stopping import resume_command
from .whole_file import whole_file

FORMAT = 1
# A run is saved again only after this many times as long as the last save took: in a long run, where saves get longer,
# they take a twentieth of the time at most.
SAVES_APART = 20
_OWN_FILES = {"codes.safetensors", ".codes.safetensors.new", ".request.json.new"}


class RunError(ValueError):
    """A run directory that cannot be made, read or continued; the message says what to do."""


@dataclass(frozen=True)
class Request:
    """All that decides the bytes of a result. `samples` is the length of the audio, `model` the folder it came from,
    `fingerprint` the identity of its weights and `vqvae` that of its VQ-VAE."""

    params: SamplingParams
    samples: int
    model: str
    fingerprint: str
    backend: str
    device: str
    dtype: str
    output: str | None = None
    vqvae: str | None = None
    format: int = FORMAT


class Run:
    """A directory with `request.json` and `codes.safetensors`."""

    def __init__(self, folder: Path, request: Request) -> None:
        self.folder, self.request = folder, request
        # When the last save ended, and how long it took.
        self._saved, self._took = -math.inf, 0.0
        self._release: Callable[[], object] = lambda: None

    @classmethod
    def create(cls, folder: Path, request: Request, codes: Sequence[Tensor], overwrite: bool = False) -> Run:
        """Make the directory with the codes that are known from the start, and `acquire` it. Raises RunError where one
        stands already, or what is no run; one that is to be replaced is still there if the new one cannot be made."""
        run = cls(folder, request)
        text = json.dumps(dataclasses.asdict(request), indent=2) + "\n"
        if (folder / "request.json").exists() and not overwrite:
            raise RunError(
                f"{folder} holds a run already; go on with `{resume_command(folder)}`, "
                "or remove it, or choose another directory"
            )
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # A run that was killed while it was made has no request yet.
            if not (folder / "request.json").exists() and set(os.listdir(folder)) - _OWN_FILES:
                raise RunError(f"{folder} holds other files and no run: choose a new or empty folder for the run")
            run.acquire()
            new_codes = run._written("codes.safetensors", lambda path: save_codes(path, codes, request.vqvae))
            new_request = run._written("request.json", lambda path: path.write_text(text))
            # An old run's codes must not be taken for the new request's: that goes first, and this comes last.
            (folder / "request.json").unlink(missing_ok=True)
            run._replace("codes.safetensors", new_codes)
            run._replace("request.json", new_request)
        except (OSError, SafetensorError) as error:
            raise RunError(f"cannot make the run directory {folder}: {_reason(error)}") from None
        return run

    @classmethod
    def open(cls, folder: Path) -> Run:
        """Raises RunError where `folder` holds no run, or a damaged one."""
        path = folder / "request.json"
        try:
            values = json.loads(path.read_text())
            if values["format"] != FORMAT:
                raise RunError(f"{path} has format {values['format']}; this version reads format {FORMAT}")
            params = values.pop("params")
            if (labels := params.pop("labels", None)) is not None:
                labels = Labels.from_json(dict(labels))
            request = Request(params=SamplingParams(**params, labels=labels), **values)
            words = (request.model, request.fingerprint, request.backend, request.device, request.dtype)
            whole = isinstance(request.samples, int) and not isinstance(request.samples, bool)
            if not whole or not 0 < request.samples < 2**40 or not all(isinstance(word, str) for word in words):
                raise ValueError("its values are not those of a request")
            if not all(isinstance(word, (str, NoneType)) for word in (request.output, request.vqvae)):
                raise ValueError("its values are not those of a request")
        except FileNotFoundError:
            raise RunError(f"{folder} holds no run: there is no request.json in it") from None
        except RunError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OSError) as error:
            raise RunError(f"{path} cannot be read: {error}") from None
        return cls(folder, request)

    @classmethod
    def reopen(cls, folder: Path) -> Run:
        """`open` and `acquire`, to go on with the run."""
        run = cls.open(folder)
        run.acquire()
        try:
            # Until then another process may have replaced it.
            run.request = cls.open(folder).request
        except BaseException:
            run.release()
            raise
        return run

    def load(self, vqvae: str | None = None) -> list[Tensor]:
        """The codes so far, per level [items, n], the finest level first; see `load_codes`."""
        return load_codes(self.folder / "codes.safetensors", vqvae)

    def save(self, codes: Sequence[Tensor]) -> None:
        """Replace the codes on disk; after a crash or a full disk the old or the new ones are there, whole."""
        began = time.monotonic()
        try:
            new = self._written("codes.safetensors", lambda path: save_codes(path, codes, self.request.vqvae))
            self._replace("codes.safetensors", new)
        except (OSError, SafetensorError) as error:
            raise RunError(
                f"cannot save to {self.folder}: {_reason(error)}; what was saved before is valid: mend that and run "
                f"`{resume_command(self.folder)}`"
            ) from None
        self._saved = time.monotonic()
        self._took = self._saved - began

    @property
    def is_due(self) -> bool:
        """Whether it is time to save again. Each save writes all codes: after every window, the writes of a long run
        would grow with the square of its length."""
        return time.monotonic() - self._saved >= SAVES_APART * self._took

    def acquire(self) -> None:
        """Keep others from working on this run until `release`, or until this process ends. Raises RunError where
        another is at work on it."""
        folder = os.open(self.folder, os.O_RDONLY)
        close = weakref.finalize(self, _unlock, folder, os.getpid())
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            close()
            raise RunError(f"{self.folder} is being worked on already: wait for that, or stop it") from None
        except OSError:
            # A file system without locks.
            close()
        self._release = close

    def release(self) -> None:
        self._release()

    def _written(self, name: str, write: Callable[[Path], object]) -> Path:
        """A file to take the place of `name` by `_replace`, safely on disk."""
        temporary = self.folder / f".{name}.new"
        try:
            write(temporary)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return temporary

    def _replace(self, name: str, new: Path) -> None:
        try:
            os.replace(new, self.folder / name)
        except OSError:
            new.unlink(missing_ok=True)
            raise
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _unlock(folder: int, process: int) -> None:
    # A process that was forked meanwhile has the lock as well, and neither keeps it nor ends it for its parent.
    if os.getpid() == process:
        with contextlib.suppress(OSError):
            fcntl.flock(folder, fcntl.LOCK_UN)
    os.close(folder)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def save_codes(path: Path, codes: Sequence[Tensor], vqvae: str | None = None) -> None:
    """Write codes, per level [items, n], to a safetensors file of int32 tensors level_0, level_1, ..., and with them
    the fingerprint of the VQ-VAE whose codes they are."""
    tensors = {f"level_{level}": tensor.to(torch.int32).contiguous() for level, tensor in enumerate(codes)}
    # A file that safetensors makes is for its owner alone, whatever the umask.
    path.write_bytes(save(tensors, {"vqvae": vqvae} if vqvae else None))


def write_codes(path: Path, codes: Sequence[Tensor], vqvae: str | None = None) -> None:
    """`save_codes`, but the file appears whole or not at all. Raises RunError."""
    try:
        with whole_file(path) as part:
            save_codes(part, codes, vqvae)
    except (OSError, SafetensorError) as error:
        raise RunError(f"cannot write {path}: {_reason(error)}") from None


def load_codes(path: Path, vqvae: str | None = None) -> list[Tensor]:
    """What `save_codes` wrote, as int64. vqvae: the fingerprint of the VQ-VAE that they are meant for; files that do
    not say whose their codes are pass. Raises RunError."""
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            codes = [file.get_tensor(f"level_{level}") for level in range(len(names))]
            made_by = (file.metadata() or {}).get("vqvae")
    except FileNotFoundError:
        raise RunError(f"{path} does not exist") from None
    except (SafetensorError, KeyError, OSError) as error:
        raise RunError(f"{path} holds no codes: {error}") from None
    for level, tensor in enumerate(codes):
        inexact = tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool
        if tensor.dim() != 2 or inexact:
            kind = f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
            raise RunError(f"{path} holds no codes: level_{level} is {kind}, not whole numbers [items, n]")
    if vqvae and made_by and made_by != vqvae:
        raise RunError(f"{path} holds codes of another VQ-VAE: --model must name a model with the one that made them")
    return [tensor.long() for tensor in codes]
