"""What a user gives to go on from: audio, or codes in any of the files that hold them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from .. import openai_pickle
from ..audio import read_audio
from ..jukebox import Jukebox
from ..labels import Labels
from ..runs import Run, load_codes
from ..vqvae import fingerprint
from .sharing import Share

# Endings of files that hold codes; other files are taken for audio.
CODES_SUFFIXES = (".safetensors", ".tar", ".pth", ".pt")


@dataclass(frozen=True)
class Given:
    """Codes to go on from, per level [items, n], the finest first, empty where there are none.

    heard: audio samples that these codes fill already at the level that is decoded. samples: the result's length in
    audio samples, where the codes decide it. text: what is given, for people.
    """

    codes: list[Tensor]
    heard: int
    samples: int | None
    text: str

    def of(self, share: Share) -> Given:
        """What a process has to go on from that samples some of the pieces; codes of one piece open all of them.
        Raises ValueError where other than all pieces are to be sampled."""
        pieces = max(map(len, self.codes))
        if pieces == 1:
            return self
        if pieces != share.pieces:
            raise ValueError(f"codes of {pieces} pieces are given: --samples {pieces}, or one of them by --item")
        return replace(self, codes=[tensor[share.first : share.stop] for tensor in self.codes])


def prompt(
    jukebox: Jukebox, source: Path, item: int | None, prompt_seconds: float | None, seconds: float, level: int
) -> Given:
    """The first `prompt_seconds` (None: all) of audio or codes, to be continued to `seconds`, decoded at `level`. Of
    codes of several pieces, `item` (None: all).

    Raises:
        ValueError: it cannot be read, or leaves nothing to sample.
    """
    if prompt_seconds is not None and not 0 < prompt_seconds < float("inf"):
        raise ValueError(f"--prompt-seconds must be above 0, not {prompt_seconds}")
    rate, vqvae = jukebox.sample_rate, jukebox.config.vqvae
    audio, codes = None, []
    cut = None if prompt_seconds is None else max(1, round(prompt_seconds * rate))
    if holds_codes(source):
        codes, samples = read_codes(source, jukebox, item)
        # Upper levels may reach beyond the audio; what was heard is the prompt.
        ends = [end for end in (cut, samples) if end is not None]
        if ends:
            unit = vqvae.samples_per_code(vqvae.levels - 1)
            end = -(-min(ends) // unit) * unit
            codes = [tensor[:, : end // vqvae.samples_per_code(k)] for k, tensor in enumerate(codes)]
        filled = [tensor.shape[1] * vqvae.samples_per_code(k) for k, tensor in enumerate(codes)]
        # What is asked for at a level that does not exist is refused with the other parameters.
        heard = filled[level] if 0 <= level < len(filled) else 0
        length = next((count for count in filled[max(level, 0) :] if count), 0)
        if not length and level < len(filled):
            held = ", ".join(str(k) for k, count in enumerate(filled) if count)
            raise ValueError(f"{_piece(source, item)} holds level {held}: none to go on from at --level {level}")
    elif item is not None:
        raise ValueError(f"--item is for codes of several pieces; {source} is taken for audio")
    else:
        audio = read_audio(source, rate)[:, :cut]
        heard = length = audio.shape[1]
    if length >= round(seconds * rate):
        raise ValueError(
            f"the prompt, {length / rate:.2f} s, leaves nothing to sample in {seconds:g} s: "
            "ask for more --seconds, or cut it with --prompt-seconds"
        )
    if audio is not None:
        codes = jukebox.encode(audio)
    return Given(codes, heard, None, f"{length / rate:.2f} s of {_piece(source, item)}")


def upper_codes(
    jukebox: Jukebox, source: Path, item: int | None, from_level: int | None, level: int, seconds: float | None
) -> Given:
    """The codes of `from_level` (None: the coarsest given) and above, for the levels from `level` to there to be
    sampled; of several pieces, `item` (None: all). Raises ValueError, also where they do not cover `seconds`."""
    vqvae = jukebox.config.vqvae
    codes, samples = read_codes(source, jukebox, item)
    held = [k for k, tensor in enumerate(codes) if tensor.shape[1]]
    holds = f"{_piece(source, item)} holds level {', '.join(map(str, held))}"
    keep = held[-1] if from_level is None else from_level
    if keep not in held:
        raise ValueError(f"--from-level {keep}: {holds}")
    if keep <= level:
        raise ValueError(f"level {keep} is kept and {level} is asked for, so nothing is left to sample; {holds}")
    covered = codes[keep].shape[1] * vqvae.samples_per_code(keep)
    if seconds is not None and round(seconds * jukebox.sample_rate) > covered:
        raise ValueError(
            f"level {keep} of {_piece(source, item)} covers {covered / jukebox.sample_rate:.3f} s, not {seconds:g} s: "
            "leave out --seconds, or make it longer with `fastjukebox continue`"
        )
    # A run that was stopped covers less than it was begun for.
    samples = covered if samples is None else min(samples, covered)
    kept = ", ".join(str(k) for k in held if k >= keep)
    codes = [tensor if k >= keep else tensor[:, :0] for k, tensor in enumerate(codes)]
    return Given(codes, 0, samples, f"level {kept} ({holds})")


def holds_codes(source: Path) -> bool:
    """A run directory or a file of codes, not of audio, by its name."""
    return source.is_dir() or source.suffix.lower() in CODES_SUFFIXES


def _piece(source: Path, item: int | None) -> str:
    return str(source) if item is None else f"piece {item} of {source}"


def own_model(source: Path) -> str:
    """The model to go on from `source` with, unless another is asked for: a run's own, else the demo. Raises
    ValueError (RunError) where it is a folder without a run, or the run's model is not where it was."""
    if not source.is_dir():
        return "demo"
    model = Run.open(source).request.model
    if not Path(model).is_dir():
        raise ValueError(f"{source} was made with the model in {model}, which is not there: --model says where it is")
    return model


