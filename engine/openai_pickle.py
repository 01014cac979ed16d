"""Reads OpenAI's `.pth.tar` files: torch pickles, zip or legacy. Nothing in them is ever executed.

`torch.load(weights_only=True)` builds tensors and plain containers and refuses every other class or function. The few
others that such files hold (the settings' dict class, numpy's scalars and arrays) are read through the stand-ins below.
"""

from __future__ import annotations

import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy
import torch
from torch import Tensor

from .checkpoint import CheckpointError

# The legacy format begins with torch's magic number as a protocol 2 pickle.
_LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_ZIP_MAGIC = b"PK\x03\x04"


@dataclass
class Model:
    """The content of a model's file, without `module.` before the names; of a zip file the tensors are mapped, not
    read."""

    path: Path
    tensors: dict[str, Tensor]
    # The settings it was trained with; empty where the file has none.
    hps: dict[str, Any]


class _Dtype:
    """Stands in for `numpy.dtype`."""

    def __init__(self, code: str, *_: object) -> None:
        self.code, self.order = code, "="

    def __setstate__(self, state: tuple) -> None:
        self.order = str(state[1])


class _Array:
    """Stands in for `numpy.ndarray`; the content is dropped."""

    def __setstate__(self, state: tuple) -> None:
        pass


def _scalar(dtype: _Dtype, data: bytes) -> object:
    """Stands in for numpy's scalars: a Python number, or None for what is no number."""
    if not re.fullmatch(r"[biuf][1248]", dtype.code):
        return None
    return numpy.frombuffer(data, dtype.order + dtype.code)[0].item()


def _stand_in(path: str, build: Callable[..., object], base: type = object) -> type:
    """A class that pickles know as `path` and that makes what `build` returns."""
    module, _, name = path.rpartition(".")
    return type(name, (base,), {"__new__": lambda cls, *args: build(cls, *args), "__module__": module})


_STAND_INS: list[Callable | tuple[Callable, str]] = [
    _stand_in("jukebox.hparams.Hyperparams", lambda cls: OrderedDict()),
    _stand_in("numpy.dtype", lambda cls, *args: object.__new__(cls), _Dtype),
    _stand_in("numpy.ndarray", lambda cls, *args: object.__new__(cls), _Array),
]
for _module in ("numpy.core.multiarray", "numpy._core.multiarray"):
    _STAND_INS.append(_stand_in(f"{_module}.scalar", lambda cls, *args: _scalar(*args)))
    _STAND_INS.append(_stand_in(f"{_module}._reconstruct", lambda cls, array, *args: object.__new__(array)))


def read_model(path: Path) -> Model:
    """Raises CheckpointError where `path` is no complete torch file with a `model`."""
    content = load_file(path)
    model = content.get("model")
    if not isinstance(model, dict) or not model:
        hint = "; a run's codes? they are for `upsample` and `continue`" if "zs" in content else ""
        raise CheckpointError(f"{path}: has no `model`; it holds {_keys(content)}{hint}")
    for name, tensor in model.items():
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or not tensor.is_floating_point():
            kind = f"{tensor.dtype} tensor" if isinstance(tensor, Tensor) else type(tensor).__name__
            raise CheckpointError(f"{path}: `model` holds {name}, a {kind}; dense floating-point tensors are expected")
    hps = content.get("hps")
    tensors = {str(name).removeprefix("module."): tensor.detach() for name, tensor in model.items()}
    return Model(path, tensors, dict(hps) if isinstance(hps, dict) else {})


def load_codes(path: Path) -> list[Tensor | None]:
    """The codes [N, T] (int64) per level, 0 the finest, of a `level_K/data.pth.tar` that the original wrote.

    A level that was not sampled yet is empty, [N, 0]; None where the file holds None.

    Raises:
        CheckpointError: `path` is no complete torch file with such codes.
    """
    content = load_file(path)
    codes = content.get("zs")
    if not isinstance(codes, (list, tuple)) or not codes:
        hint = "; a model? give it to `convert`" if "model" in content else ""
        raise CheckpointError(f"{path}: has no list `zs` of codes per level; it holds {_keys(content)}{hint}")
    items = {len(z) for z in codes if isinstance(z, Tensor) and z.ndim == 2}
    for level, z in enumerate(codes):
        if z is None:
            continue
        if not isinstance(z, Tensor) or z.ndim != 2 or z.is_floating_point() or z.is_complex():
            what = f"{z.dtype} {tuple(z.shape)}" if isinstance(z, Tensor) else type(z).__name__
            raise CheckpointError(f"{path}: zs[{level}] is {what}, integer codes of shape (items, time) are expected")
        if len(items) > 1:
            shapes = ", ".join(str(tuple(z.shape)) for z in codes if isinstance(z, Tensor))
            raise CheckpointError(f"{path}: the levels of zs have different numbers of items: {shapes}")
    # Copies: a mapped tensor would change with the file.
    return [None if z is None else z.to(torch.int64, copy=True).contiguous() for z in codes]


def load_file(path: Path) -> dict[Any, Any]:
    """The dict that a torch file holds, of a zip file with its tensors mapped. Raises CheckpointError."""
    try:
        with path.open("rb") as file:
            head = file.read(len(_LEGACY_MAGIC))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: does not exist") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    if not head:
        raise CheckpointError(f"{path}: is empty; get the file again")
    mapped = head.startswith(_ZIP_MAGIC)
    if not mapped and head != _LEGACY_MAGIC[: len(head)]:
        raise CheckpointError(f"{path}: is not a file of torch.save")
    if mapped and not zipfile.is_zipfile(path):
        raise CheckpointError(f"{path}: is truncated or damaged (a zip archive without its end); get the file again")
    try:
        with torch.serialization.safe_globals(_STAND_INS):
            # A legacy file cannot be mapped: all of it, an `opt` too, is in memory for a while.
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except MemoryError:
        raise CheckpointError(f"{path}: does not fit into memory") from None
    # A damaged pickle can fail in any way.
    except Exception as error:
        raise CheckpointError(f"{path}: {_reason(error)}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, a dict is expected")
    return content


def _reason(error: Exception) -> str:
    if isinstance(error, UnpicklingError):
        if match := re.search(r"GLOBAL (\S+)", str(error)):
            return f"asks to run code when it is read ({match[1]}), which is refused; use only files that hold data"
        if "Can only" in str(error) or "unrecognized function" in str(error):
            return "holds objects that cannot be read without running code, which is refused"
    line = str(error).strip().partition("\n")[0][:200]
    return f"is truncated or damaged ({type(error).__name__}: {line}); get the file again"


def _keys(content: dict[Any, Any]) -> str:
    names = ", ".join(str(key) for key in list(content)[:6]) or "nothing"
    return names + (", ..." if len(content) > 6 else "")
