"""Sampling from Jukebox-style models: see `Jukebox`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    __version__: str
    from .audio import AudioError
    from .checkpoint import CheckpointError
    from .config import JukeboxConfig, PriorConfig, VQVAEConfig
    from .jukebox import Jukebox
    from .labels import Labels
    from .prior import Prior
    from .progress import Progress
    from .result import Result
    from .runs import RunError
    from .sampler import SamplingParams
    from .vqvae import VQVAE

__all__ = [
    "VQVAE",
    "AudioError",
    "CheckpointError",
    "Jukebox",
    "JukeboxConfig",
    "Labels",
    "Prior",
    "PriorConfig",
    "Progress",
    "Result",
    "RunError",
    "SamplingParams",
    "VQVAEConfig",
    "__version__",
]

_MODULES = {
    "VQVAE": "vqvae",
    "AudioError": "audio",
    "CheckpointError": "checkpoint",
    "Jukebox": "jukebox",
    "JukeboxConfig": "config",
    "Labels": "labels",
    "Prior": "prior",
    "PriorConfig": "config",
    "Progress": "progress",
    "Result": "result",
    "RunError": "runs",
    "SamplingParams": "sampler",
    "VQVAEConfig": "config",
}


def version() -> str:
    """The installed version; in a checkout that is not installed, "not installed"."""
    from importlib import metadata

    try:
        return metadata.version("fastjukebox")
    except metadata.PackageNotFoundError:
        return "not installed"


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> object:
    if name == "__version__":
        return version()
    # On first use: torch takes seconds to import, which `fastjukebox --help` should not wait for.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
