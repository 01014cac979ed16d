"""A trained model that a work folder takes its VQ-VAE and its teacher from, in place of training its own: one of
OpenAI's after `fastjukebox convert`, or any other stack that the engine serves."""

from __future__ import annotations

import dataclasses
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ..engine import checkpoint
from ..engine.config import JukeboxConfig
from ..engine.prior import Prior
from ..engine.vqvae import VQVAE
from .code_store import CodeStore
from .presets import Preset
from .systems import TEACHER, system
from .told import Told


class GivenTeacher:
    """The model in `folder`; `expected`: the fingerprint that its weights must have.

    Raises:
        CheckpointError: there is no model.
    """

    def __init__(self, folder: Path, expected: str | None = None) -> None:
        self.folder = folder.resolve()
        self.config: JukeboxConfig = checkpoint.load_config(self.folder)
        self._expected = expected
        self._loaded: tuple[int, Prior] | None = None

    @cached_property
    def fingerprint(self) -> str:
        """Of all its files.

        Raises:
            ValueError: it is not the one that is expected.
        """
        found = checkpoint.fingerprint(self.folder)
        if self._expected not in (None, found):
            raise ValueError(
                f"{self.folder} is not the model that was distilled here before; put that back, tell where it is now "
                "(--teacher), or choose another work folder"
            )
        return found

    def recorded(self) -> dict[str, Any]:
        """What preset.json keeps of it, for good: so nothing may be missing. Raises ValueError."""
        if missing := [path for path in self._files if not path.exists()]:
            raise ValueError(f"the teacher is not complete: {missing[0]} does not exist")
        return {"folder": str(self.folder), "fingerprint": self.fingerprint}

    def fitted(self, preset: Preset) -> Preset:
        """`preset` with the sizes of this model. Raises ValueError."""
        levels = len(self.config.priors)
        if levels != len(preset.epochs) or levels != self.config.vqvae.levels:
            raise ValueError(f"{self.folder} has {levels} priors, presets are for {len(preset.epochs)} levels")
        return dataclasses.replace(
            preset,
            config=self.config,
            # No crop is taken, but settings are checked together.
            crop=-(-preset.crop // (unit := self.config.vqvae.samples_per_code(levels - 1))) * unit,
            # Its own depth, and nothing that it would grow from.
            depths={layers: depth for layers, depth in preset.depths.items() if layers != system(TEACHER).layers},
            epochs=tuple(dataclasses.replace(epochs, shallow=0.0) for epochs in preset.epochs),
        )

    def vqvae(self) -> VQVAE:
        self._check()
        return checkpoint.load_vqvae(self.folder)

    def prior(self, level: int, device: torch.device) -> Prior:
        """In FP32; the last one is kept."""
        if self._loaded is None or self._loaded[0] != level:
            self._check()
            # Not two at a time.
            self._loaded = None
            self._loaded = level, checkpoint.load_prior(self.folder, level, device)
        return self._loaded[1]

    def told(self, level: int, device: torch.device, store: CodeStore) -> Told | None:
        """What its prior of a level is told of the songs of `store`; None where it takes no labels."""
        if self.config.priors[level].labels is None:
            return None
        names = [checkpoint.load_names(self.folder, prior.level) for prior in self.config.priors]
        return Told(self.prior(level, device), self.config, names, store)

    def copy(self, name: str, path: Path) -> None:
        """Write the network of its file `name` to another file, as it is stored: in another dtype it would be another
        one."""
        self._check()
        checkpoint.copy_network(self.folder, name, path)

    def copy_names(self, folder: Path) -> None:
        """Write the names of its artists and genres to another folder, which has no others then."""
        for prior in self.config.priors:
            if names := checkpoint.load_names(self.folder, prior.level):
                checkpoint.save_names(folder, prior.level, names)
            else:
                (folder / checkpoint.names_file(prior.level)).unlink(missing_ok=True)

    @property
    def folders(self) -> set[Path]:
        """Where its files lie: it may have some in its base."""
        return {self.folder}.union(*({path.parent.resolve(), path.resolve().parent} for path in self._files))

    @property
    def _files(self) -> list[Path]:
        names = checkpoint.network_files(self.config)
        return [path for name in names for path in checkpoint.network_paths(self.folder, name)]

    def _check(self) -> None:
        """Raises ValueError where it is another model: finding its fingerprint compares it."""
        _ = self.fingerprint
