"""Sampling from Jukebox-style models: see `Jukebox`."""

from .audio import AudioError
from .checkpoint import CheckpointError
from .config import JukeboxConfig, PriorConfig, VQVAEConfig
from .jukebox import Jukebox, Result
from .prior import Prior
from .runs import RunError
from .sampler import Progress, SamplingParams
from .vqvae import VQVAE

__all__ = [
    "VQVAE",
    "AudioError",
    "CheckpointError",
    "Jukebox",
    "JukeboxConfig",
    "Prior",
    "PriorConfig",
    "Progress",
    "Result",
    "RunError",
    "SamplingParams",
    "VQVAEConfig",
]