def own_labels(source: Path) -> Labels | None:
    """What the run in `source` was told of its song; None where it is no run, or was told nothing."""
    return Run.open(source).request.params.labels if source.is_dir() else None


def read_codes(source: Path, jukebox: Jukebox, item: int | None = None) -> tuple[list[Tensor], int | None]:
    """Codes per level [items, n], the finest first, empty where there are none, of all pieces or of `item`; the audio
    samples they stand for where the source, a run, says so.

    source: a run directory, our .safetensors, or the original's data.pth.tar.

    Raises:
        ValueError (RunError, CheckpointError): it holds no codes, those of another VQ-VAE than the model's, not of as
            many levels, or no such piece.
    """
    samples, levels, vqvae = None, jukebox.config.vqvae.levels, fingerprint(jukebox.vqvae)
    codes: Sequence[Tensor | None]
    if source.is_dir():
        run = Run.open(source)
        codes, samples = run.load(vqvae), run.request.samples
    elif source.suffix.lower() == ".safetensors":
        codes = load_codes(source, vqvae)
    else:
        codes = openai_pickle.load_codes(source)
    if len(codes) != levels:
        raise ValueError(f"{source} has codes of {len(codes)} levels, the model has {levels}")
    if any(tensor is not None and tensor.dim() != 2 for tensor in codes):
        raise ValueError(f"{source}: codes must be [items, n] in every level")
    held = {level: tensor for level, tensor in enumerate(codes) if tensor is not None and tensor.numel()}
    if not held:
        raise ValueError(f"{source} holds no codes")
    items = max(map(len, held.values()))
    if any(len(tensor) < items for tensor in held.values()):
        told = ", ".join(f"{len(tensor)} at level {level}" for level, tensor in held.items())
        raise ValueError(f"{source} has codes of different numbers of pieces: {told}")
    if item is not None and not 0 <= item < items:
        raise ValueError(f"--item {item}: {source} holds the pieces 0 to {items - 1}")
    empty = torch.zeros(items, 0, dtype=torch.long, device="cpu")
    found = [held.get(level, empty) for level in range(levels)]
    return found if item is None else [tensor[item : item + 1] for tensor in found], samples
