"""A trained system as a checkpoint folder that the engine loads."""

from __future__ import annotations

import filecmp
import os
import tempfile
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path

from safetensors import SafetensorError

from ..engine import checkpoint
from ..engine.config import JukeboxConfig
from .run_folder import not_written
from .systems import TEACHER, system
from .work import Work

# Writes a network to a file; with a base, without what that holds already.
Writer = Callable[[Path, Path | None], object]


def export(
    work: Work,
    name: str,
    out: Path,
    base: Path | None = None,
    own: Collection[int] | None = None,
    overwrite: bool = False,
) -> None:
    """Write a system's stack as a checkpoint folder (FP16 safetensors); with `base`, another such folder, only the
    files and tensors that differ from its. `own` as for `Work.source`. Priors of a teacher that was given are copied as
    they are. What is in `out` beside stays.

    `out` holds no checkpoint, or the one that it held, until the new one is whole.

    Raises:
        NotTrained: a prior of it is not done.
        StoreError: the codes that priors were trained on are another VQ-VAE's.
        ValueError: `out` holds a checkpoint already, and is not to be overwritten, or cannot be written to.
        OSError: there is no room for it.
    """
    if work.teacher and out.resolve() in work.teacher.folders:
        raise ValueError(f"{out} holds the teacher, which is not to be overwritten: give another --out")
    config_file, files = checkpoint.CONFIG_FILE, checkpoint.network_files(work.preset.config)
    if not overwrite and (held := [file for file in (config_file, *files) if (out / file).exists()]):
        raise ValueError(f"{out / held[0]} exists; give another --out, or --overwrite to replace the checkpoint")
    if base and out.exists() and base.samefile(out):
        raise ValueError(f"--base {base} is what is written: give another folder")
    sources = {level: work.source(name, level, own) for level in sorted(work.levels)}
    if name not in sources.values():
        work.check((name, max(own or work.levels)))
    work.check(*(("vqvae", level) for level in work.levels), *((source, level) for level, source in sources.items()))
    work.check_codes()
    writers: dict[str, Writer] = {checkpoint.VQVAE_FILE: partial(_write_vqvae, work)}
    for level, source in sources.items():
        writers[checkpoint.prior_file(level)] = partial(_write_prior, work, source, level)
    priors = tuple(work.preset.prior_config(system(source), level) for level, source in sources.items())
    config = JukeboxConfig(work.preset.config.vqvae, priors)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=out) as whole:
        for file, write in writers.items():
            new, theirs = Path(whole) / file, base / file if base else None
            try:
                write(new, None)
                if theirs and theirs.exists() and not filecmp.cmp(theirs, new, shallow=False):
                    write(new, theirs)
            except (OSError, SafetensorError) as error:
                raise OSError(not_written(out / file, error)) from None
        # Without its config a folder is no checkpoint.
        (out / config_file).unlink(missing_ok=True)
        for file in writers:
            new = Path(whole) / file
            if base and (base / file).exists() and filecmp.cmp(base / file, new, shallow=False):
                (out / file).unlink(missing_ok=True)
            else:
                os.replace(new, out / file)
    if work.teacher:
        work.teacher.copy_names(out)
    checkpoint.save_config(out, config, os.path.relpath(base, out) if base else None)


def _write_vqvae(work: Work, new: Path, base: Path | None) -> None:
    if work.teacher:
        work.teacher.copy(checkpoint.VQVAE_FILE, new)
    else:
        checkpoint.save_network(new, work.vqvae(work.levels), base=base)


def _write_prior(work: Work, source: str, level: int, new: Path, base: Path | None) -> None:
    if work.teacher and source == TEACHER:
        work.teacher.copy(checkpoint.prior_file(level), new)
    else:
        checkpoint.save_network(new, work.prior(source, level), base=base)
